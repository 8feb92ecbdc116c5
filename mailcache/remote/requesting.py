"""What the keeper is asked for on behalf of those who wait, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from mailcache.destination import Destination
from mailcache.interfaces import IPairs
from mailcache.remote import codec, commands
from mailcache.remote.asking import Asked, Queue, Waiter, Waiting
from mailcache.remote.codec import MalformedError
from mailcache.remote.link import Link
from mailcache.remote.packed import Granted, Wanted
from mailcache.result import DeliveryError

SOON = 0.1
"""Seconds by which the patience of a request and that of who waits may differ and still be over at the same time."""

MAX_ENCODED = 1_000
"""Destinations whose bytes are remembered."""


class Requests:
    """The requests to the keeper: one for each who waits, as long as the link stands.

    :param now: gives monotonic seconds.
    :param on_granted: called with the request, the grant and all of the answer, of which it may take the descriptor;
        raises `MalformedError` if that makes no sense.
    :param on_unserved: called with one whom the keeper can't serve, and who waits no more.
    :param on_answered: called when an answer was dealt with.
    """

    _log = Logger()

    def __init__(
        self,
        link: Link,
        waiting: Waiting,
        pairs: IPairs,
        now: Callable[[], float],
        on_granted: Callable[[Asked, Granted, dict[str, Any]], None],
        on_unserved: Callable[[Waiter], None],
        on_answered: Callable[[], None],
    ) -> None:
        self._link = link
        self._waiting = waiting
        self._pairs = pairs
        self._now = now
        self._on_granted = on_granted
        self._on_unserved = on_unserved
        self._on_answered = on_answered
        self._encoded: dict[Destination, bytes] = {}

    def ask(self, queue: Queue) -> None:
        """See that there is a request for each who waits in ``queue``."""
        for waiter in queue.unasked():
            self._ask_for(waiter, queue)

    def ask_for_all(self) -> None:
        """The same for whoever waits, in their order."""
        for waiter, queue in self._waiting.unasked():
            self._ask_for(waiter, queue)

    def withdraw_surplus(self) -> None:
        """Take back what nobody needs any more."""
        for queue in self._waiting.queues():
            for asked in queue.surplus():
                self._withdraw(asked)

    def withdraw_lost(self) -> None:
        """Take back what the keeper should have answered by now: nobody can count on it any more."""
        now = self._now()
        for queue in self._waiting.queues():
            for asked in queue.asked.values():
                if asked.answer_by <= now and not asked.withdrawn:
                    self._withdraw(asked)

    def _withdraw(self, asked: Asked) -> None:
        asked.withdrawn = True
        self._link.tell(commands.Withdraw, number=asked.number)

    def _ask_for(self, waiter: Waiter, queue: Queue) -> None:
        try:
            data = self._encode(waiter.destination)
        except DeliveryError as error:
            self._log.warn("{error}", error=str(error))
            if self._waiting.remove(waiter):
                self._on_unserved(waiter)
            return
        asked = self._waiting.ask(waiter, queue)
        patience = max(0.0, waiter.deadline - self._now())
        wanted = Wanted(asked.number, waiter.needs, waiter.fresh, waiter.avoid, patience)
        answer = self._link.call(commands.Acquire, destination=data, wanted=wanted.encode())
        answer.addCallbacks(self._answered, self._faulted, (asked,), {}, (asked,))
        answer.addErrback(lambda failure: self._log.failure("a defect in mailcache", failure))

    def _encode(self, destination: Destination) -> bytes:
        data = self._encoded.get(destination)
        if data is None:
            if len(self._encoded) >= MAX_ENCODED:
                self._encoded.clear()
            data = self._encoded[destination] = codec.encode_destination(destination)
        return data

    def _answered(self, answer: dict[str, Any], asked: Asked) -> None:
        wanted = self._waiting.answered(asked)
        try:
            if not wanted:
                return
            if answer.get("error") is not None:
                self._refused(asked, codec.decode_error(answer["error"]))
            elif answer.get("granted") is not None:
                self._on_granted(asked, Granted.decode(answer["granted"]), answer)
            else:
                raise MalformedError("an answer without a grant or an error")
        except MalformedError as error:
            self._log.error("the keeper is not understood: {error}", error=str(error))
            self._link.abort()
        finally:
            # One that was taken is there no more.
            descriptor = answer.pop("descriptor", None)
            if descriptor is not None:
                self._pairs.close(descriptor)
        queue = self._waiting.queue(asked.destination)
        if queue is not None and self._link.up:
            self.ask(queue)
        self._on_answered()

    def _refused(self, asked: Asked, error: DeliveryError) -> None:
        waiter = self._waiting.asker(asked)
        if waiter is None:
            return
        if error.phase == "waiting" and asked.waiter is None:
            queue = self._waiting.queue(asked.destination)
            assert queue is not None
            soon = self._now() + SOON
            if asked.deadline > soon:
                # There is no place even to wait: whoever came last has none.
                *_, waiter = queue.plain()
            else:
                waiter = min(queue.plain(), key=lambda each: each.deadline)
                if waiter.deadline > soon:
                    return  # He for whom it was asked would have lost patience; this one came later: ask again.
        self._waiting.remove(waiter)
        waiter.granted.errback(Failure(error))

    def _faulted(self, failure: Failure, asked: Asked) -> None:
        """The keeper is gone, or can't for a reason of its own: never the caller's affair."""
        if failure.check(commands.KeeperFault):
            self._log.warn("the keeper could not lend a session: {why}", why=failure.getErrorMessage())
        waiter = self._waiting.asker(asked)
        if not self._waiting.answered(asked):
            return
        wire = self._link.wire
        if failure.check(commands.KeeperRetiring) and wire is not None:
            wire.retire()
            return
        if waiter is not None and self._waiting.remove(waiter):
            self._on_unserved(waiter)
        self._on_answered()
