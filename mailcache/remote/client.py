"""The cache of a borrower: sessions of a keeper, with the same interface as the cache in memory."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.connection import Connection, Cut
from mailcache.destination import Destination, Endpoint, SessionKey
from mailcache.interfaces import IPairs, ISession, ISessionCache
from mailcache.lease import Lease
from mailcache.limits import Limits, Timeouts
from mailcache.memory import MemorySessionCache
from mailcache.message import NO_NEEDS, Needs
from mailcache.pool import closed_error
from mailcache.remote import codec, commands
from mailcache.remote.codec import Granted, MalformedError, Released
from mailcache.remote.pairs import SocketPairs
from mailcache.result import DeliveryError
from mailcache.session import Session
from mailcache.ticker import Ticker
from mailcache.trust.judge import Verdict

LINGER, LINGER_UNUSED = 0.05, 0.01
"""Seconds that a freed lease stays with its borrower: in all, and without use. They bound what others wait for it."""

PING_EVERY, PING_PATIENCE = 0.3, 1.0
"""Seconds between calls that show the keeper alive, and for their answer."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds until a keeper that was not there is looked for again: doubled each time, up to the second, and spread."""

TICK, LINGER_TICK = 0.1, 0.005
"""Seconds between looks at deadlines, and at what lingers while anything does."""

CLOSE_LIMIT = 30.0
"""Seconds that `close` gives transactions under way."""

MAX_ENCODED = 1_000
"""Destinations whose bytes are remembered."""

FALLBACK_LIMITS = Limits(sessions_per_destination=1, sessions_per_endpoint=1, idle_timeout=2, idle_timeout_mx=2)
"""What is kept while there is no keeper: little, so that many borrowers without one do not crowd a server."""

DEFAULT_FALLBACK: Any = object()


class BorrowedConnection(Connection):
    """A connection over a pair: it counts its bytes, as the keeper does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent = 0
        self.received = 0

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        super().dataReceived(data)

    def _send(self, data: bytes) -> None:
        self.sent += len(data)
        super()._send(data)


class _Borrowed:
    """A session of the keeper as this borrower knows it: its pair, and the lease of it, if one is held."""

    __slots__ = ("connection", "destination", "granted_at", "lease_number", "linger_until", "number", "session")

    def __init__(self, number: int, session: Session, connection: BorrowedConnection) -> None:
        self.number = number
        self.session = session
        self.connection = connection
        self.destination: Destination | None = None
        self.lease_number = 0
        self.granted_at = 0.0
        self.linger_until = 0.0


@attrs.define(eq=False)
class _Waiter:
    """Somebody who wants a session."""

    destination: Destination
    needs: Needs
    fresh: bool
    avoid: frozenset[Endpoint]
    patience: float
    granted: Deferred[ISession] = attrs.field(init=False)
    instead: Deferred[ISession] | None = None

    @property
    def particular(self) -> bool:
        """Whether not just any session of the destination will do."""
        return self.fresh or bool(self.avoid) or self.needs is not NO_NEEDS


class _Link(amp.AMP):
    """The borrower's end of the link with the keeper."""

    def __init__(self, on_lost: Callable[[_Link], None]) -> None:
        super().__init__()
        self._on_lost = on_lost

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._on_lost(self)


