"""Who is in a pool, its places and its requests, and the actions by which it says what is to be done with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import attrs

from mailcache.accounts import Account
from mailcache.destination import Destination, Endpoint, SessionKey
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.result import DeliveryError
from mailcache.routing.route import Hop
from mailcache.trust.evidence import Evidence
from mailcache.trust.judge import Verdict, judge
from mailcache.trust.policy import Requirement
from mailcache.wire.capabilities import Capabilities

OPENING, LEASED, IDLE, CLOSING = "opening", "leased", "idle", "closing"
NOT_JUDGED = Verdict(False, "not judged")

CAPABILITIES_KEPT = 300.0
"""Seconds for which it is believed that a server lacks what it did not offer: as long as a session lives by default."""

MAX_VERDICTS = 1_000
"""Verdicts remembered for one session: a large provider's MX serves many domains."""

NEVER = float("inf")

_BEFORE_ANY_NAME = frozenset(("bind", "connect", "greeting"))
"""Phases in which the server knows no more of us than our address."""


class Kept(Protocol):
    """What the pool looks at in a session."""

    capabilities: Capabilities
    evidence: Evidence
    uses: int
    reused: bool
    instead_of_tls: bool
    setup_seconds: float


class Candidate:
    """One hop of a destination's route, with the key and the requirement of its sessions.

    :ivar way: what is left alone when the server does not serve anybody: its endpoint, and how it is reached.
    :ivar subject: what is left alone when it does not do what was asked of it: the key and the requirement.
    """

    __slots__ = ("_capabilities", "_capabilities_until", "endpoint", "hop", "key", "requirement", "subject", "way")

    def __init__(self, destination: Destination, hop: Hop) -> None:
        self.hop = hop
        self.endpoint = hop.endpoint
        self.key: SessionKey = destination.key(hop.endpoint)
        self.requirement: Requirement = destination.tls.resolve(destination.hop.name, hop.host)
        self.way: Hashable = (hop.endpoint, destination.bind_address, destination.proxy)
        self.subject: Hashable = (self.key, self.requirement)
        self._capabilities: Capabilities | None = None
        self._capabilities_until = 0.0

    def offered(self, capabilities: Capabilities, now: float) -> None:
        """A session with it was offered these."""
        self._capabilities = capabilities
        self._capabilities_until = now + CAPABILITIES_KEPT

    def lacks(self, needs: Needs, now: float) -> str | None:
        """What it is known to lack of ``needs``, in words, or ``None``."""
        if self._capabilities is None or self._capabilities_until <= now:
            return None
        return needs.unmet_by(self._capabilities)

    def blamed(self, error: DeliveryError) -> Hashable:
        """Who is to be left alone for ``error``, `way` or `subject`."""
        reply = error.reply
        busy = reply is not None and reply.code == 421
        # EHLO refused by a reply may be due to the name that we gave.
        silent = error.phase == "ehlo" and reply is None
        return self.way if busy or silent or error.phase in _BEFORE_ANY_NAME else self.subject


class Member:
    """A place in the pool and the session in it.

    :ivar destination: for whom it counts against the limits: its last borrower's.
    :ivar request: while it is being opened, whom that is for; while it is being closed, who waits for its place.
    :ivar began: when its opening began.
    :ivar verdict: why it is trusted by its last borrower.
    :ivar account: where its last lease is counted.
    :ivar uses_before: how many uses its session had when that began.
    """

    __slots__ = (
        "_verdicts",
        "account",
        "began",
        "candidate",
        "destination",
        "expires_at",
        "idle_until",
        "max_uses",
        "opened_at",
        "request",
        "session",
        "state",
        "uses_before",
        "verdict",
    )

    def __init__(self, destination: Destination, candidate: Candidate, now: float) -> None:
        self.destination = destination
        self.candidate = candidate
        self.request: Request | None = None
        self.state = OPENING
        self.session: Kept | None = None
        self.began = now
        self.opened_at = 0.0
        self.expires_at = 0.0
        self.idle_until = 0.0
        self.max_uses: int | None = None
        self.verdict = NOT_JUDGED
        self.account: Account | None = None
        self.uses_before = 0
        self._verdicts: dict[Requirement, Verdict] = {}

    def serves(self, candidate: Candidate, needs: Needs, now: float, wall: Callable[[], float]) -> bool:
        """Whether its session meets what is asked of ``candidate``, whose key is its own."""
        session = self.session
        assert session is not None
        if self.expires_at < now:
            return False
        if needs is not NO_NEEDS and needs.unmet_by(session.capabilities) is not None:
            return False
        verdict = self.verdict = self.judged(candidate.requirement, wall)
        return verdict.ok

    def judged(self, requirement: Requirement, wall: Callable[[], float]) -> Verdict:
        """The verdict on its session; remembered for as long as it holds."""
        verdict = self._verdicts.get(requirement)
        if verdict is None or (verdict.ok and verdict.until != NEVER and verdict.until <= wall()):
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()
            assert self.session is not None
            verdict = self._verdicts[requirement] = judge(requirement, self.session.evidence, wall())
        return verdict


class Request:
    """Somebody who wants a session.

    :param patience: seconds for which it may wait for a place, where limits leave none; openings take their own time.
    :ivar tried: the endpoints where opening one for it has failed, the last time with ``error``.
    :ivar opening: the member that is being opened for it.
    :ivar waits_for: the member that is being closed to make room for it.
    :ivar short_of: tells whose end would make room for it, if it waits because of a limit and for nobody's end yet.
    :ivar deadline: when it loses patience; `NEVER` if it has not begun to wait for a place.
    :ivar number: its place in the order of waiting.
    :ivar waiting: it is in a queue.
    :ivar miss: why no kept session served it when it came.
    """

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
        "patience",
        "short_of",
        "tried",
        "waiting",
        "waits_for",
    )

    def __init__(
        self,
        destination: Destination,
        needs: Needs = NO_NEEDS,
        fresh: bool = False,
        avoid: frozenset[Endpoint] = frozenset(),
        patience: float = 30.0,
    ) -> None:
        self.destination = destination
        self.patience = patience
        self.needs = needs
        self.fresh = fresh
        self.avoid = avoid
        self.tried: set[Endpoint] = set()
        self.error: DeliveryError | None = None
        self.opening: Member | None = None
        self.waits_for: Member | None = None
        self.short_of: Callable[[Member], bool] | None = None
        self.deadline = NEVER
        self.number = 0
        self.waiting = False
        self.miss = ""

    @property
    def plain(self) -> bool:
        """Whether nothing but its place in the queue makes it differ from others of its destination."""
        return not (self.fresh or self.avoid or self.tried) and self.needs is NO_NEEDS

    @property
    def hopeless(self) -> bool:
        """Whether it waits, and nothing is under way for it."""
        return self.waiting and self.opening is None and self.waits_for is None


@attrs.frozen(slots=True)
class Grant:
    """``member`` is leased to ``request``."""

    request: Request
    member: Member


@attrs.frozen(slots=True)
class Open:
    """Open a session for ``member.candidate``, then call `Pool.opened` or `Pool.failed`."""

    member: Member


@attrs.frozen(slots=True)
class Close:
    """End the session, or the opening, of ``member``; call `Pool.gone` when its socket is closed."""

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
