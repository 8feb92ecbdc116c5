"""Which waiting request gets which session, and what is to be opened and closed: decided here, done elsewhere.

Theory of operation. A `Member` is a place: NEVER = float("inf")
NOT_JUDGED = Verdict(False, "not judged")

OPENING, LEASED, IDLE or CLOSING. It counts against the limits from the
decision to open it until its socket is gone, so that a server never sees more connections than the limits say. A
`Request` waits in the queue of its destination, first come first served, fresh ones at the head. Each change calls
for assignment:

1. A session that serves a request (equal key, requirement met, capabilities sufficient) is granted to it; a freed
   one goes to whoever has waited longest of all whom it serves, of whatever destination.
2. Else, where the limits leave a place, the best endpoint is opened for the request that is neither avoided nor
   left alone; at a limit, the idle session longest unused within that limit makes room.
3. Else it waits: for a release, an end, or the end of its patience, whose error carries the last real one.

An opened session is offered to the queue in its order, not to the request that it was opened for. When an opening
fails, its request tries the next endpoint; when none is left it fails, unless others of its destination are at work,
whose sessions it may wait for.

The pool does no I/O; what is to be done comes back as actions, to be carried out in their order.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Protocol

import attrs

from mailcache.destination import Destination, Endpoint, SessionKey
from mailcache.limits import Limits
from mailcache.message import NO_NEEDS, Needs
from mailcache.result import DeliveryError
from mailcache.routing.health import Health
from mailcache.routing.route import Hop, Route
from mailcache.trust.evidence import Evidence
from mailcache.trust.judge import Verdict, judge
from mailcache.trust.policy import Requirement
from mailcache.wire.capabilities import Capabilities

MAX_ADDRESSES = 5
"""Endpoints tried for one request (Postfix smtp_mx_address_limit)."""

MAX_ROUTES = 10_000
"""Routes remembered, the oldest forgotten first: some kilobytes each, and a look-up brings one back."""

MAX_VERDICTS = 1_000
"""Verdicts remembered for one session: a large provider's MX serves many domains."""

AGE_SPREAD = 0.2
"""By what part ages differ, so that sessions opened together do not end together."""

NEVER = float("inf")
NOT_JUDGED = Verdict(False, "not judged")

OPENING, LEASED, IDLE, CLOSING = "opening", "leased", "idle", "closing"

_OF_THE_ENDPOINT = frozenset(("connect", "greeting", "ehlo"))
"""Phases whose failure says something of the endpoint for everybody; others depend on what was asked of it."""


class Kept(Protocol):
    """What the pool looks at in a session."""

    capabilities: Capabilities
    evidence: Evidence
    uses: int


class Candidate:
    """One hop of a destination's route, with the key and the requirement of its sessions.

    :ivar capabilities: what the last session with it was offered, or ``None``.
    """

    __slots__ = ("capabilities", "endpoint", "hop", "key", "requirement")

    def __init__(self, destination: Destination, hop: Hop) -> None:
        self.hop = hop
        self.endpoint = hop.endpoint
        self.key = destination.key(hop.endpoint)
        self.requirement = destination.tls.resolve(destination.hop.name, hop.host)
        self.capabilities: Capabilities | None = None

    @property
    def subject(self) -> tuple[SessionKey, Requirement]:
        """What failures that depend on what was asked are remembered under."""
        return (self.key, self.requirement)


class Member:
    """A place in the pool and the session in it."""

    __slots__ = (
        "candidate",
        "destination",
        "expires_at",
        "idle_until",
        "max_uses",
        "opened_at",
        "request",
        "session",
        "state",
        "verdict",
        "verdicts",
    )

    def __init__(self, destination: Destination, candidate: Candidate, request: Request) -> None:
        self.destination = destination
        self.candidate = candidate
        self.request: Request | None = request
        self.state = OPENING
        self.session: Kept | None = None
        self.opened_at = 0.0
        self.expires_at = 0.0
        self.idle_until = 0.0
        self.max_uses: int | None = None
        self.verdict = NOT_JUDGED
        self.verdicts: dict[Requirement, Verdict] = {}


