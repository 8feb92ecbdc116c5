"""Servers that never come to an end: however they do it, a session costs little memory, and no more than its time."""

from __future__ import annotations

import gc
import io
import tracemalloc
from collections.abc import Iterable
from typing import Any, ClassVar

import attrs
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mailcache import DeliveryError, Timeouts, TLSPolicy, UncertainDelivery, opening
from mailcache.connection import Connection
from mailcache.testing import Fault
from mailcache.wire.replies import MAX_LINE, MAX_LINES, MAX_REPLY
from tests.helpers import CREDENTIALS, PORT, SMALL, Bed, KeeperBed

MEMORY = 1024 * 1024
"""Bytes that a session under attack may cost at most, both ends of its connection in this process."""

PIECE = 512
"""Bytes that a server says at a time: by so much may more be read than a limit allows."""

USUAL = 300
"""Bytes that a server says at most before it comes to the point."""

NOTICED = 0.5
"""Seconds after a time limit until it must have been noticed, and then until all is gone."""

TIMEOUTS = Timeouts()
LIMITS = {
    "banner": TIMEOUTS.greeting, "EHLO": TIMEOUTS.ehlo, "AUTH": TIMEOUTS.auth, "MAIL": TIMEOUTS.mail,
    "RCPT": TIMEOUTS.rcpt, "DATA": TIMEOUTS.data, "content": TIMEOUTS.dot,
}  # fmt: skip
"""The points where a server can do it, and the seconds that its whole reply may take there."""


@attrs.frozen
class Attack:
    """Bytes without an end.

    :ivar pattern: said again and again, behind the code of the right reply.
    :ivar limit: bytes of it that may be read at most, but for those that came in the same piece.
    :ivar every: seconds between two of its bytes; ``None`` is all the time, as fast as they are read.
    """

    pattern: bytes
    limit: int
    every: float | None = None


FAST = {
    "a line": Attack(b"x" * PIECE, MAX_LINE),
    "a line of NULs": Attack(b"\0" * PIECE, MAX_LINE),
    "lines": Attack(b"\r\n250-x" * 73, 7 * MAX_LINES),
    "long lines": Attack(b"x" * 1_994 + b"\r\n250-", MAX_REPLY),
}
SLOW = {
    "a byte a second": Attack(b"x", 10_000, 1.0),
    "a line in 30 seconds": Attack(b"\r\n250-x", 10_000, 30 / 7),
}