@implementer(ISessionCache)
class RemoteSessionCache:
    """Sessions of a keeper process, shared with all its borrowers.

    :param endpoint: where the keeper listens: "unix:/run/mailcache/mailcache.sock".
    :param timeouts: how long servers may take within a transaction.
    :param fallback: an `ISessionCache` for while there is no keeper; by default a cache in memory with one session
        for each destination, kept briefly. ``None`` is for where a provider's limit is strict: deliveries fail then.
    :param clock: gives monotonic seconds; ``None`` is `time.monotonic`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: str,
        *,
        timeouts: Timeouts | None = None,
        fallback: Any = DEFAULT_FALLBACK,
        wait_timeout: float = Limits().wait_timeout,
        pairs: IPairs | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.clock = reactor
        self._reactor = reactor
        self._endpoint = clientFromString(reactor, endpoint)
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._wait_timeout = wait_timeout
        self._pairs = pairs if pairs is not None else SocketPairs(reactor)
        self._now = clock if clock is not None else time.monotonic
        if fallback is DEFAULT_FALLBACK:
            fallback = MemorySessionCache(reactor, FALLBACK_LIMITS, self._timeouts, clock=clock)
        self._fallback = fallback
        self._fallbacks = 0
        self._hits = 0
        self._link: _Link | None = None
        self._connecting: Deferred[Any] | None = None
        self._pause = FIRST_PAUSE
        self._spread: Callable[[], float] = lambda: random.uniform(0.8, 1.2)  # noqa: S311  (no secret depends on it)
        self._not_before = 0.0
        self._ping_sent = 0.0
        self._pinging = False
        self._waiting: dict[Destination, deque[_Waiter]] = {}
        self._requests: dict[int, _Waiter | Destination] = {}
        self._next_request = 1
        self._borrowed: dict[int, _Borrowed] = {}
        self._leased: set[_Borrowed] = set()
        self._lingering: dict[_Borrowed, None] = {}
        self._connections: set[Connection] = set()
        self._encoded: dict[Destination, bytes] = {}
        self._ticker = Ticker(reactor, TICK, self._tick)
        self._linger_ticker = Ticker(reactor, LINGER_TICK, self._tick_lingering)
        self._closing = False
        self._close_deadline = 0.0
        self._closed: list[Deferred[None]] = []

    # -- ISessionCache -----------------------------------------------------------------------------------------

    def acquire(
        self,
        destination: Destination,
        *,
        needs: Needs = NO_NEEDS,
        fresh: bool = False,
        avoid: frozenset[Endpoint] = frozenset(),
        timeout: float | None = None,
    ) -> Deferred[ISession]:
        if not isinstance(destination, Destination):
            raise ValueError(f"destination: a Destination is wanted, not {type(destination).__name__}")
        patience = self._wait_timeout if timeout is None else timeout
        if patience < 0:
            raise ValueError(f"timeout: {timeout!r} is not a number of seconds of at least 0")
        waiter = _Waiter(destination, needs, fresh, avoid, patience)
        waiter.granted = Deferred(lambda _: self._withdraw(waiter))
        if self._closing:
            waiter.granted.errback(Failure(closed_error()))
            return waiter.granted
        for borrowed in self._lingering:
            if self._suits(borrowed, waiter):
                del self._lingering[borrowed]
                return succeed(self._lease(borrowed))
        self._ticker.start()
        self._queue(waiter)
        return waiter.granted

    def statistics(self) -> Deferred[dict[str, Any]]:
        if self._link is None:
            return self._own_counts({})
        asked: Deferred[dict[str, Any]] = self._link.callRemote(commands.Statistics)
        asked.addCallback(lambda answer: json.loads(answer["counts"]))
        return asked.addErrback(lambda _: {}).addCallback(self._own_counts)

    def _own_counts(self, keepers: dict[str, Any]) -> Any:
        own = {
            "leased": len(self._leased),
            "idle": 0,
            "opening": 0,
            "waiting": sum(map(len, self._waiting.values())),
            "hits": 0,
            "handshakes": 0,
            "misses": {},
            "evictions": {},
        }
        return succeed({**own, **keepers, "fallbacks": self._fallbacks})

    def close(self) -> Deferred[None]:
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        if not self._closing:
            self._closing = True
            self._close_deadline = self._now() + CLOSE_LIMIT
            self._ticker.start()
            for queue in list(self._waiting.values()):
                for waiter in list(queue):
                    self._dequeue(waiter)
                    waiter.granted.errback(Failure(closed_error()))
            self._withdraw_surplus()
            for borrowed in list(self._lingering):
                self._return(borrowed)
        self._check_closed()
        return closed

    # -- waiting -----------------------------------------------------------------------------------------------

    def _queue(self, waiter: _Waiter) -> None:
        if self._link is None and self._connecting is None and self._now() < self._not_before:
            self._fall_back(waiter)
            return
        queue = self._waiting.setdefault(waiter.destination, deque())
        if waiter.fresh:
            queue.insert(sum(other.fresh for other in queue), waiter)
        else:
            queue.append(waiter)
        if self._link is not None:
            self._ask(self._link, waiter)
        elif self._connecting is None:
            self._connect()

    def _dequeue(self, waiter: _Waiter) -> None:
        queue = self._waiting[waiter.destination]
        queue.remove(waiter)
        if not queue:
            del self._waiting[waiter.destination]

    def _is_queued(self, waiter: _Waiter) -> bool:
        return waiter in self._waiting.get(waiter.destination, ())

    def _withdraw(self, waiter: _Waiter) -> None:
        """The caller has cancelled."""
        if waiter.instead is not None:
            waiter.instead.cancel()
        elif self._is_queued(waiter):
            self._dequeue(waiter)
            self._withdraw_surplus()

    def _withdraw_surplus(self) -> None:
        """Take back the requests that nobody waits for any more."""
        if self._link is None:
            return
        plain: Counter[Destination] = Counter()
        for destination, queue in self._waiting.items():
            plain[destination] = sum(not waiter.particular for waiter in queue)
        for number, subject in list(self._requests.items()):
            if isinstance(subject, _Waiter):
                wanted = self._is_queued(subject)
            else:
                wanted = plain[subject] > 0
                plain[subject] -= 1
            if not wanted:
                self._link.callRemote(commands.Withdraw, number=number)

    def _fall_back(self, waiter: _Waiter) -> None:
        if self._fallback is None:
            error = DeliveryError("the keeper can't be reached, and there is no fallback", phase="waiting")
            waiter.granted.errback(Failure(error))
            return
        self._fallbacks += 1
        self._log.warn("no keeper: a session with {destination} is had without it", destination=str(waiter.destination))
        instead = self._fallback.acquire(
            waiter.destination, needs=waiter.needs, fresh=waiter.fresh, avoid=waiter.avoid, timeout=waiter.patience
        )
        waiter.instead = instead
        instead.addCallbacks(waiter.granted.callback, waiter.granted.errback)

    # -- requests ----------------------------------------------------------------------------------------------

    def _ask(self, link: _Link, waiter: _Waiter) -> None:
        """See that there is a request for ``waiter``; those for just any session are counted, not tied to waiters."""
        destination = waiter.destination
        if not waiter.particular:
            waiting = sum(not other.particular for other in self._waiting[destination])
            if sum(subject == destination for subject in self._requests.values()) >= waiting:
                return
        number = self._next_request
        self._next_request += 1
        try:
            data = self._encode(destination)
        except DeliveryError as error:
            self._log.warn("{error}", error=str(error))
            self._dequeue(waiter)
            self._fall_back(waiter)
            return
        self._requests[number] = waiter if waiter.particular else destination
        request = codec.encode_request(waiter.needs, waiter.fresh, waiter.avoid, waiter.patience)
        asked = link.callRemote(commands.Acquire, number=number, destination=data, request=request)
        asked.addCallbacks(self._answered, self._faulted, (link, number), None, (link, number))
        asked.addErrback(lambda failure: self._log.failure("a defect in mailcache", failure))

    def _encode(self, destination: Destination) -> bytes:
        data = self._encoded.get(destination)
        if data is None:
            if len(self._encoded) >= MAX_ENCODED:
                self._encoded.clear()
            data = self._encoded[destination] = codec.encode_destination(destination)
        return data

    def _asker(self, subject: _Waiter | Destination) -> _Waiter | None:
        """Who is to hear the answer to a request: its own waiter, or the first for whom just any session will do."""
        if isinstance(subject, _Waiter):
            return subject if self._is_queued(subject) else None
        return next((waiter for waiter in self._waiting.get(subject, ()) if not waiter.particular), None)

    def _answered(self, answer: dict[str, Any], link: _Link, number: int) -> None:
        subject = self._requests.pop(number, None)
        if subject is None:
            return
        try:
            if answer.get("error") is not None:
                self._refused(subject, codec.decode_error(answer["error"]))
            elif answer.get("granted") is not None:
                self._granted(subject, answer)
            else:
                raise MalformedError("an answer without a grant or an error")
        except MalformedError as error:
            self._log.error("the keeper is not understood: {error}", error=str(error))
            self._requests[number] = subject
            transport: Any = link.transport
            transport.abortConnection()
        self._check_closed()

    def _refused(self, subject: _Waiter | Destination, error: DeliveryError) -> None:
        waiter = self._asker(subject)
        if waiter is not None:
            self._dequeue(waiter)
            waiter.granted.errback(Failure(error))

    def _granted(self, subject: _Waiter | Destination, answer: dict[str, Any]) -> None:
        destination = subject.destination if isinstance(subject, _Waiter) else subject
        borrowed = self._borrow(answer, destination)
        if borrowed is not None:
            self._offer(borrowed)

    def _faulted(self, failure: Failure, link: _Link, number: int) -> None:
        """The keeper is gone, or can't for a reason of its own: never the caller's affair."""
        subject = self._requests.pop(number, None)
        if subject is None:
            return
        if failure.check(commands.KeeperFault):
            self._log.warn("the keeper could not lend a session: {why}", why=failure.getErrorMessage())
        waiter = self._asker(subject)
        if waiter is not None and not self._closing:
            self._dequeue(waiter)
            self._fall_back(waiter)
        self._check_closed()

    # -- borrowed sessions ---------------------------------------------------------------------------------------

    def _borrow(self, answer: dict[str, Any], destination: Destination) -> _Borrowed | None:
        granted = Granted.decode(answer["granted"])
        descriptor = answer.get("descriptor")
        if descriptor is not None:
            facts = codec.decode_facts(answer["facts"])
            borrowed = self._meet(granted.pair, descriptor, facts, destination)
        else:
            known = self._borrowed.get(granted.pair)
            if known is None or known.connection.ended:
                self._send_release(Released(granted.lease, granted.pair, 0, 0, granted.uses, False, True))
                return None
            borrowed = known
        borrowed.destination = destination
        borrowed.lease_number = granted.lease
        borrowed.granted_at = self._now()
        borrowed.session.uses = granted.uses
        borrowed.session.rset_due = granted.rset_due
        borrowed.connection.sent = borrowed.connection.received = 0
        self._leased.add(borrowed)
        return borrowed

    def _meet(self, number: int, descriptor: int, facts: codec.Facts, destination: Destination) -> _Borrowed:
        """A session that was not borrowed before."""
        connection = BorrowedConnection(None, self._now, self._connection_gone)
        session = Session(
            connection,
            identifier=facts.identifier,
            key=SessionKey(facts.endpoint, destination.identity, destination.tls_class),
            host=facts.host,
            capabilities=facts.capabilities,
            evidence=facts.evidence,
            verdict=Verdict(True, facts.verdict),
            timeouts=self._timeouts,
            setup_seconds=facts.setup_seconds,
        )
        borrowed = self._borrowed[number] = _Borrowed(number, session, connection)
        session.on_cut = lambda cut: self._ended(borrowed, cut)
        self._connections.add(connection)
        self._pairs.adopt(descriptor, connection)
        return borrowed

    def _suits(self, borrowed: _Borrowed, waiter: _Waiter) -> bool:
        session = borrowed.session
        return (
            borrowed.destination == waiter.destination
            and not (waiter.fresh and session.uses)
            and session.key.endpoint not in waiter.avoid
            and waiter.needs.unmet_by(session.capabilities) is None
        )

    def _offer(self, borrowed: _Borrowed) -> None:
        """Give the session to whoever waits for it here, or back."""
        assert borrowed.destination is not None
        for waiter in self._waiting.get(borrowed.destination, ()):
            if self._suits(borrowed, waiter):
                self._dequeue(waiter)
                waiter.granted.callback(self._lease(borrowed))
                return
        self._return(borrowed)

    def _lease(self, borrowed: _Borrowed) -> Lease:
        if borrowed.session.uses:
            self._hits += 1
        return Lease(self, borrowed, borrowed.session)

    def released(self, borrowed: _Borrowed, session: Session) -> None:
        """A lease has ended; see `mailcache.lease.Owner`."""
        if session.busy or not session.reusable:
            self.discarded(borrowed, session)
            return
        now = self._now()
        if self._closing or now - borrowed.granted_at >= LINGER:
            self._return(borrowed)
            return
        for waiter in self._waiting.get(borrowed.destination, ()):  # type: ignore[arg-type]
            if self._suits(borrowed, waiter):
                self._dequeue(waiter)
                waiter.granted.callback(self._lease(borrowed))
                return
        borrowed.linger_until = min(borrowed.granted_at + LINGER, now + LINGER_UNUSED)
        self._lingering[borrowed] = None
        self._linger_ticker.start()

    def discarded(self, borrowed: _Borrowed, session: Session) -> None:
        """A lease has ended, and the session with it."""
        if session.busy:
            session.abandon()
        self._return(borrowed, discard=True)

    def _return(self, borrowed: _Borrowed, *, discard: bool = False) -> None:
        self._lingering.pop(borrowed, None)
        if borrowed not in self._leased:
            return
        self._leased.discard(borrowed)
        session = borrowed.session
        connection = borrowed.connection
        self._send_release(
            Released(
                borrowed.lease_number,
                borrowed.number,
                connection.sent,
                connection.received,
                session.uses,
                session.rset_due,
                discard or connection.ended,
            )
        )
        if discard:
            connection.cut("aborted", "the session was given up")
        self._check_closed()

    def _send_release(self, released: Released) -> None:
        if self._link is not None:
            self._link.callRemote(commands.Release, released=released.encode())

    def _ended(self, borrowed: _Borrowed, cut: Cut) -> None:
        """The session has ended while no transaction was under way."""
        if borrowed in self._lingering:
            self._return(borrowed, discard=True)

    def _connection_gone(self, connection: Connection) -> None:
        self._connections.discard(connection)
        for number, borrowed in list(self._borrowed.items()):
            if borrowed.connection is connection:
                del self._borrowed[number]
        self._check_closed()

    # -- the link ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        link = _Link(self._link_lost)
        connecting = connectProtocol(self._endpoint, link)
        connecting.addCallback(lambda _: link.callRemote(commands.Hello, version=codec.VERSION))
        connecting.addTimeout(PING_PATIENCE, self._reactor)
        self._connecting = connecting
        connecting.addCallbacks(self._linked, self._not_linked, (link,), None, (link,))
        connecting.addErrback(lambda failure: self._log.failure("a defect in mailcache", failure))

    def _linked(self, _answer: object, link: _Link) -> None:
        self._connecting = None
        self._link = link
        self._pause = FIRST_PAUSE
        self._ping_sent = self._now()
        self._pinging = False
        if self._closing:
            self._check_closed()
            return
        for queue in list(self._waiting.values()):
            for waiter in list(queue):
                if self._is_queued(waiter):
                    self._ask(link, waiter)

    def _not_linked(self, failure: Failure, link: _Link) -> None:
        self._connecting = None
        self._log.warn("no keeper: {why}", why=failure.getErrorMessage())
        if link.transport is not None:
            transport: Any = link.transport
            transport.abortConnection()
        self._without_keeper()

    def _link_lost(self, link: _Link) -> None:
        if link is self._link:
            self._link = None
            for borrowed in list(self._borrowed.values()):
                borrowed.connection.cut("keeper", "the keeper is gone")
            self._leased.clear()
            self._lingering.clear()
            if not self._closing:
                self._log.warn("the link with the keeper was lost")
            self._without_keeper()

    def _without_keeper(self) -> None:
        """Whoever waits is served without it; it is looked for again after a while."""
        self._not_before = self._now() + self._pause * self._spread()
        self._pause = min(LONGEST_PAUSE, self._pause * 2)
        self._requests.clear()
        for queue in list(self._waiting.values()):
            for waiter in list(queue):
                self._dequeue(waiter)
                self._fall_back(waiter)
        self._check_closed()

    def _tick(self) -> bool:
        now = self._now()
        for connection in list(self._connections):
            if connection.deadline <= now:
                connection.expire()
        self._ping(now)
        if self._closing and self._close_deadline <= now:
            for borrowed in list(self._leased):
                self.discarded(borrowed, borrowed.session)
        return bool(self._leased or self._requests or self._waiting or self._connections or self._pinging)

    def _ping(self, now: float) -> None:
        link = self._link
        if link is None:
            return
        if self._pinging:
            if now - self._ping_sent >= PING_PATIENCE:
                self._log.warn("the keeper does not answer")
                transport: Any = link.transport
                transport.abortConnection()
        elif (self._leased or self._requests) and now - self._ping_sent >= PING_EVERY:
            self._pinging = True
            self._ping_sent = now
            link.callRemote(commands.Ping).addBoth(self._ponged)

    def _ponged(self, _outcome: object) -> None:
        self._pinging = False

    def _tick_lingering(self) -> bool:
        now = self._now()
        for borrowed in list(self._lingering):
            if borrowed.linger_until <= now:
                self._return(borrowed)
        return bool(self._lingering)

    def _check_closed(self) -> None:
        if not self._closed or self._leased or self._connecting is not None:
            return
        link = self._link
        if link is not None:
            transport: Any = link.transport
            transport.loseConnection()
            return
        if self._connections:
            return
        waiting, self._closed = self._closed, []
        self._ticker.stop()
        ended: Deferred[Any] = self._fallback.close() if self._fallback is not None else succeed(None)

        def tell(_: object) -> None:
            for closed in waiting:
                closed.callback(None)

        ended.addBoth(tell)
