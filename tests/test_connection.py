"""The kept stream: what it accepts and when, how long it waits, how it ends, and in which order it writes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import ISystemHandle, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mailcache.connection import CLOSE_LIMIT, NEVER, USER_TIMEOUT, Connection, Cut
from mailcache.contents import ContentFailed
from mailcache.testing import HIGH_WATER, WINDOW, MemoryReactor
from mailcache.tls import Contexts
from mailcache.trust.evidence import TLSClass
from mailcache.wire.replies import Reply
from tests.helpers import Outcome, TLSServer, authority, certificate

PORT = 2525
OK = b"250 ok\r\n"
LINE = b"This is one line of content, with its end.\r\n"


class Heard:
    """A receiver that notes what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.cut: Cut | None = None
        self.then: Callable[[], object] | None = None

    def tls_established(self) -> None:
        self.events.append("tls")

    def replies_received(self, replies: list[Reply]) -> None:
        self.events += [reply.code for reply in replies]

    def early_reply(self, reply: Reply) -> None:
        self.events.append(("early", reply.code))

    def read_finished(self) -> None:
        self.events.append("read")
        if self.then is not None and self.codes:
            then, self.then = self.then, None
            then()

    def content_written(self) -> None:
        self.events.append("content")

    def connection_cut(self, cut: Cut) -> None:
        assert self.cut is None, "told twice"
        self.events.append("cut")
        self.cut = cut

    @property
    def codes(self) -> list[int]:
        return [event for event in self.events if isinstance(event, int)]


