"""A network in memory under a L{task.Clock}: for the stock endpoints, and nothing happens by chance.

    reactor = MemoryReactor(latency=0.025, hosts={"mx.test": ["192.0.2.1"]})
    reactor.listenTCP(25, factory, interface="192.0.2.1")
    connecting = TCP4ClientEndpoint(reactor, "192.0.2.1", 25).connect(client_factory)
    reactor.run_for(0.05)       # one round trip

With a latency of L the client is connected after 2 L, the server after 3 L (SYN, SYN-ACK, ACK), and octets
take L. UNIX sockets have none: both ends are on one host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IHostnameResolver,
    IListeningPort,
    IProtocolFactory,
    IReactorFromThreads,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)
from twisted.internet.protocol import ClientFactory
from twisted.internet.task import Clock
from zope.interface import implementer

from mailcache.testing.connecting import MemoryConnector, MemoryPort
from mailcache.testing.resolving import MemoryResolver, literal_address
from mailcache.testing.transports import MemoryTransport, connected_pair

#: Where ephemeral ports begin, for C{listenTCP(0, ...)} and for the client's end.
FIRST_LISTENING_PORT = 20_000
FIRST_CLIENT_PORT = 40_000


@implementer(IReactorTCP, IReactorUNIX, IReactorPluggableNameResolver, IReactorTime, IReactorFromThreads)
class MemoryReactor(Clock):
    """
    Clock, network and resolver in one.

    @ivar latency: seconds that anything takes from one end to the other; may be changed at any time.
    @ivar hosts: the addresses of each name, for L{nameResolver}; a name that is not here resolves to nothing.
    @ivar black_holes: (host, port) pairs where a connect is never answered.
    @ivar descriptors: made-up descriptors that are open, with the end of a UNIX socket that each is.
    @ivar connections: the transports that are alive, both ends of each connection. Empty: no socket is left.
    """

    def __init__(self, latency: float = 0.0, hosts: Mapping[str, Iterable[str]] | None = None) -> None:
        super().__init__()
        self.latency = latency
        self.hosts: dict[str, list[str]] = {name: list(each) for name, each in (hosts or {}).items()}
        self.black_holes: set[tuple[str, int]] = set()
        self.connections: list[MemoryTransport] = []
        self.descriptors: dict[int, MemoryTransport] = {}
        self.nameResolver: IHostnameResolver = MemoryResolver(self.hosts)
        self._ports: dict[tuple[str, int] | str, MemoryPort] = {}
        self._listening_ports = count(FIRST_LISTENING_PORT)
        self._client_ports = count(FIRST_CLIENT_PORT)

    @property
    def clock(self) -> IReactorTime:
        """This reactor is its own clock."""
        return self

    # Time

    def pump(self, timings: Iterable[float] = (0.0,)) -> None:
        """Without arguments: do all that is due now, and what becomes due by it, without time passing."""
        super().pump(timings)

    def run_for(self, seconds: float) -> None:
        """Let this time pass, stopping at each due call, so that each happens at its own moment."""
        self._run_to(self.rightNow + seconds, lambda: False)

    def run_until(self, reached: Callable[[], object], limit: float = 3600.0) -> float:
        """
        Let time pass until something is true.

        @return: the seconds it took.
        @raise AssertionError: if it isn't true within C{limit} seconds.
        """
        started = self.rightNow
        self._run_to(started + limit, reached)
        if not reached():
            raise AssertionError(f"not reached within {limit} s")
        return self.rightNow - started

    def _run_to(self, end: float, reached: Callable[[], object]) -> None:
        self.pump()
        while not reached() and self.calls:
            due = min(call.getTime() for call in self.calls)
            if due > end:
                break
            self.rightNow = max(self.rightNow, due)
            self.pump()
        if not reached():
            self.rightNow = max(self.rightNow, end)
            self.pump()

    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:  # noqa: A002
        """Call this in the next turn. There are no threads here: it is for code that asks for it anyway."""
        self.callLater(0, callable, *args, **kwargs)

    # Names

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """Resolve by this from now on; the old one is returned."""
        previous, self.nameResolver = self.nameResolver, resolver
        return previous

    # Listening

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> IListeningPort:
        """Listen at this port of an address; without one, of all IPv4 addresses, "::": of all IPv6."""
        if interface and literal_address(interface) is None:
            raise _cannot_listen(interface, port, "no such address")
        listening = MemoryPort(self, _tcp_address(interface or "0.0.0.0", port or self._free_port()), factory)  # noqa: S104
        listening.startListening()
        return listening

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> IListeningPort:
        """Listen at a path, which exists in this reactor only."""
        listening = MemoryPort(self, UNIXAddress(address), factory)
        listening.startListening()
        return listening

    def bind(self, port: MemoryPort) -> None:
        """A port begins to listen."""
        where = _key(port.getHost())
        if where in self._ports:
            host, number = where if isinstance(where, tuple) else (where, 0)
            raise _cannot_listen(host, number, "address already in use")
        self._ports[where] = port

    def unbind(self, port: MemoryPort) -> None:
        """A port listens no more. What it has accepted lives on."""
        where = _key(port.getHost())
        if self._ports.get(where) is port:
            del self._ports[where]

    def _free_port(self) -> int:
        taken = {where[1] for where in self._ports if isinstance(where, tuple)}
        return next(number for number in self._listening_ports if number not in taken)

    # Connecting

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: ClientFactory[Any],
        timeout: float = 30.0,
        bindAddress: tuple[str, int] | str | None = None,
    ) -> IConnector:
        """Connect to an address, or to a name's first; the server sees C{bindAddress} as the peer."""
        found = [host] if literal_address(host) is not None else self.hosts.get(host, [])
        destination = _tcp_address(found[0], port) if found else None
        connector = MemoryConnector(
            self, destination, self._source(destination, bindAddress), factory, timeout, named=(host, port)
        )
        connector.connect()
        return connector

    def connectUNIX(
        self, address: str, factory: ClientFactory[Any], timeout: float = 30, checkPID: bool = False
    ) -> IConnector:
        """Connect to a path of this reactor."""
        connector = MemoryConnector(self, UNIXAddress(address), UNIXAddress(None), factory, timeout, named=(address, 0))
        connector.connect()
        return connector

    def _source(self, destination: IAddress | None, bind: tuple[str, int] | str | None) -> IAddress:
        host, port = (bind, 0) if isinstance(bind, str) else bind or ("", 0)
        if not host:
            host = "::1" if isinstance(destination, IPv6Address) else "127.0.0.1"
        return _tcp_address(host, port or next(self._client_ports))

    def latency_to(self, address: IAddress) -> float:
        """Seconds that anything takes to get there, or back."""
        return 0.0 if isinstance(address, UNIXAddress) else self.latency

    def synchronise(self, connector: MemoryConnector) -> None:
        """The first segment of a connect reaches its destination: answer it, unless it is a black hole."""
        destination = connector.getDestination()
        if _key(destination) in {_key(_tcp_address(*hole)) for hole in self.black_holes}:
            return
        port = self._port_for(destination)
        if port is None:
            refused = Refused(111, f"nothing listens at {destination}")
            self.callLater(self.latency_to(destination), connector.fail, refused)
        else:
            self.callLater(self.latency_to(destination), self._establish, connector, port)

    def _establish(self, connector: MemoryConnector, port: MemoryPort) -> None:
        if connector.state != "connecting":
            return
        near, far = connected_pair(self, connector.source, connector.getDestination())
        near.post(port.accept, far)
        connector.establish(near)

    def _port_for(self, address: IAddress) -> MemoryPort | None:
        where = _key(address)
        if isinstance(where, str):
            return self._ports.get(where)
        everywhere = "::" if isinstance(address, IPv6Address) else "0.0.0.0"  # noqa: S104
        return self._ports.get(where) or self._ports.get((everywhere, where[1]))


def _cannot_listen(interface: str, port: int, why: str) -> CannotListenError:
    return CannotListenError(interface, port, OSError(why))


def _tcp_address(host: str, port: int) -> IPv4Address | IPv6Address:
    address = literal_address(host, port)
    if address is None:
        raise ValueError(f"{host!r} is no IP address")
    return address


def _key(address: IAddress) -> tuple[str, int] | str:
    """What two addresses of the same place have in common."""
    if isinstance(address, UNIXAddress):
        name = address.name or b""
        return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    assert isinstance(address, (IPv4Address, IPv6Address))
    return (address.host, address.port)
