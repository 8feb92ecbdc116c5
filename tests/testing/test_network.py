"""Who reaches whom on the network in memory, by the stock endpoints, and who does not."""

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
from zope.interface.verify import verifyObject

from mailcache.testing import MemoryReactor, MemoryTransport
from mailcache.testing.connecting import MemoryConnector, MemoryPort
from mailcache.testing.resolving import MemoryResolver, Resolution
from tests.testing.lockstep import Client, Pair


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