class Peer(Protocol):
    """The server's end, done by hand."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None
        self.secure: TLSServer | None = None

    def dataReceived(self, data: bytes) -> None:
        if self.secure is None:
            self.received += data
        else:
            self.transport.write(self.secure.take(data))  # type: ignore[union-attr]
            self.received = self.secure.received

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class Scene:
    """A connection to a peer, on a network in memory, with its deadlines looked after as a cache does."""

    def __init__(self, latency: float = 0.0, *, unix: bool = False) -> None:
        self.reactor = MemoryReactor(latency=latency)
        self.heard = Heard()
        self.gone: list[Connection] = []
        self.connection = Connection(self.heard, self.reactor.seconds, self.gone.append)
        self.peer = Peer()
        serving = Factory.forProtocol(lambda: self.peer)
        client = Factory.forProtocol(lambda: self.connection)
        endpoint: Any
        if unix:
            self.reactor.listenUNIX("/run/smtp", serving)
            endpoint = UNIXClientEndpoint(self.reactor, "/run/smtp")
        else:
            self.reactor.listenTCP(PORT, serving, interface="127.0.0.1")
            endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", PORT)
        connecting = Outcome(endpoint.connect(client))
        self.reactor.run_until(lambda: connecting.done and self.peer.transport is not None)
        self.wire: Any = self.connection.transport
        self.wire.protocol = self.connection

    def says(self, *segments: bytes) -> None:
        """The peer writes these, each a segment of its own."""
        for segment in segments:
            data = segment if self.peer.secure is None else self.peer.secure.says(segment)
            self.puts(data)

    def puts(self, *segments: bytes) -> None:
        """The same, below TLS."""
        for segment in segments:
            self.peer.transport.write(segment)  # type: ignore[union-attr]
            self.reactor.run_for(self.reactor.latency)

    def asks(self, data: bytes, *limits: float) -> None:
        self.connection.write(data, limits or (60.0,))
        self.reactor.run_for(self.reactor.latency)

    def start_tls(self) -> None:
        """Do a handshake, to its end."""
        self.peer.secure = TLSServer(certificate().server_context())
        pem = authority().certificate_pem
        self.connection.start_tls(Contexts().get(TLSClass("a", "TLSv1.2", None, None), pem, None), "mx.test", 60.0)
        self.reactor.run_until(lambda: "tls" in self.heard.events)
        self.reactor.run_for(2 * self.reactor.latency)
        self.heard.events.clear()

    def wait(self, seconds: float) -> None:
        """Let time pass, and have the deadlines looked after."""
        end = self.reactor.seconds() + seconds
        while (now := self.reactor.seconds()) < end:
            self.reactor.run_for(min(end - now, max(0.0, self.connection.deadline - now)))
            if self.connection.deadline <= self.reactor.seconds():
                self.connection.expire()
        self.reactor.run_for(0)

    def closing(self) -> bool:
        return bool(self.wire.disconnecting)


class Case(SynchronousTestCase):
    """With a scene in clear text, and one under TLS."""

    def scenes(self) -> Iterator[Scene]:
        yield Scene()
        secure = Scene()
        secure.start_tls()
        yield secure

    def assert_cut(self, scene: Scene, reason: str, message: str = "") -> None:
        """It was cut for this reason, at once, and is gone; nobody hears any more of it."""
        cut = scene.heard.cut
        assert cut is not None, "not cut"
        self.assertEqual((cut.reason, cut.reason if message in str(cut) else str(cut)), (reason, reason))
        self.assertTrue(str(cut).isprintable())
        self.assertTrue(scene.connection.ended)
        self.assertFalse(scene.connection.quiet)
        scene.reactor.run_for(1)
        self.assertEqual(scene.gone, [scene.connection])
        self.assertEqual(scene.connection.deadline, NEVER)
        self.assertEqual(scene.reactor.connections, [])
        self.assertEqual(scene.heard.events[-1], "cut")
        self.assertEqual(scene.reactor.getDelayedCalls(), [])


class Replies(Case):
    """Rule R1: a reply is accepted while it is owed, and only then."""

    def test_that_are_owed_are_handed_on(self) -> None:
        """However they are cut; who reads them hears when all of a read is parsed."""
        for scene in self.scenes():
            scene.asks(b"EHLO me\r\n")
            scene.says(b"250-mx.test\r\n250-", b"PIPELINING\r\n25", b"0 HELP\r\n")
            self.assertEqual(scene.heard.events, ["read", "read", 250, "read"])
            scene.heard.events.clear()
            scene.asks(b"MAIL\r\nRCPT\r\nDATA\r\n", 60, 60, 60)
            scene.says(b"250 ok\r\n550 no\r\n3", b"54 go\r\n")
            self.assertEqual(scene.heard.events, [250, 550, "read", 354, "read"])
            self.assertTrue(scene.connection.quiet)
            self.assertEqual(scene.peer.received, b"EHLO me\r\nMAIL\r\nRCPT\r\nDATA\r\n")
            self.assertIsNone(scene.heard.cut)

    def test_that_nobody_asked_for_end_it(self) -> None:
        """Idle or not, whole or in parts, and with the ones that are owed."""
        for owed, segments, codes, reason in (
            (0, [b"250 ok\r\n"], [], "unsolicited"),
            (0, [b"421 bye\r\n"], [], "unsolicited"),
            (0, [b"2"], [], "unsolicited"),
            (0, [b"250-ok\r\n"], [], "unsolicited"),
            (0, [b"\r\n"], [], "malformed"),
            (0, [b"*"], [], "unsolicited"),
            (0, [b"\0"], [], "unsolicited"),
            (1, [b"250 ok\r\n250 ok\r\n"], [250], "unsolicited"),
            (1, [b"250 ok\r\n2"], [250], "unsolicited"),
            (1, [b"250 ok\r\n", b"250 ok\r\n"], [250], "unsolicited"),
            (1, [b"250 ok\r\n421 bye\r\n"], [250], "unsolicited"),
            (2, [b"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n"], [250, 250], "unsolicited"),
            (2, [b"250 ok\r\n250 ok\r\n\n"], [250, 250], "malformed"),
            (1, [b"hello\r\n"], [], "malformed"),
            (1, [b"250 ok\r\nhello\r\n"], [250], "malformed"),
            (1, [b"000 ok\r\n"], [], "malformed"),
            (1, [b"250-ok\r\n550 no\r\n"], [], "malformed"),
            (1, [b"250 " + b"x" * 3000], [], "malformed"),
            (1, [b"250 " + b"x" * 3000 + b"\r\n"], [], "malformed"),
            (1, [b"250-x\r\n" * 200], [], "malformed"),
        ):
            for scene in self.scenes():
                if owed:
                    scene.asks(b"NOOP\r\n" * owed, *[60.0] * owed)
                for segment in segments:
                    scene.says(segment)
                self.assertEqual(scene.heard.codes, codes, segments)
                self.assert_cut(scene, reason)

    def test_a_reply_that_ended_it_is_told(self) -> None:
        scene = Scene()
        scene.says(b"421 4.4.2 idle too long\r\n")
        self.assert_cut(scene, "unsolicited", "421 4.4.2 idle too long")
        assert scene.heard.cut is not None
        self.assertEqual(scene.heard.cut.reply, Reply.make(421, "4.4.2 idle too long"))

    def test_nothing_is_read_behind_the_end(self) -> None:
        scene = Scene()
        scene.asks(b"NOOP\r\n")
        scene.connection.cut("aborted", "enough")
        scene.connection.dataReceived(OK)
        self.assertEqual(scene.heard.events, ["cut"])

    def test_a_flaw_is_remembered(self) -> None:
        """It works, and must not be kept."""
        for scene in self.scenes():
            self.assertIsNone(scene.connection.flawed)
            scene.asks(b"NOOP\r\n")
            scene.says(b"250 ok\n")
            scene.asks(b"NOOP\r\n")
            scene.says(OK)
            self.assertEqual((scene.connection.flawed, scene.heard.codes), ("bare LF", [250, 250]))
            self.assertTrue(scene.connection.quiet)

    def test_half_a_record_is_not_quiet(self) -> None:
        """Rule R5: what is in it can't be known, so the session does not go back; a ticket would be no matter."""
        scene = Scene()
        scene.start_tls()
        assert scene.peer.secure is not None
        record = scene.peer.secure.says(OK)
        self.assertTrue(scene.connection.quiet)
        scene.puts(record[:-1])
        self.assertFalse(scene.connection.quiet)
        self.assertIsNone(scene.heard.cut)
        scene.puts(record[-1:])
        self.assert_cut(scene, "unsolicited")


