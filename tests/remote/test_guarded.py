"""AMP for a peer that is not trusted: whatever it sends or does not read, and whatever a responder raises."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mailcache.remote.codec import MalformedError
from mailcache.remote.guarded import MAX_BOX, MAX_KEYS, GuardedAMP
from mailcache.testing import MemoryPairs, MemoryReactor
from tests.helpers import Outcome

PATH = "/run/guarded"


class DeclaredError(Exception):
    """What a command says that it may raise."""


class Echo(amp.Command):
    arguments = [(b"text", amp.String())]
    response = [(b"text", amp.String())]
    errors = {DeclaredError: b"DECLARED"}


class Count(amp.Command):
    arguments = [(b"number", amp.Integer())]


class Lend(amp.Command):
    response = [(b"descriptor", amp.Descriptor())]


class Told(amp.Command):
    arguments = [(b"number", amp.Integer())]
    requiresAnswer = False


class Secret(amp.Command):
    """Known to the class and not to be called yet."""


class Serving(GuardedAMP):
    """Does what the test says."""

    COMMANDS = (Echo, Count, Lend, Secret)
    TOLD: ClassVar[dict[type[amp.Command], str]] = {Told: "told"}

    def __init__(self, bed: GuardedBed) -> None:
        super().__init__(bed.pairs)
        self.bed = bed
        self.lost = False

    def knows(self, name: bytes) -> bool:
        return name != Secret.commandName and not (name == Told.commandName and self.bed.too_early)

    @Echo.responder
    def echo(self, text: bytes) -> Any:
        self.bed.echoed += 1
        answer = self.bed.answers.pop(0) if self.bed.answers else {"text": text}
        if isinstance(answer, Exception):
            raise answer
        return answer

    @Count.responder
    def count(self, number: int) -> dict[str, Any]:
        return {}

    @Lend.responder
    def lend(self) -> dict[str, Any]:
        descriptor = self._pairs.make(Protocol())
        self.close_when_sent(descriptor)
        return {"descriptor": descriptor}

    @Secret.responder
    def secret(self) -> dict[str, Any]:
        raise AssertionError("it is not to be called yet")

    def told(self, number: int) -> None:
        self.bed.told.append(number)
        if number < 0:
            raise RuntimeError("a negative number")

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        super().connectionLost(reason)


@implementer(IFileDescriptorReceiver)
class Plain(Protocol):
    """A peer that writes bytes as they are."""

    def __init__(self) -> None:
        self.received = b""
        self.descriptors: list[int] = []
        self.wire: Any = None

    def connectionMade(self) -> None:
        self.wire = self.transport

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self.descriptors.append(descriptor)


class GuardedBed:
    """A serving end in memory, and a peer of either kind."""

    def __init__(self, peer: Any) -> None:
        self.reactor = MemoryReactor()
        self.pairs = MemoryPairs(self.reactor)
        self.answers: list[Any] = []
        self.echoed = 0
        self.told: list[int] = []
        self.too_early = False
        self.serving = Serving(self)
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _: self.serving
        self.reactor.listenUNIX(PATH, factory)
        connecting = Outcome(connectProtocol(UNIXClientEndpoint(self.reactor, PATH), peer))
        self.reactor.run_until(lambda: connecting.done, 1)
        self.reactor.pump()
        self.peer = peer

    def call(self, command: Any, **arguments: Any) -> Any:
        outcome = Outcome(self.peer.callRemote(command, **arguments))
        self.reactor.run_until(lambda: outcome.done, 1)
        return outcome.value

    def say(self, data: bytes) -> None:
        self.peer.wire.write(data)
        self.reactor.pump()


def box(name: bytes, *, ask: bytes | None = b"1", **arguments: bytes) -> bytes:
    """A box as bytes."""
    made = amp.AmpBox({b"_command": name, **{key.encode(): value for key, value in arguments.items()}})
    if ask is not None:
        made[b"_ask"] = ask
    return bytes(made.serialize())


class ExceptionTests(SynchronousTestCase):
    """What a responder raises, and what the peer hears of it; the link lives in each case."""

    def check(self, error: Exception, kind: type[Exception], said: str) -> None:
        for raised in (error, fail(error)):
            bed = GuardedBed(amp.AMP())
            bed.answers.append(raised)
            value = bed.call(Echo, text=b"x")
            self.assertIsInstance(value, kind)
            self.assertIn(said, str(value))
            self.assertEqual(bed.call(Echo, text=b"y"), {"text": b"y"})

    def test_declared(self) -> None:
        self.check(DeclaredError("the test wants it"), DeclaredError, "the test wants it")

    def test_malformed(self) -> None:
        self.check(MalformedError("destination: no JSON"), amp.UnknownRemoteError, "destination: no JSON")

    def test_value(self) -> None:
        """Its text may be anything, so it stays here."""
        self.check(ValueError("the text"), amp.UnknownRemoteError, "can't be used (ValueError)")
        bed = GuardedBed(amp.AMP())
        bed.answers.append(ValueError("the text"))
        self.assertNotIn("the text", str(bed.call(Echo, text=b"x")))

    def test_defect(self) -> None:
        self.check(RuntimeError("the text"), amp.UnknownRemoteError, "a defect in the keeper")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_answer_that_can_not_be_written(self) -> None:
        """A value that is too long, or none at all."""
        for answer in ({"text": b"x" * 70_000}, {}):
            bed = GuardedBed(Plain())
            bed.answers.append(answer)
            bed.say(box(b"Echo", text=b"x"))
            self.assertTrue(bed.serving.lost or b"FAULT" in bed.peer.received)
            self.flushLoggedErrors()

    def test_arguments_that_are_none(self) -> None:
        bed = GuardedBed(amp.AMP())
        for sent in ({}, {"number": b"x"}, {"text": b"1"}):
            outcome = Outcome(bed.peer.callRemoteString(b"Count", **sent))
            bed.reactor.pump()
            self.assertEqual(outcome.value.errorCode, b"FAULT")
        self.assertEqual(bed.call(Count, number=1), {})

    def test_later(self) -> None:
        """An answer may take its time, and the link may be gone by then."""
        for gone in (False, True):
            bed = GuardedBed(amp.AMP())
            answer: Deferred[Any] = Deferred()
            bed.answers.append(answer)
            outcome = Outcome(bed.peer.callRemote(Echo, text=b"x"))
            bed.reactor.pump()
            self.assertFalse(outcome.done)
            if gone:
                bed.peer.transport.abortConnection()
                bed.reactor.pump()
            answer.callback({"text": b"late"})
            bed.reactor.pump()
            self.assertEqual(isinstance(outcome.value, Exception), gone)


class KnownTests(SynchronousTestCase):
    """Which commands there are."""

    def test_unknown(self) -> None:
        bed = GuardedBed(amp.AMP())
        for name in (b"Unheard", b"StartTLS", b"Secret", b"\xff", b""):
            outcome = Outcome(bed.peer.callRemoteString(name))
            bed.reactor.pump()
            if name:
                self.assertIsInstance(outcome.value, amp.UnhandledCommand)
                self.assertFalse(bed.serving.lost)
        self.assertTrue(bed.serving.lost, "a command without a name ends it")

    def test_told(self) -> None:
        bed = GuardedBed(amp.AMP())
        for number in range(3):
            bed.peer.callRemote(Told, number=number)
        self.assertEqual(bed.call(Echo, text=b"x"), {"text": b"x"})
        self.assertEqual(bed.told, [0, 1, 2])


class DropTests(SynchronousTestCase):
    """What ends the link."""

    def check_dropped(self, data: bytes, heard: int = 0) -> GuardedBed:
        bed = GuardedBed(Plain())
        bed.say(data)
        self.assertTrue(bed.serving.lost, data[:80])
        self.assertEqual(bed.reactor.connections, [])
        self.assertEqual((bed.echoed, len(bed.told)), (0, heard))
        return bed

    def test_boxes_that_are_no_commands(self) -> None:
        for made in (
            {b"_answer": b"1"},
            {b"_error": b"1", b"_error_code": b"X", b"_error_description": b""},
            {b"nothing": b"at all"},
            {b"_command": b"Echo", b"_answer": b"1", b"_ask": b"1", b"text": b"x"},
        ):
            self.check_dropped(bytes(amp.AmpBox(made).serialize()))

    def test_without_a_wish_for_an_answer(self) -> None:
        self.check_dropped(box(b"Echo", ask=None, text=b"x"))
        self.check_dropped(box(b"Unheard", ask=None))

    def test_told_amiss(self) -> None:
        self.check_dropped(box(b"Told", number=b"1"))
        self.check_dropped(box(b"Told", ask=None))
        self.check_dropped(box(b"Told", ask=None, number=b"x"))
        self.check_dropped(box(b"Told", ask=None, number=b"-1"), heard=1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_told_too_early(self) -> None:
        bed = GuardedBed(Plain())
        bed.too_early = True
        bed.say(box(b"Told", ask=None, number=b"1"))
        self.assertEqual((bed.serving.lost, bed.told), (True, []))

    def test_nothing_behind_it(self) -> None:
        """What came with it in one read is not done any more."""
        self.check_dropped(box(b"Echo", ask=None, text=b"x") + box(b"Echo", text=b"y") + box(b"Told", number=b"1"))

    def test_long_key(self) -> None:
        self.check_dropped(b"\x7f\xffkey")

    def test_box_without_an_end(self) -> None:
        """What is held of it is bounded, whatever its pieces."""
        for piece in (10_000, 60_000):
            bed = GuardedBed(Plain())
            sent = 0
            while not bed.serving.lost:
                value = b"x" * piece
                bed.say(b"\0\x04%04d" % (sent // piece) + piece.to_bytes(2, "big") + value)
                sent += piece
                self.assertLess(sent, MAX_BOX + 3 * piece)
            self.assertGreaterEqual(sent, MAX_BOX - piece)

    def test_box_of_many_keys(self) -> None:
        """It ends the link, whole or not, and holds little until then: a key takes more memory than it is long."""
        keys = b"".join(b"\0\3" + number.to_bytes(3, "big") + b"\0\0" for number in range(18_000))
        for piece in (100, 1_000, len(keys)):
            bed = GuardedBed(Plain())
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            sent = 0
            while not bed.serving.lost:
                bed.say(keys[sent : sent + piece])
                sent += piece
                self.assertLess(sent, len(keys) + piece, "it is taken to its end")
            held = tracemalloc.get_traced_memory()[1] - before
            tracemalloc.stop()
            self.assertLessEqual(sent, max(piece, 7 * (MAX_KEYS + 1) + piece))
            self.assertLess(held, 1024 * 1024)
        more = {f"k{number}": b"" for number in range(MAX_KEYS - 3)}
        self.check_dropped(box(b"Echo", text=b"x", one=b"", **more))
        bed = GuardedBed(Plain())
        bed.say(box(b"Echo", text=b"x", **more))
        self.assertEqual((bed.serving.lost, bed.echoed), (False, 1))

    def test_large_box(self) -> None:
        """As large as it may be, it is taken."""
        bed = GuardedBed(Plain())
        bed.say(box(b"Echo", text=b"x" * 65_535, more=b"y" * 65_000))
        self.assertEqual((bed.serving.lost, bed.echoed), (False, 1))

    def test_many_boxes(self) -> None:
        """Together they may be as large as they like, in one read and in many."""
        bed = GuardedBed(Plain())
        one = box(b"Echo", text=b"x" * 30_000)
        for _ in range(20):
            bed.say(one)
        bed.say(one * 20)
        self.assertEqual((bed.serving.lost, bed.echoed), (False, 40))

    def test_descriptor(self) -> None:
        """One that is sent is closed, and the link ends."""
        bed = GuardedBed(Plain())
        for _ in range(2):
            bed.peer.wire.sendFileDescriptor(bed.pairs.make(Protocol()))
        sent = list(bed.reactor.descriptors)
        bed.say(box(b"Echo", text=b"x"))
        self.assertTrue(bed.serving.lost)
        self.assertEqual(list(bed.reactor.descriptors), sent, "the sender's own are left")


class PaceTests(SynchronousTestCase):
    """While answers wait to be read, no more commands are."""

    def test_peer_that_does_not_read(self) -> None:
        bed = GuardedBed(Plain())
        bed.peer.wire.pauseProducing()
        one = box(b"Echo", text=b"x" * 1_000)
        for _ in range(1_000):
            bed.say(one)
        self.assertLess(bed.echoed, 500)
        serving: Any = bed.serving.transport
        self.assertLess(len(serving._waiting), 300_000)
        bed.peer.wire.resumeProducing()
        bed.reactor.run_until(lambda: bed.echoed == 1_000, 1)
        bed.reactor.pump()
        self.assertEqual(bed.peer.received.count(b"_answer"), 1_000)

    def test_descriptors_are_closed_when_they_have_left(self) -> None:
        bed = GuardedBed(Plain())
        bed.say(box(b"Lend"))
        (arrived,) = bed.peer.descriptors
        self.assertEqual(list(bed.reactor.descriptors), [arrived])
        bed.say(box(b"Lend") + box(b"Lend") + box(b"Echo", text=b"behind"))
        self.assertEqual(sorted(bed.reactor.descriptors), sorted(bed.peer.descriptors))
        self.assertEqual(len(bed.peer.descriptors), 3)
        self.assertIn(b"behind", bed.peer.received)

    def test_descriptors_of_a_link_that_ends(self) -> None:
        """Those that have not left are closed with it."""
        bed = GuardedBed(Plain())
        bed.peer.wire.pauseProducing()
        for size in (60_000, 30_000):
            bed.say(box(b"Echo", text=b"x" * size))
        bed.say(box(b"Lend"))
        self.assertEqual((len(bed.reactor.descriptors), bed.peer.descriptors), (1, []))
        bed.peer.wire.abortConnection()
        bed.reactor.pump()
        self.assertTrue(bed.serving.lost)
        self.assertEqual((bed.reactor.descriptors, bed.reactor.connections), ({}, []))
