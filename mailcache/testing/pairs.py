"""Pairs in memory: what a keeper lends sessions through, without sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IProtocol
from zope.interface import implementer

from mailcache.interfaces import IPairs
from mailcache.testing.transports import close_descriptor, connected_pair, register_descriptor

if TYPE_CHECKING:
    from mailcache.testing.network import MemoryReactor


@implementer(IPairs)
class MemoryPairs:
    """
    The ends are UNIX sockets of C{reactor}, and their descriptors made-up numbers in its C{descriptors}.

    @ivar failing: L{make} has no more descriptors to give.
    """

    def __init__(self, reactor: MemoryReactor) -> None:
        self.failing = False
        self._reactor = reactor

    def make(self, protocol: IProtocol) -> int:
        """One end gets this protocol; gives the descriptor of the other."""
        if self.failing:
            raise OSError(24, "Too many open files")
        ours, theirs = connected_pair(self._reactor, UNIXAddress(None), UNIXAddress(None))
        descriptor = register_descriptor(self._reactor, theirs)
        ours.begin(protocol)
        return descriptor

    def adopt(self, descriptor: int, protocol: IProtocol) -> None:
        """The end of this descriptor gets this protocol; the descriptor is closed."""
        transport = self._reactor.descriptors.pop(descriptor)
        if transport.connected or transport.disconnected:
            raise OSError(22, "Invalid argument")
        transport.begin(protocol)

    def received(self, descriptor: int) -> None:
        """Nothing inherits made-up numbers."""

    def close(self, descriptor: int) -> None:
        """Close this descriptor."""
        close_descriptor(self._reactor, descriptor)