class Deadlines(Case):
    """Each reply has its time as a whole."""

    def test_a_reply_that_does_not_come_is_too_late(self) -> None:
        for scene in self.scenes():
            scene.asks(b"MAIL\r\n", 30)
            scene.wait(29.5)
            self.assertIsNone(scene.heard.cut)
            scene.wait(1)
            self.assert_cut(scene, "timeout", "the server did not reply in time")

    def test_bytes_that_drip_in_do_not_extend_it(self) -> None:
        for scene in self.scenes():
            scene.asks(b"MAIL\r\n", 30)
            for octet in b"250-" + b"x" * 24:
                scene.says(bytes([octet]))
                scene.wait(1)
            self.assertIsNone(scene.heard.cut)
            scene.says(b"x")
            scene.wait(2.5)
            self.assert_cut(scene, "timeout")

    def test_each_reply_of_a_flight_has_its_own(self) -> None:
        """It begins when the one before has come."""
        scene = Scene()
        scene.asks(b"MAIL\r\nRCPT\r\nDATA\r\n", 10, 20, 30)
        for seconds in (9, 19, 29):
            scene.wait(seconds)
            scene.says(b"250 ok\r\n")
        self.assertEqual(scene.heard.codes, [250, 250, 250])
        self.assertEqual(scene.connection.deadline, NEVER)
        scene.asks(b"MAIL\r\nRCPT\r\nDATA\r\n", 10, 20, 30)
        scene.says(b"250 ok\r\n")
        scene.wait(20.5)
        self.assert_cut(scene, "timeout")

    def test_an_idle_one_has_none(self) -> None:
        for scene in self.scenes():
            self.assertEqual(scene.connection.deadline, NEVER)
            scene.asks(b"NOOP\r\n")
            scene.says(OK)
            self.assertEqual(scene.connection.deadline, NEVER)
            scene.wait(100)
            self.assertIsNone(scene.heard.cut)

    def test_the_handshake_has_one(self) -> None:
        """From its beginning to its end."""
        for dripping in (False, True):
            scene = Scene()
            context = Contexts().get(TLSClass("a", "TLSv1.2", None, None), authority().certificate_pem, None)
            server = TLSServer(certificate().server_context())
            scene.connection.start_tls(context, "mx.test", 10)
            scene.reactor.run_for(0)
            hello = server.take(scene.peer.received)
            for at in range(9):
                if dripping:
                    scene.puts(hello[at * 10 : at * 10 + 10])
                scene.wait(1)
            self.assertIsNone(scene.heard.cut)
            scene.wait(1.5)
            self.assert_cut(scene, "timeout", "the TLS handshake took too long")


def lines(count: int, end: object = None) -> Iterator[bytes]:
    """Chunks of content, of 32 KiB each; then its end, or a failure."""
    for _ in range(count):
        yield LINE * 745
    if isinstance(end, Exception):
        raise end
    yield b".\r\n"


