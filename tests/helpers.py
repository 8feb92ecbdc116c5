"""What tests of several modules share: a cache and a scripted server on a network in memory."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache as once
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase as TestCase
from zope.interface import implementer

from mailcache import (
    Credentials,
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    Limits,
    MemorySessionCache,
    RemoteSessionCache,
    Timeouts,
    TLSPolicy,
    UncertainDelivery,
    deliver,
)
from mailcache.destination import Endpoint
from mailcache.interfaces import IRouter
from mailcache.remote.keeper import Keeper
from mailcache.routing.route import Hop, Route
from mailcache.testing import Authority, Fault, Issued, MemoryPairs, MemoryReactor, SMTPServer
from mailcache.tls import Contexts, TLSLayer
from mailcache.trust.evidence import Evidence, TLSClass

PORT = 2525
BEHIND_REFUSED_RSET = "MAIL in a transaction"
"""The one violation there may be: where a server refuses RSET, MAIL was pipelined with it, and so was RCPT, which then
belongs to the old transaction. No content follows; if it did, a message would come with another's recipients."""
SMALL = b"Subject: hello\r\n\r\nThis is small.\r\n"
LARGE = b"Subject: hello\r\n\r\n" + b"This is one line of many that make a large message.\r\n" * 20_000
CREDENTIALS = Credentials("user", "correct horse")


@once
def authority() -> Authority:
    """The certificate authority of the whole run."""
    return Authority()


@once
def certificate() -> Issued:
    """The servers' certificate, for localhost, mx.test and 127.0.0.1."""
    return authority().issue(names=("localhost", "mx.test", "mx.example.com"), addresses=("127.0.0.1",))


@once
def ca_file() -> str:
    """The path of the authority's certificate."""
    handle, path = tempfile.mkstemp(".pem")
    with os.fdopen(handle, "wb") as file:
        file.write(authority().certificate_pem)
    return path


def verifying(**more: Any) -> TLSPolicy:
    """Level "verify" with the run's authority."""
    return TLSPolicy("verify", ca_file=ca_file(), **more)


class Outcome:
    """What a Deferred has fired, and how often."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.deferred = deferred
        self.fired: list[Any] = []
        deferred.addBoth(self.fired.append)

    @property
    def done(self) -> bool:
        return bool(self.fired)

    @property
    def value(self) -> Any:
        """The result, or the exception, not raised."""
        (value,) = self.fired
        return value.value if isinstance(value, Failure) else value


def memory_cache(
    reactor: MemoryReactor, limits: Limits | None, timeouts: Timeouts | None, router: Any, proxies: Any = None
) -> Any:
    """The cache under test unless a test says otherwise."""
    return MemorySessionCache(reactor, limits, timeouts, router, clock=reactor.seconds, proxies=proxies)


class Bed:
    """A cache and a scripted server with STARTTLS on a network in memory; deliveries go to it at level "verify"."""

    def __init__(
        self,
        *,
        faults: Sequence[Fault] = (),
        latency: float = 0.0,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        router: Any = None,
        tls: TLSPolicy | None = None,
        server: dict[str, Any] | None = None,
        make_cache: Callable[..., Any] = memory_cache,
        **destination: Any,
    ) -> None:
        self.reactor = MemoryReactor(latency=latency)
        self.servers: list[SMTPServer] = []
        self.server = self.add_server(faults=faults, **(server or {}))
        self.cache = make_cache(self.reactor, limits, timeouts, router)
        self.destination = self.to(f"[127.0.0.1]:{PORT}", tls=tls, **destination)

    def add_server(self, port: int = PORT, interface: str = "127.0.0.1", **settings: Any) -> SMTPServer:
        """One more server on this network."""
        server = SMTPServer(self.reactor, **{"certificate": certificate(), **settings})
        server.listen(port, interface)
        self.servers.append(server)
        return server

    def to(self, next_hop: str, *, tls: TLSPolicy | None = None, **more: Any) -> Destination:
        return Destination(next_hop, tls=tls if tls is not None else verifying(), **more)

    def start(
        self,
        content: Any = SMALL,
        *,
        sender: str = "a@example.com",
        recipients: Sequence[str] = ("b@example.com",),
        destination: Destination | None = None,
        deadline: float | None = None,
        **envelope: Any,
    ) -> Outcome:
        """Begin a delivery."""
        where = destination if destination is not None else self.destination
        return Outcome(deliver(self.cache, where, Envelope(sender, recipients, **envelope), content, deadline))

    def deliver(self, content: Any = SMALL, **more: Any) -> Any:
        """Deliver and wait: gives the result, or the exception, not raised."""
        return self.finish(self.start(content, **more))

    def finish(self, outcome: Outcome, limit: float = 3600.0) -> Any:
        """Let time pass until ``outcome`` is there; an `AssertionError` if that takes more than ``limit`` seconds."""
        self.reactor.run_until(lambda: outcome.done, limit)
        return outcome.value

    def acquire(self, destination: Destination | None = None, **more: Any) -> Outcome:
        return Outcome(self.cache.acquire(destination if destination is not None else self.destination, **more))

    def send(self, lease: Any, content: Any = SMALL) -> Outcome:
        """Begin a transaction on a leased session."""
        return Outcome(lease.send(Envelope("a@example.com", ["b@example.com"]), content))

    def statistics(self) -> dict[str, Any]:
        return dict(self.finish(Outcome(self.cache.statistics())))

    def counts(self) -> tuple[int, int, int, int]:
        """Leased, idle, opening, waiting."""
        now = self.statistics()
        return now["leased"], now["idle"], now["opening"], now["waiting"]

    def end(self) -> Deferred[None]:
        """Begin to close the cache."""
        ended: Deferred[None] = self.cache.close()
        return ended

    def close(self) -> None:
        """Close the cache; nothing may be left of it."""
        self.finish(Outcome(self.end()), 60.0)
        assert self.counts() == (0, 0, 0, 0), self.counts()


KEEPER = "/run/mailcache/mailcache.sock"


class WithKeeper(RemoteSessionCache):
    """A borrower's cache that takes its keeper with it when it is closed."""

    keeper: Keeper

    def close(self) -> Deferred[None]:
        return super().close().addCallback(lambda _: self.keeper.close())