class Request:
    """Somebody who wants a session."""

    __slots__ = (
        "avoid",
        "deadline",
        "destination",
        "error",
        "fresh",
        "miss",
        "needs",
        "number",
        "opening",
        "tried",
        "waits_for",
    )

    def __init__(
        self,
        destination: Destination,
        needs: Needs = NO_NEEDS,
        fresh: bool = False,
        avoid: frozenset[Endpoint] = frozenset(),
    ) -> None:
        self.destination = destination
        self.needs = needs
        self.fresh = fresh
        self.avoid = avoid
        self.tried: set[Endpoint] = set()
        self.error: DeliveryError | None = None
        self.opening: Member | None = None
        self.waits_for: Member | None = None
        self.deadline = 0.0
        self.number = 0
        self.miss = ""


@attrs.frozen(slots=True)
class Grant:
    """``member`` is leased to ``request``."""

    request: Request
    member: Member


@attrs.frozen(slots=True)
class Open:
    """Open a session for ``member.candidate``."""

    member: Member


@attrs.frozen(slots=True)
class Close:
    """End the session, or the opening, of ``member``."""

    member: Member
    reason: str


@attrs.frozen(slots=True)
class Fail:
    """``request`` gets no session."""

    request: Request
    error: DeliveryError


@attrs.frozen(slots=True)
class Resolve:
    """Find the route of ``destination``, then call `Pool.routed` or `Pool.unroutable`."""

    destination: Destination


Action = Grant | Open | Close | Fail | Resolve


class _Routed:
    __slots__ = ("candidates", "expires_at")

    def __init__(self, candidates: tuple[Candidate, ...], expires_at: float) -> None:
        self.candidates = candidates
        self.expires_at = expires_at


class _Full(Exception):  # noqa: N818  (no error: an answer)
    """A limit leaves no place now."""


