"""The network in memory behaves as TCP does: times, endings, back-pressure."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.interfaces import (
    IPullProducer,
    IPushProducer,
)
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mailcache.testing import HIGH_WATER, WINDOW, MemoryReactor
from tests.testing.lockstep import Client, HalfCloseableClient, Pair


class Times(SynchronousTestCase):
    """What takes how long."""

    def test_connect_takes_a_round_trip(self) -> None:
        """The client is connected after two latencies, the server after three."""
        made: list[float] = []

        class Server(Client):
            def connectionMade(self) -> None:
                made.append(self.clock.seconds())

        pair = Pair(latency=0.05, far=Server())
        self.assertEqual(len(pair.connected_at), 1)
        self.assertAlmostEqual(pair.connected_at[0], 0.1)
        self.assertAlmostEqual(made[0], 0.15)

    def test_octets_take_the_latency(self) -> None:
        """Each segment arrives one latency after it was written."""
        pair = Pair(latency=0.05)
        pair.near_transport.write(b"one")
        pair.reactor.run_for(0.01)
        pair.near_transport.write(b"two")
        pair.reactor.run_for(1)
        (first, one), (second, two) = pair.far.segments
        self.assertEqual((one, two), (b"one", b"two"))
        self.assertAlmostEqual(first, 1.05)
        self.assertAlmostEqual(second, 1.06)

    def test_order_stays_when_the_latency_shrinks(self) -> None:
        """What was sent first arrives first, although what follows would be faster."""
        pair = Pair(latency=0.5)
        pair.near_transport.write(b"slow")
        pair.reactor.pump()
        pair.reactor.latency = 0.001
        pair.near_transport.write(b"fast")
        pair.reactor.run_for(1)
        self.assertEqual([data for _, data in pair.far.segments], [b"slow", b"fast"])

    def test_order_stays_whatever_the_times_round_to(self) -> None:
        """Latencies that have no exact binary form do not let data overtake the connect or each other."""
        for tenths in range(1, 40):

            class Talker(Client):
                def connectionMade(self) -> None:
                    super().connectionMade()
                    assert self.transport is not None
                    self.transport.write(b"hello")

            pair = Pair(latency=tenths * 0.0037, near=Talker())
            self.assertEqual(pair.far.received, b"hello")

    def test_one_turn_is_one_segment(self) -> None:
        """Writes of one turn go together, those of different turns do not."""
        pair = Pair()
        pair.near_transport.write(b"a")
        pair.near_transport.writeSequence([b"b", b"c"])
        pair.reactor.callLater(0, lambda: pair.near_transport.write(b"d"))
        pair.reactor.pump()
        self.assertEqual([data for _, data in pair.far.segments], [b"abc", b"d"])

    def test_run_until(self) -> None:
        """Time passes until something is true, and no longer."""
        pair = Pair(latency=0.05)
        pair.near_transport.write(b"x")
        self.assertAlmostEqual(pair.reactor.run_until(lambda: pair.far.received), 0.05)
        self.assertRaises(AssertionError, pair.reactor.run_until, lambda: False, 1.0)

    def test_run_for_stops_at_each_call(self) -> None:
        """Calls happen at their own moments, also those that calls make; the time given passes whole."""
        reactor = MemoryReactor()
        times: list[float] = []

        def tick() -> None:
            times.append(reactor.seconds())
            if len(times) < 5:
                reactor.callLater(0.3, tick)

        tick()
        reactor.run_for(1)
        self.assertEqual(len(times), 4)
        self.assertAlmostEqual(times[-1], 0.9)
        self.assertEqual(reactor.seconds(), 1)

    def test_calls_from_threads(self) -> None:
        """They happen in the next turn."""
        reactor, called = MemoryReactor(), []
        reactor.callFromThread(called.append, 1)
        self.assertEqual(called, [])
        reactor.pump()
        self.assertEqual(called, [1])


class Endings(SynchronousTestCase):
    """How connections end."""

    def test_fin(self) -> None:
        """What is written arrives first; both ends end in order, and nothing is left."""
        pair = Pair(latency=0.05)
        pair.near_transport.write(b"last words")
        pair.near_transport.loseConnection()
        pair.near_transport.loseConnection()
        pair.reactor.run_for(1)
        self.assertEqual(pair.far.received, b"last words")
        assert pair.near.lost is not None and pair.far.lost is not None
        pair.near.lost.trap(ConnectionDone)
        pair.far.lost.trap(ConnectionDone)
        self.assertEqual(pair.reactor.connections, [])
        self.assertEqual(pair.reactor.getDelayedCalls(), [])

    def test_reset(self) -> None:
        """What was not sent yet is gone; the peer hears of a loss one latency later."""
        pair = Pair(latency=0.05)
        pair.near_transport.write(b"never sent")
        pair.near_transport.abortConnection()
        pair.near_transport.abortConnection()
        self.assertIsNone(pair.near.lost)
        pair.reactor.run_for(0.04)
        assert pair.near.lost is not None
        pair.near.lost.trap(ConnectionAborted)
        self.assertIsNone(pair.far.lost)
        pair.reactor.run_for(0.01)
        assert pair.far.lost is not None
        pair.far.lost.trap(ConnectionLost)
        self.assertEqual(pair.far.received, b"")
        self.assertEqual(pair.reactor.connections, [])

    def test_reset_behind_octets(self) -> None:
        """What was sent before a reset is read; what was not read is lost."""
        pair = Pair()
        pair.near_transport.write(b"read")
        pair.reactor.pump()
        pair.far_transport.pauseProducing()
        pair.near_transport.write(b"unread")
        pair.reactor.pump()
        pair.near_transport.abortConnection()
        pair.reactor.pump()
        self.assertEqual(pair.far.received, b"read")
        assert pair.far.lost is not None
        pair.far.lost.trap(ConnectionLost)

    def test_closing_with_octets_unread_resets(self) -> None:
        """As a kernel does: the peer must not believe they were read."""
        pair = Pair()
        pair.far_transport.pauseProducing()
        pair.near_transport.write(b"unread")
        pair.reactor.pump()
        pair.far_transport.loseConnection()
        pair.reactor.pump()
        assert pair.near.lost is not None
        pair.near.lost.trap(ConnectionLost)

    def test_fin_behind_unread_octets(self) -> None:
        """A reader that has paused hears of the FIN when it has read the rest."""
        pair = Pair()
        pair.far_transport.pauseProducing()
        pair.near_transport.write(b"rest")
        pair.near_transport.loseConnection()
        pair.reactor.pump()
        self.assertEqual((pair.far.received, pair.far.lost), (b"", None))
        pair.far_transport.resumeProducing()
        pair.reactor.pump()
        self.assertEqual(pair.far.received, b"rest")
        assert pair.far.lost is not None
        pair.far.lost.trap(ConnectionDone)

    def test_half_close(self) -> None:
        """A half-closeable protocol hears of the FIN and can still write; the closer reads on."""
        pair = Pair(near=HalfCloseableClient(), far=HalfCloseableClient())
        pair.near_transport.write(b"all")
        pair.near_transport.loseWriteConnection()
        pair.reactor.pump()
        assert isinstance(pair.near, HalfCloseableClient) and isinstance(pair.far, HalfCloseableClient)
        self.assertTrue(pair.near.write_lost)
        self.assertTrue(pair.far.read_lost)
        self.assertEqual(pair.far.received, b"all")
        pair.near_transport.write(b"too late")
        pair.far_transport.write(b"answer")
        pair.reactor.pump()
        self.assertEqual((pair.near.received, pair.far.received), (b"answer", b"all"))
        pair.far_transport.loseConnection()
        pair.reactor.pump()
        self.assertTrue(pair.near.read_lost)
        pair.near_transport.loseConnection()
        pair.reactor.pump()
        self.assertEqual(pair.reactor.connections, [])

    def test_half_close_of_an_ordinary_protocol(self) -> None:
        """For a protocol that isn't half-closeable a FIN is the end."""
        pair = Pair()
        pair.near_transport.loseWriteConnection()
        pair.reactor.pump()
        assert pair.near.lost is not None and pair.far.lost is not None
        pair.far.lost.trap(ConnectionDone)
        self.assertEqual(pair.reactor.connections, [])

    def test_writing_to_a_closed_end(self) -> None:
        """Octets that reach a closed end are answered by a reset."""
        pair = Pair(near=HalfCloseableClient())
        pair.far_transport.loseConnection()
        pair.reactor.pump()
        pair.near_transport.write(b"hello?")
        pair.reactor.pump()
        assert pair.near.lost is not None
        pair.near.lost.trap(ConnectionLost)

    def test_a_protocol_that_raises(self) -> None:
        """It loses its connection, with its own exception, and the log has it."""

        class Raising(Client):
            def dataReceived(self, data: bytes) -> None:
                raise ZeroDivisionError

        pair = Pair(far=Raising())
        pair.near_transport.write(b"x")
        pair.reactor.pump()
        assert pair.far.lost is not None and pair.near.lost is not None
        pair.far.lost.trap(ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_dead_transports_are_silent(self) -> None:
        """Nothing can be done with a transport after its end, and nothing raises."""
        pair = Pair()
        transport = pair.near_transport
        transport.abortConnection()
        pair.reactor.pump()
        for act in (transport.loseConnection, transport.abortConnection, transport.resumeProducing):
            act()
        transport.write(b"x")
        pair.reactor.pump()
        self.assertIn("closed", repr(transport))
        self.assertRaises(TypeError, transport.write, "text")


@implementer(IPushProducer)
class Source:
    """Produces without end, until told otherwise."""

    def __init__(self, consumer: Any, piece: int = 10_000) -> None:
        self.consumer, self.piece = consumer, b"x" * piece
        self.paused = self.stopped = False
        self.events: list[str] = []

    def produce(self, count: int) -> None:
        for _ in range(count):
            if not self.paused and not self.stopped:
                self.consumer.write(self.piece)

    def pauseProducing(self) -> None:
        self.paused = True
        self.events.append("pause")

    def resumeProducing(self) -> None:
        self.paused = False
        self.events.append("resume")

    def stopProducing(self) -> None:
        self.stopped = True
        self.events.append("stop")


@implementer(IPullProducer)
class PullSource:
    """Produces a piece when asked."""

    def __init__(self, consumer: Any, pieces: int) -> None:
        self.consumer, self.pieces, self.stopped = consumer, pieces, False

    def resumeProducing(self) -> None:
        if self.pieces:
            self.pieces -= 1
            self.consumer.write(b"y" * 1000)
        else:
            self.consumer.unregisterProducer()

    def stopProducing(self) -> None:
        self.stopped = True


class BackPressure(SynchronousTestCase):
    """Nobody can write more than is read."""

    def test_push(self) -> None:
        """The producer is paused over the high-water mark and resumed when all has left."""
        pair = Pair()
        source = Source(pair.near_transport)
        pair.near_transport.registerProducer(source, True)
        source.produce(100)
        self.assertEqual(source.events, ["pause"])
        pair.reactor.pump()
        self.assertEqual(source.events, ["pause", "resume"])
        self.assertEqual(len(pair.far.received), 70_000)

    def test_a_paused_reader_stalls_the_writer(self) -> None:
        """One window is under way, the rest waits at the writer until the reader reads on."""
        pair = Pair(latency=0.01)
        source = Source(pair.near_transport, WINDOW)
        pair.near_transport.registerProducer(source, True)
        pair.far_transport.pauseProducing()
        source.produce(3)
        self.assertTrue(source.paused)
        pair.reactor.run_for(10)
        self.assertTrue(source.paused)
        self.assertEqual(pair.far.received, b"")
        pair.far_transport.resumeProducing()
        pair.reactor.run_for(10)
        self.assertFalse(source.paused)
        self.assertEqual(len(pair.far.received), 2 * WINDOW)
        self.assertLessEqual(max(len(data) for _, data in pair.far.segments), WINDOW)

    def test_a_window_a_round_trip(self) -> None:
        """With a latency, no more than a window moves in each round trip."""
        pair = Pair(latency=0.05)
        pair.near_transport.write(b"z" * (3 * WINDOW))
        pair.reactor.run_for(1)
        times = [time for time, _ in pair.far.segments]
        self.assertEqual([len(data) for _, data in pair.far.segments], [WINDOW] * 3)
        for time, expected in zip(times, (1.05, 1.15, 1.25), strict=True):
            self.assertAlmostEqual(time, expected)

    def test_pull(self) -> None:
        """A pull producer is asked whenever all has left."""
        pair = Pair()
        source = PullSource(pair.near_transport, 300)
        pair.far_transport.pauseProducing()
        pair.near_transport.registerProducer(source, False)
        pair.reactor.pump()
        self.assertGreater(source.pieces, 200)
        pair.far_transport.resumeProducing()
        pair.reactor.pump()
        self.assertEqual(source.pieces, 0)
        self.assertEqual(len(pair.far.received), 300_000)

    def test_one_producer(self) -> None:
        """A second one is refused; one at a dead transport is stopped; one is stopped with its transport."""
        pair = Pair()
        transport = pair.near_transport
        first, second = Source(transport), Source(transport)
        transport.registerProducer(first, True)
        self.assertRaises(RuntimeError, transport.registerProducer, second, True)
        transport.abortConnection()
        pair.reactor.pump()
        self.assertTrue(first.stopped)
        transport.registerProducer(second, True)
        self.assertTrue(second.stopped)

    def test_closing_waits_for_the_producer(self) -> None:
        """What a producer still writes after loseConnection arrives."""
        pair = Pair()
        source = Source(pair.near_transport, 10)
        pair.near_transport.registerProducer(source, True)
        pair.near_transport.loseConnection()
        pair.reactor.pump()
        self.assertIsNone(pair.near.lost)
        source.produce(1)
        pair.near_transport.unregisterProducer()
        pair.reactor.pump()
        self.assertEqual(pair.far.received, b"x" * 10)
        self.assertIsNotNone(pair.near.lost)

    def test_closing_while_the_peer_does_not_read(self) -> None:
        """loseConnection waits for what is written, as on a socket: only an abort ends it."""
        pair = Pair()
        pair.far_transport.pauseProducing()
        pair.near_transport.write(b"x" * (WINDOW + HIGH_WATER))
        pair.near_transport.loseConnection()
        pair.reactor.run_for(100)
        self.assertIsNone(pair.near.lost)
        pair.near_transport.abortConnection()
        pair.reactor.pump()
        self.assertIsNotNone(pair.near.lost)
        self.assertIsNotNone(pair.far.lost)
