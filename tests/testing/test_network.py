"""The network in memory behaves as TCP does, to the millisecond."""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.error import (
    CannotListenError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
    NotConnectingError,
)
from twisted.internet.interfaces import (
    IConnector,
    IConsumer,
    IHostnameResolver,
    IHostResolution,
    IListeningPort,
    IPullProducer,
    IPushProducer,
    IReactorFromThreads,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory, Factory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailcache.testing import HIGH_WATER, WINDOW, MemoryReactor, MemoryTransport
from mailcache.testing.connecting import MemoryConnector, MemoryPort
from mailcache.testing.resolving import MemoryResolver, Resolution
from tests.testing.lockstep import Client, HalfCloseableClient


class Pair:
    """Two connected protocols on a reactor."""

    def __init__(
        self, latency: float = 0.0, near: Client | None = None, far: Client | None = None, bind: Any = None
    ) -> None:
        self.reactor = MemoryReactor(latency=latency)
        self.near, self.far = near or Client(), far or Client()
        self.near.clock = self.far.clock = self.reactor
        self.port = self.reactor.listenTCP(25, Factory.forProtocol(lambda: self.far), interface="192.0.2.1")
        endpoint = TCP4ClientEndpoint(self.reactor, "192.0.2.1", 25, bindAddress=bind)
        self.connected_at: list[float] = []
        self.connecting = endpoint.connect(Factory.forProtocol(lambda: self.near))
        self.connecting.addCallback(lambda _: self.connected_at.append(self.reactor.seconds()))
        self.reactor.run_for(1)

    @property
    def near_transport(self) -> Any:
        return self.near.transport

    @property
    def far_transport(self) -> Any:
        return self.far.transport


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


class Connecting(SynchronousTestCase):
    """Who reaches whom."""

    def fail_with(self, reactor: MemoryReactor, endpoint: Any, run: float = 0.0) -> Any:
        connecting = endpoint.connect(Factory.forProtocol(Client))
        reactor.run_for(run)
        failure = self.failureResultOf(connecting)
        self.assertEqual(reactor.connections, [])
        self.assertEqual(reactor.getDelayedCalls(), [])
        return failure

    def test_refused(self) -> None:
        """Nothing listens: refused after a round trip."""
        reactor = MemoryReactor(latency=0.05)
        connecting = TCP4ClientEndpoint(reactor, "192.0.2.1", 25).connect(Factory.forProtocol(Client))
        reactor.run_for(0.09)
        self.assertNoResult(connecting)
        reactor.run_for(0.02)
        self.failureResultOf(connecting, error.ConnectionRefusedError)

    def test_not_listening_any_more(self) -> None:
        """A port that has stopped refuses; what it has accepted lives; it can listen again."""
        pair = Pair()
        pair.port.stopListening()
        pair.port.stopListening()
        failing = TCP4ClientEndpoint(pair.reactor, "192.0.2.1", 25).connect(Factory.forProtocol(Client))
        pair.reactor.pump()
        self.failureResultOf(failing, error.ConnectionRefusedError)
        pair.near_transport.write(b"still here")
        pair.reactor.pump()
        self.assertEqual(pair.far.received, b"still here")
        pair.port.startListening()
        again = TCP4ClientEndpoint(pair.reactor, "192.0.2.1", 25).connect(Factory.forProtocol(Client))
        pair.reactor.pump()
        self.successResultOf(again)

    def test_black_hole(self) -> None:
        """It never answers: the endpoint's time limit ends it."""
        reactor = MemoryReactor()
        reactor.listenTCP(25, Factory.forProtocol(Client))
        reactor.black_holes.add(("192.0.2.1", 25))
        endpoint = TCP4ClientEndpoint(reactor, "192.0.2.1", 25, timeout=7)
        failure = self.fail_with(reactor, endpoint, 7)
        failure.trap(error.TimeoutError)

    def test_cancel(self) -> None:
        """A connect can be given up; no connection comes of it."""
        reactor = MemoryReactor(latency=0.05)
        accepted: list[Any] = []
        reactor.listenTCP(25, Factory.forProtocol(lambda: accepted.append(1) or Client()))
        for moment in (0.0, 0.03, 0.07):
            connecting = TCP4ClientEndpoint(reactor, "192.0.2.1", 25).connect(Factory.forProtocol(Client))
            reactor.run_for(moment)
            connecting.cancel()
            self.failureResultOf(connecting, CancelledError, Exception)
            reactor.run_for(1)
        self.assertEqual((accepted, reactor.connections, reactor.getDelayedCalls()), ([], [], []))

    def test_addresses(self) -> None:
        """Both ends know both addresses."""
        pair = Pair()
        near, far = pair.near_transport, pair.far_transport
        self.assertEqual(near.getPeer(), IPv4Address("TCP", "192.0.2.1", 25))
        self.assertEqual(near.getHost(), far.getPeer())
        self.assertEqual(far.getHost(), near.getPeer())
        self.assertEqual(near.getHost().host, "127.0.0.1")

    def test_bind_address(self) -> None:
        """What a client binds to is what the server sees."""
        pair = Pair(bind=("198.51.100.7", 0))
        self.assertEqual(pair.far_transport.getPeer().host, "198.51.100.7")
        self.assertNotEqual(pair.far_transport.getPeer().port, 0)
        pair = Pair(bind=("198.51.100.7", 1234))
        self.assertEqual(pair.far_transport.getPeer(), IPv4Address("TCP", "198.51.100.7", 1234))

    def test_options(self) -> None:
        """Socket options are remembered."""
        transport = Pair().near_transport
        self.assertFalse(transport.getTcpNoDelay() or transport.getTcpKeepAlive())
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        self.assertTrue(transport.getTcpNoDelay() and transport.getTcpKeepAlive())

    def test_ipv6(self) -> None:
        """IPv6 has its own ports and addresses, however they are written."""
        reactor, far = MemoryReactor(), Client()
        reactor.listenTCP(25, Factory.forProtocol(lambda: far), interface="2001:db8::1")
        connecting = TCP6ClientEndpoint(reactor, "2001:DB8:0::1", 25).connect(Factory.forProtocol(Client))
        reactor.pump()
        client: Any = self.successResultOf(connecting)
        self.assertEqual(client.transport.getPeer(), IPv6Address("TCP", "2001:db8::1", 25))
        assert far.transport is not None
        self.assertEqual(far.transport.getPeer().host, "::1")

    def test_every_address(self) -> None:
        """A port without an interface takes all IPv4 connections, one at "::" all of IPv6."""
        reactor = MemoryReactor()
        reactor.listenTCP(25, Factory.forProtocol(Client))
        failing = TCP6ClientEndpoint(reactor, "2001:db8::1", 25).connect(Factory.forProtocol(Client))
        working = TCP4ClientEndpoint(reactor, "203.0.113.9", 25).connect(Factory.forProtocol(Client))
        reactor.pump()
        self.failureResultOf(failing, error.ConnectionRefusedError)
        self.successResultOf(working)
        reactor.listenTCP(25, Factory.forProtocol(Client), interface="::")
        working = TCP6ClientEndpoint(reactor, "2001:db8::1", 25).connect(Factory.forProtocol(Client))
        reactor.pump()
        self.successResultOf(working)

    def test_unix(self) -> None:
        """Paths are a world of their own."""
        reactor = MemoryReactor()
        port = reactor.listenUNIX("/run/lmtp", Factory.forProtocol(Client))
        connecting = UNIXClientEndpoint(reactor, "/run/lmtp").connect(Factory.forProtocol(Client))
        failing = UNIXClientEndpoint(reactor, "/run/other").connect(Factory.forProtocol(Client))
        reactor.pump()
        client: Any = self.successResultOf(connecting)
        self.assertEqual(client.transport.getPeer(), UNIXAddress("/run/lmtp"))
        self.assertEqual(port.getHost(), UNIXAddress("/run/lmtp"))
        self.failureResultOf(failing, error.ConnectionRefusedError)
        self.assertRaises(CannotListenError, reactor.listenUNIX, "/run/lmtp", Factory())

    def test_ports(self) -> None:
        """A port is taken once; port 0 is one that is free; an interface is an address."""
        reactor = MemoryReactor()
        reactor.listenTCP(25, Factory())
        self.assertRaises(CannotListenError, reactor.listenTCP, 25, Factory())
        self.assertRaises(CannotListenError, reactor.listenTCP, 25, Factory(), interface="localhost")
        numbers = {reactor.listenTCP(0, Factory()).getHost().port for _ in range(3)}
        self.assertEqual(len(numbers), 3)
        port = self.successResultOf(TCP4ServerEndpoint(reactor, 26, interface="127.0.0.1").listen(Factory()))
        self.assertEqual(port.getHost(), IPv4Address("TCP", "127.0.0.1", 26))

    def test_names(self) -> None:
        """Names are in a table: for HostnameEndpoint, and for connectTCP by itself."""
        reactor = MemoryReactor(hosts={"mx.test": ["192.0.2.1", "2001:db8::1"]})
        reactor.listenTCP(25, Factory.forProtocol(Client), interface="192.0.2.1")
        connecting = HostnameEndpoint(reactor, b"mx.test", 25).connect(Factory.forProtocol(Client))
        reactor.run_for(1)
        client: Any = self.successResultOf(connecting)
        self.assertEqual(client.transport.getPeer().host, "192.0.2.1")
        connecting = TCP4ClientEndpoint(reactor, "mx.test", 25).connect(Factory.forProtocol(Client))
        reactor.run_for(1)
        self.successResultOf(connecting)
        client.transport.abortConnection()
        for unknown in (HostnameEndpoint(reactor, b"no.test", 25), TCP4ClientEndpoint(reactor, "no.test", 25)):
            failing = unknown.connect(Factory.forProtocol(Client))
            reactor.run_for(60)
            self.failureResultOf(failing, DNSLookupError)

    def test_resolver(self) -> None:
        """Literals are themselves, types can be chosen, another resolver can be installed."""
        reactor = MemoryReactor(hosts={"mx.test": ["192.0.2.1", "2001:db8::1"]})
        found: list[Any] = []

        class Receiver:
            def resolutionBegan(self, resolution: Any) -> None:
                found.append(resolution.name)

            def addressResolved(self, address: Any) -> None:
                found.append(address.host)

            def resolutionComplete(self) -> None:
                found.append(None)

        resolver = reactor.nameResolver
        for name, types, expected in (
            ("mx.test", None, ["192.0.2.1", "2001:db8::1"]),
            ("MX.TEST.", [IPv6Address], ["2001:db8::1"]),
            ("192.0.2.9", None, ["192.0.2.9"]),
            ("no.test", None, []),
        ):
            found.clear()
            resolver.resolveHostName(Receiver(), name, 25, types)  # type: ignore[arg-type]
            self.assertEqual(found, [name, *expected, None])
        other = MemoryResolver({})
        self.assertIs(reactor.installNameResolver(other), resolver)
        self.assertIs(reactor.nameResolver, other)
        self.assertRaises(NotImplementedError, Resolution("x").cancel)

    def test_factories_hear_of_everything(self) -> None:
        """The calls of a client factory come in Twisted's order, and it may begin anew."""
        reactor = MemoryReactor()
        reactor.listenTCP(25, Factory.forProtocol(Client))
        calls: list[str] = []

        class Recording(ClientFactory):  # type: ignore[type-arg]
            protocol = Client
            noisy = False

            def startFactory(self) -> None:
                calls.append("start")

            def stopFactory(self) -> None:
                calls.append("stop")

            def startedConnecting(self, connector: Any) -> None:
                calls.append("connecting")

            def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
                calls.append("failed")

            def clientConnectionLost(self, connector: Any, reason: Any) -> None:
                calls.append("lost")
                if calls.count("lost") == 1:
                    connector.connect()

        connector = reactor.connectTCP("192.0.2.1", 25, Recording())
        reactor.pump()
        self.assertRaises(RuntimeError, connector.connect)
        connector.disconnect()
        reactor.pump()
        connector.disconnect()
        reactor.pump()
        self.assertEqual(calls, ["start", "connecting", "lost", "connecting", "lost", "stop"])
        self.assertRaises(NotConnectingError, connector.stopConnecting)
        calls.clear()
        reactor.connectTCP("192.0.2.1", 26, Recording()).disconnect()
        self.assertEqual(calls, ["start", "connecting", "failed", "stop"])

    def test_factories_that_want_nothing(self) -> None:
        """No protocol, no connection: on either side."""
        reactor = MemoryReactor()
        unwilling = Factory.forProtocol(Client)
        unwilling.buildProtocol = lambda addr: None  # type: ignore[method-assign, assignment]
        reactor.listenTCP(25, unwilling)
        connecting = TCP4ClientEndpoint(reactor, "192.0.2.1", 25).connect(Factory.forProtocol(Client))
        reactor.pump()
        client: Any = self.successResultOf(connecting)
        client.lost.trap(ConnectionLost)
        reactor.listenTCP(26, Factory.forProtocol(Client))
        TCP4ClientEndpoint(reactor, "192.0.2.1", 26).connect(unwilling).addErrback(lambda _: None)
        reactor.pump()
        self.assertEqual(reactor.connections, [])

    def test_interfaces(self) -> None:
        """Everything is what it claims to be."""
        pair = Pair()
        for interface in (
            IReactorTCP,
            IReactorUNIX,
            IReactorTime,
            IReactorPluggableNameResolver,
            IReactorFromThreads,
        ):
            verifyObject(interface, pair.reactor)
        for interface in (ITCPTransport, IConsumer, IPushProducer):
            verifyObject(interface, pair.near_transport)
        self.assertIsInstance(pair.near_transport, MemoryTransport)
        connector = pair.reactor.connectTCP("192.0.2.1", 25, ClientFactory())
        self.assertIsInstance(connector, MemoryConnector)
        verifyObject(IConnector, connector)
        connector.disconnect()
        self.assertIsInstance(pair.port, MemoryPort)
        verifyObject(IListeningPort, pair.port)
        verifyObject(IHostnameResolver, pair.reactor.nameResolver)
        verifyObject(IHostResolution, Resolution("x"))
