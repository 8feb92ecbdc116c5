"""The kept stream: a transport, TLS in it, the queue of replies that are owed, deadlines and the idle watch.

It knows what a reply is and that each is owed to something written before; what the replies mean is its
receiver's business. A byte that nobody is owed ends it (rule R1), at any time, idle or not.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from typing import Protocol as TypingProtocol

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ISystemHandle, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.contents import ContentFailed
from mailcache.tls import TLSFailed, TLSLayer
from mailcache.trust.evidence import Evidence
from mailcache.wire.commands import QUIT
from mailcache.wire.replies import Reply, ReplyParser
from mailcache.writing import Writer

NEVER = float("inf")

USER_TIMEOUT = 60
"""Seconds that written bytes may stay unacknowledged by TCP (TCP_USER_TIMEOUT): a peer that is up answers sooner."""


class Cut(Exception):  # noqa: N818  (reads as the event it reports)
    """A connection has ended, or is of no use any more.

    :ivar reason: a word for statistics: "closed", "reset", "timeout", "unsolicited", "malformed", "tls",
        "content", "aborted".
    :ivar reply: the reply that ended it, if one did.
    """

    def __init__(self, reason: str, message: str, reply: Reply | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.reply = reply


class Receiver(TypingProtocol):
    """Whoever has the conversation over a connection."""

    def tls_established(self) -> None:
        """The handshake is done; nothing was judged."""

    def replies_received(self, replies: list[Reply]) -> None:
        """Replies that were owed have come, at least one, in their order; more of the same read may follow."""

    def early_reply(self, reply: Reply) -> None:
        """A reply has come while content was being written. The connection is cut when this returns."""

    def read_finished(self) -> None:
        """All that was read has been parsed, and the connection is still good."""

    def content_written(self) -> None:
        """The last byte of the content is about to be handed to the transport."""

    def connection_cut(self, cut: Cut) -> None:
        """The connection is of no use any more. Called at most once, and nothing after it."""


class Borrower(TypingProtocol):
    """Whoever has the plain stream of a connection while it is lent."""

    def bytes_received(self, data: bytes) -> None:
        """The server has sent ``data``."""

    def stream_ended(self) -> None:
        """The connection has ended."""


@implementer(IPushProducer)
class Connection(Protocol):
    """One connection to a server.

    :param receiver: whom to tell what comes.
    :param now: gives monotonic seconds.
    :param on_gone: called once, with this, when the transport is closed.
    :ivar now: the same ``now``.
    :ivar deadline: when `expire` is to be called, on that clock; whoever keeps the connections looks at it.
    """

    def __init__(self, receiver: Receiver, now: Callable[[], float], on_gone: Callable[[Connection], None]) -> None:
        self.receiver = receiver
        self.deadline = NEVER
        self.now = now
        self._on_gone = on_gone
        self._wire: Any = None
        self._writer: Any = None
        self._parser = ReplyParser()
        self._owed: list[float] = []
        self._tls: TLSLayer | None = None
        self._greeting: float | None = None
        self._ended = False
        self._quitting = False
        self._gone = False
        self._chunks: Iterator[bytes] | None = None
        self._next_chunk = b""
        self._paused = False
        self._progress_limit = 0.0
        self._content_limits: Iterable[float] = ()
        self._borrower: Borrower | None = None
        self._silence = 0.0

    # -- from the transport ------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        wire = self._wire = self.transport
        self._writer = Writer(wire)
        if ITCPTransport.providedBy(wire):
            wire.setTcpNoDelay(True)
            wire.setTcpKeepAlive(True)
        handle = wire.getHandle() if ISystemHandle.providedBy(wire) else None
        if (
            isinstance(handle, socket.socket)
            and handle.family != socket.AF_UNIX
            and hasattr(socket, "TCP_USER_TIMEOUT")
        ):
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT * 1000)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        tls = self._tls
        if tls is not None:
            handshaking = not tls.established
            try:
                data = tls.received(data)
            except TLSFailed as error:
                self._tls_failed(tls, error)
                return
            if handshaking:
                self._wire.write(tls.outgoing())
                if tls.established:
                    self.deadline = NEVER
                    if self._greeting is not None:
                        self._owed.append(self._greeting)
                        self.deadline = self.now() + self._greeting
                    self.receiver.tls_established()
        if self._borrower is not None:
            if data:
                self.deadline = self.now() + self._silence
                self._borrower.bytes_received(data)
        elif data:
            self._parse(data)
        if tls is not None and tls.broken is not None:
            self._tls_failed(tls, tls.broken)
        elif tls is not None and tls.closed:
            self.cut("closed", "the server closed TLS")
        elif not self._ended and self._borrower is None:
            self.receiver.read_finished()

    def _tls_failed(self, tls: TLSLayer, error: TLSFailed) -> None:
        if not self._ended:
            self._wire.write(tls.outgoing())
            self.cut("tls", f"TLS failed: {error}")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._gone = True
        if reason.check(ConnectionDone):
            self.cut("closed", "the server closed the connection")
        else:
            self.cut("reset", f"the connection was lost: {reason.getErrorMessage()}")
        self.deadline = NEVER
        self._on_gone(self)

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        replies = parser.feed(data)
        if replies:
            self._take(replies)
            if self._ended:
                return
        if parser.error is not None:
            self.cut("malformed", f"not an SMTP reply: {parser.error}")
        elif parser.pending and not self._owed and self._chunks is None:
            self.cut("unsolicited", "bytes that were not asked for")

    def _take(self, replies: list[Reply]) -> None:
        owed = self._owed
        count = len(replies)
        if self._chunks is not None:
            self.receiver.early_reply(replies[0])
            self.cut("unsolicited", "a reply came before the content was written", replies[0])
            return
        surplus = replies[len(owed)] if count > len(owed) else None
        if surplus is not None:
            del replies[len(owed) :]
        if replies:
            del owed[:count]
            if owed:
                self.deadline = self.now() + owed[0]
            else:
                self.deadline = NEVER
                # All commands are answered, so none waits in the transport; content may, if its reply came early.
                if not self._parser.lenient:
                    self._writer.behind = False
            if self._quitting:
                self._leave()
            else:
                self.receiver.replies_received(replies)
        if surplus is not None:
            self.cut("unsolicited", f"a reply that was not asked for: {surplus}", surplus)

    # -- its state ---------------------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether nothing is owed, it has not ended, and nothing is half read: no reply, and no TLS record that may
        hold one."""
        tls = self._tls
        return not (self._owed or self._ended or self._parser.pending or (tls is not None and tls.partial))

    @property
    def flawed(self) -> str | None:
        """Why it must not be kept although it works ("bare LF", ...), or ``None``."""
        return self._parser.flaw

    @property
    def ended(self) -> bool:
        """Whether it is of no use any more, be its transport closed or not."""
        return self._ended

    def evidence(self) -> Evidence:
        """What the handshake has shown; to be called when TLS is established."""
        assert self._tls is not None
        return self._tls.evidence()

    # -- writing -----------------------------------------------------------------------------------------------

    def start_tls(
        self, context: SSL.Context, servername: str | None, limit: float, greeting: float | None = None
    ) -> None:
        """Begin a handshake, which may take ``limit`` seconds; nothing may be owed or half read.

        With ``greeting`` a reply is owed as soon as TLS stands, within so many seconds: with TLS 1.2 it comes together
        with the last of the handshake.
        """
        assert self.quiet
        self._greeting = greeting
        self._tls = TLSLayer(context, servername)
        self.deadline = self.now() + limit
        self._tls.handshake()
        self._writer.behind = True
        self._wire.write(self._tls.outgoing())

    def write(self, data: bytes, limits: Iterable[float]) -> None:
        """Write a flight that is owed a reply for each of ``limits``: the seconds that each may take as a whole."""
        owed = self._owed
        owed += limits
        self.deadline = self.now() + owed[0]
        self._send(data)

    def write_content(self, data: bytes, limits: Iterable[float]) -> None:
        """Write content that is one piece, terminator included."""
        if not self.quiet:
            # Rule R3: a reply that began before the end of content was written can't be its reply.
            self.cut("unsolicited", "bytes of a reply came before the content was written")
            return
        self._parser.lenient = True
        self.receiver.content_written()
        self.write(data, limits)

    def stream_content(self, chunks: Iterator[bytes], progress_limit: float, limits: Iterable[float]) -> None:
        """Write content chunk by chunk as the transport takes it, at most ``progress_limit`` seconds apart.

        A failure of ``chunks`` cuts the connection: the end of content is written only behind all of it.
        """
        self._progress_limit = progress_limit
        self._content_limits = limits
        self._paused = False
        self._chunks = chunks
        self._writer.behind = True
        try:
            self._next_chunk = next(chunks)
        except ContentFailed as error:
            self.cut("content", str(error))
            return
        self._wire.registerProducer(self, True)
        if not self._paused:
            self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        chunks = self._chunks
        if chunks is None:
            return
        self.deadline = self.now() + self._progress_limit
        while not self._paused and not self._ended:
            chunk = self._next_chunk
            try:
                following = next(chunks, None)
            except ContentFailed as error:
                self.cut("content", str(error))
                return
            if following is None:
                self._write_last(chunk)
                return
            self._next_chunk = following
            self._send(chunk)

    def _write_last(self, chunk: bytes) -> None:
        self._stop_streaming()
        self.write_content(chunk, self._content_limits)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._chunks = None

    def _stop_streaming(self) -> None:
        if self._chunks is not None:
            self._chunks = None
            self._next_chunk = b""
            self._wire.unregisterProducer()

    def _send(self, data: bytes) -> None:
        if self._tls is not None:
            try:
                data = self._tls.encrypt(data)
            except TLSFailed as error:
                self.cut("tls", f"TLS failed: {error}")
                return
        self._writer.write(data)

    def forget_content(self) -> None:
        """The reply to the content has come: from here on a flawed reply ends the connection again."""
        self._parser.lenient = False

    # -- lending ----------------------------------------------------------------------------------------------

    def lend(self, borrower: Borrower, silence: float) -> None:
        """Give the plain stream to ``borrower``, who parses and counts; nothing may be owed or half read.

        It is cut when no byte has moved for ``silence`` seconds.
        """
        assert self.quiet
        self._borrower = borrower
        self.allow_silence(silence)

    def allow_silence(self, silence: float) -> None:
        """From now on so many seconds may pass without a byte moved, while it is lent."""
        if not self._ended:
            self._silence = silence
            self.deadline = self.now() + silence

    def reclaim(self) -> None:
        """Have the stream back; whoever calls this knows that nothing is owed."""
        self._borrower = None
        if not self._ended:
            self.deadline = NEVER

    def send_raw(self, data: bytes) -> None:
        """Write what the borrower has sent."""
        if not self._ended:
            self.deadline = self.now() + self._silence
            self._send(data)

    def register_source(self, source: IPushProducer) -> None:
        """Pause ``source`` while the transport has more than it can take."""
        self._wire.registerProducer(source, True)

    def unregister_source(self) -> None:
        """The opposite of `register_source`."""
        if not self._gone:
            self._wire.unregisterProducer()

    def pause_reading(self) -> None:
        """Read no more from the server for now."""
        if not self._gone:
            self._wire.pauseProducing()

    def resume_reading(self) -> None:
        """Read again."""
        if not self._gone and not self._ended:
            self._wire.resumeProducing()

    # -- ending ------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """The deadline has passed."""
        if self._ended:
            self._abort()
        elif self._quitting:
            self.cut("timeout", "the server did not answer QUIT in time")
        elif self._chunks is not None:
            self.cut("timeout", "the server took no content for too long")
        elif self._tls is not None and not self._tls.established:
            self.cut("timeout", "the TLS handshake took too long")
        else:
            self.cut("timeout", "the server did not reply in time")

    def cut(self, reason: str, message: str, reply: Reply | None = None) -> None:
        """End it at once; the receiver is told, unless it is ended already."""
        if self._ended:
            return
        self._ended = True
        self._stop_streaming()
        self._owed.clear()
        self._abort()
        if self._borrower is not None:
            self._borrower.stream_ended()
        if not self._quitting:
            self.receiver.connection_cut(Cut(reason, message, reply))

    def quit(self, limit: float) -> None:
        """Say QUIT, wait for the answer, close; all within ``limit`` seconds. The receiver hears nothing more."""
        if self._ended:
            return
        self._quitting = True
        self.write(QUIT, (limit,))

    def leave(self, limit: float) -> None:
        """Close without QUIT, within ``limit`` seconds. The receiver hears nothing more."""
        if self._ended:
            return
        self._quitting = True
        self.deadline = self.now() + limit
        self._leave()

    def _leave(self) -> None:
        self._ended = True
        if self.deadline == NEVER:
            self.deadline = self.now() + CLOSE_LIMIT
        if self._tls is not None:
            self._wire.write(self._tls.close())
        self._wire.loseConnection()

    def _abort(self) -> None:
        self.deadline = NEVER
        if self._wire is not None and not self._gone:
            # A proxy's transport may have nothing harder than this.
            getattr(self._wire, "abortConnection", self._wire.loseConnection)()


CLOSE_LIMIT = 5.0
"""Seconds for what is still to be written when a connection is closed, before it is aborted."""
