"""The transport that a stock client is connected to: its other end is a front in the same process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IAddress, IConsumer, ISSLTransport, ITCPTransport
from twisted.logger import Logger
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

CHUNKS = 16
"""Chunks that a producer is asked for before the reactor has its turn."""


class Peer(Protocol):
    """The other end."""

    def received(self, data: bytes) -> None:
        """The client has written ``data``."""

    def file_begins(self) -> None:
        """What is written from now on is a file as it is, no dots doubled in it, until `file_ends`."""

    def file_ends(self) -> None:
        """See `file_begins`."""

    def file_failed(self) -> None:
        """The file could not be read to its end."""

    def client_gone(self) -> None:
        """The client will neither write nor read any more."""


@implementer(ITCPTransport, IConsumer)
class FrontTransport:
    """The client's transport. What the front says arrives in a later turn of the reactor, as from a socket.

    :param clock: provides `IReactorTime`.
    :param secure: whether to provide `ISSLTransport`, by which stock clients know that they need no STARTTLS.
    :param on_lost: called with the reason when the client's ``connectionLost`` has been.
    """

    _log = Logger()

    def __init__(
        self, clock: Any, protocol: Any, address: IAddress, secure: bool, on_lost: Callable[[Failure], None]
    ) -> None:
        self.disconnecting = False
        self.connected = True
        self.peer: Peer
        self._clock = clock
        self._protocol = protocol
        self._address = address
        self._on_lost = on_lost
        self._inbox: list[bytes] = []
        self._reading: Any = None
        self._ending: Failure | None = None
        self._producer: Any = None
        self._file: FileSender | None = None
        if secure:
            directlyProvides(self, ISSLTransport, providedBy(self))

    def begin(self, peer: Peer) -> None:
        """Connect the client with ``peer``."""
        self.peer = peer
        self._protocol.makeConnection(self)

    # -- what the front does -----------------------------------------------------------------------------------

    def deliver(self, data: bytes) -> None:
        """Have the client read ``data``."""
        self._inbox.append(data)
        self._look()

    def hang_up(self) -> None:
        """Close it, when the client has read what it was sent."""
        self._end(Failure(ConnectionDone()))

    def _end(self, reason: Failure) -> None:
        if self._ending is None:
            self._ending = reason
            self._look()

    def _look(self) -> None:
        if self._reading is None and self.connected:
            self._reading = self._clock.callLater(0, self._read)

    def _read(self) -> None:
        self._reading = None
        inbox, self._inbox = self._inbox, []
        if inbox and not self.disconnecting:
            try:
                self._protocol.dataReceived(b"".join(inbox))
            except Exception:  # noqa: BLE001  (whatever the client's code raises, as a reactor does)
                failure = Failure()
                self._log.failure("a mail client failed over a reply", failure)
                self._leave(failure)
        if self._inbox and not self.disconnecting:
            self._look()
        elif self._ending is not None and self.connected:
            self._lost(self._ending)

    def _lost(self, reason: Failure) -> None:
        self.connected = False
        self.disconnecting = True
        self.peer.client_gone()
        producer, self._producer = self._producer, None
        # The file's own producer has ended with the connection.
        if producer is not None and producer is not self._file:
            producer.stopProducing()
        try:
            self._protocol.connectionLost(reason)
        finally:
            self._on_lost(reason)

    # -- ITransport, ITCPTransport -----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.connected and not self.disconnecting and data:
            self.peer.received(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self._leave(Failure(ConnectionDone()))

    def loseWriteConnection(self) -> None:
        self.loseConnection()

    def abortConnection(self) -> None:
        self._leave(Failure(ConnectionAborted()))

    def _leave(self, reason: Failure) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self.peer.client_gone()
            self._end(reason)

    def getPeer(self) -> Any:
        return self._address

    def getHost(self) -> Any:
        return self._address

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is no TCP here."""

    def getTcpKeepAlive(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """There is no TCP here."""

    def getPeerCertificate(self) -> object:
        """None: what the server has shown is judged by the destination's policy."""
        return None

    # -- IConsumer ---------------------------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.disconnecting:
            producer.stopProducing()
            return
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        self._producer = producer
        if _sends_stock(producer):
            # The file itself is taken: its dots are the affair of whoever writes it to the server.
            producer.transform = None
            self._file = producer
            self.peer.file_begins()
        if not streaming:
            self._clock.callLater(0, self._pull, producer)

    def unregisterProducer(self) -> None:
        if self._producer is not None and self._producer is self._file:
            self.peer.file_ends()
        self._producer = self._file = None

    def _pull(self, producer: Any) -> None:
        for _ in range(CHUNKS):
            if self._producer is not producer:
                return
            try:
                producer.resumeProducing()
            except Exception:  # noqa: BLE001  (whatever the client's file raises)
                self._log.failure("a mail client could not read its message")
                self._producer = self._file = None
                self.peer.file_failed()
                return
        self._clock.callLater(0, self._pull, producer)


def _sends_stock(producer: Any) -> bool:
    """Whether ``producer`` sends a file with the line ends and dots of `twisted.mail.smtp`, which is not imported
    here: that installs a reactor."""
    if not isinstance(producer, FileSender):
        return False
    function = getattr(producer.transform, "__func__", None)
    place = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    return place == ("twisted.mail.smtp", "SMTPClient.transformChunk")
