"""The relay over real sockets: it holds little whoever does not read, loses nothing, and ends what is out of place."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from mailcache.connection import Connection, Cut
from mailcache.remote.pairs import SocketPairs
from mailcache.remote.relay import Relay
from mailcache.remote.watch import Watch
from mailcache.tls import Contexts
from mailcache.trust.evidence import TLSClass
from tests.helpers import certificate
from tests.remote.processes import until

reactor: Any = _reactor

KEEPER_HOLDS = 512 * 1024
"""Bytes that the keeper may hold of one session: a transport's high water, what is read at a time, and TLS on it."""

KERNEL_HOLDS = 20 * 1024 * 1024
"""Bytes that the system may hold on the way: less than are sent, so that who is not read must be paused."""

MESSAGE = 50 * 1024 * 1024
LINE = b"x" * 1_022 + b"\r\n"
CHUNK = LINE * 64
REPLY = b"250 " + b"y" * 1_994 + b"\r\n"
NOOP = b"NOOP\r\n"


@implementer(IPushProducer)
class Side(Protocol):
    """Either end: it writes as fast as it is let, reads when it is told to, and counts."""

    def __init__(self) -> None:
        self.received = 0
        self.written = 0
        self.last = b""
        self.digest = hashlib.sha256()
        self.lost = False
        self.paused = False
        self._chunks: Iterator[bytes] = iter(())
        self.wire: Any = None

    def connectionMade(self) -> None:
        self.wire = self.transport

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        self.digest.update(data)
        self.last = (self.last + data)[-2_000:]

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True

    def say(self, data: bytes) -> None:
        self.written += len(data)
        self.wire.write(data)

    def flood(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.wire.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        while not self.paused:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.paused = True
                self.wire.unregisterProducer()
                return
            self.say(chunk)

    def pauseProducing(self) -> None:
        self.paused = True

    def stopProducing(self) -> None:
        self.paused = True


class Opener:
    """Who has a connection before it is lent."""

    def __init__(self) -> None:
        self.secure = False
        self.cut: Cut | None = None

    def tls_established(self) -> None:
        self.secure = True

    def read_finished(self) -> None:
        pass

    def connection_cut(self, cut: Cut) -> None:
        self.cut = cut


@implementer(IOpenSSLServerConnectionCreator)
class ServersTLS:
    """What Twisted wants of a server's certificate."""

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return SSL.Connection(certificate().server_context(), None)


def waiting_in(transport: Any) -> int:
    """Bytes that wait in a transport of Twisted's."""
    return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)


