"""A world for the pool without sockets: it does what the pool decides, and complains of what it must not decide."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from service_identity.hazmat import DNSPattern

from mailcache import Credentials, DeliveryError, Destination, Limits, TLSPolicy
from mailcache.destination import Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.members import IDLE, LEASED, OPENING, Action, Close, Fail, Grant, Member, Open, Request, Resolve
from mailcache.pool import Pool
from mailcache.routing.route import Hop, Route
from mailcache.trust.evidence import CLEAR, Evidence
from mailcache.trust.judge import judge
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply

FOREVER = float("inf")
ENCRYPTED = Evidence(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
BARE = Capabilities()
RICH = Capabilities({"SMTPUTF8": (), "8BITMIME": (), "SIZE": ()})
UTF8 = Needs(smtputf8=True)
ENDPOINTS = tuple(Endpoint("smtp", f"192.0.2.{number}", 25) for number in range(1, 5))


def to(domain: str, level: str = "none", **more: Any) -> Destination:
    return Destination(domain, tls=TLSPolicy(level), **more)


def as_user(name: str) -> Destination:
    return Destination("one.example", tls=TLSPolicy("none"), credentials=Credentials(name, "secret"))


def proof(name: str, until: float) -> Evidence:
    """What a trusted certificate for ``name`` shows until then."""
    return Evidence(
        "TLSv1.3",
        "TLS_AES_256_GCM_SHA384",
        servername=name,
        chain_error=None,
        names=(DNSPattern.from_bytes(name.encode()),),
        not_after=until,
    )


def failure(phase: str = "connect", *, code: int | None = None, retriable: bool = True) -> DeliveryError:
    reply = None if code is None else Reply.make(code, "no")
    return DeliveryError(f"{phase} failed", phase=phase, reply=reply, retriable=retriable)


class FakeSession:
    def __init__(self, capabilities: Capabilities, evidence: Evidence, instead_of_tls: bool = False) -> None:
        self.capabilities = capabilities
        self.evidence = evidence
        self.instead_of_tls = instead_of_tls
        self.setup_seconds = 0.25
        self.uses = 0
        self.reused = False


class World:
    """Keeps its own books, and compares.

    :ivar pending: requests that have had no end, in the order in which they came.
    :ivar ended: what the others have come to: a `Member`, a `DeliveryError` or "cancelled".
    :ivar openings: members that are being opened, in the order of the decision.
    :ivar leases: who has which member.
    :ivar leaving: members whose session was ended and whose socket is still there.
    :ivar places: whose place each member takes, from the decision to open it until its socket is gone.
    """

    def __init__(self, **limits: Any) -> None:
        self.limits = Limits(**limits)
        self.now = 1000.0
        self.spread = 0.0
        self.pool = Pool(self.limits, lambda: self.now, lambda: self.spread)
        self.pending: list[Request] = []
        self.ended: dict[Request, Any] = {}
        self.openings: list[Member] = []
        self.leases: dict[Member, Request] = {}
        self.idle: list[Member] = []
        self.leaving: list[Member] = []
        self.places: dict[Member, Destination] = {}
        self.lookups: list[Destination] = []
        self.routes: dict[Destination, tuple[Route, float]] = {}
        self.expiry: dict[Member, float] = {}
        self.closed_for: dict[Member, str] = {}
        self.new: Member | None = None
        self._todo: deque[Action] = deque()
        self._busy = False

    # -- what callers do ---------------------------------------------------------------------------------------

    def ask(
        self,
        destination: Destination,
        *,
        needs: Needs = NO_NEEDS,
        fresh: bool = False,
        avoid: frozenset[Endpoint] = frozenset(),
        timeout: float = 30.0,
    ) -> Request:
        """What a cache's acquire() does."""
        request = Request(destination, needs, fresh, avoid, timeout)
        member = None if fresh or self.pool.closed else self.pool.take(destination, needs, avoid, self.now)
        self.pending.append(request)
        if member is not None:
            self._granted(request, member)
        else:
            self.do(self.pool.request(request, self.now))
        return request

    def cancel(self, request: Request) -> None:
        self.pending.remove(request)
        self.ended[request] = "cancelled"
        self.do(self.pool.cancel(request, self.now))

    def release(self, member: Member, *, reusable: bool = True, uses: int = 1) -> None:
        del self.leases[member]
        self._session(member).uses += uses
        alive = member in self.places
        parked = reusable and alive
        if parked:
            self.idle.append(member)
        self.do(self.pool.released(member, parked, self.now))

    def serve(self, destination: Destination, *endpoints: Endpoint, **opened: Any) -> Member:
        """Ask for a session and have one opened; gives the leased member."""
        request = self.ask(destination)
        if destination in self.lookups:
            self.resolve(destination, *(endpoints or ENDPOINTS[:1]))
        if request not in self.ended:
            self.open(self.openings[-1], **opened)
        return self.got(request)

    def got(self, request: Request) -> Member:
        """What ``request`` was granted."""
        member = self.ended[request]
        assert isinstance(member, Member), member
        return member

    def error(self, request: Request) -> DeliveryError:
        """Why ``request`` got nothing."""
        error = self.ended[request]
        assert isinstance(error, DeliveryError), error
        return error

    # -- what the network does ---------------------------------------------------------------------------------

    def resolve(self, destination: Destination, *endpoints: Endpoint, ttl: float = FOREVER) -> None:
        self.lookups.remove(destination)
        self.know(destination, *[Hop(endpoint, f"mx.{endpoint.address}") for endpoint in endpoints], ttl=ttl)

    def know(self, destination: Destination, *hops: Hop, ttl: float = FOREVER) -> None:
        """The route of ``destination`` is known from now on."""
        found = Route(hops, ttl)
        self.routes[destination] = (found, self.now + ttl)
        self.do(self.pool.routed(destination, found, self.now))

    def fail_to_resolve(self, destination: Destination) -> None:
        self.lookups.remove(destination)
        self.do(self.pool.unroutable(destination, failure("routing"), self.now))

    def open(
        self, member: Member, *, capabilities: Capabilities = RICH, evidence: Evidence = CLEAR, spread: float = 0.0
    ) -> None:
        """The session is ready."""
        self.openings.remove(member)
        self.spread = spread
        self.expiry[member] = self.now + self.limits.max_age * (1 + 0.2 * spread)
        self.idle.append(member)
        self.new = member
        self.do(self.pool.opened(member, FakeSession(capabilities, evidence), self.now))

    def fail(self, member: Member, error: DeliveryError | None = None, *, gone: bool = True) -> None:
        """It could not be opened."""
        self.openings.remove(member)
        if gone:
            del self.places[member]
        else:
            self.leaving.append(member)
        self.do(self.pool.failed(member, error or failure(), self.now, gone=gone))

    def lose(self, member: Member, reason: str = "closed") -> None:
        """The server ends an idle session."""
        self.idle.remove(member)
        self.leaving.append(member)
        self.pool.lost(member, reason)

    def vanish(self, member: Member) -> None:
        """The socket of a session that is being ended, or of a leased one, is gone."""
        if member in self.leaving:
            self.leaving.remove(member)
        del self.places[member]
        self.do(self.pool.gone(member, self.now))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.pool.tick(self.now))

    def close(self) -> None:
        self.do(self.pool.close())

    # -- what the pool wants -----------------------------------------------------------------------------------

    def do(self, actions: list[Action]) -> None:
        self._todo.extend(actions)
        if self._busy:
            return
        self._busy = True
        while self._todo:
            self._do(self._todo.popleft())
        self._busy = False
        self.new = None
        self.check()

    def _do(self, action: Action) -> None:
        if isinstance(action, Grant):
            self._granted(action.request, action.member)
        elif isinstance(action, Open):
            member = action.member
            assert member not in self.places
            found, until = self.routes[member.destination]
            assert until > self.now
            assert member.candidate.endpoint in [hop.endpoint for hop in found.hops]
            self.openings.append(member)
            self.places[member] = member.destination
        elif isinstance(action, Close):
            self._end(action.member, action.reason)
        elif isinstance(action, Fail):
            assert action.request in self.pending, "a request that had its end"
            self.pending.remove(action.request)
            self.ended[action.request] = action.error
        else:
            assert isinstance(action, Resolve)
            assert action.destination not in self.lookups
            self.lookups.append(action.destination)

    def _granted(self, request: Request, member: Member) -> None:
        assert request in self.pending, "a request that had its end"
        assert member in self.idle, "a session that is not there to be given"
        why = self.unfit(request, member)
        assert why is None, why
        ahead = self.pending[: self.pending.index(request)]
        if not request.fresh:
            ahead = [other for other in self.pending if other.fresh] + [other for other in ahead if not other.fresh]
        else:
            ahead = [other for other in ahead if other.fresh]
        for other in ahead:
            assert other.destination != request.destination or self.unfit(other, member), "somebody was passed over"
        self.idle.remove(member)
        self.pending.remove(request)
        self.ended[request] = member
        self.leases[member] = request
        if member in self.places:
            self.places[member] = request.destination

    def _end(self, member: Member, reason: str) -> None:
        assert member not in self.leases
        assert member not in self.leaving
        self.closed_for[member] = reason
        if member in self.openings:
            self.openings.remove(member)
            self.leaving.append(member)
            self.do(self.pool.failed(member, failure("closed"), self.now, gone=False))
            return
        if member in self.idle:
            self.idle.remove(member)
        if member in self.places:
            self.leaving.append(member)

    # -- what must be true -------------------------------------------------------------------------------------

    def unfit(self, request: Request, member: Member) -> str | None:
        """Why ``member``'s session may not serve ``request``, by rules of its own."""
        session = self._session(member)
        endpoint = member.candidate.endpoint
        destination = request.destination
        level = destination.tls.level
        if destination.key(endpoint) != member.candidate.key:
            return "another key"
        if endpoint in request.avoid:
            return "an endpoint to avoid"
        if request.fresh and member is not self.new:
            return "not fresh"
        if request.needs.unmet_by(session.capabilities) is not None:
            return "needs that are not met"
        if self.expiry[member] < self.now:
            return "too old"
        most = [n for n in (self.limits.max_uses, session.capabilities.mail_max) if n is not None]
        if most and session.uses >= min(most):
            return "used too often"
        if level == "none" and session.evidence is not CLEAR:
            return "TLS where clear text is demanded"
        if level == "encrypt" and session.evidence is CLEAR:
            return "clear text where TLS is demanded"
        if level == "verify" and not self._verified(destination, endpoint, session.evidence):
            return "a certificate that proves nothing"
        own = self.places.get(member)
        if own != destination and self._at(destination) >= self.limits.sessions_per_destination:
            return "the destination's limit"
        return None

    def _verified(self, destination: Destination, endpoint: Endpoint, evidence: Evidence) -> bool:
        found, _ = self.routes[destination]
        hosts = [hop.host for hop in found.hops if hop.endpoint == endpoint]
        name = destination.hop.name
        return any(judge(destination.tls.resolve(name, host), evidence, self.now).ok for host in hosts)

    def check(self) -> None:
        """All that must be true between any two events."""
        limits = self.limits
        assert len(self.places) <= limits.sessions
        assert all(n <= limits.sessions_per_destination for n in Counter(self.places.values()).values())
        at_endpoint = Counter(member.candidate.endpoint for member in self.places)
        assert all(n <= limits.sessions_per_endpoint for n in at_endpoint.values())
        pool = self.pool
        assert pool.waiting == len(self.pending)
        assert pool.count(OPENING) == len(self.openings)
        assert pool.count(IDLE) == len(self.idle)
        assert pool.count(LEASED) == len(self.leases.keys() & self.places.keys())
        assert not (pool.closed and (self.idle or self.openings or self.pending))
        for request in self.pending:
            self._check_waiting(request)

    def _check_waiting(self, request: Request) -> None:
        destination = request.destination
        if destination not in self.routes or self.routes[destination][1] <= self.now:
            assert destination in self.lookups or request.opening is not None, "nobody looks for its route"
            return
        found, _ = self.routes[destination]
        endpoints = [hop.endpoint for hop in found.hops]
        for member in self.idle:
            why = self.unfit(request, member)
            assert why or member.candidate.endpoint not in endpoints, "it waits, and an idle session would serve it"
        if request.opening is None and len(self.places) < self.limits.sessions:
            assert not self._could_open(request), "it waits, and a session could be opened for it"

    def _could_open(self, request: Request) -> bool:
        if self._at(request.destination) >= self.limits.sessions_per_destination:
            return False
        taken = Counter(member.candidate.endpoint for member in self.places)
        under_way = Counter(who for member in self.openings for who in (member.candidate.way, member.candidate.subject))
        health = self.pool.health
        for candidate in self.pool._routes.candidates(request.destination, self.now) or ():
            allowed = [(who, health.attempts_allowed(who)) for who in (candidate.way, candidate.subject)]
            if (
                candidate.endpoint not in request.avoid | request.tried
                and taken[candidate.endpoint] < self.limits.sessions_per_endpoint
                and candidate.lacks(request.needs, self.now) is None
                and not any(health.blocked(who, self.now) for who, _ in allowed)
                and all(most is None or under_way[who] < most for who, most in allowed)
            ):
                return True
        return False

    def _at(self, destination: Destination) -> int:
        return sum(place == destination for place in self.places.values())

    def _session(self, member: Member) -> FakeSession:
        assert isinstance(member.session, FakeSession)
        return member.session

    def check_nothing_is_left(self) -> None:
        """Neither members nor counts nor links of theirs."""
        assert not self.pending
        assert not self.places
        assert self.pool.empty
        assert not self.leaving
        for part in (self.pool._places, self.pool._waiting):
            for name, value in vars(part).items():
                if name not in ("_limits", "_next", "_first_end", "most"):
                    assert not value, (name, value)
