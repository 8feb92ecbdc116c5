"""Who waits for a session here, and what the keeper was asked for on their behalf.

Requests for just any session of a destination are counted, not tied to who asked first: a freed lease is handed on
here, and the request of whoever got it serves the next. A request that nobody needs any more is withdrawn with the
next look at the time, since the next message mostly needs it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import attrs
from twisted.internet.defer import Deferred

from mailcache.destination import Destination, Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.interfaces import ISession
from mailcache.remote.borrowed import Borrowed


@attrs.define(eq=False)
class Waiter:
    """Somebody who wants a session.

    :ivar patience: seconds that he waits where limits leave no place.
    :ivar deadline: when that is over.
    :ivar answer_by: when a keeper that goes on without an answer for him has lost sight of him.
    :ivar number: counts those who came.
    :ivar instead: what he waits for where there is no keeper.
    """

    destination: Destination
    needs: Needs
    fresh: bool
    avoid: frozenset[Endpoint]
    patience: float
    deadline: float
    answer_by: float
    granted: Deferred[ISession] = attrs.field(init=False)
    number: int = 0
    instead: Deferred[ISession] | None = None

    @property
    def particular(self) -> bool:
        """Whether not just any session of the destination will do."""
        return self.fresh or bool(self.avoid) or self.needs is not NO_NEEDS

    def takes(self, borrowed: Borrowed) -> bool:
        """Whether ``borrowed`` will do, which was not leased for him alone.

        Who wants a fresh one waits for that: a session that carried nothing may have been kept, and be dead, as well.
        """
        return not self.fresh and self.suits(borrowed)

    def suits(self, borrowed: Borrowed) -> bool:
        """Whether ``borrowed`` is of the kind that he has asked for, be it kept or new."""
        session = borrowed.session
        return (
            borrowed.destination == self.destination
            and session.key.endpoint not in self.avoid
            and self.needs.unmet_by(session.capabilities) is None
        )


@attrs.define(eq=False)
class Asked:
    """A request that the keeper has not answered.

    :ivar waiter: for whom it is; ``None`` if for anybody who will take just any session of ``destination``.
    :ivar deadline: until when the keeper was asked to wait for a place.
    :ivar answer_by: when it must have answered.
    """

    number: int
    destination: Destination
    waiter: Waiter | None
    deadline: float
    answer_by: float
    withdrawn: bool = False


class Queue:
    """The waiters of one destination, and the requests for them."""

    __slots__ = ("asked", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()
        self.asked: dict[int, Asked] = {}

    def plain(self) -> Iterator[Waiter]:
        """Those for whom any session will do."""
        return (waiter for waiter in self.waiters if not waiter.particular)

    def unasked(self) -> list[Waiter]:
        """For whom there is no request yet: the last of the plain ones, and particular ones."""
        spare = 0
        theirs: set[Waiter] = set()
        for asked in self.asked.values():
            if not asked.withdrawn:
                if asked.waiter is None:
                    spare += 1
                else:
                    theirs.add(asked.waiter)
        missing = []
        for waiter in self.waiters:
            if waiter.particular:
                if waiter not in theirs:
                    missing.append(waiter)
            elif spare:
                spare -= 1
            else:
                missing.append(waiter)
        return missing

    def surplus(self) -> list[Asked]:
        """The requests that nobody needs."""
        wanted = sum(1 for _ in self.plain())
        unneeded = []
        for asked in self.asked.values():
            if asked.withdrawn:
                continue
            if asked.waiter is not None:
                if asked.waiter not in self.waiters:
                    unneeded.append(asked)
            elif wanted:
                wanted -= 1
            else:
                unneeded.append(asked)
        return unneeded


class Waiting:
    """All who wait, by destination."""

    def __init__(self) -> None:
        self._queues: dict[Destination, Queue] = {}
        self._numbers: dict[int, Asked] = {}
        self._next = 1
        self._came = 0

    def __len__(self) -> int:
        return sum(len(queue.waiters) for queue in self._queues.values())

    def __bool__(self) -> bool:
        return bool(self._queues)

    def queues(self) -> list[Queue]:
        """Those there are now."""
        return list(self._queues.values())

    def waiters(self) -> list[Waiter]:
        """All who wait now."""
        return [waiter for queue in self._queues.values() for waiter in queue.waiters]

    def queue(self, destination: Destination) -> Queue | None:
        """Who waits for ``destination``, and what was asked for."""
        return self._queues.get(destination)

    def add(self, waiter: Waiter) -> Queue:
        """Let ``waiter`` wait behind those that came before; fresh ones only behind fresh ones."""
        self._came += 1
        waiter.number = self._came
        queue = self._queues.setdefault(waiter.destination, Queue())
        if waiter.fresh:
            queue.waiters.insert(sum(other.fresh for other in queue.waiters), waiter)
        else:
            queue.waiters.append(waiter)
        return queue

    def remove(self, waiter: Waiter) -> bool:
        """``waiter`` waits no more; gives whether it did."""
        queue = self._queues.get(waiter.destination)
        if queue is None or waiter not in queue.waiters:
            return False
        queue.waiters.remove(waiter)
        self._clear(waiter.destination, queue)
        return True

    def unasked(self) -> list[tuple[Waiter, Queue]]:
        """Those of all destinations for whom there is no request, in their order: fresh ones first, then as they
        came."""
        missing = [(waiter, queue) for queue in self.queues() for waiter in queue.unasked()]
        return sorted(missing, key=lambda entry: (not entry[0].fresh, entry[0].number))

    def ask(self, waiter: Waiter, queue: Queue) -> Asked:
        """A request for ``waiter``, or for just any who waits as it does."""
        whom = waiter if waiter.particular else None
        asked = Asked(self._next, waiter.destination, whom, waiter.deadline, waiter.answer_by)
        self._next += 1
        self._numbers[asked.number] = queue.asked[asked.number] = asked
        return asked

    def asker(self, asked: Asked) -> Waiter | None:
        """Who is to hear what comes of ``asked``: whom it was for, or the first for whom just any session will do."""
        queue = self._queues.get(asked.destination)
        if queue is None or asked.withdrawn:
            return None
        if asked.waiter is not None:
            return asked.waiter if asked.waiter in queue.waiters else None
        return next(queue.plain(), None)

    def answered(self, asked: Asked) -> bool:
        """There is an answer to ``asked``; gives whether one was awaited."""
        queue = self._queues.get(asked.destination)
        if self._numbers.pop(asked.number, None) is not asked or queue is None:
            return False
        del queue.asked[asked.number]
        self._clear(asked.destination, queue)
        return True

    def forget_requests(self) -> None:
        """There is no keeper who would answer."""
        self._numbers.clear()
        for destination, queue in list(self._queues.items()):
            queue.asked.clear()
            self._clear(destination, queue)

    def _clear(self, destination: Destination, queue: Queue) -> None:
        if not queue.waiters and not queue.asked:
            del self._queues[destination]
