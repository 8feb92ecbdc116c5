"""The relay: bytes between a borrower's pair and a kept connection, with back-pressure both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.connection import Connection


@implementer(IPushProducer)
class _Reading:
    """One direction's source, as a producer that the other direction's transport can pause but not stop.

    Twisted stops a transport's producer when it is lost, and for a source that is a transport that would close it.
    """

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.pauseProducing = pause
        self.resumeProducing = resume

    def stopProducing(self) -> None:
        pass


class Relay(Protocol):
    """The keeper's end of a pair, between leases and during them.

    :param on_end: called with this when the borrower has closed its end, or the pair was closed.
    :param on_intrusion: called with this when a byte comes on a pair that is not leased.
    :ivar sent: bytes from the borrower to the server in this lease.
    :ivar received: bytes from the server to the borrower in this lease.
    """

    def __init__(self, on_end: Callable[[Relay], None], on_intrusion: Callable[[Relay], None]) -> None:
        self._on_end = on_end
        self._on_intrusion = on_intrusion
        self._connection: Connection | None = None
        self._wire: Any = None
        self._last_sent = b"\n"
        self._last_received = b"\n"
        self.sent = 0
        self.received = 0
        self.closed = False

    def connectionMade(self) -> None:
        self._wire = self.transport

    # -- a lease -----------------------------------------------------------------------------------------------

    def begin(self, connection: Connection, first_silence: float, silence: float) -> None:
        """Relay to ``connection`` from now on; see `Connection.lend` for what is too long a silence (seconds)."""
        self._connection = connection
        self.sent = self.received = 0
        self._last_sent = self._last_received = b"\n"
        connection.lend(self, first_silence, silence)
        connection.register_source(_Reading(self._wire.pauseProducing, self._wire.resumeProducing))
        self._wire.registerProducer(_Reading(connection.pause_reading, connection.resume_reading), True)

    def end(self) -> None:
        """Relay no more. What comes on the pair until the next lease is an intrusion."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.unregister_source()
            connection.reclaim()
            if not self.closed:
                self._wire.unregisterProducer()
                self._wire.resumeProducing()

    def settled(self, sent: int, received: int) -> bool:
        """Whether the borrower has counted the same bytes as we have, and both directions end with a whole line."""
        whole = self._last_sent == b"\n" and self._last_received == b"\n"
        return whole and sent == self.sent and received == self.received

    def close(self) -> None:
        """Close the pair."""
        if not self.closed:
            self._wire.loseConnection()

    def abort(self) -> None:
        """Close the pair at once."""
        if not self.closed:
            self._wire.abortConnection()

    # -- from the borrower -------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        connection = self._connection
        if connection is None:
            self._on_intrusion(self)
            return
        self.sent += len(data)
        self._last_sent = data[-1:]
        connection.send_raw(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self._on_end(self)

    # -- from the server ---------------------------------------------------------------------------------------

    def bytes_received(self, data: bytes) -> None:
        """The server has sent ``data``."""
        self.received += len(data)
        self._last_received = data[-1:]
        self._wire.write(data)

    def stream_ended(self) -> None:
        """The connection has ended: so does the pair, behind what was relayed."""
        self.close()