class Content(Case):
    """Rule R3: the reply to the content is read behind the last of its bytes."""

    def test_in_one_piece(self) -> None:
        for scene in self.scenes():
            scene.connection.write_content(LINE + b".\r\n", (600.0,))
            self.assertEqual(scene.heard.events, ["content"])
            scene.reactor.run_for(0)
            self.assertEqual(scene.peer.received, LINE + b".\r\n")
            self.assertAlmostEqual(scene.connection.deadline, scene.reactor.seconds() + 600)
            scene.says(OK)
            self.assertEqual(scene.heard.events, ["content", 250, "read"])

    def test_in_chunks(self) -> None:
        for scene in self.scenes():
            scene.connection.stream_content(lines(20), 180.0, (600.0,))
            scene.reactor.run_for(0)
            self.assertEqual(scene.peer.received, b"".join(lines(20)))
            self.assertEqual(scene.heard.events, ["content"])
            self.assertAlmostEqual(scene.connection.deadline, scene.reactor.seconds() + 600)
            scene.says(OK)
            self.assertEqual(scene.heard.events, ["content", 250, "read"])
            self.assertIsNone(scene.wire._producer)

    def test_in_a_single_chunk(self) -> None:
        for scene in self.scenes():
            scene.connection.stream_content(lines(0), 180.0, (600.0,))
            scene.says(OK)
            self.assertEqual((scene.peer.received, scene.heard.events), (b".\r\n", ["content", 250, "read"]))

    def test_a_reply_to_it_may_be_odd(self) -> None:
        """Not to know the verdict costs more than anything an odd reply could do."""
        for odd in (b"250 o\0k\r\n", b"250 " + b"x" * 3000 + b"\r\n", b"250 ok\n"):
            for scene in self.scenes():
                scene.connection.write_content(LINE + b".\r\n", (600.0,))
                scene.says(odd)
                self.assertEqual(scene.heard.codes, [250])
                self.assertIsNotNone(scene.connection.flawed)
                scene.connection.forget_content()
                scene.asks(b"NOOP\r\n")
                scene.says(b"250 o\0k\r\n")
                self.assert_cut(scene, "malformed")

    def test_a_reply_that_comes_before_its_end_is_early(self) -> None:
        for scene in self.scenes():
            scene.peer.transport.pauseProducing()  # type: ignore[union-attr]
            scene.connection.stream_content(lines(100), 180.0, (600.0,))
            scene.reactor.run_for(1)
            scene.says(b"552 too big\r\n")
            self.assertEqual(scene.heard.events, [("early", 552), "cut"])
            self.assert_cut(scene, "unsolicited", "before the content was written")
            self.assertFalse(scene.peer.received.endswith(b"\r\n.\r\n"))

    def test_a_reply_that_began_before_its_end_is_none_of_it(self) -> None:
        """Its first byte was read before the last byte of the content was handed over; likewise half a record."""
        for part in (b"2", b"250 ok", b"250-ok\r\n"):
            for scene in self.scenes():
                scene.peer.transport.pauseProducing()  # type: ignore[union-attr]
                scene.connection.stream_content(lines(100), 180.0, (600.0,))
                scene.reactor.run_for(1)
                scene.says(part)
                self.assertIsNone(scene.heard.cut)
                scene.peer.transport.resumeProducing()  # type: ignore[union-attr]
                scene.reactor.run_for(1)
                self.assert_cut(scene, "unsolicited", "bytes of a reply came before the content was written")
                self.assertNotIn("content", scene.heard.events)
                self.assertFalse(scene.peer.received.endswith(b"\r\n.\r\n"))

    def test_half_a_record_before_it_is_the_beginning_of_a_reply(self) -> None:
        for streamed in (False, True):
            scene = Scene()
            scene.start_tls()
            assert scene.peer.secure is not None
            scene.asks(b"DATA\r\n")
            segment = scene.peer.secure.says(b"354 go\r\n")
            reply = scene.peer.secure.says(OK)
            if streamed:
                scene.heard.then = lambda scene=scene: scene.connection.stream_content(lines(1), 180.0, (600.0,))  # type: ignore[misc]
            else:
                scene.heard.then = lambda scene=scene: scene.connection.write_content(b".\r\n", (600.0,))  # type: ignore[misc]
            scene.puts(segment + reply[:10])
            self.assertEqual(scene.heard.events, [354, "read", "cut"])
            self.assert_cut(scene, "unsolicited", "bytes of a reply came before the content was written")

    def test_no_more_is_taken_than_the_transport_takes(self) -> None:
        """The rest waits where it comes from."""
        for scene in self.scenes():
            taken = 0

            def counted() -> Iterator[bytes]:
                nonlocal taken
                for chunk in lines(100):
                    taken += len(chunk)
                    yield chunk

            scene.peer.transport.pauseProducing()  # type: ignore[union-attr]
            scene.connection.stream_content(counted(), 180.0, (600.0,))
            scene.reactor.run_for(10)
            self.assertLess(taken, HIGH_WATER + WINDOW + 5 * 32_768)
            scene.peer.transport.resumeProducing()  # type: ignore[union-attr]
            scene.reactor.run_for(10)
            self.assertEqual(scene.peer.received, b"".join(lines(100)))

    def test_a_server_that_takes_nothing_is_too_slow(self) -> None:
        for scene in self.scenes():
            scene.peer.transport.pauseProducing()  # type: ignore[union-attr]
            scene.connection.stream_content(lines(100), 30.0, (600.0,))
            scene.wait(29)
            self.assertIsNone(scene.heard.cut)
            scene.wait(2)
            self.assert_cut(scene, "timeout", "the server took no content for too long")
            self.assertFalse(scene.peer.received.endswith(b"\r\n.\r\n"))

    def test_a_server_that_takes_some_now_and_then_is_not(self) -> None:
        """It is progress that is wanted, not speed: that what waits in the transport goes out within the limit."""
        for secure in (False, True):
            scene = Scene(latency=1.0)
            if secure:
                scene.start_tls()
            content = b"".join(lines(40))
            began = scene.reactor.seconds()
            scene.connection.stream_content(lines(40), 60.0, (600.0,))
            while len(scene.peer.received) < len(content):
                scene.peer.transport.pauseProducing()  # type: ignore[union-attr]
                scene.wait(18)
                scene.peer.transport.resumeProducing()  # type: ignore[union-attr]
                scene.reactor.run_for(0)
                self.assertIsNone(scene.heard.cut)
            self.assertEqual(scene.peer.received, content)
            self.assertGreater(scene.reactor.seconds() - began, 300)

    def test_content_that_fails_has_no_end(self) -> None:
        for count in (0, 1, 30):
            for scene in self.scenes():
                scene.connection.stream_content(lines(count, ContentFailed("the file ended")), 180.0, (600.0,))
                scene.reactor.run_for(1)
                self.assert_cut(scene, "content", "the file ended")
                self.assertNotIn("content", scene.heard.events)
                self.assertFalse(scene.peer.received.endswith(b"\r\n.\r\n"))

    def test_may_be_broken_off(self) -> None:
        for end in (
            lambda scene: scene.connection.cut("aborted", "cancelled"),
            lambda scene: scene.peer.transport.abortConnection(),
            lambda scene: scene.peer.transport.loseConnection(),
        ):
            for scene in self.scenes():
                scene.peer.transport.pauseProducing()  # type: ignore[union-attr]
                scene.connection.stream_content(lines(100), 180.0, (600.0,))
                scene.reactor.run_for(1)
                end(scene)
                scene.reactor.run_for(1)
                cut = scene.heard.cut
                assert cut is not None
                self.assert_cut(scene, cut.reason)
                self.assertIn(cut.reason, ("aborted", "reset", "closed"))


