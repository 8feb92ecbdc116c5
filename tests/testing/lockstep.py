"""A client for the tests of the test-bed: says what it is told to, one thing at a time, and keeps all it hears."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol, IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.testing import Authority, Fault, MemoryReactor, SMTPServer

MATRIX = Path(__file__).parent.parent / "fault_matrix.tsv"

PLAIN = b"AUTH PLAIN " + base64.b64encode(b"\0ann\0secret") + b"\r\n"
QUEUED = b"250 2.0.0 ok: queued\r\n"
OK = b"250 2.0.0 ok\r\n"
LINES = [
    b"mx.test",
    b"PIPELINING",
    b"SIZE 52428800",
    b"8BITMIME",
    b"SMTPUTF8",
    b"ENHANCEDSTATUSCODES",
    b"CHUNKING",
    b"DSN",
]
MAIL, RCPT = b"MAIL FROM:<a@x.test>\r\n", b"RCPT TO:<b@y.test>\r\n"
BIG = b"0123456789abcdef" * 4 * 1024  # octets: more than one segment, less than the window with its line ends

AUTHORITY = Authority()
CERTIFICATE = AUTHORITY.issue(("mx.test",), ("192.0.2.1",))
HOST, PORT = "192.0.2.1", 25


@implementer(IOpenSSLClientConnectionCreator)
class Trusting:
    """TLS of a client that trusts the test's authority, and says this name."""

    def __init__(self, name: bytes = b"mx.test", authority: Authority = AUTHORITY) -> None:
        self.name = name
        self.context = SSL.Context(SSL.TLS_METHOD)
        store = self.context.get_cert_store()
        assert store is not None
        store.add_cert(X509.from_cryptography(authority.certificate))
        self.context.set_verify(SSL.VERIFY_PEER, None)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(self.context, None)
        connection.set_tlsext_host_name(self.name)
        return connection


class Client(Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.segments: list[tuple[float, bytes]] = []
        self.lost: Failure | None = None
        self.under: Any = None
        self.clock: Any = None

    def connectionMade(self) -> None:
        self.under = self.transport

    def dataReceived(self, data: bytes) -> None:
        self.segments.append((self.clock.seconds(), data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason

    @property
    def received(self) -> bytes:
        return b"".join(data for _, data in self.segments)

    def forget(self) -> None:
        self.segments.clear()

    def start_tls(self, creator: Any = None) -> None:
        factory = TLSMemoryBIOFactory(creator or Trusting(), True, Factory(), self.clock)
        tls = factory.protocol(factory, self, False)
        self.under.protocol = tls
        self.transport = cast(Any, tls)
        tls.makeConnection(self.under)


@implementer(IHalfCloseableProtocol)
class HalfCloseableClient(Client):
    """Hears of a FIN."""

    read_lost = False
    write_lost = False

    def readConnectionLost(self) -> None:
        self.read_lost = True

    def writeConnectionLost(self) -> None:
        self.write_lost = True


class Scene:
    """A reactor, a server and clients of it."""

    def __init__(self, faults: Sequence[Fault] = (), latency: float = 0.0, **options: Any) -> None:
        self.reactor = MemoryReactor(latency=latency)
        self.server = SMTPServer(self.reactor, faults=faults, **options)
        self.server.listen(PORT, HOST)

    def connect(self, client: Client | None = None, run: float = 1.0) -> Client:
        client = client or Client()
        client.clock = self.reactor
        endpoint = TCP4ClientEndpoint(self.reactor, HOST, PORT)
        self.failed: Failure | None = None
        connecting = endpoint.connect(Factory.forProtocol(lambda: client))
        connecting.addErrback(lambda failure: setattr(self, "failed", failure))
        self.reactor.run_for(run)
        return client

    def say(self, client: Client, octets: bytes, run: float = 1.0) -> bytes:
        """Send this; what comes back within a time."""
        client.forget()
        if client.transport is not None:
            client.transport.write(octets)
        self.reactor.run_for(run)
        return client.received

    def upgrade(self, client: Client) -> None:
        """STARTTLS and the handshake."""
        assert self.say(client, b"STARTTLS\r\n").startswith(b"220 ")
        client.forget()
        client.start_tls()
        self.reactor.run_for(1)

    def ready(self, tls: bool = False, client: Client | None = None) -> Client:
        """A client after the greeting and EHLO (STARTTLS, EHLO)."""
        client = self.connect(client)
        assert client.received.startswith(b"220 "), client.received
        assert self.say(client, b"EHLO me\r\n").startswith(b"250")
        if tls:
            self.upgrade(client)
            assert self.say(client, b"EHLO me\r\n").startswith(b"250")
        return client

    def deliver(self, client: Client, content: bytes = b"Subject: hi\r\n\r\nhello\r\n") -> bytes:
        """One message, two flights; the answer to its content."""
        said = self.say(client, b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
        assert said.endswith(b"354 go ahead\r\n"), said
        return self.say(client, content + b".\r\n")


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
