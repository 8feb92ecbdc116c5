"""The router for hosts: literals and sockets as they are, names by their A and AAAA addresses."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorTime,
    IResolutionReceiver,
)
from zope.interface import implementer

from mailcache.destination import Destination, Endpoint
from mailcache.interfaces import IRouter
from mailcache.result import DeliveryError
from mailcache.routing.route import Hop, Route
from mailcache.trust.policy import is_address

TTL = 60.0
"""Seconds for which addresses are kept: getaddrinfo tells no TTL, and a minute is what careful zones use."""

LOOKUP_LIMIT = 20.0
"""Seconds for a look-up: resolvers give up on a name server after 5 s and try another (resolv.conf(5))."""

MAX_ADDRESSES = 20
"""Addresses taken from one answer: more than any list is ever tried."""


@implementer(IRouter)
@attrs.frozen(eq=False)
class HostRouter:
    """Finds hosts by the reactor's resolver, within `LOOKUP_LIMIT` seconds."""

    _reactor: Any

    def route(self, destination: Destination) -> Deferred[Route]:
        hop = destination.hop
        protocol = destination.protocol
        if hop.kind == "unix":
            return succeed(Route((Hop(Endpoint(protocol, hop.name, None), "localhost"),), float("inf")))
        if is_address(hop.name) or destination.proxy is not None:
            # What a proxy is asked for is its own to look up: a look-up here would tell who is written to.
            return succeed(Route((Hop(Endpoint(protocol, hop.name, hop.port), hop.name),), float("inf")))
        assert hop.port is not None
        lookup = _Lookup(hop.name, protocol, hop.port)
        reactor = self._reactor
        resolver = IReactorPluggableNameResolver(reactor).nameResolver
        resolver.resolveHostName(lookup, hop.name)
        found = lookup.found
        found.addTimeout(LOOKUP_LIMIT, IReactorTime(reactor), lookup.too_late)
        return found


@implementer(IResolutionReceiver)
class _Lookup:
    """Collects the addresses of one look-up."""

    def __init__(self, host: str, protocol: str, port: int) -> None:
        self._host = host
        self._protocol = protocol
        self._port = port
        self._hops: list[Hop] = []
        self._resolution: IHostResolution | None = None
        self.found: Deferred[Route] = Deferred(self._cancelled)

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        self._resolution = resolution

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, (IPv4Address, IPv6Address)) and len(self._hops) < MAX_ADDRESSES:
            hop = Hop(Endpoint(self._protocol, address.host, self._port), self._host)
            if hop not in self._hops:
                self._hops.append(hop)

    def resolutionComplete(self) -> None:
        if self.found.called:
            return
        if self._hops:
            self.found.callback(Route(tuple(self._hops), TTL))
        else:
            self.found.errback(DeliveryError(f"no address was found for {self._host}", phase="routing"))

    def too_late(self, _result: object, limit: float) -> Route:
        raise DeliveryError(f"no address was found for {self._host} within {limit:g} s", phase="routing")

    def _cancelled(self, _found: Deferred[Route]) -> None:
        if self._resolution is not None:
            # Twisted's own resolver, which waits for getaddrinfo in a thread, can't be stopped: its answer is ignored.
            with suppress(NotImplementedError):
                self._resolution.cancel()
