"""Those who wait: a queue for each destination, first come first served, fresh requests at the head."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from heapq import heapify, heappop, heapreplace

from mailcache.destination import Destination
from mailcache.members import NEVER, Member, Request

_AHEAD = 1 << 62
"""What puts the numbers of fresh requests before those of all others."""


class Queues:
    """The requests that wait, and what each of them waits for.

    :ivar queues: those of each destination, in their order; no queue is empty.
    :ivar size: how many they are.
    """

    def __init__(self) -> None:
        self.queues: dict[Destination, deque[Request]] = {}
        self.size = 0
        self._next = 1

    def add(self, request: Request) -> None:
        """Let ``request`` wait behind those that came before it; fresh ones only behind fresh ones."""
        queue = self.queues.setdefault(request.destination, deque())
        request.number = self._next
        self._next += 1
        request.waiting = True
        self.size += 1
        if request.fresh:
            request.number -= _AHEAD
            queue.insert(sum(other.fresh for other in queue), request)
        else:
            queue.append(request)

    def remove(self, request: Request) -> Member | None:
        """``request`` waits no more. Its opening goes to the first of its destination who has none and can use it.

        :return: the opening, if nobody takes it over.
        """
        queue = self.queues[request.destination]
        queue.remove(request)
        if not queue:
            del self.queues[request.destination]
        request.waiting = False
        self.size -= 1
        if request.waits_for is not None:
            disown(request.waits_for)
        opening = request.opening
        if opening is None:
            return None
        disown(opening)
        endpoint = opening.candidate.endpoint
        for other in queue:
            if other.opening is None and endpoint not in other.avoid:
                own(other, opening)
                return None
        return opening

    def at(self, destination: Destination) -> tuple[Request, ...]:
        """Those who wait for ``destination``, in their order."""
        return tuple(self.queues.get(destination, ()))

    def in_order(self, done: Container[Destination] = ()) -> Iterator[Request]:
        """All who wait as this begins, in one order; those of a destination end when it is in ``done``."""
        rows = [(queue[0].number, 0, tuple(queue)) for queue in self.queues.values()]
        heapify(rows)
        while rows:
            _, at, row = rows[0]
            if row[at].destination in done:
                heappop(rows)
                continue
            yield row[at]
            if at + 1 < len(row):
                heapreplace(rows, (row[at + 1].number, at + 1, row))
            else:
                heappop(rows)


def own(request: Request, opening: Member) -> None:
    """``opening`` is done for ``request``, which needs nobody else's place then."""
    if request.waits_for is not None:
        disown(request.waits_for)
    request.opening = opening
    request.short_of = None
    request.deadline = NEVER
    opening.request = request


def claim(request: Request, leaving: Member) -> None:
    """``request`` waits for the place of ``leaving``."""
    request.waits_for = leaving
    request.short_of = None
    leaving.request = request


def disown(member: Member) -> Request | None:
    """Nobody waits for the opening, or for the place, of ``member`` any more; gives who did."""
    request, member.request = member.request, None
    if request is not None:
        if request.opening is member:
            request.opening = None
        else:
            request.waits_for = None
    return request
