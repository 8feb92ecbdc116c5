"""Connections made by way of a proxy that the cache knows by name."""

from __future__ import annotations

import socket
import struct
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IHostnameResolver, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.socks import SOCKSv4Factory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from mailcache import DeliveryError, Destination, Envelope, MemorySessionCache, deliver
from mailcache.testing import MemoryReactor, SMTPServer
from tests.helpers import PORT, SMALL, Bed, certificate, keeper_cache, memory_cache, verifying

ENVELOPE = Envelope("a@example.com", ["b@example.com"])


@attrs.define(eq=False)
class Directory:
    """A proxy that knows where each name leads, and notes what it was asked for."""

    reactor: Any
    names: dict[str, str]
    asked: list[tuple[str, int]] = attrs.Factory(list)

    def __call__(self, host: str, port: int) -> Any:
        self.asked.append((host, port))
        if host in self.names:
            return TCP4ClientEndpoint(self.reactor, self.names[host], port)
        return Nowhere()


@implementer(IStreamClientEndpoint)
class Nowhere:
    def connect(self, _factory: IProtocolFactory) -> Deferred[Any]:
        return fail(Failure(Refused("the proxy knows no such host")))


@implementer(IStreamClientEndpoint)
class Silent:
    """A proxy that never answers."""

    def __init__(self) -> None:
        self.given_up = 0

    def connect(self, _factory: IProtocolFactory) -> Deferred[Any]:
        def give_up(_: object) -> None:
            self.given_up += 1

        return Deferred(give_up)


