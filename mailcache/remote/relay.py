"""The relay: bytes between a borrower's pair and a kept connection, with back-pressure both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.connection import Connection
from mailcache.remote.watch import CUT, HOLD, LAST_WORD, Watch
from mailcache.writing import Writer

BORROWERS_TURN = 60.0
"""Seconds without a byte moved until a lease is revoked, while its borrower is to move: who has a session has something
to send. A borrower that stands still altogether is noticed by its silence on the link, much earlier."""

SERVERS_TURN = 900.0
"""The same while the server is to move: longer than the longest wait of a transaction (600 s), which is the
borrower's to end."""


@implementer(IPushProducer)
class Pausing:
    """A source that a transport can pause but not stop.

    Twisted stops a transport's producer when it is lost, and for a source that is a transport that would close it.
    """

    def __init__(self, pause: Callable[[], object], resume: Callable[[], object]) -> None:
        self._pause = pause
        self._resume = resume

    def pauseProducing(self) -> None:
        self._pause()

    def resumeProducing(self) -> None:
        self._resume()

    def stopProducing(self) -> None:
        pass


class Relay(Protocol):
    """The keeper's end of a pair, between leases and during them.

    :param watch: follows the conversation.
    :param on_end: called when the borrower has closed its end, or the pair was closed.
    :ivar sent: bytes from the borrower to the server in this lease.
    :ivar received: bytes from the server to the borrower in this lease.
    :ivar closed: there is no pair any more.
    """

    def __init__(self, watch: Watch, on_end: Callable[[], None]) -> None:
        self.watch = watch
        self._on_end = on_end
        self._connection: Connection | None = None
        self._wire: Any = None
        self._writer: Any = None
        self._paused = False
        self._held = b""
        self._ending = False
        self.sent = 0
        self.received = 0
        self.closed = False

    def connectionMade(self) -> None:
        self._wire = self.transport
        self._writer = Writer(self._wire)

    # -- a lease -----------------------------------------------------------------------------------------------

    @property
    def fit(self) -> bool:
        """Whether there can be another lease of it."""
        return not self._ending and not self.closed

    def begin(self, connection: Connection, rset_due: bool) -> None:
        """Relay to ``connection`` from now on."""
        self._connection = connection
        self._paused = False
        self._held = b""
        self.sent = self.received = 0
        self.watch.begin(rset_due)
        connection.lend(self, BORROWERS_TURN)
        connection.register_source(Pausing(self._pause, self._resume))
        self._wire.registerProducer(Pausing(connection.pause_reading, connection.resume_reading), True)

    def end(self) -> None:
        """Relay no more. A byte that comes on the pair until the next lease closes it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.unregister_source()
        connection.reclaim()
        connection.resume_reading()
        if not self.closed:
            self._wire.unregisterProducer()
            self._wire.resumeProducing()

    def settled(self, sent: int, received: int) -> bool:
        """Whether the session stands at a clean place, and the borrower has counted the same bytes as we have."""
        return self.watch.settled and sent == self.sent and received == self.received

    def close(self) -> None:
        """Close the pair behind what was written to it."""
        self._ending = True
        if not self.closed:
            self._wire.loseConnection()

    def abort(self) -> None:
        """Close the pair at once."""
        self._ending = True
        if not self.closed:
            self._wire.abortConnection()

    def _pause(self) -> None:
        # It is the server that does not move.
        self._paused = True
        self._wire.pauseProducing()
        self._moved()

    def _resume(self) -> None:
        self._paused = False
        if not self._held:
            self._wire.resumeProducing()
        self._moved()

    def _moved(self) -> None:
        connection = self._connection
        if connection is not None:
            servers_turn = self.watch.server_owes or self._paused
            connection.allow_silence(SERVERS_TURN if servers_turn else BORROWERS_TURN)

    # -- from the borrower -------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        connection = self._connection
        if connection is None:
            self.abort()
            return
        self.sent += len(data)
        self.watch.sent(data)
        if self._held and self.watch.spoiled is not None:
            connection.cut("unsolicited", "bytes of a reply came before the end of content")
            return
        connection.send_raw(data)
        self._moved()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self._on_end()

    # -- from the server ---------------------------------------------------------------------------------------

    def bytes_received(self, data: bytes) -> None:
        """The server has sent ``data``."""
        todo = self.watch.received(data)
        if todo == CUT:
            assert self._connection is not None
            self._connection.cut("unsolicited", "a reply came before the end of content")
            return
        self._held += data
        if todo == HOLD:
            # The end of content must not be written to the pair meanwhile, or there is doubt where there is none.
            self._wire.pauseProducing()
            return
        data, self._held = self._held, b""
        self.received += len(data)
        self._writer.write(data)
        self._moved()
        if todo == LAST_WORD:
            assert self._connection is not None
            self._connection.cut("unsolicited", "it was refused before the end of content")

    def stream_ended(self) -> None:
        """The connection has ended: so does the pair, behind what was relayed."""
        self.close()