class Endings(Case):
    def test_quit_waits_for_its_answer(self) -> None:
        for answer in (b"221 bye\r\n", b"500 what?\r\n", b"221 bye\r\n250 ok\r\n", b"221-a\r\n221 b\r\n"):
            for scene in self.scenes():
                scene.connection.quit(5)
                scene.reactor.run_for(0)
                self.assertTrue(scene.peer.received.endswith(b"QUIT\r\n"))
                self.assertFalse(scene.closing())
                scene.says(answer)
                self.assertTrue(scene.closing() or scene.wire.disconnected)
                scene.wait(1)
                self.assert_left(scene)

    def assert_left(self, scene: Scene) -> None:
        """The receiver has heard nothing of it, and nothing is left."""
        self.assertEqual([event for event in scene.heard.events if event != "read"], [])
        self.assertIsNone(scene.heard.cut)
        self.assertEqual((scene.gone, scene.reactor.connections), ([scene.connection], []))
        self.assertEqual(scene.connection.deadline, NEVER)
        self.assertTrue(scene.connection.ended)
        self.assertEqual(scene.reactor.getDelayedCalls(), [])

    def test_quit_does_not_wait_for_ever(self) -> None:
        """Nor for what is no answer, nor where the answer does not end."""
        for answer in (b"", b"221 b", b"garbage\r\n", b"250 " + b"x" * 9000):
            for scene in self.scenes():
                scene.connection.quit(5)
                if answer:
                    scene.says(answer)
                scene.wait(5.5)
                self.assert_left(scene)

    def test_quit_meets_a_server_that_has_gone(self) -> None:
        for end in ("loseConnection", "abortConnection"):
            for scene in self.scenes():
                scene.connection.quit(5)
                getattr(scene.peer.transport, end)()
                scene.wait(1)
                self.assert_left(scene)

    def test_leaving_says_nothing(self) -> None:
        for scene in self.scenes():
            before = scene.peer.received
            scene.connection.leave(5)
            scene.wait(1)
            self.assertEqual(scene.peer.received, before)
            assert scene.peer.lost is not None
            self.assertEqual(scene.peer.lost.type.__name__, "ConnectionDone")
            self.assert_left(scene)

    def test_close_notify_is_said_before_tls_is_left(self) -> None:
        for end in (lambda scene: scene.connection.leave(5), lambda scene: scene.connection.quit(5)):
            scene = Scene()
            scene.start_tls()
            end(scene)
            scene.reactor.run_for(0)
            if not scene.peer.lost:
                scene.says(b"221 bye\r\n")
            scene.reactor.run_for(1)
            assert scene.peer.secure is not None
            self.assertTrue(scene.peer.secure.ssl.get_shutdown() & 2, "RECEIVED_SHUTDOWN")

    def test_closing_does_not_wait_for_a_server_that_reads_nothing(self) -> None:
        """What is still to be written would wait for ever."""
        for quits in (False, True):
            scene = Scene()
            scene.peer.transport.pauseProducing()  # type: ignore[union-attr]
            scene.wire.write(b"x" * (WINDOW + 1000))
            if quits:
                scene.connection.quit(3)
                scene.connection.dataReceived(b"221 bye\r\n")
            else:
                scene.connection.leave(3)
            scene.reactor.run_for(1)
            self.assertEqual(scene.gone, [])
            scene.wait(CLOSE_LIMIT + 0.5)
            self.assert_left(scene)

    def test_ends_only_once(self) -> None:
        for first in ("quit", "leave", "cut"):
            for second in ("quit", "leave", "cut", "expire"):
                scene = Scene()
                for name in (first, second, second):
                    arguments: dict[str, Any] = {"quit": (5,), "leave": (5,), "cut": ("aborted", "x"), "expire": ()}
                    getattr(scene.connection, name)(*arguments[name])
                scene.wait(6)
                self.assertEqual((scene.gone, scene.reactor.connections), ([scene.connection], []))
                self.assertEqual(scene.heard.cut is not None, first == "cut")

    def test_a_cut_is_a_reset(self) -> None:
        """Nothing that was written and waits goes out any more: half a message must not become a whole one."""
        for scene in self.scenes():
            scene.connection.write(b"DATA\r\n", (60,))
            scene.connection.cut("aborted", "the lease ended")
            self.assert_cut(scene, "aborted", "the lease ended")
            self.assertNotIn(b"DATA", scene.peer.received)
            assert scene.peer.lost is not None
            self.assertEqual(scene.peer.lost.type.__name__, "ConnectionLost")

    def test_the_servers_end_is_told_apart(self) -> None:
        for end, reason in (("loseConnection", "closed"), ("abortConnection", "reset")):
            for owed in (False, True):
                for scene in self.scenes():
                    if owed:
                        scene.asks(b"NOOP\r\n")
                        scene.says(b"250-half\r\n")
                    getattr(scene.peer.transport, end)()
                    scene.reactor.run_for(0)
                    self.assert_cut(scene, reason)

    def test_a_reply_cut_short_is_no_reply(self) -> None:
        """A FIN at each place of it: only a whole one counts."""
        reply = b"250-one\r\n250 two\r\n"
        for at in range(len(reply) + 1):
            for scene in self.scenes():
                scene.asks(b"NOOP\r\n")
                if at:
                    scene.says(reply[:at])
                scene.peer.transport.loseConnection()  # type: ignore[union-attr]
                scene.reactor.run_for(0)
                self.assertEqual(scene.heard.codes, [250] if at == len(reply) else [])
                self.assert_cut(scene, "closed")