class Pool:
    """The members, the queues and the limits of a cache. Times are monotonic seconds given by the caller.

    :param wall: gives seconds since 1970, for the validity of certificates.
    :param spread: gives numbers from -1 to 1, evenly spread.
    """

    def __init__(
        self,
        limits: Limits,
        wall: Callable[[], float],
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311  (no secret depends on it)
    ) -> None:
        self.limits = limits
        self.health = Health()
        self.closed = False
        self.hits = 0
        self.misses: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self._wall = wall
        self._spread = spread
        self._routes: OrderedDict[Destination, _Routed] = OrderedDict()
        self._resolving: set[Destination] = set()
        self._waiting: dict[Destination, deque[Request]] = {}
        self._members: set[Member] = set()
        self._idle: dict[SessionKey, list[Member]] = {}
        self._unused: dict[Member, None] = {}
        self._at_destination: Counter[Destination] = Counter()
        self._at_endpoint: Counter[Endpoint] = Counter()
        self._openings_at: Counter[Endpoint] = Counter()
        self._next_number = 1
        self._next_fresh = 0

    # -- counts ------------------------------------------------------------------------------------------------

    def count(self, state: str) -> int:
        """How many members are in ``state``."""
        return sum(member.state == state for member in self._members)

    @property
    def waiting(self) -> int:
        """How many requests have no session yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to look after."""
        return not self._members and not self._waiting

    # -- a request ---------------------------------------------------------------------------------------------

    def take(
        self, destination: Destination, needs: Needs, fresh: bool, avoid: frozenset[Endpoint], now: float
    ) -> Member | None:
        """Lease an idle session at once, if one serves and nobody waits for it."""
        routed = self._routes.get(destination)
        if routed is None or routed.expires_at <= now or destination in self._waiting:
            return None
        for candidate in routed.candidates:
            idle = self._idle.get(candidate.key)
            if idle is None or candidate.endpoint in avoid:
                continue
            for member in reversed(idle):
                if self._serves(member, candidate, needs, fresh, now) and self._may_move(member, destination):
                    self._lease(member, destination)
                    self.hits += 1
                    return member
        return None

    def request(self, request: Request, now: float, timeout: float) -> list[Action]:
        """Queue ``request``, for which `take` found nothing; it waits ``timeout`` seconds at most for a place."""
        if self.closed:
            return [Fail(request, closed_error())]
        request.miss = self._miss_reason(request, now)
        request.deadline = now + timeout
        queue = self._waiting.setdefault(request.destination, deque())
        if request.fresh:
            self._next_fresh -= 1
            request.number = self._next_fresh
            queue.insert(sum(other.fresh for other in queue), request)
        else:
            request.number = self._next_number
            self._next_number += 1
            queue.append(request)
        actions = self._plan(request.destination, now)
        if self._is_stuck(request) and (timeout <= 0 or self._stuck_count() > self.limits.waiters):
            actions.append(self._give_up(request, self._impatience(request, timeout)))
        return actions

    def cancel(self, request: Request, now: float) -> list[Action]:
        """``request`` is not wanted any more."""
        if not self._is_queued(request):
            return []
        spare = self._dequeue(request)
        actions: list[Action] = []
        if spare is not None and not self.closed:
            spare.state = CLOSING
            self._openings_at[spare.candidate.endpoint] -= 1
            actions.append(Close(spare, "no longer wanted"))
        return actions + self._plan_all(now)

    # -- routes ------------------------------------------------------------------------------------------------

    def routed(self, destination: Destination, route: Route, now: float) -> list[Action]:
        """The route of ``destination`` was found."""
        self._resolving.discard(destination)
        candidates = tuple(Candidate(destination, hop) for hop in route.hops)
        self._routes[destination] = _Routed(candidates, now + route.ttl)
        if len(self._routes) > MAX_ROUTES:
            self._routes.popitem(last=False)
        actions: list[Action] = []
        for request in list(self._waiting.get(destination, ())):
            member = self._find(request, now)
            if member is not None:
                actions.append(self._grant(request, member))
        return actions + self._plan_all(now)

    def unroutable(self, destination: Destination, error: DeliveryError, now: float) -> list[Action]:
        """There is no route to ``destination``: all who wait for it fail."""
        self._resolving.discard(destination)
        return [self._give_up(request, error) for request in list(self._waiting.get(destination, ()))]

    # -- the life of a member ----------------------------------------------------------------------------------

    def opened(self, member: Member, session: Kept, now: float) -> list[Action]:
        """The session of ``member`` is ready."""
        limits = self.limits
        candidate = member.candidate
        self._openings_at[candidate.endpoint] -= 1
        self.health.worked(candidate.endpoint)
        self.health.worked(candidate.subject)
        candidate.capabilities = session.capabilities
        member.session = session
        member.opened_at = now
        member.expires_at = now + limits.max_age * (1 + AGE_SPREAD * self._spread())
        allowed = [most for most in (limits.max_uses, session.capabilities.mail_max) if most is not None]
        member.max_uses = min(allowed) if allowed else None
        request, member.request = member.request, None
        if request is not None:
            request.opening = None
        return self._offer(member, now) + self._plan_all(now)

    def failed(self, member: Member, error: DeliveryError, now: float, *, gone: bool) -> list[Action]:
        """Opening ``member`` has failed; ``gone`` says whether no socket of it is left."""
        candidate = member.candidate
        if member.state == OPENING:
            self._openings_at[candidate.endpoint] -= 1
            subject = candidate.endpoint if error.phase in _OF_THE_ENDPOINT else candidate.subject
            self.health.failed(subject, error, now)
        member.state = CLOSING
        request, member.request = member.request, None
        if gone:
            self._remove(member)
        if request is not None:
            request.opening = None
            request.error = error
            request.tried.add(candidate.endpoint)
            if error.phase == "auth" and not error.retriable:
                # Trying a refused password at each address in turn is how accounts get locked.
                return [self._give_up(request, error), *self._plan_all(now)]
        return self._plan_all(now)

    def released(self, member: Member, reusable: bool, now: float) -> list[Action]:
        """The lease of ``member`` has ended; ``reusable`` says whether its session stands at a clean place."""
        session = member.session
        assert session is not None
        if not reusable:
            member.state = CLOSING
            return [Close(member, "not clean")]
        if self.closed or member.expires_at <= now:
            return [self._evict(member, "closing" if self.closed else "age")]
        if member.max_uses is not None and session.uses >= member.max_uses:
            return [self._evict(member, "uses")]
        if not self._waiting:
            self._park(member, now)
            return []
        return self._offer(member, now) + self._plan_all(now)

    def lost(self, member: Member, reason: str) -> None:
        """The session of ``member`` has ended by itself; its socket is as good as gone."""
        if member.state == IDLE:
            self.evictions[reason] += 1
            self._unpark(member)
            member.state = CLOSING

    def gone(self, member: Member, now: float) -> list[Action]:
        """The socket of ``member`` is closed: its place is free."""
        if member not in self._members:
            return []
        if member.state == IDLE:
            self._unpark(member)
        self._remove(member)
        return self._plan_all(now)

    # -- time and end ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """What the time that has passed calls for."""
        actions: list[Action] = []
        for member in list(self._unused):
            if member.expires_at <= now:
                actions.append(self._evict(member, "age"))
            elif member.idle_until <= now:
                actions.append(self._evict(member, "idle"))
        for request in list(self._requests()):
            if request.deadline <= now and self._is_stuck(request):
                actions.append(self._give_up(request, self._impatience(request, None)))
        for destination in [key for key, routed in self._routes.items() if routed.expires_at <= now]:
            if destination not in self._waiting:
                del self._routes[destination]
        if self._waiting:
            actions += self._plan_all(now)
        return actions

    def close(self) -> list[Action]:
        """No more: all who wait fail, idle sessions and openings end; leased ones end when they are released."""
        self.closed = True
        actions: list[Action] = [self._give_up(request, closed_error()) for request in list(self._requests())]
        for member in list(self._members):
            if member.state == IDLE:
                actions.append(self._evict(member, "closing"))
            elif member.state == OPENING:
                self._openings_at[member.candidate.endpoint] -= 1
                member.state = CLOSING
                actions.append(Close(member, "closing"))
        return actions

    # -- serving -----------------------------------------------------------------------------------------------

    def _serves(self, member: Member, candidate: Candidate, needs: Needs, fresh: bool, now: float) -> bool:
        session = member.session
        assert session is not None
        if member.expires_at <= now or (fresh and session.uses):
            return False
        if needs is not NO_NEEDS and needs.unmet_by(session.capabilities) is not None:
            return False
        verdict = self._verdict(member, session, candidate.requirement)
        member.verdict = verdict
        return verdict.ok

    def _verdict(self, member: Member, session: Kept, requirement: Requirement) -> Verdict:
        verdict = member.verdicts.get(requirement)
        if verdict is None or (verdict.ok and verdict.until != NEVER and verdict.until <= self._wall()):
            if len(member.verdicts) >= MAX_VERDICTS:
                member.verdicts.clear()
            verdict = judge(requirement, session.evidence, self._wall())
            member.verdicts[requirement] = verdict
        return verdict

    def _may_move(self, member: Member, destination: Destination) -> bool:
        return (
            member.destination is destination
            or member.destination == destination
            or self._at_destination[destination] < self.limits.sessions_per_destination
        )

    def _candidate(self, destination: Destination, key: SessionKey) -> Candidate | None:
        routed = self._routes.get(destination)
        if routed is not None:
            for candidate in routed.candidates:
                if candidate.key == key:
                    return candidate
        return None

    def _suits(self, member: Member, request: Request, now: float) -> bool:
        candidate = self._candidate(request.destination, member.candidate.key)
        return (
            candidate is not None
            and candidate.endpoint not in request.avoid
            and self._serves(member, candidate, request.needs, request.fresh, now)
            and self._may_move(member, request.destination)
        )

    def _find(self, request: Request, now: float) -> Member | None:
        routed = self._routes[request.destination]
        for candidate in routed.candidates:
            for member in reversed(self._idle.get(candidate.key, ())):
                if self._suits(member, request, now):
                    return member
        return None

    def _offer(self, member: Member, now: float) -> list[Action]:
        for request in self._requests():
            if self._suits(member, request, now):
                return [self._grant(request, member)]
        self._park(member, now)
        return []

    def _grant(self, request: Request, member: Member) -> Grant:
        assert member.session is not None
        if member.session.uses:
            self.hits += 1
        else:
            self.misses[request.miss] += 1
        self._dequeue(request)
        self._lease(member, request.destination)
        return Grant(request, member)

    def _lease(self, member: Member, destination: Destination) -> None:
        if member.state == IDLE:
            self._unpark(member)
        member.state = LEASED
        if member.destination is not destination:
            self._at_destination[member.destination] -= 1
            self._at_destination[destination] += 1
            member.destination = destination

    def _park(self, member: Member, now: float) -> None:
        limits = self.limits
        by_domain = member.destination.hop.kind == "domain"
        member.idle_until = now + (limits.idle_timeout_mx if by_domain else limits.idle_timeout)
        member.state = IDLE
        self._unused[member] = None
        idle = self._idle.get(member.candidate.key)
        if idle is None:
            self._idle[member.candidate.key] = [member]
        else:
            idle.append(member)

    def _unpark(self, member: Member) -> None:
        key = member.candidate.key
        idle = self._idle[key]
        idle.remove(member)
        if not idle:
            del self._idle[key]
        del self._unused[member]

    def _evict(self, member: Member, reason: str) -> Close:
        if member.state == IDLE:
            self._unpark(member)
        self.evictions[reason] += 1
        member.state = CLOSING
        return Close(member, reason)

    def _remove(self, member: Member) -> None:
        self._members.discard(member)
        self._at_destination[member.destination] -= 1
        if not self._at_destination[member.destination]:
            del self._at_destination[member.destination]
        self._at_endpoint[member.candidate.endpoint] -= 1
        if not self._at_endpoint[member.candidate.endpoint]:
            del self._at_endpoint[member.candidate.endpoint]

    # -- queues ------------------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[Request]:
        """All who wait, longest first."""
        if len(self._waiting) == 1:
            (queue,) = self._waiting.values()
            return iter(tuple(queue))
        return iter(sorted((r for queue in self._waiting.values() for r in queue), key=lambda r: r.number))

    def _is_queued(self, request: Request) -> bool:
        return request in self._waiting.get(request.destination, ())

    def _is_stuck(self, request: Request) -> bool:
        """Whether it waits for a place, and not for an opening or a route of its own."""
        return request.opening is None and request.destination not in self._resolving and self._is_queued(request)

    def _stuck_count(self) -> int:
        return sum(request.opening is None for request in self._requests())

    def _dequeue(self, request: Request) -> Member | None:
        """Take ``request`` out; gives its opening if nobody else can use it."""
        queue = self._waiting[request.destination]
        queue.remove(request)
        if not queue:
            del self._waiting[request.destination]
        member, request.opening = request.opening, None
        if member is None:
            return None
        member.request = None
        for other in queue:
            if other.opening is None and member.candidate.endpoint not in other.avoid | other.tried:
                other.opening = member
                member.request = other
                return None
        return member

    def _give_up(self, request: Request, error: DeliveryError) -> Fail:
        self.misses[request.miss] += 1
        self._dequeue(request)
        return Fail(request, error)

    def _impatience(self, request: Request, timeout: float | None) -> DeliveryError:
        cause = request.error
        if cause is None:
            routed = self._routes.get(request.destination)
            for candidate in routed.candidates if routed is not None else ():
                known = self.health.last_error(candidate.endpoint) or self.health.last_error(candidate.subject)
                if isinstance(known, DeliveryError):
                    cause = known
        why = "too many wait already" if timeout is not None and timeout > 0 else "none became free in time"
        error = DeliveryError(
            f"no place for another session: {why}" + (f"; the last error was: {cause}" if cause else ""),
            phase="waiting",
        )
        error.__cause__ = cause
        return error

    # -- opening -----------------------------------------------------------------------------------------------

    def _plan_all(self, now: float) -> list[Action]:
        if not self._waiting:
            return []
        actions: list[Action] = []
        for destination in sorted(self._waiting, key=lambda key: self._waiting[key][0].number):
            actions += self._plan(destination, now)
        return actions

    def _plan(self, destination: Destination, now: float) -> list[Action]:
        """Openings for the requests of ``destination`` that have none, as far as the limits allow."""
        actions: list[Action] = []
        routed = self._routes.get(destination)
        if routed is None or routed.expires_at <= now:
            if destination in self._resolving or destination not in self._waiting:
                return actions
            self._resolving.add(destination)
            return [Resolve(destination)]
        for request in tuple(self._waiting.get(destination, ())):
            if request.opening is not None:
                continue
            try:
                candidate = self._choose(request, routed.candidates, actions, now)
            except _Full:
                break
            except DeliveryError as error:
                if self._may_wait(request):
                    continue
                actions.append(self._give_up(request, error))
                continue
            member = request.opening = Member(destination, candidate, request)
            self._members.add(member)
            self._at_destination[destination] += 1
            self._at_endpoint[candidate.endpoint] += 1
            self._openings_at[candidate.endpoint] += 1
            actions.append(Open(member))
        return actions

    def _may_wait(self, request: Request) -> bool:
        """Whether a session that is at work now may serve ``request`` later."""
        if request.fresh:
            return False
        destination = request.destination
        return any(
            member.state == LEASED
            and (candidate := self._candidate(destination, member.candidate.key)) is not None
            and candidate.endpoint not in request.avoid
            and self._serves_later(member, candidate, request.needs)
            for member in self._members
        )

    def _serves_later(self, member: Member, candidate: Candidate, needs: Needs) -> bool:
        session = member.session
        return (
            session is not None
            and needs.unmet_by(session.capabilities) is None
            and self._verdict(member, session, candidate.requirement).ok
        )

    def _choose(
        self, request: Request, candidates: tuple[Candidate, ...], actions: list[Action], now: float
    ) -> Candidate:
        """The candidate to open for ``request``.

        :raises _Full: if a limit leaves no place now; an eviction that makes one is among ``actions`` then.
        :raises DeliveryError: if there is none to wait for.
        """
        full = False
        error = request.error
        for candidate in candidates if len(request.tried) < MAX_ADDRESSES else ():
            endpoint = candidate.endpoint
            if endpoint in request.avoid or endpoint in request.tried:
                continue
            if candidate.capabilities is not None:
                lacking = request.needs.unmet_by(candidate.capabilities)
                if lacking is not None:
                    error = DeliveryError(lacking, phase="needs", retriable=False, endpoint=str(endpoint))
                    continue
            blocked = self._blocked(candidate, now)
            if blocked is not None:
                error = error or blocked
                continue
            allowed = self.health.attempts_allowed(endpoint)
            if allowed is not None and self._openings_at[endpoint] >= allowed:
                full = True
                continue
            if self._at_endpoint[endpoint] >= self.limits.sessions_per_endpoint:
                full = True
                self._make_room(request, actions, _at(endpoint))
                continue
            self._check_place(request, actions)
            return candidate
        if full:
            raise _Full
        if error is None:
            error = DeliveryError("no endpoint is left to try", phase="routing")
        raise error

    def _check_place(self, request: Request, actions: list[Action]) -> None:
        limits = self.limits
        destination = request.destination
        if self._at_destination[destination] >= limits.sessions_per_destination:
            self._make_room(request, actions, lambda member: member.destination == destination)
            raise _Full
        if len(self._members) >= limits.sessions:
            self._make_room(request, actions, lambda member: True)
            raise _Full

    def _make_room(self, request: Request, actions: list[Action], within: Callable[[Member], bool]) -> None:
        """Close the idle session longest unused ``within`` the limit, unless one is being closed for ``request``."""
        if request.waits_for is not None and request.waits_for in self._members:
            return
        for member in self._unused:
            if within(member):
                request.waits_for = member
                actions.append(self._evict(member, "room"))
                return

    def _blocked(self, candidate: Candidate, now: float) -> DeliveryError | None:
        for subject in (candidate.endpoint, candidate.subject):
            pause = self.health.blocked(subject, now)
            if pause > 0:
                cause = self.health.last_error(subject)
                phase = cause.phase if isinstance(cause, DeliveryError) else "connect"
                error = DeliveryError(
                    f"left alone for another {pause:.1f} s after repeated failures; the last: {cause}",
                    phase=phase,
                    endpoint=str(candidate.endpoint),
                )
                error.__cause__ = cause
                return error
        return None

    def _miss_reason(self, request: Request, now: float) -> str:
        if request.fresh:
            return "fresh"
        routed = self._routes.get(request.destination)
        if routed is None or routed.expires_at <= now:
            return "route"
        for candidate in routed.candidates:
            for member in self._idle.get(candidate.key, ()):
                if candidate.endpoint in request.avoid:
                    return "avoided"
                session = member.session
                assert session is not None
                if request.needs.unmet_by(session.capabilities) is not None:
                    return "needs"
                if not self._verdict(member, session, candidate.requirement).ok:
                    return "trust"
                return "limit"
            for key in self._idle:
                if key.endpoint == candidate.endpoint:
                    return difference(key, candidate.key)
        return "none idle"


def _at(endpoint: Endpoint) -> Callable[[Member], bool]:
    return lambda member: member.candidate.endpoint == endpoint


def difference(key: SessionKey, other: SessionKey) -> str:
    """Which field makes two keys of one endpoint differ: "identity.credentials", "tls_class.ciphers", ..."""
    if (key.tls_class is None) != (other.tls_class is None):
        return "tls_class"
    for name in ("identity", "tls_class"):
        ours, theirs = getattr(key, name), getattr(other, name)
        if ours is None or ours == theirs:
            continue
        for field in attrs.fields(type(ours)):
            if getattr(ours, field.name) != getattr(theirs, field.name):
                return f"{name}.{field.name}"
    return "endpoint"


def closed_error() -> DeliveryError:
    """What requests get from a closed cache."""
    return DeliveryError("the cache is closed", phase="waiting", retriable=False)
