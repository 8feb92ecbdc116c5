"""The keeper: sessions of a `MemorySessionCache`, lent to other processes over a UNIX socket."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, ISystemHandle
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from mailcache.destination import Destination
from mailcache.interfaces import IPairs
from mailcache.lease import Lease
from mailcache.memory import MemorySessionCache
from mailcache.remote import codec, commands
from mailcache.remote.codec import Facts, Granted, MalformedError, Released
from mailcache.remote.commands import KeeperFault
from mailcache.remote.pairs import SocketPairs
from mailcache.remote.relay import Relay
from mailcache.result import DeliveryError
from mailcache.session import Session

MAX_REQUESTS = 1_000
"""Requests of one borrower that wait at one time: as many as a cache lets wait by default."""

MAX_BOX = 262_144
"""Bytes of one AMP box: a destination and a request of 64 KiB each, with room; AMP itself sets no bound."""

SILENCE = 900.0
"""Seconds without a byte moved until a lease is revoked: longer than the longest wait of a transaction (600 s)."""

LEASE_SILENCE = 10.0
"""The same before the first byte of a lease: a borrower that wants to send does, and linger takes 50 ms."""

END_PATIENCE = 1.0
"""Seconds for the release, or the end of the link, that explains a pair's end."""

MAX_DESTINATIONS = 1_000
"""Destinations remembered by the bytes that said them."""

_CREDENTIALS = struct.Struct("3i")


class _Pair:
    """A pair between one borrower and one session, kept over leases."""

    __slots__ = ("descriptor", "lease", "lease_number", "number", "relay", "session")

    def __init__(self, number: int, session: Session, relay: Relay) -> None:
        self.number = number
        self.session = session
        self.relay = relay
        self.lease: Lease | None = None
        self.lease_number = 0
        # The borrower's end, ours to close: not before AMP has sent it, which the first release shows.
        self.descriptor: int | None = None


