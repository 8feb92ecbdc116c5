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

Where the recipients are more than the server takes in one transaction, that holds for each of several transactions
(`mailcache.parts`), all on the same session unless that breaks or is used up. What was answered in one is never
called into question by what happens to a later one.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mailcache.contents import Content, MessageContent, Sendable, content_of
from mailcache.destination import Destination, Endpoint
from mailcache.envelope import Envelope
from mailcache.parts import Parts
from mailcache.result import DeliveryError, DeliveryResult, UncertainDelivery

MAX_ATTEMPTS = 2
"""Connections that may see MAIL of one transaction: (reused, fresh) or (fresh, fresh elsewhere)."""


def deliver(
    cache: Any,
    destination: Destination,
    envelope: Envelope,
    content: Sendable,
    deadline: float | None = None,
) -> Deferred[DeliveryResult]:
    """Deliver one message over a session of ``cache``, an `ISessionCache`.

    :param content: bytes; or a binary file, which is streamed from where it stands, in the reactor's thread: a pipe
        that is filled slowly holds that up. Or an `email.message.EmailMessage` (or ``Message``), as it is now: sent
        without Bcc, in 7-bit form where the server lacks 8BITMIME, with SMTPUTF8 where an address in its header needs
        that.
    :param deadline: seconds for all of it; ``None`` leaves it to the time limits of the cache.
    :raises ValueError: for content that can't be read or written or contradicts the envelope, or a deadline that is
        not positive.
    :raises TypeError: for content of another type.
    :return: fires a `DeliveryResult` with the server's verdict. Fails with `DeliveryError` if the message was
        certainly not delivered; with `UncertainDelivery` if nobody can know. It can be cancelled at every moment:
        before the end of content was written it fails with `CancelledError`, after with `UncertainDelivery`; the same
        goes for the deadline, with a `DeliveryError`. Where the recipients needed several transactions and one of
        them was answered, whatever ends the delivery without doubt gives a `DeliveryResult`: those who were still
        due are ``rejected``, with the server's last 452 or with a 451 of our own.
    """
    if not isinstance(envelope, Envelope):
        raise ValueError(f"envelope: an Envelope is wanted, not {type(envelope).__name__}")
    source = content_of(content, envelope)
    if type(source) is MessageContent:
        envelope = source.demanded(envelope)
    delivery = _Delivery(cache, destination, envelope, source)
    if deadline is None:
        return delivery.begin()
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not 0 < deadline < float("inf"):
        raise ValueError(f"deadline: {deadline!r} is not a positive number of seconds")
    return _within(cache.clock, deadline, delivery.begin())