def keeper_cache(
    reactor: MemoryReactor,
    limits: Limits | None,
    timeouts: Timeouts | None,
    router: Any,
    proxies: Any = None,
    **borrower: Any,
) -> WithKeeper:
    """A borrower of a keeper of its own."""
    pairs = MemoryPairs(reactor)
    kept = MemorySessionCache(reactor, limits, timeouts, router, clock=reactor.seconds, proxies=proxies)
    keeper = Keeper(reactor, kept, pairs)
    reactor.listenUNIX(KEEPER, keeper)
    settings = {"timeouts": timeouts, "wait_timeout": (limits or Limits()).wait_timeout, **borrower}
    cache = WithKeeper(reactor, f"unix:{KEEPER}", pairs=pairs, clock=reactor.seconds, **settings)
    cache.keeper = keeper
    return cache


class KeeperBed(Bed):
    """The same with a keeper in between: ``cache`` is a borrower's, and ``kept`` the keeper's."""

    pairs: MemoryPairs
    kept: MemorySessionCache
    keeper: Keeper

    def __init__(
        self,
        *,
        borrower: dict[str, Any] | None = None,
        proxies: Callable[[MemoryReactor], Any] | None = None,
        **settings: Any,
    ) -> None:
        self._borrower = dict(borrower or {})
        self._proxies = proxies
        super().__init__(make_cache=self._make_cache, **settings)

    def _make_cache(
        self, reactor: MemoryReactor, limits: Limits | None, timeouts: Timeouts | None, router: Any
    ) -> RemoteSessionCache:
        self.pairs = MemoryPairs(reactor)
        proxies = None if self._proxies is None else self._proxies(reactor)
        self.kept = MemorySessionCache(reactor, limits, timeouts, router, clock=reactor.seconds, proxies=proxies)
        self.keeper = Keeper(reactor, self.kept, self.pairs)
        reactor.listenUNIX(KEEPER, self.keeper)
        self._borrower.setdefault("timeouts", timeouts)
        self._borrower.setdefault("wait_timeout", (limits or Limits()).wait_timeout)
        self.reactor = reactor
        return self.borrower()

    def borrower(self, **settings: Any) -> RemoteSessionCache:
        """One more borrower of the keeper."""
        settings = {**self._borrower, **settings}
        clock = self.reactor.seconds
        return RemoteSessionCache(self.reactor, f"unix:{KEEPER}", pairs=self.pairs, clock=clock, **settings)

    def end(self) -> Deferred[None]:
        """The borrower's cache is closed, then the keeper's."""
        return super().end().addCallback(lambda _: self.keeper.close())

    def close(self) -> None:
        super().close()
        kept = self.finish(Outcome(self.kept.statistics()))
        assert not any(kept[name] for name in ("leased", "idle", "opening", "waiting")), kept
        assert self.reactor.descriptors == {}, self.reactor.descriptors


