"""Which session suits which request, of those that are idle, opened or freed and those who wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailcache.destination import Destination
from mailcache.members import OPENING, Candidate, Member, Request
from mailcache.places import Places
from mailcache.routes import Routes
from mailcache.waiting import Queues

TURN = 1.0
"""Seconds for which a session may go from one to the next before it makes room for one who has waited longer and whom
it does not serve. Shorter, opening would be all that is done at a limit; longer, a busy stream would starve others."""


class Matching:
    """Compares, and decides nothing.

    :param wall: gives seconds since 1970.
    """

    def __init__(self, places: Places, waiting: Queues, routes: Routes, wall: Callable[[], float]) -> None:
        self._places = places
        self._waiting = waiting
        self._routes = routes
        self._wall = wall

    def may_move(self, member: Member, destination: Destination) -> bool:
        """Whether ``destination`` may have the session of ``member`` by its own limit."""
        return member.destination == destination or self._places.room_for(destination)

    def suits(self, member: Member, request: Request, now: float) -> bool:
        """Whether ``request`` may have the session of ``member``, which is just opened, just freed, or idle."""
        return (
            not (request.fresh and member.state != OPENING)
            and member.candidate.endpoint not in request.avoid
            and any(
                member.serves(candidate, request.needs, now, self._wall)
                for candidate in self._routes.with_session(member, request.destination, now)
            )
            and self.may_move(member, request.destination)
        )

    def idle_for(self, request: Request, candidates: Sequence[Candidate], now: float) -> Member | None:
        """An idle session that suits ``request``, of the best candidate, the one used last."""
        for candidate in candidates:
            for member in reversed(self._places.idle.get(candidate.key, ())):
                if self.suits(member, request, now):
                    return member
        return None

    def first_served(self, member: Member, now: float) -> Request | None:
        """The first of all who wait whom ``member`` suits."""
        first: Request | None = None
        for destination, queue in self._waiting.queues.items():
            if not self._routes.with_session(member, destination, now):
                continue
            for request in queue:
                if first is not None and first.number < request.number:
                    break
                if self.suits(member, request, now):
                    first = request
                    break
        return first

    def who_waited_longer(self, member: Member, first: Request, now: float) -> Request | None:
        """Who needs the place of ``member``, and has waited longer than ``first``, the first of all whom it suits."""
        if all(queue[0].number >= first.number for queue in self._waiting.queues.values()):
            return None
        had_its_turn = now - member.opened_at >= TURN
        for request in self._waiting.in_order():
            if request.number >= first.number:
                break
            if request.short_of is not None and (had_its_turn or request.fresh) and request.short_of(member):
                return request
        return None
