"""Which waiting request gets which session, and what is to be opened and closed: decided here, done elsewhere.

Theory of operation. A `Member` is a place: OPENING, LEASED, IDLE or CLOSING. It counts against the limits from the
decision to open it until its socket is gone, so that a server never sees more connections than the limits say. A
`Request` waits in the queue of its destination, first come first served, fresh ones at the head. Whatever happens,
those who wait are looked after in one order, fresh ones first, then by how long they wait:

1. A session that serves (equal key, requirement met, capabilities sufficient) is granted. One that is opened or
   freed goes to the first of all whom it serves, of whatever destination and whomever it was opened for. So nobody
   waits while an idle session would serve him, and who finds an idle one takes it from nobody. Only who needs its
   place and has waited longer has it closed when it is freed, if it has had its turn.
2. Else, where the limits leave a place, the best endpoint is opened that is neither avoided nor left alone; at a
   limit, the idle session longest unused within that limit makes room.
3. Else it waits: for a release, an end, or the end of its patience, whose error carries the last real one.

When an opening fails, its request tries the next endpoint; when none is left it fails, unless sessions that may
serve it later are at work.

The pool does no I/O; what is to be done comes back as actions, to be carried out in their order.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from mailcache.accounts import Account, Accounts
from mailcache.choosing import choose, may_wait, no_place
from mailcache.demand import Demand
from mailcache.destination import Destination, Endpoint, Identity
from mailcache.envelope import Needs
from mailcache.limits import Limits
from mailcache.matching import Matching
from mailcache.members import (
    IDLE,
    NEVER,
    OPENING,
    Action,
    Candidate,
    Close,
    Fail,
    Grant,
    Kept,
    Member,
    Open,
    Request,
    Resolve,
)
from mailcache.misses import miss_reason
from mailcache.places import Places
from mailcache.result import DeliveryError
from mailcache.routes import Routes
from mailcache.routing.health import Health, as_remembered
from mailcache.routing.route import Route
from mailcache.trust.evidence import CLEAR
from mailcache.trust.opportunism import PATIENCE
from mailcache.waiting import Queues, claim, disown, own

AGE_SPREAD = 0.2
"""By what part ages differ, so that sessions opened together do not end together."""

TOO_MANY = "too many wait already"


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
        self.accounts = Accounts()
        self._moved = 0
        self._before = (0, 0, 0)
        self._wall = wall
        self._spread = spread
        self._routes = Routes()
        self._waiting = Queues()
        self._places = Places(limits)
        self._retired: dict[Member, str] = {}
        self._of_destination: Callable[[Destination], Limits] | None = None
        self._demand = Demand() if limits.keep == "busy" else None
        self._matching = Matching(self._places, self._waiting, self._routes, wall)
        self._known = self._routes.known
        self._idle = self._places.idle
        self._queues = self._waiting.queues

    # -- counts ------------------------------------------------------------------------------------------------

    def count(self, state: str) -> int:
        """How many members are in ``state``."""
        return self._places.count(state)

    @property
    def waiting(self) -> int:
        """How many requests have no session yet."""
        return self._waiting.size

    def interval(self) -> dict[str, int]:
        """What has happened since this was asked the last time: hits of sessions that were kept for the same
        destination, and for another; misses; and the most destinations, addresses and sessions at one time."""
        now = (self.hits, self._moved, self.misses.total())
        hits, moved, misses = (count - before for count, before in zip(now, self._before, strict=True))
        destinations, addresses, connections = self._places.most
        self._before = now
        self._places.most = self._places.sizes()
        return {
            "by_destination": max(0, hits - moved),
            "by_address": moved,
            "misses": misses,
            "destinations": destinations,
            "addresses": addresses,
            "connections": connections,
        }

    @property
    def empty(self) -> bool:
        """Whether there is nothing to look after."""
        return not self._places.members and not self._queues

    # -- a request ---------------------------------------------------------------------------------------------

    def take(self, destination: Destination, needs: Needs, avoid: frozenset[Endpoint], now: float) -> Member | None:
        """Lease an idle session at once, if one serves and nothing else is to be decided with it.

        Not for who wants a fresh one: what has been idle, used or not, may be as dead as the last.
        """
        known = self._known.get(destination)
        if known is None or known.expires_at <= now:
            return None
        for candidate in known.candidates:
            idle = self._idle.get(candidate.key)
            if idle is None or candidate.endpoint in avoid:
                continue
            for member in reversed(idle):
                if member.serves(candidate, needs, now, self._wall) and (
                    member.destination is destination
                    or (not self._queues and self._matching.may_move(member, destination))
                ):
                    self.hits += 1
                    self._lease(member, destination, now).hits += 1
                    return member
        return None

    def request(self, request: Request, now: float) -> list[Action]:
        """Queue ``request``, for which `take` found nothing."""
        if self.closed:
            return [Fail(request, closed_error())]
        limits = self.limits
        known = self._routes.candidates(request.destination, now)
        request.miss = miss_reason(request, known, self._idle, self._wall)
        self._waiting.add(request)
        if self._waiting.size > limits.sessions + limits.waiters:
            return [self._turn_away(request, TOO_MANY)]
        actions: list[Action] = []
        if self._serve(request, actions, now):
            actions += self._plan(now)
        if self._is_stuck(request):
            request.deadline = now + request.patience
            if request.patience <= 0:
                actions.append(self._turn_away(request, "none is free"))
            elif not request.fresh and request.hopeless and self._stuck > limits.waiters:
                actions.append(self._turn_away(request, TOO_MANY))
        return actions

    def cancel(self, request: Request, now: float) -> list[Action]:
        """``request`` is not wanted any more."""
        if not request.waiting:
            return []
        spare = self._waiting.remove(request)
        actions: list[Action] = []
        if spare is not None:
            self._places.close(spare)
            actions.append(Close(spare, "no longer wanted"))
        return actions + self._plan(now)

    # -- routes ------------------------------------------------------------------------------------------------

    def routed(self, destination: Destination, route: Route, now: float) -> list[Action]:
        """The route of ``destination`` was found."""
        self._routes.learn(destination, route, now)
        actions = self._plan(now)
        most = self.limits.waiters
        if self._stuck > most:
            # While the route was not known nobody could know how many of them would have to wait.
            stuck = [request for request in self._waiting.in_order() if self._is_stuck(request)]
            actions += [self._turn_away(request, TOO_MANY) for request in stuck[most:] if request.hopeless]
        return actions

    def unroutable(self, destination: Destination, error: DeliveryError, now: float) -> list[Action]:
        """There is no route to ``destination``: who waits for it fails, unless a session is being opened for him."""
        self._routes.resolving.discard(destination)
        waiting = self._waiting.at(destination)
        return [self._give_up(request, error) for request in waiting if request.opening is None]

    # -- the life of a member ----------------------------------------------------------------------------------

    def opened(self, member: Member, session: Kept, now: float) -> list[Action]:
        """The session of ``member`` is ready."""
        member.session = session
        self.accounts.of(member.destination).opened(session.evidence is not CLEAR)
        if member.state != OPENING:
            return [Close(member, "no longer wanted")]
        limits = self._limits_of(member.destination)
        candidate = member.candidate
        self.health.worked(candidate.way)
        self.health.worked(candidate.subject)
        candidate.offered(session.capabilities, now)
        member.opened_at = now
        member.expires_at = now + limits.max_age * (1 + AGE_SPREAD * self._spread())
        if session.instead_of_tls:
            member.expires_at = min(member.expires_at, now + PATIENCE)
        allowed = [most for most in (limits.max_uses, session.capabilities.mail_max) if most is not None]
        member.max_uses = min(allowed) if allowed else None
        disown(member)
        first = self._matching.first_served(member, now)
        if first is None and member in self._retired:
            return [self._evict(member, self._retired[member])]
        if first is None:
            return [*self._park(member, now), *self._plan(now)]
        return [self._grant(first, member, now), *self._plan(now)]

    def failed(self, member: Member, error: DeliveryError, now: float, *, gone: bool) -> list[Action]:
        """Opening ``member`` has failed; ``gone`` says whether no socket of it is left."""
        candidate = member.candidate
        actions: list[Action] = []
        if member.state == OPENING:
            blamed = candidate.blamed(error)
            self.health.failed(blamed, as_remembered(error), now, began=member.began)
            if blamed != candidate.way:
                self.health.worked(candidate.way)
            request = disown(member)
            if request is not None:
                request.error = error
                request.tried.add(candidate.endpoint)
                if error.phase == "auth" and not error.retriable:
                    # Trying a refused password at each address in turn is how accounts get locked.
                    actions.append(self._give_up(request, error))
        if gone:
            return actions + self.gone(member, now)
        self._places.close(member)
        return actions + self._plan(now)

    def released(self, member: Member, reusable: bool, now: float) -> list[Action]:
        """The lease of ``member`` has ended; ``reusable`` says whether its session stands at a clean place."""
        session = member.session
        assert session is not None
        if self._demand is not None:
            self._demand.ended(member.destination, now)
        if member.account is not None:
            tls = session.evidence is not CLEAR
            member.account.used(member.uses_before, session.uses, tls, session.setup_seconds)
        if not reusable:
            return [self._evict(member, "discarded")]
        if self.closed or member.expires_at <= now:
            return [self._evict(member, "closing" if self.closed else "age")]
        if self._retired and member in self._retired:
            return [self._evict(member, self._retired[member])]
        if member.max_uses is not None and session.uses >= member.max_uses:
            return [self._evict(member, "uses")]
        session.reused = True  # by its borrower, who may have done nothing else with it
        if not self._queues:
            return self._park(member, now)
        first = self._matching.first_served(member, now)
        if first is None:
            actions = self._park(member, now)
            # There may be somebody for whom it makes room.
            return actions + self._plan(now) if self._places.crowded(member) else actions
        longer = self._matching.who_waited_longer(member, first, now)
        if longer is not None:
            claim(longer, member)
            return [self._evict(member, "room")]
        actions = []
        if self._hand_over(member, first, actions, now):
            actions += self._plan(now)
        return actions

    def lost(self, member: Member, reason: str) -> None:
        """The session of ``member`` has ended by itself; its socket is as good as gone."""
        if member.state == IDLE:
            self.evictions[reason] += 1
            self._places.close(member)

    def gone(self, member: Member, now: float) -> list[Action]:
        """The socket of ``member`` is closed: its place is free."""
        disown(member)
        self._places.remove(member)
        self._retired.pop(member, None)
        return self._plan(now)

    def retire(self, identity: Identity) -> list[Action]:
        """There is another identity in place of ``identity``: end what is idle, and the others when they are released.

        Who asks for it again all the same gets new sessions.
        """
        return self.retire_all(lambda member: member.candidate.key.identity == identity, "token")

    def retire_all(self, outdated: Callable[[Member], bool], reason: str) -> list[Action]:
        """End those of the members that are ``outdated``, for ``reason``: as `retire` does."""
        actions: list[Action] = []
        for member in tuple(self._places.members):
            if outdated(member):
                if member.state == IDLE:
                    actions.append(self._evict(member, reason))
                else:
                    self._retired[member] = reason
        return actions

    def reconfigure(
        self, limits: Limits, limits_of: Callable[[Destination], Limits] | None, now: float
    ) -> list[Action]:
        """Other limits hold from now on; what is open beyond them stays until it ends.

        :param limits_of: gives the limits of a destination, of which those count that are its own.
        """
        self.limits = limits
        self._of_destination = limits_of
        self._places.reconfigure(limits, limits_of)
        if limits_of is None and limits.keep != "busy":
            self._demand = None
        elif self._demand is None:
            self._demand = Demand()
        return self._plan(now)

    # -- time and end ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """What the time that has passed calls for."""
        actions: list[Action] = []
        for member in self._places.overdue(now):
            actions.append(self._evict(member, "age" if member.expires_at <= now else "idle"))
        for request in self._waiting.in_order():
            if self._is_stuck(request):
                if request.deadline == NEVER:
                    request.deadline = now + request.patience
                elif request.deadline <= now:
                    actions.append(self._turn_away(request, "none became free in time"))
        return actions + self._plan(now)

    def close(self) -> list[Action]:
        """No more: all who wait fail, idle sessions and openings end; leased ones end when they are released."""
        self.closed = True
        actions: list[Action] = [self._give_up(request, closed_error()) for request in self._waiting.in_order()]
        for member in tuple(self._places.members):
            if member.state == IDLE:
                actions.append(self._evict(member, "closing"))
            elif member.state == OPENING:
                self._places.close(member)
                actions.append(Close(member, "closing"))
        return actions

    # -- serving -----------------------------------------------------------------------------------------------

    def _hand_over(self, member: Member, request: Request, actions: list[Action], now: float) -> bool:
        """Grant ``member``, which somebody else had; gives whether his destination may have one more only now."""
        lender = member.destination
        was_full = not self._places.room_for(lender)
        actions.append(self._grant(request, member, now))
        return was_full and self._places.room_for(lender)

    def _grant(self, request: Request, member: Member, now: float) -> Grant:
        assert member.session is not None
        hit = member.session.uses or member.state == IDLE
        account = self._lease(member, request.destination, now)
        if hit:
            self.hits += 1
            account.hits += 1
        else:
            self.misses[request.miss] += 1
            account.misses[request.miss] += 1
        self._waiting.remove(request)
        return Grant(request, member)

    def _park(self, member: Member, now: float) -> list[Action]:
        """Nobody wants ``member`` now: it is kept, unless that is done on demand and there is none."""
        demand, destination = self._demand, member.destination
        if demand is not None and self._limits_of(destination).keep == "busy" and not demand.busy(destination):
            return [self._evict(member, "demand")]
        assert member.session is not None
        member.session.reused = True
        self._places.park(member, now)
        return []

    def _limits_of(self, destination: Destination) -> Limits:
        return self.limits if self._of_destination is None else self._of_destination(destination)

    def _lease(self, member: Member, destination: Destination, now: float) -> Account:
        """``member`` goes to a borrower of ``destination``, whose account this gives."""
        assert member.session is not None
        account = member.account
        if account is None or account.closed or member.destination is not destination:
            account = member.account = self.accounts.of(destination)
        member.uses_before = member.session.uses
        if member.destination is not destination and member.destination != destination:
            self._moved += 1
        self._places.lease(member, destination)
        if self._demand is not None:
            self._demand.began(destination, now)
        return account

    def _evict(self, member: Member, reason: str) -> Close:
        self.evictions[reason] += 1
        self._places.close(member)
        return Close(member, reason)

    # -- waiting -----------------------------------------------------------------------------------------------

    @property
    def _stuck(self) -> int:
        """How many wait for a place: all but those who have an opening, or whose route is being looked for."""
        resolving = sum(len(self._queues.get(destination, ())) for destination in self._routes.resolving)
        return self._waiting.size - self._places.openings - resolving

    def _is_stuck(self, request: Request) -> bool:
        return request.waiting and request.opening is None and request.destination not in self._routes.resolving

    def _give_up(self, request: Request, error: DeliveryError) -> Fail:
        self.misses[request.miss] += 1
        self.accounts.of(request.destination).misses[request.miss] += 1
        self._waiting.remove(request)
        return Fail(request, error)

    def _turn_away(self, request: Request, why: str) -> Fail:
        """Give up for want of a place."""
        known = self._known.get(request.destination)
        return self._give_up(request, no_place(request, known.candidates if known else (), self.health, why))

    # -- opening -----------------------------------------------------------------------------------------------

    def _plan(self, now: float) -> list[Action]:
        """What can be done for all who wait, in their order."""
        actions: list[Action] = []
        again = True
        while again:
            again = False
            done: set[Destination] = set()
            hopeless: set[Destination] = set()
            for request in self._waiting.in_order(done):
                destination = request.destination
                if destination in hopeless and request.plain:
                    continue
                again = self._serve(request, actions, now) or again
                if destination in self._routes.resolving or not self._places.room_for(destination):
                    done.add(destination)
                elif request.plain and request.hopeless:
                    hopeless.add(destination)
        return actions

    def _serve(self, request: Request, actions: list[Action], now: float) -> bool:
        """Grant, open, make room or give up for ``request``; else it waits on.

        :return: whether another destination, whose session it was granted, may have one more only now.
        """
        destination = request.destination
        candidates = self._routes.candidates(destination, now)
        if candidates is None:
            if destination not in self._routes.resolving:
                self._routes.resolving.add(destination)
                actions.append(Resolve(destination))
            return False
        member = self._matching.idle_for(request, candidates, now)
        if member is not None:
            return self._hand_over(member, request, actions, now)
        if request.opening is None:
            self._open_for(request, candidates, actions, now)
        return False

    def _open_for(self, request: Request, candidates: tuple[Candidate, ...], actions: list[Action], now: float) -> None:
        destination, places = request.destination, self._places
        request.short_of = None
        try:
            choice = choose(request, candidates, places, self.health, now)
        except DeliveryError as error:
            if not may_wait(request, places, self._routes, now, self._wall):
                actions.append(self._give_up(request, error))
            return
        within: Callable[[Member], bool]
        if not choice:
            return
        if not places.room_for(destination):
            within = lambda member: member.destination == destination  # noqa: E731
        elif not isinstance(choice, Candidate):
            within = lambda member: member.candidate.endpoint in choice  # noqa: E731
        elif not places.room():
            within = lambda _: True  # noqa: E731
        else:
            member = Member(destination, choice, now)
            own(request, member)
            places.add(member)
            actions.append(Open(member))
            return
        self._make_room(request, within, actions)

    def _make_room(self, request: Request, within: Callable[[Member], bool], actions: list[Action]) -> None:
        """Let ``request`` have the place of one ``within`` a limit that is being closed, or is now."""
        if request.waits_for is not None:
            return
        member = self._places.leaving(within) if request.patience > 0 else None
        if member is None:
            request.short_of = within
            return
        if member.state == IDLE:
            actions.append(self._evict(member, "room"))
        claim(request, member)


def closed_error() -> DeliveryError:
    """What requests get from a closed cache. A message is none the worse for it: later, or elsewhere, it may go."""
    return DeliveryError("the cache is closed", phase="waiting")