class StartTLS(Case):
    """Nothing that was said in clear text is taken for something said under TLS."""

    def context(self) -> Any:
        return Contexts().get(TLSClass("a", "TLSv1.2", None, None), authority().certificate_pem, None)

    def begin(self, scene: Scene) -> None:
        scene.heard.then = lambda: scene.connection.start_tls(self.context(), "mx.test", 60)
        scene.asks(b"STARTTLS\r\n")

    def test_more_than_the_go_ahead_ends_it(self) -> None:
        """In one segment with it, whole or as a fragment; no handshake begins."""
        for extra in (b"250 AUTH PLAIN\r\n", b"250-AUTH PLAIN\r\n", b"250-x", b"2", b"\r\n", b"\0"):
            scene = Scene()
            self.begin(scene)
            scene.says(b"220 go\r\n" + extra)
            reason = "malformed" if extra == b"\r\n" else "unsolicited"
            self.assert_cut(scene, reason)
            self.assertEqual(scene.peer.received, b"STARTTLS\r\n")

    def test_plain_text_behind_it_is_no_tls(self) -> None:
        """In a segment of its own, before the server's side of the handshake."""
        for extra in (b"250 AUTH PLAIN\r\n", b"250-x", b"220 go\r\n250-INJECTED\r\n250 AUTH PLAIN\r\n"):
            scene = Scene()
            self.begin(scene)
            scene.says(b"220 go\r\n")
            hello = scene.peer.received.removeprefix(b"STARTTLS\r\n")
            self.assertEqual(hello[:2], b"\x16\x03")
            server = TLSServer(certificate().server_context())
            scene.puts(extra + server.take(hello))
            if scene.heard.cut is None:
                scene.wait(61)
            self.assertEqual(scene.heard.codes, [220])
            cut = scene.heard.cut
            assert cut is not None
            self.assertIn(cut.reason, ("tls", "timeout"))
            self.assert_cut(scene, cut.reason)

    def test_close_notify_is_the_end(self) -> None:
        """The server may speak on in clear text: that is nobody's reply."""
        for segments in ((b"", b"250 ok\r\n"), (b"250 ok\r\n",)):
            for owed in (False, True):
                scene = Scene()
                scene.start_tls()
                if owed:
                    scene.asks(b"NOOP\r\n")
                assert scene.peer.secure is not None
                scene.peer.secure.ssl.shutdown()
                scene.puts(scene.peer.secure.outgoing() + segments[0], *segments[1:])
                self.assertEqual(scene.heard.codes, [])
                self.assert_cut(scene, "closed", "the server closed TLS")

    def test_replies_before_close_notify_count(self) -> None:
        scene = Scene()
        scene.start_tls()
        scene.asks(b"NOOP\r\n")
        assert scene.peer.secure is not None
        reply = scene.peer.secure.says(OK)
        scene.peer.secure.ssl.shutdown()
        scene.puts(reply + scene.peer.secure.outgoing())
        self.assertEqual(scene.heard.events, [250, "cut"])
        self.assert_cut(scene, "closed")

    def test_broken_records_end_it(self) -> None:
        for data in (b"\x17\x03\x03\x00\x40" + b"\xa5" * 64, b"250 ok\r\n", b"\x15\x03\x03\x00\x02\x02\x28"):
            scene = Scene()
            scene.start_tls()
            scene.puts(data)
            self.assert_cut(scene, "tls", "TLS failed: ")
            self.assertEqual(scene.heard.codes, [])

    def test_replies_before_a_broken_record_count(self) -> None:
        """In one segment with it: what they say is proved, whatever comes behind them."""
        for broken in (b"\x17\x03\x03\x00\x40" + b"\xa5" * 64, b"250 ok\r\n"):
            scene = Scene()
            scene.start_tls()
            scene.asks(b"NOOP\r\n")
            assert scene.peer.secure is not None
            scene.puts(scene.peer.secure.says(OK) + broken)
            self.assertEqual(scene.heard.events, [250, "cut"])
            self.assert_cut(scene, "tls", "TLS failed: ")

    def test_bytes_may_come_one_by_one(self) -> None:
        scene = Scene()
        self.begin(scene)
        for octet in b"220 go\r\n":
            scene.says(bytes([octet]))
        server = TLSServer(certificate().server_context())
        data = server.take(scene.peer.received.removeprefix(b"STARTTLS\r\n"))
        seen = len(scene.peer.received)
        for octet in data:
            scene.puts(bytes([octet]))
        tickets = server.take(scene.peer.received[seen:])
        for octet in tickets:
            scene.puts(bytes([octet]))
        self.assertEqual(scene.heard.events[-1], "read")
        self.assertIn("tls", scene.heard.events)
        self.assertEqual(scene.connection.evidence().chain_error, None)
        scene.asks(b"EHLO me\r\n")
        for octet in server.says(b"250-mx.test\r\n250 HELP\r\n"):
            scene.puts(bytes([octet]))
        self.assertEqual(scene.heard.codes, [220, 250])