class Borrower(amp.AMP):
    """The keeper's end of the link with one borrower."""

    _log = Logger()

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = keeper
        self._requests: dict[int, Deferred[Any]] = {}
        self._pairs: dict[int, _Pair] = {}
        self._by_session: dict[Session, _Pair] = {}
        self._next_pair = 1
        self._next_lease = 1
        self._greeted = False
        self._lost = False
        self._unboxed = 0
        self.uid: int | None = None
        self.pid: int | None = None

    # -- the link ----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        super().connectionMade()
        self.pid, self.uid = self._keeper.identify(self.transport)
        self._keeper.borrowers.add(self)

    def dataReceived(self, data: bytes) -> None:
        self._unboxed += len(data)
        if self._unboxed > MAX_BOX + len(data):
            self._drop(f"a box of more than {MAX_BOX} bytes")
            return
        super().dataReceived(data)

    def ampBoxReceived(self, box: amp.AmpBox) -> None:
        self._unboxed = 0
        super().ampBoxReceived(box)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        # No command of a borrower carries one.
        os.close(descriptor)
        self._drop("a descriptor was sent")

    def locateResponder(self, name: bytes) -> Callable[..., Any]:
        responder = _RESPONDERS.get(name)
        if responder is None or not (self._greeted or name == commands.Hello.commandName):
            return super().locateResponder(b"\0")  # built-in commands like StartTLS are unknown here
        return super().locateResponder(name)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._keeper.borrowers.discard(self)
        for request in list(self._requests.values()):
            request.cancel()
        for pair in list(self._pairs.values()):
            self._end_pair(pair)
        super().connectionLost(reason)

    def _drop(self, why: str) -> None:
        self._log.warn(
            "the link with process {pid} of user {uid} is dropped: {why}", pid=self.pid, uid=self.uid, why=why
        )
        transport: Any = self.transport
        transport.abortConnection()

    # -- commands ----------------------------------------------------------------------------------------------

    @commands.Hello.responder
    def hello(self, version: int) -> dict[str, int]:
        if version != codec.VERSION:
            raise KeeperFault(f"the keeper speaks version {codec.VERSION} and the borrower {version}")
        self._greeted = True
        return {"version": codec.VERSION}

    @commands.Ping.responder
    def ping(self) -> dict[str, Any]:
        return {}

    @commands.Statistics.responder
    def statistics(self) -> Deferred[dict[str, bytes]]:
        counts: Deferred[dict[str, Any]] = self._keeper.cache.statistics()
        return counts.addCallback(lambda found: {"counts": json.dumps(found).encode("ascii")})

    @commands.Acquire.responder
    def acquire(self, number: int, destination: bytes, request: bytes) -> Deferred[dict[str, Any]]:
        if self._keeper.closing:
            raise KeeperFault("the keeper is closing")
        if len(self._requests) >= MAX_REQUESTS:
            raise KeeperFault(f"{MAX_REQUESTS} requests of this borrower wait already")
        if number in self._requests:
            raise KeeperFault(f"there is a request {number} already")
        try:
            where = self._keeper.destination(destination, self.uid)
            needs, fresh, avoid, timeout = codec.decode_request(request)
        except MalformedError as error:
            raise KeeperFault(str(error)) from error
        leasing = self._keeper.cache.acquire(where, needs=needs, fresh=fresh, avoid=avoid, timeout=timeout)
        self._requests[number] = leasing

        def settle(outcome: Any) -> Any:
            self._requests.pop(number, None)
            return outcome

        leasing.addBoth(settle)
        answer: Deferred[dict[str, Any]] = leasing.addCallbacks(self._grant, self._refuse)
        return answer

    @commands.Withdraw.responder
    def withdraw(self, number: int) -> dict[str, Any]:
        request = self._requests.get(number)
        if request is not None:
            request.cancel()
        return {}

    @commands.Release.responder
    def release(self, released: bytes) -> dict[str, Any]:
        try:
            self._released(Released.decode(released))
        except MalformedError as error:
            self._drop(str(error))
        return {}

    # -- leases ------------------------------------------------------------------------------------------------

    def _grant(self, lease: Lease) -> dict[str, Any]:
        if self._lost:
            lease.release()
            return {}
        session = lease.session
        pair = self._by_session.get(session)
        answer: dict[str, Any] = {}
        if pair is None:
            relay = Relay(self._pair_ended, self._intruded)
            try:
                descriptor = self._keeper.pairs.make(relay)
            except OSError as error:
                lease.release()
                raise KeeperFault(f"no pair could be made: {error}") from error
            pair = _Pair(self._next_pair, session, relay)
            self._next_pair += 1
            self._pairs[pair.number] = self._by_session[session] = pair
            answer["descriptor"] = descriptor
            answer["facts"] = codec.encode_facts(
                Facts(
                    session.id,
                    session.key.endpoint,
                    session.host,
                    session.capabilities,
                    session.evidence,
                    session.verdict.reason,
                    session.setup_seconds,
                )
            )
            pair.descriptor = descriptor
        pair.lease = lease
        pair.lease_number = self._next_lease
        self._next_lease += 1
        pair.relay.begin(session.connection, LEASE_SILENCE, SILENCE)
        answer["granted"] = Granted(pair.lease_number, pair.number, session.uses, session.rset_due).encode()
        return answer

    def _refuse(self, failure: Failure) -> dict[str, Any]:
        error = failure.value
        if isinstance(error, CancelledError):
            error = DeliveryError("the request was withdrawn", phase="waiting")
        if not isinstance(error, DeliveryError):
            self._log.failure("while a session was acquired", failure)
            raise KeeperFault("a defect in the keeper")
        return {"error": codec.encode_error(error)}

    def _released(self, released: Released) -> None:
        pair = self._pairs.get(released.pair)
        if pair is None or pair.lease is None or pair.lease_number != released.lease:
            return  # It was revoked meanwhile.
        lease, pair.lease = pair.lease, None
        self._close_descriptor(pair)
        session = pair.session
        clean = not released.discard and pair.relay.settled(released.sent, released.received)
        pair.relay.end()
        if clean:
            session.returned(released.uses, released.rset_due)
            lease.release()
        else:
            self._forget(pair)
            lease.discard()
            pair.relay.abort()

    def _pair_ended(self, relay: Relay) -> None:
        pair = self._pair_of(relay)
        if pair is not None:
            if pair.lease is None:
                self._forget(pair)
            else:
                self._keeper.reactor.callLater(END_PATIENCE, self._unexplained, pair, pair.lease_number)

    def _unexplained(self, pair: _Pair, lease_number: int) -> None:
        if pair.lease is not None and pair.lease_number == lease_number:
            self._end_pair(pair)

    def _intruded(self, relay: Relay) -> None:
        relay.abort()

    def _pair_of(self, relay: Relay) -> _Pair | None:
        for pair in self._pairs.values():
            if pair.relay is relay:
                return pair
        return None

    def _end_pair(self, pair: _Pair) -> None:
        """The borrower will not say how it leaves the session: it can't be kept."""
        self._forget(pair)
        lease, pair.lease = pair.lease, None
        pair.relay.end()
        pair.relay.abort()
        if lease is not None:
            lease.discard()

    def _forget(self, pair: _Pair) -> None:
        self._close_descriptor(pair)
        self._pairs.pop(pair.number, None)
        self._by_session.pop(pair.session, None)

    def _close_descriptor(self, pair: _Pair) -> None:
        descriptor, pair.descriptor = pair.descriptor, None
        if descriptor is not None:
            self._keeper.pairs.close(descriptor)

    def session_gone(self, session: Session) -> None:
        """The session has ended: so does its pair."""
        pair = self._by_session.get(session)
        if pair is not None:
            lease, pair.lease = pair.lease, None
            self._forget(pair)
            pair.relay.end()
            pair.relay.close()
            if lease is not None:
                lease.discard()


