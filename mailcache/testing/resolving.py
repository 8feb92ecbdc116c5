"""Names for the network in memory: a table, in place of DNS."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer


def literal_address(host: str, port: int = 0) -> IPv4Address | IPv6Address | None:
    """The address that a literal names, in its canonical form, or None for a name."""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return None
    return IPv4Address("TCP", str(parsed), port) if parsed.version == 4 else IPv6Address("TCP", str(parsed), port)


@implementer(IHostResolution)
@attrs.frozen(eq=False)
class Resolution:
    """A resolution that was over as it began."""

    name: str

    def cancel(self) -> None:
        """Nothing is under way."""
        raise NotImplementedError("a resolution in memory is complete at once and can't be cancelled")


@implementer(IHostnameResolver)
@attrs.frozen(eq=False)
class MemoryResolver:
    """Resolves from a table, which may change at any time; a literal resolves to itself."""

    hosts: Mapping[str, Sequence[str]]

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """All addresses of a name, in the table's order, at once; none for a name that isn't there."""
        resolution = Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        literal = literal_address(hostName, portNumber)
        texts = [hostName] if literal else self.hosts.get(hostName.lower().rstrip("."), ())
        for text in texts:
            address = literal_address(text, portNumber)
            if address is not None and (addressTypes is None or isinstance(address, tuple(addressTypes))):
                resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()
        return resolution