@implementer(IHostnameResolver)
class Mute:
    """A resolver that must not be asked."""

    def resolveHostName(self, receiver: Any, host: str, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{host} was looked up")


class NameTests(SynchronousTestCase):
    """What a destination says, and what becomes of it."""

    def bed(self, make_cache: Any = memory_cache, **proxies: Any) -> Bed:
        self.directory: Directory

        def with_proxies(reactor: MemoryReactor, limits: Any, timeouts: Any, router: Any) -> Any:
            self.directory = Directory(reactor, {"mx.test": "127.0.0.1"})
            return make_cache(reactor, limits, timeouts, router, {"tor": self.directory, **proxies})

        return Bed(make_cache=with_proxies)

    def test_the_name_goes_to_the_proxy_and_to_no_resolver(self) -> None:
        """It is the name that the certificate must have, too."""
        for make_cache in (memory_cache, keeper_cache):
            bed = self.bed(make_cache)
            bed.reactor.installNameResolver(Mute())
            where = bed.to(f"[mx.test]:{PORT}", proxy="tor")
            for number in range(3):
                result = bed.deliver(destination=where)
                self.assertEqual((result.accepted, result.session.uses), (("b@example.com",), number + 1))
            self.assertEqual(self.directory.asked, [("mx.test", PORT)])
            self.assertEqual(bed.server.connection_count, 1)

    def test_sessions_are_not_shared_with_those_made_directly(self) -> None:
        bed = self.bed()
        for proxy in (None, "tor", None, "tor"):
            bed.deliver(destination=bed.to(f"[mx.test]:{PORT}" if proxy else f"[127.0.0.1]:{PORT}", proxy=proxy))
        self.assertEqual(bed.server.connection_count, 2)
        self.assertEqual(self.directory.asked, [("mx.test", PORT)])

    def test_a_name_that_the_cache_does_not_know_is_never_passed_by(self) -> None:
        for make_cache in (memory_cache, keeper_cache):
            bed = self.bed(make_cache)
            error = bed.deliver(destination=bed.to(f"[127.0.0.1]:{PORT}", proxy="i2p"))
            self.assertIsInstance(error, DeliveryError)
            self.assertEqual((error.phase, error.retriable), ("connect", False))
            self.assertIn("'i2p' is not known to this cache; it has tor", str(error))
            self.assertEqual(bed.server.connection_count, 0)

    def test_what_the_proxy_says_is_the_error(self) -> None:
        bed = self.bed()
        error = bed.deliver(destination=bed.to(f"[elsewhere.test]:{PORT}", proxy="tor"))
        self.assertEqual((error.phase, error.retriable), ("connect", True))
        self.assertIn("no such host", str(error))

    def test_a_proxy_that_does_not_answer_is_given_up(self) -> None:
        silent = Silent()
        bed = self.bed(silent=lambda host, port: silent)
        error = bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", proxy="silent"))
        self.assertEqual((error.phase, error.retriable), ("connect", True))
        self.assertEqual(silent.given_up, 1)
        self.assertEqual(bed.counts(), (0, 0, 0, 0))

    def test_a_socket_of_this_host_has_no_proxy(self) -> None:
        with self.assertRaises(ValueError) as caught:
            Destination("unix:/run/lmtp", protocol="lmtp", proxy="tor")
        self.assertIn("no proxy can reach", str(caught.exception))

    def test_what_is_no_proxy_is_refused_when_the_cache_is_made(self) -> None:
        for wrong in ("tor", ["tor"], {"tor": "127.0.0.1:9050"}):
            with self.assertRaises(ValueError) as caught:
                MemorySessionCache(MemoryReactor(), proxies=wrong)
            self.assertIn("proxies: callables by name", str(caught.exception))


class Socks(Protocol):
    """The client of a SOCKS 4 proxy, for the factory of whatever is beyond it."""

    def __init__(self, beyond: Any, host: str, port: int, connected: Deferred[Any]) -> None:
        self._beyond = beyond
        self._target = (host, port)
        self._connected = connected
        self._answer: bytes | None = b""
        self.protocol: Any = None

    def connectionMade(self) -> None:
        host, port = self._target
        transport: Any = self.transport
        transport.write(struct.pack("!BBH4s", 4, 1, port, socket.inet_aton(host)) + b"\0")

    def dataReceived(self, data: bytes) -> None:
        if self._answer is None:
            self.protocol.dataReceived(data)
            return
        self._answer += data
        if len(self._answer) < 8:
            return
        answer, self._answer = self._answer, None
        if answer[1] != 90:
            self._connected.errback(Failure(Refused("the proxy refuses")))
            return
        transport: Any = self.transport
        self.protocol = self._beyond.buildProtocol(None)
        self.protocol.makeConnection(transport)
        self._connected.callback(self.protocol)
        if answer[8:]:
            self.protocol.dataReceived(answer[8:])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.protocol is not None:
            self.protocol.connectionLost(reason)


@implementer(IStreamClientEndpoint)
@attrs.define(eq=False)
class SocksEndpoint:
    """Connects to ``host`` by way of the SOCKS 4 proxy at ``proxy_port``."""

    proxy_port: int
    host: str
    port: int

    def connect(self, factory: Any) -> Deferred[Any]:
        connected: Deferred[Any] = Deferred()
        wrapper = Factory.forProtocol(lambda: Socks(factory, self.host, self.port, connected))
        wrapper.noisy = False
        through = TCP4ClientEndpoint(reactor, "127.0.0.1", self.proxy_port).connect(wrapper)
        return through.addCallback(lambda _: connected)


class RealProxyTests(TestCase):
    """Through a SOCKS proxy on real sockets, with TLS."""

    async def test_messages(self) -> None:
        server = SMTPServer(reactor, certificate=certificate())
        port = server.listen().getHost().port
        self.addCleanup(server.close)
        asked: list[Any] = []

        class Noting(SOCKSv4Factory):
            def buildProtocol(self, address: Any) -> Any:
                asked.append(address)
                return super().buildProtocol(address)

        listening: Any = reactor.listenTCP(0, Noting(""), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(listening.stopListening)
        proxy_port = listening.getHost().port
        cache = MemorySessionCache(reactor, proxies={"socks": lambda host, port: SocksEndpoint(proxy_port, host, port)})
        where = Destination(f"[127.0.0.1]:{port}", proxy="socks", tls=verifying())
        large = SMALL + b"one of many lines\r\n" * 50_000
        for content in (SMALL, large, SMALL):
            result = await deliver(cache, where, ENVELOPE, content)
            self.assertEqual(result.rejected, {})
        self.assertEqual(len(asked), 1)
        self.assertEqual((server.connection_count, server.message_count), (1, 3))
        await cache.close()
