"""The routes that are known: destination to candidates, kept no longer than what was looked up may be believed."""

from __future__ import annotations

from collections import OrderedDict

from mailcache.destination import Destination
from mailcache.members import OPENING, Candidate, Member
from mailcache.routing.route import Route

MAX_ROUTES = 10_000
"""Routes remembered, the oldest forgotten first: some kilobytes each, and a look-up brings one back."""


class Known:
    """The candidates of one destination, best first, good until ``expires_at``."""

    __slots__ = ("candidates", "expires_at")

    def __init__(self, candidates: tuple[Candidate, ...], expires_at: float) -> None:
        self.candidates = candidates
        self.expires_at = expires_at


class Routes:
    """What is known, and what is being looked up.

    :ivar known: by destination; who reads it looks at ``expires_at``.
    :ivar resolving: the destinations whose routes are being looked up.
    """

    def __init__(self) -> None:
        self.known: OrderedDict[Destination, Known] = OrderedDict()
        self.resolving: set[Destination] = set()

    def learn(self, destination: Destination, route: Route, now: float) -> None:
        """A look-up has found ``route``."""
        self.resolving.discard(destination)
        candidates = tuple([Candidate(destination, hop) for hop in route.hops])
        self.known[destination] = Known(candidates, now + route.ttl)
        self.known.move_to_end(destination)
        if len(self.known) > MAX_ROUTES:
            self.known.popitem(last=False)

    def candidates(self, destination: Destination, now: float) -> tuple[Candidate, ...] | None:
        """The candidates of ``destination``, or ``None`` if there is no route that may be believed."""
        known = self.known.get(destination)
        return None if known is None or known.expires_at <= now else known.candidates

    def with_session(self, member: Member, destination: Destination, now: float) -> list[Candidate]:
        """The candidates of ``destination`` that ``member``'s session is one with: more if hosts share an address."""
        key = member.candidate.key
        found = [candidate for candidate in self.candidates(destination, now) or () if candidate.key == key]
        if not found and member.state == OPENING and member.destination == destination:
            return [member.candidate]  # the route was good when this was begun for it
        return found