@implementer(IRouter)
class TableRouter:
    """Routes from a table, by the name of the next hop; no answer at all for names in ``silent``."""

    def __init__(self, **table: Sequence[Hop]) -> None:
        self.table = {f"{name}.example": tuple(hops) for name, hops in table.items()}
        self.silent: set[str] = set()
        self.asked: list[str] = []

    def route(self, destination: Destination) -> Deferred[Route]:
        name = destination.hop.name
        self.asked.append(name)
        if name in self.silent:
            return Deferred()
        if name not in self.table:
            return fail(DeliveryError(f"no route to {name}", phase="routing"))
        return succeed(Route(self.table[name], 60))


def hop(host: str = "mx.example.com", port: int = PORT, address: str = "127.0.0.1") -> Hop:
    """A hop of a route."""
    return Hop(Endpoint("smtp", address, port), host)


def verdict_of(value: Any) -> str:
    """The fault matrix's word for what came of a delivery."""
    if isinstance(value, UncertainDelivery):
        return "UNKNOWN"
    if isinstance(value, DeliveryError):
        return "NEXT"
    if isinstance(value, DeliveryResult):
        if not value.rejected:
            return "SENT"
        return "TEMP" if all(reply.transient for reply in value.rejected.values()) else "PERM"
    return repr(value)


def eventually(reactor: MemoryReactor, reached: Callable[[], object], limit: float = 60.0) -> None:
    """Let time pass until ``reached``."""
    reactor.run_until(reached, limit)


def stored(case: TestCase, content: bytes) -> str:
    """The path of a new file that holds ``content``."""
    path = case.mktemp()
    with open(path, "wb") as file:
        file.write(content)
    return path


class TLSServer:
    """OpenSSL's server side in memory, for a `TLSLayer`: bytes go over when the test moves them."""

    def __init__(self, context: SSL.Context) -> None:
        self.ssl = SSL.Connection(context, None)
        self.ssl.set_accept_state()
        self.established = False
        self.received = b""

    def take(self, data: bytes) -> bytes:
        """What the client has written goes in; gives what is to be written back."""
        if data:
            self.ssl.bio_write(data)
        try:
            if not self.established:
                self.ssl.do_handshake()
                self.established = True
            while True:
                self.received += self.ssl.recv(65_536)
        except (SSL.WantReadError, SSL.ZeroReturnError):
            pass
        return self.outgoing()

    def says(self, plain: bytes) -> bytes:
        """The record, or records, of this plain text."""
        self.ssl.sendall(plain)
        return self.outgoing()

    def outgoing(self) -> bytes:
        try:
            return self.ssl.bio_read(1 << 24)
        except SSL.WantReadError:
            return b""


def layer(anchors: bytes | None = None, servername: str | None = None, **tls_class: Any) -> TLSLayer:
    """A client's side of TLS, in a context of its own."""
    values: dict[str, Any] = {"min_version": "TLSv1.2", "ciphers": None, "client_certificate": None, **tls_class}
    pem = values["client_certificate"]
    context = Contexts().get(TLSClass(trust_anchors=repr(anchors), **values), anchors, pem)
    return TLSLayer(context, servername)


def shake_hands(client: TLSLayer, server: TLSServer) -> None:
    """Do the handshake to its end, tickets included."""
    client.handshake()
    while True:
        to_server = client.outgoing()
        to_client = server.take(to_server)
        if to_client:
            assert client.received(to_client) == b""
        elif not to_server:
            break
    assert client.established and server.established


def evidence_of(issued: Issued, anchors: bytes | None, servername: str | None) -> Evidence:
    """What a handshake with a server that shows this certificate has shown."""
    client = layer(anchors, servername)
    shake_hands(client, TLSServer(issued.server_context()))
    return client.evidence()


class Unseekable(io.BytesIO):
    """Like a pipe."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation("underlying stream is not seekable")

    tell = seek  # type: ignore[assignment]


class Failing(io.BytesIO):
    """Fails, or gives something odd, once this many bytes were read."""

    def __init__(self, data: bytes, after: int, problem: object) -> None:
        super().__init__(data)
        self.after = after
        self.problem = problem

    def read(self, size: int | None = -1) -> Any:
        if size and self.tell() >= self.after:
            if isinstance(self.problem, Exception):
                raise self.problem
            return self.problem
        return super().read(size)
