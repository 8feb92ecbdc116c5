"""Pairs: what a session is lent through. One end stays with the keeper, the other goes to the borrower."""

from __future__ import annotations

import os
import socket
from typing import Any

import attrs
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import Factory
from zope.interface import implementer

from mailcache.interfaces import IPairs


class _Adopting(Factory):
    """A factory for the one protocol that is there already."""

    noisy = False

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._protocol


@implementer(IPairs)
@attrs.frozen(eq=False)
class SocketPairs:
    """Socket pairs of the system, on a reactor that adopts descriptors (`IReactorSocket`)."""

    _reactor: Any

    def make(self, protocol: IProtocol) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._adopt(ours.fileno(), protocol)
        except BaseException:
            theirs.close()
            raise
        finally:
            ours.close()
        return theirs.detach()

    def adopt(self, descriptor: int, protocol: IProtocol) -> None:
        try:
            # For what is no socket this raises, and leaves it open.
            probe = socket.socket(fileno=descriptor)
            right = probe.family == socket.AF_UNIX and probe.type == socket.SOCK_STREAM
            probe.detach()
            if not right:
                raise OSError("the descriptor is no UNIX stream socket")
            self._adopt(descriptor, protocol)
        finally:
            os.close(descriptor)

    def received(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def _adopt(self, descriptor: int, protocol: IProtocol) -> None:
        os.set_blocking(descriptor, False)
        self._reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _Adopting(protocol))