class RelayCase(TestCase):
    """A server, a connection with it, a pair, and the relay in between, all of them sockets."""

    timeout = 120
    secure = False

    async def setUp(self) -> None:  # type: ignore[override]
        self.server, self.borrower, self.opener = Side(), Side(), Opener()
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _: self.server
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.gone: list[Connection] = []
        self.ends = 0
        self.connection = Connection(self.opener, time.monotonic, self.gone.append)  # type: ignore[arg-type]
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), self.connection)
        await until(lambda: self.server.wire is not None, 10)
        if self.secure:
            self.server.wire.startTLS(ServersTLS())
            self.connection.start_tls(Contexts().get(TLSClass(None, "TLSv1.2", None, None), None, None), None, 30.0)
            await until(lambda: self.opener.secure, 10)
        self.relay = Relay(Watch(False), self._ended)
        pairs = SocketPairs(reactor)
        pairs.adopt(pairs.make(self.relay), self.borrower)
        self.held = 0
        self.relay.begin(self.connection, False)
        self.addCleanup(self.end)

    def _ended(self) -> None:
        self.ends += 1

    async def end(self) -> None:
        self.connection.cut("aborted", "the test is over")
        self.relay.abort()
        for side in (self.server, self.borrower):
            side.wire.resumeProducing()
            side.wire.abortConnection()
        await until(lambda: self.server.lost and self.borrower.lost and self.gone and self.relay.closed, 10)

    def look(self) -> int:
        """What the keeper holds now, and at most so far."""
        held = waiting_in(self.connection._wire) + waiting_in(self.relay._wire) + len(self.relay._held)
        self.held = max(self.held, held)
        return held

    async def until(self, reached: Callable[[], Any]) -> None:
        """Wait, and look all the time at what the keeper holds."""

        def looked() -> Any:
            self.look()
            return reached()

        await until(looked, 60, lambda: (self.server.received, self.borrower.received, self.relay.sent, self.held))
        self.assertLess(self.held, KEEPER_HOLDS)

    async def standstill(self, side: Side) -> None:
        """Wait until ``side`` is let write no more."""
        seen = [-1, 0]

        def stands() -> bool:
            seen[:] = [side.written, seen[1] + 1 if side.written == seen[0] and side.paused else 0]
            return seen[1] > 20

        await self.until(stands)

    async def begin_content(self) -> None:
        self.borrower.say(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
        await self.until(lambda: self.server.last.endswith(b"DATA\r\n"))
        self.server.say(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await self.until(lambda: self.borrower.last.endswith(b"354 go\r\n"))


class BackPressureTests(RelayCase):
    """Whoever does not read, the other is paused, and the keeper holds little."""

    async def test_server_that_does_not_read(self) -> None:
        await self.begin_content()
        self.server.wire.pauseProducing()
        before = self.server.received
        whole = hashlib.sha256()
        self.server.digest = hashlib.sha256()

        def content() -> Iterator[bytes]:
            for _ in range(MESSAGE // len(CHUNK)):
                whole.update(CHUNK)
                yield CHUNK
            whole.update(b".\r\n")
            yield b".\r\n"

        self.borrower.flood(content())
        await self.standstill(self.borrower)
        self.assertEqual(self.server.received, before)
        self.assertLess(self.borrower.written, KERNEL_HOLDS)
        self.assertGreater(self.look(), 0, "somebody has more than the sockets take")
        self.server.wire.resumeProducing()
        await self.until(lambda: self.server.last.endswith(b"\r\n.\r\n"))
        self.assertEqual(self.server.received - before, MESSAGE + 3)
        self.assertEqual(self.server.digest.digest(), whole.digest())
        self.server.say(b"250 taken\r\n")
        await self.until(lambda: self.borrower.last.endswith(b"taken\r\n"))
        self.assertTrue(self.relay.settled(self.borrower.written, self.borrower.received))

    async def test_borrower_that_does_not_read(self) -> None:
        count = MESSAGE // len(REPLY)
        self.borrower.wire.pauseProducing()
        for _ in range(count // 64):
            self.borrower.say(NOOP * 64)
        await self.until(lambda: self.server.received == self.borrower.written)
        self.server.flood(REPLY * 64 for _ in range(count // 64))
        await self.standstill(self.server)
        self.assertEqual(self.borrower.received, 0)
        self.assertLess(self.server.written, KERNEL_HOLDS)
        self.assertFalse(self.relay.settled(self.borrower.written, 0))
        self.borrower.wire.resumeProducing()
        await self.until(lambda: self.borrower.received == count // 64 * 64 * len(REPLY))
        self.assertEqual(self.borrower.digest.digest(), hashlib.sha256(REPLY * 64 * (count // 64)).digest())
        self.assertTrue(self.relay.settled(self.borrower.written, self.borrower.received))

    async def test_commands_without_end(self) -> None:
        """A borrower that pipelines as nobody does keeps the keeper no busier than others, command for command."""
        count = 200_000
        self.borrower.flood(NOOP * 1_000 for _ in range(count // 1_000))
        await self.until(lambda: self.server.received == count * len(NOOP))
        self.server.flood(b"250 ok\r\n" * 1_000 for _ in range(count // 1_000))
        await self.until(lambda: self.borrower.received == count * 8)
        self.assertTrue(self.relay.settled(self.borrower.written, self.borrower.received))


class SecureBackPressureTests(BackPressureTests):
    """The same with TLS."""

    secure = True


class OrderTests(RelayCase):
    """What is held back, and what ends a pair."""

    async def content_with(self, said: bytes) -> int:
        """The server has said so much in content; gives what it has received."""
        await self.begin_content()
        self.borrower.say(LINE)
        await self.until(lambda: self.server.last.endswith(LINE))
        self.server.say(said)
        await self.until(lambda: self.relay._held or self.borrower.last.endswith(said) or self.opener.cut)
        return self.server.received

    async def test_half_a_reply_in_content(self) -> None:
        """It is kept back, and so is what the borrower says meanwhile; the rest decides."""
        before = await self.content_with(b"250 o")
        self.borrower.flood(CHUNK for _ in range(1_000))
        await self.standstill(self.borrower)
        self.assertEqual(self.server.received, before)
        self.assertTrue(self.borrower.last.endswith(b"354 go\r\n"))
        self.server.say(b"k\r\n")
        await self.until(lambda: self.borrower.lost)
        self.assertTrue(self.borrower.last.endswith(b"354 go\r\n"), "nothing of it was handed on")
        self.assertEqual(self.opener.cut and self.opener.cut.reason, "unsolicited")

    async def test_refusal_in_content(self) -> None:
        """It is handed on, and the server has no end of the content: nobody would believe what it says then."""
        before = await self.content_with(b"552 too big\r\n")
        self.borrower.say(LINE + b".\r\n")
        await self.until(lambda: self.borrower.lost and self.server.lost)
        self.assertTrue(self.borrower.last.endswith(b"552 too big\r\n"))
        self.assertEqual(self.server.received, before)
        self.assertFalse(self.relay.settled(self.borrower.written, self.borrower.received))

    async def test_counts(self) -> None:
        """Bytes that one has sent and the other has not seen: not settled, whichever way."""
        self.borrower.say(NOOP)
        await self.until(lambda: self.server.received)
        self.server.say(b"250 ok\r\n")
        await self.until(lambda: self.borrower.received)
        sent, received = self.borrower.written, self.borrower.received
        self.assertTrue(self.relay.settled(sent, received))
        for wrong in ((sent + 1, received), (sent - 1, received), (sent, received + 1), (sent, received - 1)):
            self.assertFalse(self.relay.settled(*wrong))

    async def test_byte_between_leases(self) -> None:
        """It closes the pair; the server has seen nothing, and the connection lives."""
        self.relay.end()
        self.assertTrue(self.relay.fit)
        self.borrower.say(b"Q")
        await until(lambda: self.borrower.lost and self.ends, 10)
        self.assertEqual((self.server.received, self.relay.fit, self.relay.closed), (0, False, True))
        self.assertEqual((self.opener.cut, self.server.lost, self.gone), (None, False, []))

    async def test_lease_after_lease(self) -> None:
        """Counts begin anew, and so does what is known of the conversation."""
        for rset_due in (False, True, False):
            self.borrower.written = self.borrower.received = self.server.received = 0
            self.borrower.say(NOOP)
            await self.until(lambda: self.server.received)
            self.server.say(b"250 ok\r\n")
            await self.until(lambda: self.borrower.received)
            self.assertTrue(self.relay.settled(len(NOOP), 8))
            self.relay.end()
            self.assertTrue(self.relay.fit and self.connection.quiet)
            self.relay.begin(self.connection, rset_due)
            self.assertEqual((self.relay.sent, self.relay.received), (0, 0))
            self.assertEqual(self.relay.watch.rset_due, rset_due)

    async def test_end_of_server(self) -> None:
        """The pair ends behind what was relayed."""
        self.borrower.say(NOOP)
        await self.until(lambda: self.server.received)
        self.server.say(b"250 ok\r\n")
        self.server.wire.loseConnection()
        await self.until(lambda: self.borrower.lost)
        self.assertEqual(self.borrower.last, b"250 ok\r\n")
        self.assertFalse(self.relay.fit)

    async def test_end_of_borrower(self) -> None:
        """Its keeper is told; the connection is the keeper's to end."""
        self.borrower.wire.loseConnection()
        await until(lambda: self.ends, 10)
        self.assertEqual((self.ends, self.relay.fit, self.server.lost, self.opener.cut), (1, False, False, None))
