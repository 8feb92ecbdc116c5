"""How connections of the network in memory come to be: the connector of a client, the port of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IConnector, IDelayedCall, IListeningPort, IProtocolFactory
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.testing.transports import MemoryTransport

if TYPE_CHECKING:
    from mailcache.testing.network import MemoryReactor


@implementer(IConnector)
class MemoryConnector:
    """
    One connection of a client factory, with the calls of the factory in Twisted's order.

    @ivar state: "connecting", "connected" or "disconnected".
    @ivar source: the address the server will see.
    """

    def __init__(
        self,
        reactor: MemoryReactor,
        destination: IAddress | None,
        source: IAddress,
        factory: ClientFactory[Any],
        timeout: float | None,
        named: tuple[str, int],
    ) -> None:
        self.state = "disconnected"
        self.source = source
        self.transport: MemoryTransport | None = None
        self._reactor = reactor
        self._destination = destination
        self._factory = factory
        self._timeout = timeout
        self._named = named
        self._time_limit: IDelayedCall | None = None
        self._started = False
        self._attempt = 0

    def getDestination(self) -> IAddress:
        """Where this connects to."""
        return self._destination or IPv4Address("TCP", *self._named)

    def connect(self) -> None:
        """Begin, or begin anew from within C{clientConnectionFailed} or C{clientConnectionLost}."""
        if self.state != "disconnected":
            raise RuntimeError("can't connect in this state")
        self.state = "connecting"
        self._attempt += 1
        if not self._started:
            self._started = True
            self._factory.doStart()
        if self._timeout is not None:
            self._time_limit = self._reactor.callLater(self._timeout, self.fail, error.TimeoutError())
        self._factory.startedConnecting(self)
        if self._destination is None:
            self._reactor.callLater(0, self.fail, error.DNSLookupError(f"no address for {self._named[0]}"))
        else:
            self._reactor.callLater(self._reactor.latency_to(self._destination), self._synchronise, self._attempt)

    def _synchronise(self, attempt: int) -> None:
        if self.state == "connecting" and attempt == self._attempt:
            self._reactor.synchronise(self)

    def establish(self, transport: MemoryTransport) -> None:
        """The server has answered: the client's side is connected."""
        self._cancel_time_limit()
        self.state = "connected"
        self.transport = transport
        protocol = self._factory.buildProtocol(self.getDestination())
        if protocol is None:
            transport.refuse()
            self._lost(Failure(error.ConnectError(string="the factory wants no protocol")))
        else:
            transport.on_lost = self._lost
            transport.begin(protocol)

    def fail(self, why: Exception) -> None:
        """It will not be connected any more, for this reason."""
        if self.state != "connecting":
            return
        self._cancel_time_limit()
        self.state = "disconnected"
        self._factory.clientConnectionFailed(self, Failure(why))
        self._stop_unless_begun_anew()

    def _lost(self, reason: Failure) -> None:
        self.state = "disconnected"
        self._factory.clientConnectionLost(self, reason)
        self._stop_unless_begun_anew()

    def _stop_unless_begun_anew(self) -> None:
        if self.state == "disconnected":
            self._started = False
            self._factory.doStop()

    def stopConnecting(self) -> None:
        """Give up the attempt."""
        if self.state != "connecting":
            raise error.NotConnectingError("we're not trying to connect")
        self.fail(error.UserError())

    def disconnect(self) -> None:
        """End it, whatever its state."""
        if self.state == "connecting":
            self.stopConnecting()
        elif self.transport is not None:
            self.transport.loseConnection()

    def _cancel_time_limit(self) -> None:
        limit, self._time_limit = self._time_limit, None
        if limit is not None and limit.active():
            limit.cancel()


@implementer(IListeningPort)
class MemoryPort:
    """A listening port, or path."""

    def __init__(self, reactor: MemoryReactor, address: IAddress, factory: IProtocolFactory) -> None:
        self._reactor = reactor
        self._address = address
        self._factory = factory
        self._listening = False

    def startListening(self) -> None:
        """Listen (again)."""
        self._reactor.bind(self)
        self._listening = True
        self._factory.doStart()

    def stopListening(self) -> Deferred[None]:
        """Listen no more: the next connect is refused."""
        if self._listening:
            self._listening = False
            self._reactor.unbind(self)
            self._factory.doStop()
        return succeed(None)

    def getHost(self) -> IAddress:
        """Where this listens."""
        return self._address

    def accept(self, transport: MemoryTransport) -> None:
        """The last segment of a client's connect is here."""
        protocol = self._factory.buildProtocol(transport.getPeer()) if self._listening else None
        if protocol is None:
            transport.refuse()
        else:
            transport.begin(protocol)