class _Delivery:
    """One message on its way.

    It is one chain of Deferreds, each the lease's or the sending's own, so that cancelling the first always reaches
    what is being waited for.
    """

    __slots__ = (
        "_attempts",
        "_avoid",
        "_cache",
        "_content",
        "_destination",
        "_envelope",
        "_lease",
        "_needs",
        "_parts",
        "_reused",
    )

    def __init__(self, cache: Any, destination: Destination, envelope: Envelope, content: Content) -> None:
        self._cache = cache
        self._destination = destination
        self._envelope = envelope
        self._content = content
        self._needs = envelope.needs(content)
        self._avoid: frozenset[Endpoint] = frozenset()
        self._attempts = 0
        self._lease: Any = None
        self._parts: Parts | None = None
        self._reused = False

    def begin(self) -> Deferred[DeliveryResult]:
        leasing: Deferred[Any] = self._cache.acquire(self._destination, needs=self._needs)
        if leasing.called and not leasing.paused and not isinstance(leasing.result, Failure):
            return self._send(leasing.result)
        return leasing.addCallback(self._send)

    def _send(self, lease: Any) -> Deferred[DeliveryResult]:
        self._lease = lease
        # Leases of a cache of somebody else's may know of their uses only.
        self._reused = getattr(lease, "reused", lease.uses > 0)
        self._attempts += 1
        envelope = self._envelope
        if envelope.recipients[1:]:
            envelope = self._part(lease)
        sending: Deferred[DeliveryResult]
        try:
            sending = lease.send(envelope, self._content, one_flight=self._destination.one_flight)
        except BaseException:
            lease.release()
            raise
        return sending.addCallbacks(self._sent, self._not_sent)

    def _sent(self, result: DeliveryResult) -> DeliveryResult | Deferred[DeliveryResult]:
        if self._parts is not None or result.excess:
            return self._part_sent(result)
        # The session goes back before the caller hears of it: one that sends again at once finds it there.
        self._lease.release()
        return result

    def _not_sent(self, failure: Failure) -> Failure | Deferred[DeliveryResult]:
        lease = self._lease
        error = failure.value
        if not isinstance(error, DeliveryError):
            lease.discard()
            if self._parts is not None and isinstance(error, UncertainDelivery):
                return Failure(self._parts.in_doubt(error))
            return failure
        if not error.retriable:
            # Nothing is wrong with the session, or it knows better itself.
            lease.release()
            return failure
        if self._attempts >= MAX_ATTEMPTS or not self._content.rewind():
            lease.discard()
            return failure
        if not self._reused:
            self._avoid |= {lease.endpoint}
        # The request for a fresh session queues before the place of the dead one is given away.
        leasing: Deferred[Any] = self._cache.acquire(
            self._destination, needs=self._needs, fresh=True, avoid=self._avoid
        )
        lease.discard()
        return leasing.addCallbacks(self._send, self._nowhere_else, errbackArgs=(failure,))

    # -- more recipients than one transaction takes -----------------------------------------------------------------

    def _part(self, lease: Any) -> Envelope:
        """The envelope of the next transaction, with those recipients that the server of ``lease`` may take at once."""
        envelope = self._envelope
        most = lease.capabilities.rcpt_max
        if self._parts is None:
            if most is None or len(envelope.recipients) <= most:
                return envelope
            self._parts = Parts(envelope.recipients)
        recipients = self._parts.ask(most)
        return envelope if recipients == envelope.recipients else envelope.evolved(recipients=recipients)

    def _part_sent(self, result: DeliveryResult) -> DeliveryResult | Deferred[DeliveryResult]:
        parts, lease = self._parts, self._lease
        if parts is None:
            parts = self._parts = Parts(self._envelope.recipients)
            parts.ask(None)
        parts.answered(result)
        if not parts.due:
            lease.release()
            return parts.result()
        if not self._content.rewind():
            lease.release()
            return parts.broken_off("the content can't be read again")
        self._attempts = 0
        if not lease.reusable:
            lease.release()
            sending = self._cache.acquire(self._destination, needs=self._needs, avoid=self._avoid)
            sending.addCallback(self._send)
        else:
            sending = maybeDeferred(self._send, lease)
        rest: Deferred[DeliveryResult] = sending.addErrback(self._rest_not_sent, parts)
        return rest

    @staticmethod
    def _rest_not_sent(failure: Failure, parts: Parts) -> Failure | DeliveryResult:
        """The server has answered for some: what is certain of the others is a verdict, too."""
        if failure.check(UncertainDelivery):
            return failure
        return parts.broken_off(str(failure.value) or "the delivery was cancelled")

    @staticmethod
    def _nowhere_else(failure: Failure, first: Failure) -> Failure:
        """There was nowhere else to go: what went wrong before says more."""
        error = failure.value
        return first if isinstance(error, DeliveryError) and error.phase == "routing" else failure


def _within(clock: IReactorTime, deadline: float, delivering: Deferred[DeliveryResult]) -> Deferred[DeliveryResult]:
    late = False

    def expire() -> None:
        nonlocal late
        late = True
        delivering.cancel()

    def end(outcome: Any) -> Any:
        if timer.active():
            timer.cancel()
        if late and isinstance(outcome, Failure) and outcome.check(CancelledError):
            raise DeliveryError(f"the deadline of {deadline:g} s has passed", phase="deadline")
        return outcome

    timer = clock.callLater(deadline, expire)
    return delivering.addBoth(end)