_RESPONDERS = {
    command.commandName: command
    for command in (
        commands.Hello,
        commands.Ping,
        commands.Acquire,
        commands.Withdraw,
        commands.Release,
        commands.Statistics,
    )
}


class Keeper(Factory):
    """What listens for borrowers and lends them the sessions of ``cache``.

    :param pairs: makes the pairs; ``None`` is socket pairs of ``reactor``.
    """

    noisy = False

    def __init__(self, reactor: Any, cache: MemorySessionCache, pairs: IPairs | None = None) -> None:
        self.reactor = reactor
        self.cache = cache
        self.pairs = pairs if pairs is not None else SocketPairs(reactor)
        self.closing = False
        self.borrowers: set[Borrower] = set()
        self._destinations: dict[tuple[bytes, int | None], Destination] = {}
        cache.watch(self._session_gone)

    def buildProtocol(self, addr: IAddress | None) -> Borrower:
        return Borrower(self)

    def destination(self, data: bytes, uid: int | None) -> Destination:
        """The destination in ``data``; the same bytes by the same user are parsed once in a while."""
        known = self._destinations.get((data, uid))
        if known is None:
            known = codec.decode_destination(data, uid)
            if len(self._destinations) >= MAX_DESTINATIONS:
                self._destinations.clear()
            self._destinations[(data, uid)] = known
        return known

    def identify(self, transport: Any) -> tuple[int | None, int | None]:
        """The process and the user at the other end of a UNIX socket (SO_PEERCRED), as far as the transport tells."""
        handle = transport.getHandle() if ISystemHandle.providedBy(transport) else None
        if not isinstance(handle, socket.socket):
            return None, None
        pid, uid, _ = _CREDENTIALS.unpack(handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return pid, uid

    def close(self) -> Deferred[None]:
        """Lend no more, let what is lent come back (with the cache's limit), and end the sessions and the links."""
        self.closing = True
        closed: Deferred[None] = self.cache.close()
        return closed.addCallback(lambda _: self._drop_links())

    def _drop_links(self) -> None:
        for borrower in list(self.borrowers):
            transport: Any = borrower.transport
            transport.loseConnection()

    def _session_gone(self, session: Session) -> None:
        for borrower in list(self.borrowers):
            borrower.session_gone(session)