class FakeSocket(socket.socket):
    """A socket whose send takes what it is told to, and complains if it is to overtake bytes that wait."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.takes: list[int | OSError] = []
        self.calls = 0
        self.options: list[tuple[int, int, Any]] = []
        self.wire: FakeTransport

    def send(self, data: bytes, *_: object) -> int:  # type: ignore[override]
        assert not self.wire.waiting, "these bytes would overtake those that wait"
        self.calls += 1
        taken = self.takes.pop(0) if self.takes else len(data)
        if isinstance(taken, OSError):
            raise taken
        taken = min(taken, len(data))
        self.wire.arrived += data[:taken]
        return taken

    def setsockopt(self, *option: Any) -> None:
        self.options.append(option)


@implementer(ITCPTransport, ISystemHandle)
class FakeTransport:
    """A transport over it: what is written waits until the test lets it through."""

    def __init__(self, handle: FakeSocket) -> None:
        self.handle = handle
        handle.wire = self
        self.arrived = b""
        self.waiting = b""
        self.producer: Any = None
        self.ended = ""
        self.options: dict[str, bool] = {}

    def getHandle(self) -> FakeSocket:
        return self.handle

    def write(self, data: bytes) -> None:
        self.waiting += data

    def flush(self) -> None:
        """The kernel takes what waits."""
        self.arrived += self.waiting
        self.waiting = b""
        if self.producer is not None:
            self.producer.resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def abortConnection(self) -> None:
        self.ended = "aborted"

    def loseConnection(self) -> None:
        self.ended = "closed"

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options["no delay"] = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options["keep alive"] = enabled


class DirectSend(SynchronousTestCase):
    """A flight goes straight into the socket where nothing waits in the transport, and never overtakes anything."""

    def make(self, family: int = socket.AF_INET) -> tuple[Connection, FakeTransport, FakeSocket, Heard]:
        handle = FakeSocket(family)
        self.addCleanup(handle.close)
        wire = FakeTransport(handle)
        heard = Heard()
        connection = Connection(heard, lambda: 0.0, lambda _: None)
        connection.makeConnection(wire)  # type: ignore[arg-type]
        return connection, wire, handle, heard

    def flight(self, connection: Connection, data: bytes = b"MAIL\r\nRCPT\r\nDATA\r\n") -> None:
        connection.write(data, [60.0] * data.count(b"\r\n"))

    def answered(self, connection: Connection, count: int = 3) -> None:
        connection.dataReceived(OK * count)

    def test_takes_all_of_it(self) -> None:
        connection, wire, handle, heard = self.make()
        for _ in range(3):
            self.flight(connection)
            self.assertEqual(wire.waiting, b"")
            self.answered(connection)
            connection.write_content(b".\r\n", (60.0,))
            connection.dataReceived(OK)
            connection.forget_content()
        self.assertEqual(wire.arrived, b"MAIL\r\nRCPT\r\nDATA\r\n.\r\n" * 3)
        self.assertEqual((handle.calls, len(heard.codes)), (6, 12))

    def test_takes_a_part_of_it(self) -> None:
        """The rest goes through the transport, and all behind it until the replies show that it has gone."""
        whole = b"MAIL\r\nRCPT\r\nDATA\r\n"
        for part in range(len(whole)):
            connection, wire, handle, _ = self.make()
            handle.takes = [part]
            self.flight(connection)
            self.assertEqual((wire.arrived, wire.waiting), (whole[:part], whole[part:]))
            connection.dataReceived(OK)
            wire.flush()
            self.answered(connection, 2)
            self.flight(connection)
            self.assertEqual((wire.arrived, wire.waiting, handle.calls), (whole * 2, b"", 2))

    def test_fails(self) -> None:
        """Whatever it says: the transport tries again, and finds out what is the matter."""
        for error in (BlockingIOError(11, "again"), BrokenPipeError(32, "pipe"), OSError(105, "no buffer space")):
            connection, wire, handle, heard = self.make()
            handle.takes = [error]
            self.flight(connection)
            self.assertEqual((wire.arrived, wire.waiting), (b"", b"MAIL\r\nRCPT\r\nDATA\r\n"))
            self.assertIsNone(heard.cut)
            wire.flush()
            self.answered(connection)
            self.flight(connection)
            self.assertEqual((wire.waiting, handle.calls), (b"", 2))

    def test_does_not_overtake_content_that_is_refused_early(self) -> None:
        """A server may answer before it has read all: the next command must not end up in the middle."""
        connection, wire, handle, _ = self.make()
        self.flight(connection)
        self.answered(connection)
        handle.takes = [10]
        connection.write_content(LINE * 100 + b".\r\n", (60.0,))
        connection.dataReceived(b"552 too big\r\n")
        connection.forget_content()
        self.assertNotEqual(wire.waiting, b"")
        self.flight(connection, b"RSET\r\nMAIL\r\n")
        wire.flush()
        self.answered(connection, 2)
        self.flight(connection, b"RCPT\r\n")
        whole = b"MAIL\r\nRCPT\r\nDATA\r\n" + LINE * 100 + b".\r\nRSET\r\nMAIL\r\nRCPT\r\n"
        self.assertEqual((wire.arrived, wire.waiting), (whole, b""))

    def test_does_not_overtake_streamed_content(self) -> None:
        connection, wire, _, heard = self.make()
        self.flight(connection)
        self.answered(connection)
        connection.stream_content(lines(5), 60.0, (60.0,))
        while wire.producer is not None:
            wire.flush()
        self.assertIn("content", heard.events)
        connection.dataReceived(b"552 too big\r\n")
        connection.forget_content()
        self.flight(connection, b"RSET\r\n")
        wire.flush()
        self.answered(connection, 1)
        self.flight(connection, b"MAIL\r\n")
        whole = b"MAIL\r\nRCPT\r\nDATA\r\n" + b"".join(lines(5)) + b"RSET\r\nMAIL\r\n"
        self.assertEqual((wire.arrived, wire.waiting), (whole, b""))

    def test_goes_behind_the_handshake(self) -> None:
        """And once that is answered, records go straight into the socket too."""
        connection, wire, handle, _ = self.make()
        server = TLSServer(certificate().server_context())
        context = Contexts().get(TLSClass("a", "TLSv1.2", None, None), authority().certificate_pem, None)
        connection.start_tls(context, "mx.test", 60)
        for _ in range(2):
            wire.flush()
            connection.dataReceived(server.take(wire.arrived))
            wire.arrived = b""
        self.assertEqual(handle.calls, 0)
        for command in (b"EHLO me\r\n", b"MAIL\r\n", b"QUIT\r\n"):
            self.flight(connection, command)
            wire.flush()
            server.take(wire.arrived)
            wire.arrived = b""
            connection.dataReceived(server.says(OK))
        self.assertEqual((server.received, handle.calls), (b"EHLO me\r\nMAIL\r\nQUIT\r\n", 2))

    def test_needs_a_socket(self) -> None:
        """A transport that has none is written to as ever."""
        scene = Scene()
        scene.asks(b"NOOP\r\n")
        self.assertEqual(scene.peer.received, b"NOOP\r\n")


class Options(SynchronousTestCase):
    def test_of_tcp_are_set(self) -> None:
        scene = Scene()
        self.assertTrue(scene.wire.getTcpNoDelay() and scene.wire.getTcpKeepAlive())
        case = DirectSend("make")
        _, wire, handle, _ = case.make()
        case.doCleanups()
        self.assertEqual(wire.options, {"no delay": True, "keep alive": True})
        self.assertEqual(handle.options, [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT * 1000)])

    def test_are_none_of_a_local_socket(self) -> None:
        case = DirectSend("make")
        _, _, handle, _ = case.make(socket.AF_UNIX)
        case.doCleanups()
        self.assertEqual(handle.options, [])
        scene = Scene(unix=True)
        scene.asks(b"NOOP\r\n")
        scene.says(OK)
        self.assertEqual((scene.peer.received, scene.heard.codes), (b"NOOP\r\n", [250]))
