"""One end of a connection that exists in memory only, with the manners of a TCP socket.

What it models, and what a test may therefore rely on:

* what is written in one turn leaves as one segment; segments take the latency and keep their order;
* at most L{WINDOW} octets are under way or lie unread at the peer; the rest waits here, and over
  L{HIGH_WATER} octets of it a push producer is paused until all has left. A paused reader stalls its writer;
* C{loseConnection} sends what is waiting and then FIN: the peer has C{ConnectionDone}, or
  C{readConnectionLost} if its protocol is half-closeable. With octets unread it is a reset, as in a kernel;
* C{abortConnection} resets: the peer has C{ConnectionLost} at once and its unread octets are gone;
* octets that reach a closed end are answered by a reset;
* C{cut_after} breaks it at an octet of your choice, see L{mailcache.testing.cutting};
* over a UNIX socket, descriptors of the network in memory arrive before the octets that they were sent with;
* everything goes to the present C{protocol} attribute, so that TLS can be put in between at any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Protocol as Shape
from typing import cast

from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IFileDescriptorReceiver,
    IHalfCloseableProtocol,
    IProducer,
    IProtocol,
    IPullProducer,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
    IUNIXTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.testing.cutting import Cut

#: Octets that may be sent before the peer's protocol has taken them: TCP's window without scaling.
WINDOW = 65_536

#: Octets waiting to be sent above which a producer is paused: what Twisted's own sockets have
#: (C{abstract.FileDescriptor.bufferSize}).
HIGH_WATER = 65_536


def _because(error: Exception) -> Failure:
    return Failure(error)


class Network(Shape):
    """What a transport needs of the network it is part of."""

    connections: list[MemoryTransport]
    descriptors: dict[int, MemoryTransport]

    @property
    def clock(self) -> IReactorTime:
        """The time of the network."""

    def latency_to(self, address: IAddress) -> float:
        """Seconds that anything takes to get there, or back."""


@implementer(ITCPTransport, IConsumer, IPushProducer)
class MemoryTransport:
    """One end. Ends are made in pairs, by L{connected_pair}."""

    _log = Logger()

    def __init__(self, network: Network, host: IAddress, peer: IAddress) -> None:
        self.protocol: IProtocol | None = None
        self.connected = False
        self.disconnecting = False
        self.disconnected = False
        self.on_lost: Callable[[Failure], object] | None = None
        self._network = network
        self._host = host
        self._peer = peer
        self._other: MemoryTransport
        # Sending.
        self._waiting = bytearray()
        self._under_way = 0
        self._last_arrival = 0.0
        self._arrivals: deque[Callable[[], object]] = deque()
        self._flush_due = False
        self._write_closing = False
        self._write_closed = False
        self._cut: Cut | None = None
        self._lost = False  # what is sent from now on does not arrive
        # Receiving.
        self._unread: deque[bytes | None] = deque()
        self._paused = False
        self._aborting = False
        # The producer that feeds us.
        self._producer: IProducer | None = None
        self._streaming = False
        self._producer_paused = False
        self._no_delay = False
        self._keep_alive = False

    def __repr__(self) -> str:
        state = "connected" if self.connected else "closed"
        return f"<MemoryTransport {self._host} to {self._peer} {state}>"

    # Life

    def begin(self, protocol: IProtocol) -> None:
        """The connection is made: tell the protocol."""
        self.connected = True
        self.protocol = protocol
        self._network.connections.append(self)
        protocol.makeConnection(self)
        if self._unread:
            self._later(0, self._deliver)

    def refuse(self) -> None:
        """Nobody wants this connection: close it as accept() and close() would."""
        self.disconnected = True
        self.post(self._other._reset)

    def _close(self, reason: Failure, reset: bool = False, gone: bool = False) -> None:
        """
        This end is no more.

        @param reset: tell the peer by a reset.
        @param gone: the peer knows already.
        """
        if self.disconnected:
            return
        self.connected, self.disconnected, self.disconnecting = False, True, True
        if self in self._network.connections:
            self._network.connections.remove(self)
        if not gone:
            if reset or any(self._unread):
                self.post(self._other._reset)
            elif not self._write_closed:
                self.post(self._other._arrive, None)
        self._write_closed = True
        self._waiting.clear()
        self._unread.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)
        if self.on_lost is not None:
            self.on_lost(reason)

    def loseConnection(self) -> None:
        """Send what is waiting, then FIN. Nothing more is read."""
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        self._schedule_flush()

    def loseWriteConnection(self) -> None:
        """Send what is waiting, then FIN, and go on reading."""
        self._write_closing = True
        self._schedule_flush()

    def abortConnection(self) -> None:
        """Reset the connection; what is waiting is thrown away."""
        if self.disconnected or self._aborting:
            return
        self._aborting = True
        self.disconnecting = True
        self._later(0, self._close, _because(ConnectionAborted()), True)

    def cut_after(self, octets: int, how: str, *, at_next: bool = False) -> None:
        """
        Break the connection when so many more octets have gone from this end to the other.

        @param octets: how many of those written from now on still arrive.
        @param how: one of L{mailcache.testing.cutting.WAYS}.
        @param at_next: break it when one more octet is to go, not as soon as the last has; with 0 it always is so.
        @raise ValueError: for another way, or less than no octets.
        """
        self._cut = Cut(octets, how, at_next)

    def _break(self, how: str) -> None:
        """The last octet before a cut has arrived."""
        if how == "rst":
            for end in (self._other, self):
                end._close(_because(ConnectionLost()), gone=True)
        elif how == "close":
            self._other.loseConnection()
        elif how == "silence":
            self._other._lost = True

    # Sending

    def write(self, data: bytes) -> None:
        """Send these octets, together with all others of this turn."""
        if isinstance(data, str):
            raise TypeError("Data must be bytes, not str")
        if not self.connected or self._write_closed or self._aborting or not data:
            return
        self._waiting += data
        if self._streaming and not self._producer_paused and len(self._waiting) > HIGH_WATER:
            self._producer_paused = True
            cast(IPushProducer, self._producer).pauseProducing()
        self._schedule_flush()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send all of these."""
        self.write(b"".join(data))

    def _schedule_flush(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._later(0, self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if not self.connected or self._aborting:
            return
        room = WINDOW - self._under_way
        if self._waiting and room > 0:
            segment = bytes(self._waiting[:room])
            del self._waiting[:room]
            self._under_way += len(segment)
            self._send(segment)
        if self._waiting:
            return
        self._drained()
        if self._waiting or self._producer is not None:
            return
        if self.disconnecting:
            self._close(_because(ConnectionDone()))
        elif self._write_closing and not self._write_closed:
            self._write_closed = True
            self.post(self._other._arrive, None)
            half = IHalfCloseableProtocol(self.protocol, None)
            if half is not None:
                half.writeConnectionLost()

    def _send(self, segment: bytes) -> None:
        cut = self._cut
        if cut is None or not cut.falls_in(segment):
            self.post(self._other._arrive, segment)
            return
        self._cut = None
        if cut.left:
            self.post(self._other._arrive, segment[: cut.left])
        self.post(self._break, cut.how)
        if cut.how == "fin":
            self._waiting.clear()
            self._close(_because(ConnectionDone()))
        self._lost = True

    def _drained(self) -> None:
        if self._producer is not None and (self._producer_paused or not self._streaming):
            self._producer_paused = False
            cast(IPullProducer, self._producer).resumeProducing()

    def _acknowledged(self, count: int) -> None:
        self._under_way -= count
        if self.connected and self._waiting:
            self._schedule_flush()

    def post(self, arrive: Callable[..., object], *arguments: object) -> None:
        """Have something happen at the other end after the latency, and after all that was sent before."""
        if self._lost:
            return
        now = self._network.clock.seconds()
        self._last_arrival = max(now + self._network.latency_to(self._peer), self._last_arrival)
        self._arrivals.append(partial(arrive, *arguments))
        self._later(self._last_arrival - now, self._arrival)

    def _arrival(self) -> None:
        """The oldest of what is under way arrives: times may round differently, the order stays."""
        self._arrivals.popleft()()

    def _later(self, delay: float, call: Callable[..., object], *arguments: object) -> None:
        self._network.clock.callLater(delay, call, *arguments)

    # Receiving

    def _arrive(self, segment: bytes | None) -> None:
        """A segment of the peer's, or None for its FIN."""
        if self.disconnected:
            if segment is not None:
                self.post(self._other._reset)
            return
        self._unread.append(segment)
        self._deliver()

    def _deliver(self) -> None:
        while self._unread and self.connected and not self._paused and not self.disconnecting:
            segment = self._unread.popleft()
            try:
                if segment is None:
                    self._end_of_stream()
                else:
                    self.post(self._other._acknowledged, len(segment))
                    assert self.protocol is not None
                    self.protocol.dataReceived(segment)
            except Exception:  # noqa: BLE001 - as a reactor does: a protocol that raises loses its connection
                failure = Failure()
                self._log.failure("protocol of {transport} raised", failure, transport=self)
                self._close(failure)

    def _end_of_stream(self) -> None:
        half = IHalfCloseableProtocol(self.protocol, None)
        if half is None:
            self._close(_because(ConnectionDone()))
        else:
            half.readConnectionLost()

    def _reset(self) -> None:
        if self.connected:
            self._close(_because(ConnectionLost()), gone=True)

    def pauseProducing(self) -> None:
        """Read no more for now: the writer at the other end stalls when the window is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Read on."""
        if self.connected and not self.disconnecting and self._paused:
            self._paused = False
            self._later(0, self._deliver)

    def stopProducing(self) -> None:
        """As a producer for somebody, we are to stop: close."""
        self.loseConnection()

    # Being fed

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Let this producer write, at the pace of the connection."""
        if self._producer is not None:
            raise RuntimeError(f"{self._producer!r} is registered already, so {producer!r} can't be")
        if self.disconnected:
            producer.stopProducing()
            return
        self._producer, self._streaming, self._producer_paused = producer, streaming, False
        if not streaming:
            cast(IPullProducer, producer).resumeProducing()

    def unregisterProducer(self) -> None:
        """The producer has no more. A close that waited for it goes on."""
        self._producer, self._streaming = None, False
        if self.connected and (self.disconnecting or self._write_closing):
            self._schedule_flush()

    # What a socket can tell

    def getHost(self) -> IAddress:  # type: ignore[override]  # UNIXAddress too, as on real UNIX transports
        """The address of this end."""
        return self._host

    def getPeer(self) -> IAddress:  # type: ignore[override]
        """The address of the other end."""
        return self._peer

    def getTcpNoDelay(self) -> bool:
        """As set; the network in memory sends at the end of each turn either way."""
        return self._no_delay

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Remembered, without effect."""
        self._no_delay = bool(enabled)

    def getTcpKeepAlive(self) -> bool:
        """As set."""
        return self._keep_alive

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Remembered, without effect."""
        self._keep_alive = bool(enabled)


@implementer(IUNIXTransport)
class MemoryUNIXTransport(MemoryTransport):
    """One end of a UNIX socket: it carries descriptors, made-up numbers in the table of the network in memory."""

    def __init__(self, network: Network, host: IAddress, peer: IAddress) -> None:
        super().__init__(network, host, peer)
        self._descriptors: list[int] = []

    def sendFileDescriptor(self, descriptor: int) -> None:
        """Send this with the octets that are written next. It is the sender's to close, once it has left."""
        self._descriptors.append(descriptor)

    def _send(self, segment: bytes) -> None:
        leaving, self._descriptors = self._descriptors, []
        if leaving:
            try:
                received = [duplicate(self._network, descriptor) for descriptor in leaving]
            except KeyError:
                # As from sendmsg(2) with a descriptor that is closed: EBADF.
                self._later(0, self._close, _because(ConnectionLost()), True)
                return
            self.post(cast(MemoryUNIXTransport, self._other)._descriptors_arrive, received)
        super()._send(segment)

    def _descriptors_arrive(self, descriptors: list[int]) -> None:
        receiver = IFileDescriptorReceiver(self.protocol, None)
        for descriptor in descriptors:
            if receiver is None or not self.connected or self.disconnecting:
                close_descriptor(self._network, descriptor)
            else:
                receiver.fileDescriptorReceived(descriptor)

    def _reset(self) -> None:
        if not self.connected and not self.disconnected:
            self._unread.append(None)  # for whoever adopts it
        super()._reset()

    def discard_unused(self) -> None:
        """The last descriptor of an end that nobody has adopted is closed."""
        if not self.connected:
            self._close(_because(ConnectionDone()))


FIRST_DESCRIPTOR = 1_000
"""Where made-up descriptors begin: none that the system gives to a test."""


def register_descriptor(network: Network, transport: MemoryTransport) -> int:
    """A new descriptor of ``transport``."""
    number = next(number for number in count(FIRST_DESCRIPTOR) if number not in network.descriptors)
    network.descriptors[number] = transport
    return number


def duplicate(network: Network, descriptor: int) -> int:
    """One more descriptor of the same, as a receiver gets.

    @raise KeyError: if there is none of this number.
    """
    return register_descriptor(network, network.descriptors[descriptor])


def close_descriptor(network: Network, descriptor: int) -> None:
    """Close this descriptor; an end that was not adopted ends with the last."""
    transport = network.descriptors.pop(descriptor)
    if transport not in network.descriptors.values():
        cast(MemoryUNIXTransport, transport).discard_unused()


def connected_pair(network: Network, client: IAddress, server: IAddress) -> tuple[MemoryTransport, MemoryTransport]:
    """The client's end and the server's of a new connection; neither has a protocol yet."""
    kind = MemoryUNIXTransport if isinstance(server, UNIXAddress) else MemoryTransport
    near, far = kind(network, client, server), kind(network, server, client)
    near._other, far._other = far, near
    return near, far
