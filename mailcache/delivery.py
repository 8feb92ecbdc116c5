"""One message delivered, or its failure told with how sure it is: the phase table.

================================================  ===========================================  =================
where it is cut                                   the message                                  the session
================================================  ===========================================  =================
waiting, routing, opening                         not sent; the cache tries other endpoints    never kept
reused session, before the end of content         once more on a fresh session, silently       discarded
fresh session, before the end of content          once more at another endpoint, if any        discarded
after the end of content, before the reply        `UncertainDelivery`, never sent again        discarded
================================================  ===========================================  =================

A server's verdict is a result wherever it comes. At most two connections see MAIL of one message, and only content
that can be read from its start again is sent again.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mailcache.destination import Destination, Endpoint
from mailcache.message import Content, Envelope, content_of
from mailcache.result import DeliveryError, DeliveryResult

MAX_ATTEMPTS = 2
"""Connections that may see MAIL of one message: (reused, fresh) or (fresh, fresh elsewhere)."""


def deliver(
    cache: Any,
    destination: Destination,
    envelope: Envelope,
    content: bytes | BinaryIO | Content,
    deadline: float | None = None,
) -> Deferred[DeliveryResult]:
    """Deliver one message over a session of ``cache``, an `ISessionCache`.

    :param content: bytes, or a binary file, which is streamed from where it stands.
    :param deadline: seconds for all of it; ``None`` leaves it to the time limits of the cache.
    :raises ValueError: for content that can't be read or contradicts the envelope, or a deadline that is not positive.
    :raises TypeError: for content of another type.
    :return: fires a `DeliveryResult` with the server's verdict. Fails with `DeliveryError` if the message was
        certainly not delivered; with `UncertainDelivery` if nobody can know. It can be cancelled at every moment:
        before the end of content was written it fails with `CancelledError`, after with `UncertainDelivery`; the same
        goes for the deadline, with a `DeliveryError`.
    """
    return _Delivery(cache, destination, envelope, content_of(content), deadline).result


class _Delivery:
    """One message on its way."""

    __slots__ = (
        "_attempts",
        "_avoid",
        "_cache",
        "_content",
        "_destination",
        "_envelope",
        "_first_error",
        "_late",
        "_lease",
        "_needs",
        "_reused",
        "_stage",
        "_timer",
        "result",
    )

    def __init__(
        self,
        cache: Any,
        destination: Destination,
        envelope: Envelope,
        content: Content,
        deadline: float | None,
    ) -> None:
        if not isinstance(envelope, Envelope):
            raise ValueError(f"envelope: an Envelope is wanted, not {type(envelope).__name__}")
        self._cache = cache
        self._destination = destination
        self._envelope = envelope
        self._content = content
        self._needs = envelope.needs(content)
        self._avoid: frozenset[Endpoint] = frozenset()
        self._attempts = 0
        self._lease: Any = None
        self._reused = False
        self._first_error: DeliveryError | None = None
        self._late = False
        self._timer: IDelayedCall | None = None
        self._stage: Deferred[Any] | None = None
        self.result: Deferred[DeliveryResult] = Deferred(self._cancelled)
        if deadline is not None:
            if not deadline > 0:
                raise ValueError(f"deadline: {deadline!r} is not a positive number of seconds")
            self._timer = cache.clock.callLater(deadline, self._expire)
        self._acquire(fresh=False)

    def _acquire(self, *, fresh: bool) -> None:
        stage = self._cache.acquire(self._destination, needs=self._needs, fresh=fresh, avoid=self._avoid)
        self._stage = stage
        stage.addCallbacks(self._leased, self._not_leased)

    def _leased(self, lease: Any) -> None:
        self._lease = lease
        self._reused = lease.uses > 0
        self._attempts += 1
        stage = lease.send(self._envelope, self._content)
        self._stage = stage
        stage.addCallbacks(self._sent, self._not_sent)

    def _not_leased(self, failure: Failure) -> None:
        first = self._first_error
        if first is not None and isinstance(failure.value, DeliveryError) and failure.value.phase == "routing":
            # There was nowhere else to go: what went wrong before says more.
            failure = Failure(first)
        self._fail(failure)

    def _sent(self, result: DeliveryResult) -> None:
        # The session goes back before the caller hears of it: one that sends again at once finds it there.
        self._lease.release()
        self._finish(result)

    def _not_sent(self, failure: Failure) -> None:
        lease = self._lease
        error = failure.value
        if isinstance(error, DeliveryError) and not error.retriable:
            lease.release()
            self._fail(failure)
        elif (
            isinstance(error, DeliveryError)
            and self._attempts < MAX_ATTEMPTS
            and not self._late
            and self._content.rewind()
        ):
            if self._first_error is None:
                self._first_error = error
            if not self._reused:
                self._avoid |= {lease.endpoint}
            # The request for a fresh session queues before the place of the dead one is given away.
            self._acquire(fresh=True)
            lease.discard()
        else:
            lease.discard()
            self._fail(failure)

    def _finish(self, outcome: DeliveryResult | Failure) -> None:
        self._stage = None
        self._lease = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if not self.result.called:
            self.result.callback(outcome)

    def _fail(self, failure: Failure) -> None:
        if self._late and failure.check(CancelledError):
            failure = Failure(DeliveryError("the deadline has passed", phase=self._phase()))
        self._finish(failure)

    def _phase(self) -> str:
        return "waiting" if self._lease is None else "content"

    def _expire(self) -> None:
        self._late = True
        if self._stage is not None:
            self._stage.cancel()

    def _cancelled(self, _result: Deferred[DeliveryResult]) -> None:
        if self._stage is not None:
            self._stage.cancel()
