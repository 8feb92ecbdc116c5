"""The server's end of a connection below SMTP: TLS, replies gathered by segment, faults made real."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.testing import misreplies
from mailcache.testing.faults import BREAKING, READABLE, REFUSING
from mailcache.testing.records import Connection

if TYPE_CHECKING:
    from mailcache.testing.server import SMTPServer

#: Called when a reply is out: the octets written, and whether they hold the whole reply with a readable code.
Sent = Callable[[bytes, bool], object]

_HANDSHAKE_RECORD = 0x16


class _ServerTLS(TLSMemoryBIOProtocol):
    """TLS that tells its stream what the connection below has come to, and what came in place of TLS."""

    _begun = False

    def dataReceived(self, data: bytes) -> None:
        stream = cast(FaultyStream, self.wrappedProtocol)
        if stream.half_closed:
            return  # it can't be answered, not even by TLS itself
        if not self._begun:
            self._begun = True
            if data[0] != _HANDSHAKE_RECORD:
                stream.violation("clear text where TLS should begin")
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        stream = cast(FaultyStream, self.wrappedProtocol)
        handle = self.getHandle()  # type: ignore[no-untyped-call]
        stream.record.close_notify = bool(handle and handle.get_shutdown() & SSL.RECEIVED_SHUTDOWN)
        stream.lost_below = reason
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


@implementer(IHandshakeListener)
class FaultyStream(Protocol):
    """
    A stream whose replies leave in one write for each segment that was read, and break as the faults say.

    A subclass says what to do with octets: L{greet}, L{consume}.

    @ivar record: what is known of the connection.
    @ivar muted: all that comes is thrown away and nothing is answered any more.
    @ivar busy: an answer is under way; what comes has to wait.
    @ivar half_closed: this side has sent its FIN and reads on.
    @ivar buffer: what has been read and not been taken.
    @ivar fresh_segment: a segment has come, and no command of it was taken; the subclass clears it.
    """

    def __init__(self, server: SMTPServer, record: Connection) -> None:
        self.server = server
        self.record = record
        self.muted = False
        self.busy = False
        self.greeted = False
        self.half_closed = False
        self.lost_below: Failure | None = None
        self.buffer = bytearray()
        self.fresh_segment = False
        self._under: ITCPTransport
        self._tls: _ServerTLS | None = None
        self._batch: list[tuple[bytes, Sent | None, bool]] = []
        self._later: IDelayedCall | None = None
        self._ended_by_server = False
        self._handshake_fault: str | None = None

    # For the subclass

    def greet(self) -> None:
        """The connection stands (with implicit TLS: its handshake too)."""
        raise NotImplementedError

    def consume(self) -> bool:
        """Take a command or a part of the content from C{buffer}; False: more is needed."""
        raise NotImplementedError

    def tls_begun(self) -> None:
        """The handshake is over."""
        raise NotImplementedError

    def violation(self, what: str) -> None:
        """The client has broken the protocol."""
        self.server.violated(self.record, what)

    # Life

    def connectionMade(self) -> None:
        assert self.transport is not None
        self._under = cast(ITCPTransport, self.transport)
        if ITCPTransport.providedBy(self._under):
            self._under.setTcpNoDelay(True)
        kind = self.server.take("connect", self.record)
        if kind is not None:
            self._strike_without_reply(kind)
        elif self.server.implicit_tls:
            self._expect_handshake()
        else:
            self.greet()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._later is not None and self._later.active():
            self._later.cancel()
        self.muted = True
        below = self.lost_below or reason
        if self._ended_by_server:
            self.record.closed = "server"
        elif self.record.quit_seen:
            self.record.closed = "quit"
        else:
            self.record.closed = "fin" if below.check(ConnectionDone) else "reset"
        self.server.ended(self, reason)

    def close(self) -> None:
        """End the connection in order: what is written arrives, then close_notify, then FIN."""
        self.muted = True
        self._ended_by_server = not self.record.quit_seen
        if self._tls is not None:
            self._tls.loseConnection()  # type: ignore[no-untyped-call]
        self._under.loseConnection()

    def abort(self) -> None:
        """Reset the connection."""
        self.muted = True
        self._ended_by_server = True
        self._under.abortConnection()

    # Reading

    def dataReceived(self, data: bytes) -> None:
        if self.muted:
            return
        if self._handshake_fault is not None:
            self.buffer += data
            self._strike_handshake()
            return
        if not self.greeted:
            self.violation("octets before the greeting was sent")
        self.buffer += data
        self.fresh_segment = True
        if self.busy:
            self.arrived_while_busy()
            return
        self.proceed()

    def arrived_while_busy(self) -> None:
        """Octets have come while an answer is under way."""

    def proceed(self) -> None:
        """Work through what has been read, and write all replies at once."""
        while self.buffer and not self.busy and not self.muted and self.consume():
            pass
        self.flush()

    # TLS

    def start_tls(self) -> None:
        """Put TLS in between, as its server."""
        assert self.server.certificate is not None
        factory = TLSMemoryBIOFactory(
            self.server.certificate.server_creator("EXTERNAL" in self.server.mechanisms),
            False,
            _silent_factory(),
            self.server.reactor,
        )
        # Without Twisted's buffer for small writes: what is written is on its way when the script goes on.
        self._tls = _ServerTLS(factory, self, False)  # type: ignore[no-untyped-call]
        cast(Any, self._under).protocol = self._tls
        self.transport = cast(Any, self._tls)
        self._tls.makeConnection(self._under)  # type: ignore[no-untyped-call]

    def _expect_handshake(self) -> None:
        self._handshake_fault = self.server.take("handshake", self.record)
        if self._handshake_fault is None:
            self.start_tls()

    def handshakeCompleted(self) -> None:
        assert self._tls is not None
        connection = self._tls.getHandle()  # type: ignore[no-untyped-call]
        name = connection.get_servername()
        self.record.tls = True
        self.record.handshakes += 1
        self.record.flights += 1
        self.record.sni = None if name is None else name.decode("ascii", "backslashreplace")
        shown = connection.get_peer_certificate()
        self.record.client_name = None if shown is None else shown.get_subject().CN
        self.server.note(self.record, f"TLS {connection.get_protocol_version_name()} for {self.record.sni}")
        self.tls_begun()

    def _strike_handshake(self) -> None:
        kind = self._handshake_fault
        if self.busy or kind is None:
            return
        self.busy = True
        if kind == "slow":
            self._later = self.server.reactor.callLater(self.server.slow_delay, self._late_handshake)
        elif kind == "garbage":
            self.muted = True
            self._under.write(misreplies.NOT_TLS)
        else:
            self._strike_without_reply(kind)

    def _late_handshake(self) -> None:
        self._handshake_fault, self.busy = None, False
        hello = bytes(self.buffer)
        self.buffer.clear()
        self.start_tls()
        assert self._tls is not None
        self._tls.dataReceived(hello)

    # Writing

    def answer(
        self,
        point: str,
        reply: bytes,
        following: bytes,
        accepted: Callable[[], object] | None = None,
        sent: Sent | None = None,
    ) -> None:
        """
        Answer a command.

        @param reply: the right reply.
        @param following: what the next command's reply would be.
        @param accepted: called if the server does what the command asked.
        @param sent: called when the answer is out.
        """
        kind = self.server.take(point, self.record)
        if accepted is not None and reply[:1] in b"23" and does_it(point, kind):
            accepted()
        if kind is None:
            self.queue(reply, sent)
        else:
            self.strike(point, kind, reply, following, sent)

    def strike(self, point: str, kind: str, reply: bytes, following: bytes = b"", sent: Sent | None = None) -> None:
        """Make a fault real, in place of this reply."""
        if kind in BREAKING:
            self._strike_without_reply(kind)
            return
        script = misreplies.script(kind, point, reply, following, self.server.slow_delay, self.server.drip_interval)
        readable = kind in READABLE or kind in REFUSING
        if kind == "421":
            self.queue(script.pieces[0], sent, readable)
            self.flush()
            self.close()
        elif script.at_once:
            self.queue(script.pieces[0], sent, readable)
        else:
            self._perform(script, sent, readable and not (kind == "longline" and point == "dot"))

    def queue(self, reply: bytes, sent: Sent | None = None, readable: bool = True) -> None:
        """Have this written with all other replies of the segment."""
        self._batch.append((reply, sent, readable))

    def flush(self, flights: int = 1) -> None:
        """Write what has been gathered."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        assert self.transport is not None
        self.transport.write(b"".join(reply for reply, _, _ in batch))
        self.greeted = True
        self.record.flights += flights
        for reply, sent, readable in batch:
            if sent is not None:
                sent(reply, readable)

    @property
    def pending(self) -> bool:
        """Replies wait to be written."""
        return bool(self._batch)

    def _perform(self, script: misreplies.Script, sent: Sent | None, readable: bool) -> None:
        written_before = self.pending
        self.flush()
        self.busy = True
        self.muted = self.muted or script.mute
        if not script.pieces:
            return
        if script.delay or written_before:
            self._later = self.server.reactor.callLater(script.delay, self._piece, script, 0, sent, readable)
        else:
            self._piece(script, 0, sent, readable)

    def _piece(self, script: misreplies.Script, index: int, sent: Sent | None, readable: bool) -> None:
        assert self.transport is not None
        self.greeted = True
        self.transport.write(script.pieces[index])
        if index + 1 < len(script.pieces):
            self._later = self.server.reactor.callLater(script.interval, self._piece, script, index + 1, sent, readable)
            return
        self._later = None
        self.record.flights += 1
        self.busy = False
        if sent is not None:
            sent(b"".join(script.pieces), readable)
        self.proceed()

    def _strike_without_reply(self, kind: str) -> None:
        """Break the connection, below TLS where there is TLS, or fall silent."""
        written = self.pending
        self.flush()
        self.muted = True
        match kind:
            case "silence":
                pass
            case "rst" | "restart":
                break_it = self.abort if kind == "rst" else self.server.restart
                if written:  # let the earlier replies out: they go at the end of this turn
                    self._later = self.server.reactor.callLater(0, break_it)
                else:
                    break_it()
            case "fin":
                self._ended_by_server = True
                self._under.loseConnection()
            case "halfclose":
                self.half_closed = True
                self._under.loseWriteConnection()
            case "notify":
                assert self._tls is not None
                self._tls.loseConnection()  # type: ignore[no-untyped-call]
            case "badrecord":
                before = self._tls is None or not self.record.tls
                self._under.write(misreplies.CORRUPT_HANDSHAKE if before else misreplies.CORRUPT_RECORD)

    def stop_reading(self) -> None:
        """Leave what the client writes where it is, so that it can't write on."""
        self.muted = True
        cast(IPushProducer, self._under).pauseProducing()


def does_it(point: str, kind: str | None) -> bool:
    """Whether the server does what it was asked although this fault strikes at its reply."""
    if kind is None:
        return True
    if kind in REFUSING or kind in BREAKING or kind == "silence":
        return point == "after_dot" and kind not in REFUSING
    return point != "starttls" or kind in READABLE


def _silent_factory() -> Factory:
    factory = Factory()
    factory.noisy = False
    return factory
