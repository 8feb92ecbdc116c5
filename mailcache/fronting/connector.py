"""The connector of a stock client factory whose connections end at a front."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import NotConnectingError, TimeoutError, UserError  # noqa: A004  (what reactors give)
from twisted.internet.interfaces import IAddress, IConnector
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.destination import Destination
from mailcache.fronting.dialling import address_of, dial
from mailcache.fronting.relaying import Relay
from mailcache.wire.replies import Reply


@implementer(IConnector)
class FrontConnector:
    """Calls ``factory`` as a reactor's connector does. One that calls `connect` again, as stock senders do for their
    retries, begins anew; but not with a message that it gave up when nobody can know whether it was delivered: it hears
    that instead.

    :param timeout: seconds for a session to be had, or ``None``.
    :ivar state: "disconnected", "connecting" or "connected".
    """

    def __init__(self, cache: Any, destination: Destination, factory: Any, timeout: float | None) -> None:
        self.state = "disconnected"
        self._cache = cache
        self._destination = destination
        self._factory = factory
        self._timeout = timeout
        self._started = False
        self._dialling: Deferred[Any] | None = None
        self._why: Exception = UserError()
        self._timer: Any = None
        self._protocol: Any = None
        self._relay: Relay | None = None
        self._doubt: Reply | None = None

    def __repr__(self) -> str:
        return f"<FrontConnector to {self._destination}, {self.state}>"

    def getDestination(self) -> IAddress:
        return address_of(self._destination)

    def connect(self) -> None:
        """Begin, or begin anew from within ``clientConnectionFailed`` or ``clientConnectionLost``.

        :raises RuntimeError: if it is connected or connecting.
        """
        if self.state != "disconnected":
            raise RuntimeError("can't connect in this state")
        self.state = "connecting"
        if not self._started:
            self._started = True
            self._factory.doStart()
        self._why = UserError()
        dialling = Deferred.fromCoroutine(dial(self._cache, self._destination, self._factory, self._lost, self._doubt))
        self._dialling = dialling
        if self._timeout is not None:
            self._timer = self._cache.clock.callLater(self._timeout, self._give_up, TimeoutError())
        dialling.addCallbacks(self._connected, self._failed)
        if self.state == "connecting":
            self._factory.startedConnecting(self)

    def stopConnecting(self) -> None:
        if self.state != "connecting":
            raise NotConnectingError("we're not trying to connect")
        self._give_up(UserError())

    def disconnect(self) -> None:
        """End it, whatever its state."""
        if self.state == "connecting":
            self.stopConnecting()
        elif self._protocol is not None:
            self._protocol.transport.loseConnection()

    def _give_up(self, why: Exception) -> None:
        self._why = why
        if self._dialling is not None:
            self._dialling.cancel()

    def _connected(self, connected: tuple[Any, Relay]) -> None:
        self._no_timer()
        self._dialling = None
        self.state = "connected"
        self._protocol, self._relay = connected

    def _failed(self, failure: Failure) -> None:
        self._no_timer()
        self._dialling = None
        self.state = "disconnected"
        cancelled = isinstance(failure.value, CancelledError)
        self._factory.clientConnectionFailed(self, Failure(self._why) if cancelled else failure)
        self._stop_unless_begun_anew()

    def _lost(self, reason: Failure) -> None:
        self.state = "disconnected"
        self._protocol = None
        relay, self._relay = self._relay, None
        self._doubt = None if relay is None else relay.doubt or relay.verdict
        self._factory.clientConnectionLost(self, reason)
        self._stop_unless_begun_anew()

    def _stop_unless_begun_anew(self) -> None:
        if self.state == "disconnected":
            self._started = False
            self._factory.doStop()

    def _no_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