@implementer(IPushProducer)
class Endless(Protocol):
    """A server that is as it should be up to a point, and then says what has no end.

    :ivar point: where.
    :ivar attacking: it has begun to, and the connection lives.
    :ivar said: how much it has said of that.
    """

    def __init__(self, bed: Bed, point: str, attack: Attack) -> None:
        self._bed = bed
        self.point = point
        self._attack = attack
        self._content = False
        self.attacking = False
        self._pattern = b""
        self._paused = False
        self._wire: Any = None
        self.said = 0

    def connectionMade(self) -> None:
        self._wire = self.transport
        self._answer("banner", b"220 mx.test\r\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.attacking = False

    def dataReceived(self, data: bytes) -> None:
        if self._content:
            if data.endswith(b"\r\n.\r\n"):
                self._content = False
                self._answer("content", b"250 ok\r\n")
            return
        for line in data.splitlines():
            verb = line[:4].decode()
            if verb == "EHLO":
                self._answer(verb, b"250-mx.test\r\n250-AUTH PLAIN\r\n250 PIPELINING\r\n")
            elif verb == "DATA":
                self._content = True
                self._answer(verb, b"354 go\r\n")
            else:
                self._answer(verb, b"235 ok\r\n" if verb == "AUTH" else b"250 ok\r\n")

    def _answer(self, point: str, reply: bytes) -> None:
        if self.attacking:
            return
        if point == self.point:
            self.begin(reply[:3] + b"-" if b"250-" in self._attack.pattern else reply[:3] + b" ")
        else:
            self._wire.write(reply)

    def begin(self, head: bytes) -> None:
        """From here on it has no end. Codes of the lines are those of the reply."""
        self.attacking = True
        self._pattern = self._attack.pattern.replace(b"250", head[:3])
        self._wire.write(head)
        if self._attack.every is None:
            self._wire.registerProducer(self, True)
            self._go_on()
        else:
            self._drip(0)

    def _drip(self, at: int) -> None:
        if self.attacking:
            self._wire.write(self._pattern[at : at + 1])
            self.said += 1
            assert self._attack.every is not None
            self._bed.reactor.callLater(self._attack.every, self._drip, (at + 1) % len(self._pattern))

    def _go_on(self) -> None:
        """A piece in each turn, for as long as they are read."""
        if self.attacking and not self._paused:
            self._wire.write(self._pattern)
            self.said += len(self._pattern)
            assert self.said < 10 * MAX_REPLY, "it is read for ever"
            self._bed.reactor.callLater(0.001, self._go_on)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        self.attacking = False


class Counting(Connection):
    """A connection that counts what it reads until it is cut.

    :cvar made: all of them.
    """

    made: ClassVar[list[Counting]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read = 0
        Counting.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        if not self.ended:
            self.read += len(data)
        super().dataReceived(data)


@attrs.frozen
class Cost:
    """What an attack has cost.

    :ivar read: bytes of the server that were read on the connection.
    :ivar memory: bytes at the peak, above what there was before.
    :ivar seconds: from the beginning of the message to its outcome.
    """

    outcome: Any
    read: int
    memory: int
    seconds: float


class EndlessCase(SynchronousTestCase):
    """A cache of either kind, and an endless server."""

    def setUp(self) -> None:
        self.patch(opening, "Connection", Counting)
        self.patch(Counting, "made", [])

    def make(self, kind: type[Bed], point: str, attack: Attack) -> Bed:
        """A bed where such a server listens, and what it has accepted in ``servers``."""
        bed = kind(tls=TLSPolicy("none"), server={"certificate": None})
        bed.server.stop_listening()
        self.servers: list[Endless] = []

        def build(_: object) -> Endless:
            self.servers.append(Endless(bed, point, attack))
            return self.servers[-1]

        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = build
        bed.reactor.listenTCP(PORT, factory, interface="127.0.0.1")
        return bed

    def attack(self, kind: type[Bed], point: str, attack: Attack) -> Cost:
        """What a message to such a server costs."""
        bed = self.make(kind, point, attack)
        credentials = CREDENTIALS if point == "AUTH" else None
        where = bed.to(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("none"), credentials=credentials)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            outcome = bed.start(SMALL, destination=where)
            seconds = bed.reactor.run_until(lambda: outcome.done, 1_000)
            memory = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        bed.reactor.run_for(NOTICED + TIMEOUTS.quit)
        self.assertFalse(any(server.attacking for server in self.servers), "the connection is still there")
        self.assertEqual((len(self.servers), bed.counts()), (1, (0, 0, 0, 0)))
        bed.close()
        return Cost(outcome.value, Counting.made[-1].read, memory, seconds)

    def check(self, kind: type[Bed], point: str, attack: Attack) -> Cost:
        """It costs no more than it may, and nobody is told that the message was sent."""
        cost = self.attack(kind, point, attack)
        self.assertIsInstance(cost.outcome, UncertainDelivery if point == "content" else DeliveryError, (point, cost))
        self.assertLess(cost.memory, MEMORY, (point, cost))
        return cost


class FastTests(EndlessCase):
    """As much as is read, at once: it ends at the limits of a line, of the lines, and of a reply."""

    def check_all(self, kind: type[Bed], points: Iterable[str]) -> None:
        for point in points:
            for name, attack in FAST.items():
                cost = self.check(kind, point, attack)
                # What comes behind the content is its verdict, be the line as long as it likes.
                limit = MAX_REPLY if point == "content" and "line" in name[:6] and name != "lines" else attack.limit
                self.assertLessEqual(cost.read, USUAL + limit + PIECE + MAX_LINE, (point, name, cost))
                self.assertLess(cost.seconds, 5, (point, name, cost))

    def test_in_memory(self) -> None:
        self.check_all(Bed, LIMITS)

    def test_through_a_keeper(self) -> None:
        self.check_all(KeeperBed, ("banner", "MAIL", "DATA", "content"))


class SlowTests(EndlessCase):
    """A byte now and then: the time for the whole reply is what counts, and not that between two bytes."""

    def check_all(self, kind: type[Bed], points: Iterable[str]) -> None:
        for point in points:
            for name, attack in SLOW.items():
                cost = self.check(kind, point, attack)
                self.assertGreaterEqual(cost.seconds, LIMITS[point], (point, name, cost))
                self.assertLessEqual(cost.seconds, LIMITS[point] + NOTICED, (point, name, cost))

    def test_in_memory(self) -> None:
        self.check_all(Bed, LIMITS)

    def test_through_a_keeper(self) -> None:
        self.check_all(KeeperBed, ("EHLO", "MAIL", "content"))

    def test_on_a_kept_session(self) -> None:
        """Its first reply has less time, since it may be dead: then the message goes out on a fresh one."""
        bed = self.make(Bed, "nowhere", SLOW["a byte a second"])
        self.assertEqual(bed.deliver().accepted, ("b@example.com",))
        self.servers[0].point = "MAIL"
        outcome = bed.start()
        seconds = bed.reactor.run_until(lambda: outcome.done, 1_000)
        self.assertEqual((outcome.value.accepted, len(self.servers)), (("b@example.com",), 2))
        self.assertLessEqual(seconds, TIMEOUTS.first_reply + NOTICED)
        bed.close()


class IdleTests(EndlessCase):
    """A session that nobody has: the first byte of it is one too many."""

    def test_idle(self) -> None:
        for kind in (Bed, KeeperBed):
            for name, attack in {**FAST, **SLOW}.items():
                bed = self.make(kind, "nowhere", attack)
                bed.deliver()
                # A borrower keeps it for a moment.
                bed.reactor.run_for(0.2)
                self.assertEqual(bed.counts()[1], 1)
                before = Counting.made[-1].read
                self.servers[0].begin(b"250-")
                bed.reactor.run_for(NOTICED)
                self.assertEqual(bed.counts(), (0, 0, 0, 0), name)
                self.assertFalse(self.servers[0].attacking)
                self.assertLessEqual(Counting.made[-1].read - before, len(attack.pattern) + 4)
                bed.close()


class Pulled(io.BytesIO):
    """A message of a size that nobody would hold, which is made when it is read.

    :ivar pulled: bytes that were read of it.
    """

    LINE = b"This is one of very many lines that make up a message which nobody would hold in memory.\r\n"

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._at = 0
        self.pulled = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._size - self._at if size is None or size < 0 else min(size, self._size - self._at)
        start = self._at % len(self.LINE)
        data = (self.LINE * (wanted // len(self.LINE) + 2))[start : start + wanted]
        self._at += wanted
        self.pulled += wanted
        return data


class StalledTests(EndlessCase):
    """A server that reads no more of the content: it is waited for only so long, and next to nothing is held."""

    SIZE = 1_000_000_000
    HELD = 768 * 1024
    """Bytes that may be on the way: windows and transports, two of each with a keeper in between."""

    def check_stalled(self, kind: type[Bed]) -> None:
        timeouts = Timeouts(content=2)
        server = {"certificate": None, "capabilities": ("PIPELINING", "8BITMIME")}
        bed = kind(tls=TLSPolicy("none"), faults=[Fault("content", "silence")], timeouts=timeouts, server=server)
        content = Pulled(self.SIZE)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            outcome = bed.start(content)
            seconds = bed.reactor.run_until(lambda: outcome.done, 1_000)
            memory = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        self.assertIsInstance(outcome.value, DeliveryError)
        self.assertIn("took no content for too long", str(outcome.value))
        self.assertTrue(timeouts.content <= seconds <= timeouts.content + NOTICED, seconds)
        self.assertTrue(MAX_REPLY < content.pulled < self.HELD, content.pulled)
        self.assertLess(memory, 4 * MEMORY)
        self.assertEqual(bed.server.messages, [])
        bed.close()

    def test_in_memory(self) -> None:
        self.check_stalled(Bed)

    def test_through_a_keeper(self) -> None:
        self.check_stalled(KeeperBed)
