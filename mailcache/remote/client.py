"""The cache of a borrower: sessions of a keeper, with the same interface as the cache in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.choosing import MAX_ADDRESSES
from mailcache.destination import Destination, Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.interfaces import IPairs, ISession, ISessionCache
from mailcache.lease import Lease
from mailcache.limits import Limits, Timeouts, patience
from mailcache.memory import MemorySessionCache
from mailcache.pool import closed_error
from mailcache.remote import codec, commands
from mailcache.remote.adopted import Adopted
from mailcache.remote.asking import Asked, Waiter, Waiting
from mailcache.remote.borrowed import LINGER, Borrowed
from mailcache.remote.calling import PING_PATIENCE, Wire
from mailcache.remote.codec import MalformedError
from mailcache.remote.counts import total
from mailcache.remote.fallback import FALLBACK_LIMITS, Fallback
from mailcache.remote.lingering import Lingering
from mailcache.remote.link import Link
from mailcache.remote.packed import Granted, Released
from mailcache.remote.pairs import SocketPairs
from mailcache.remote.requesting import Requests
from mailcache.routing.hosts import LOOKUP_LIMIT
from mailcache.session import Session
from mailcache.ticker import Ticker
from mailcache.tokens import Tokens

TICK, LINGER_TICK = 0.1, 0.005
"""Seconds between looks at deadlines, and at what lingers while anything does."""

CLOSE_LIMIT = 30.0
"""Seconds that `close` gives transactions under way."""

MAX_ENDPOINTS = 1_000
"""Destinations of which it is remembered where their last session went."""

MAX_USELESS_GRANTS = 1_000
"""Grants in a row of pairs that have ended, or of what nobody has asked for: as many as may be on their way at a time.
A keeper that goes on so is none."""

DEFAULT_FALLBACK: Any = object()


@implementer(ISessionCache)
class RemoteSessionCache:
    """Sessions of a keeper process, shared with all its borrowers.

    :param endpoint: where the keeper listens: "unix:/run/mailcache/mailcache.sock".
    :param timeouts: how long servers may take within a transaction. A keeper must have answered when five servers in a
        row, as many as are tried for one request, could have taken all the time that these allow; then the fallback
        serves.
    :param fallback: an `ISessionCache` for while there is no keeper; by default a cache in memory with one session
        for each destination, kept briefly. ``None`` is for where a provider's limit is strict: deliveries fail then.
    :param wait_timeout: seconds to wait for a place where limits leave none.
    :param linger: seconds that a freed lease may stay here for the next message, which bounds what others wait for it.
    :param pairs: adopts the pairs; ``None`` is socket pairs of ``reactor``.
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
        linger: float = LINGER,
        pairs: IPairs | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if timeouts is not None and not isinstance(timeouts, Timeouts):
            raise ValueError(f"timeouts: a Timeouts object is wanted, not {type(timeouts).__name__}")
        self.clock = reactor
        self._reactor = reactor
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._wait_timeout = wait_timeout
        self._linger = linger
        self._pairs = pairs if pairs is not None else SocketPairs(reactor)
        self._now = clock if clock is not None else time.monotonic
        if fallback is DEFAULT_FALLBACK:
            fallback = MemorySessionCache(reactor, FALLBACK_LIMITS, self._timeouts, clock=clock)
        self._fallback = Fallback(fallback)
        self._handed_on = 0
        self._useless_grants = 0
        self._link = Link(reactor, endpoint, self._pairs, self._now, self._linked, self._lost, self._retired)
        self._tokens = Tokens(reactor, self._timeouts.auth)
        self._waiting = Waiting()
        self._requests = Requests(
            self._link, self._waiting, self._pairs, self._now, self._granted, self._fall_back, self._check_closed
        )
        self._adopted = Adopted(
            self._pairs, self._timeouts, self._now, self._cut, lambda _borrowed: self._check_closed()
        )
        self._leased: set[Borrowed] = set()
        self._lingering = Lingering()
        self._endpoints: dict[Destination, Endpoint] = {}
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
        waits = patience(timeout, self._wait_timeout)
        if destination.lineage is not None and destination.supplied and not self._closing:
            # New tokens are noticed by the keeper, which knows nothing of suppliers.
            again = partial(self.acquire, needs=needs, fresh=fresh, avoid=avoid, timeout=timeout)
            return self._tokens.with_token(destination, again)
        deadline = self._now() + waits
        # Behind each server that can't be had he may wait for a place again.
        answer_by = deadline + LOOKUP_LIMIT + MAX_ADDRESSES * (self._timeouts.opening + waits)
        waiter = Waiter(destination, needs, fresh, avoid, waits, deadline, answer_by)
        waiter.granted = Deferred(lambda _: self._cancelled(waiter))
        if self._closing:
            waiter.granted.errback(Failure(closed_error()))
            return waiter.granted
        lingering = self._lingering.take(waiter)
        if lingering is not None:
            self._handed_on += lingering.session.uses > 0
            return succeed(Lease(self, lingering, lingering.session))
        for borrowed in self._lingering.in_the_way(waiter.destination, self._endpoints.get(destination)):
            self._return(borrowed)
        if not self._link.want():
            self._fall_back(waiter)
            return waiter.granted
        self._ticker.start()
        queue = self._waiting.add(waiter)
        if self._link.up:
            self._requests.ask(queue)
        return waiter.granted

    def statistics(self) -> Deferred[dict[str, Any]]:
        """The keeper's counts with this borrower's: sessions handed on here, and those of the fallback, are in them."""
        nothing: dict[str, Any] = {}
        parts: list[Deferred[dict[str, Any]]] = []
        if self._link.up:
            keepers = self._link.call(commands.Statistics).addTimeout(PING_PATIENCE, self._reactor)
            keepers.addCallback(lambda answer: codec.decode_counts(answer["counts"]))
            parts.append(keepers.addErrback(lambda _: nothing))
        return gatherResults(parts + self._fallback.statistics()).addCallback(self._sum)

    def _sum(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        # What lingers is leased, as the keeper knows, and nobody uses it; who has not asked yet it does not know, nor
        # what a keeper before it has lent.
        lingering = len(self._lingering) if self._link.up else 0
        elsewhere = sum(borrowed.wire.retiring for borrowed in self._leased)
        return total(
            {
                "leased": elsewhere - lingering,
                "idle": lingering,
                "opening": 0,
                "waiting": 0 if self._link.up else len(self._waiting),
                "hits": self._handed_on,
                "handshakes": 0,
                "fallbacks": self._fallback.served,
                "misses": {},
                "evictions": {},
            },
            parts,
        )

    def close(self) -> Deferred[None]:
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        if not self._closing:
            self._closing = True
            self._tokens.close(closed_error())
            self._close_deadline = self._now() + CLOSE_LIMIT
            self._ticker.start()
            waiters = self._waiting.waiters()
            for waiter in waiters:
                self._waiting.remove(waiter)
            self._requests.withdraw_surplus()
            for borrowed in self._lingering.all():
                self._return(borrowed)
            for waiter in waiters:
                # Who has heard of it may have cancelled others.
                if waiter.instead is None and not waiter.granted.called:
                    waiter.granted.errback(Failure(closed_error()))
        self._check_closed()
        return closed

    # -- waiting -----------------------------------------------------------------------------------------------

    def _cancelled(self, waiter: Waiter) -> None:
        if waiter.instead is not None:
            waiter.instead.cancel()
        elif self._waiting.remove(waiter):
            self._requests.withdraw_surplus()

    def _fall_back(self, waiter: Waiter) -> None:
        self._fallback.serve(waiter, self._now())

    # -- leases ------------------------------------------------------------------------------------------------

    def _granted(self, asked: Asked, grant: Granted, answer: dict[str, Any]) -> None:
        self._link.lent()
        descriptor = answer.pop("descriptor", None)
        if descriptor is not None:
            wire = self._link.wire
            assert wire is not None
            borrowed = self._adopted.meet(wire, grant.pair, descriptor, answer.get("facts"), asked.destination)
        else:
            borrowed = self._adopted.numbered(grant.pair)
        if borrowed is None or borrowed.connection.ended:
            # It has ended while the grant was on its way.
            self._link.tell(commands.Release, released=Released(grant.lease, grant.pair, 0, 0, True).encode())
            self._count_useless()
            return
        borrowed.granted(grant, asked.destination, self._now())
        borrowed.session.reused = grant.uses > 0 or answer.get("kept") is not None
        if len(self._endpoints) >= MAX_ENDPOINTS and asked.destination not in self._endpoints:
            self._endpoints.clear()
        self._endpoints[asked.destination] = borrowed.session.key.endpoint
        self._leased.add(borrowed)
        waiter = asked.waiter
        # Only a fresh one is for him alone who has asked for it: of others whoever has waited longest has the first.
        if waiter is not None and waiter.fresh and waiter.suits(borrowed) and self._waiting.remove(waiter):
            self._useless_grants = 0
            waiter.granted.callback(Lease(self, borrowed, borrowed.session))
        elif self._offer(borrowed):
            self._useless_grants = 0
        else:
            self._return(borrowed)
            if self._waiting.asker(asked) is not None:
                self._count_useless()

    def _count_useless(self) -> None:
        """A grant has served nobody, and whoever waits asks again.

        :raises MalformedError: if there is no end of such.
        """
        self._useless_grants += 1
        if self._useless_grants > MAX_USELESS_GRANTS:
            raise MalformedError("grants that are of no use")

    def _offer(self, borrowed: Borrowed) -> bool:
        """Give the session to whoever waits for it here."""
        queue = self._waiting.queue(borrowed.destination)
        for waiter in queue.waiters if queue is not None else ():
            if waiter.takes(borrowed):
                self._waiting.remove(waiter)
                waiter.granted.callback(Lease(self, borrowed, borrowed.session))
                return True
        return False

    def released(self, borrowed: Borrowed, session: Session) -> None:
        """See `mailcache.lease.Owner`."""
        if session.busy or not session.reusable:
            self.discarded(borrowed, session)
            return
        session.reused = True
        now = self._now()
        stays = borrowed in self._leased and not borrowed.wire.retiring and borrowed.may_stay(now, self._linger)
        if self._closing or not stays:
            self._return(borrowed)
            return
        handed_on = self._handed_on
        self._handed_on += session.uses > 0
        if self._offer(borrowed):
            self._linger_ticker.start()
            return
        self._handed_on = handed_on
        borrowed.linger(now, self._linger)
        self._lingering.add(borrowed)
        self._linger_ticker.start()

    def discarded(self, borrowed: Borrowed, session: Session) -> None:
        """See `mailcache.lease.Owner`."""
        if session.busy:
            session.abandon()
        self._return(borrowed, discard=True)

    def _return(self, borrowed: Borrowed, *, discard: bool = False) -> None:
        self._lingering.remove(borrowed)
        if borrowed not in self._leased:
            return
        self._leased.discard(borrowed)
        borrowed.wire.tell(commands.Release, released=borrowed.release(discard).encode())
        self._leave(borrowed.wire)
        if discard:
            borrowed.connection.cut("aborted", "the session was given up")
        self._check_closed()

    def _leave(self, wire: Wire) -> None:
        """The last lease of a keeper that retires may have ended."""
        if wire.retiring and not any(borrowed.wire is wire for borrowed in self._leased):
            self._link.leave(wire)

    def _cut(self, borrowed: Borrowed) -> None:
        """The session has ended while no transaction was under way."""
        if borrowed in self._lingering:
            self._return(borrowed, discard=True)

    # -- the link ----------------------------------------------------------------------------------------------

    def _linked(self) -> None:
        if self._closing:
            self._check_closed()
            return
        self._requests.ask_for_all()

    def _retired(self, wire: Wire) -> None:
        """The keeper lends no more: who waits is served by another, which may listen already."""
        self._waiting.forget_requests()
        self._adopted.forget_numbers()
        for borrowed in self._lingering.all():
            self._return(borrowed)
        self._leave(wire)
        self._ticker.start()
        if self._waiting and not self._link.want():
            self._do_without()
        self._check_closed()

    def _lost(self, wire: Wire | None) -> None:
        """The leases over ``wire`` are cut. If it was that of the keeper which lends, or none could be made, whoever
        waits is served without it; it is looked for again after a while."""
        lent = self._adopted.over(wire) if wire is not None else []
        for borrowed in [each for each in self._leased if each.wire is wire]:
            self._leased.discard(borrowed)
            self._lingering.remove(borrowed)
        former = wire is not None and wire.retiring
        if not former:
            self._waiting.forget_requests()
            self._adopted.forget_numbers()
        for borrowed in lent:
            borrowed.connection.cut("keeper", "the keeper is gone")
        if not former:
            self._do_without()
        self._check_closed()

    def _do_without(self) -> None:
        for waiter in self._waiting.waiters():
            if self._waiting.remove(waiter):
                self._fall_back(waiter)

    # -- time and end ------------------------------------------------------------------------------------------

    def _tick(self) -> bool:
        now = self._now()
        for borrowed in list(self._leased):
            if borrowed.connection.deadline <= now:
                borrowed.connection.expire()
        self._give_up_waiting(now)
        busy = bool(self._leased) or len(self._waiting) > 0
        self._link.tick(now, busy)
        if self._closing and self._close_deadline <= now:
            for borrowed in list(self._leased):
                self.discarded(borrowed, borrowed.session)
        return busy or self._link.pinging or self._link.leaving or self._closing

    def _give_up_waiting(self, now: float) -> None:
        """A keeper that lives and has never answered has lost sight of who waits."""
        late = [waiter for waiter in self._waiting.waiters() if waiter.answer_by <= now]
        if not late:
            return
        self._requests.withdraw_lost()
        for waiter in late:
            if self._waiting.remove(waiter):
                self._log.error("the keeper has not answered for a session with {to}", to=str(waiter.destination))
                # It was no limit that he has waited for.
                waiter.deadline = now + waiter.patience
                self._fall_back(waiter)
        if self._link.up:
            self._requests.ask_for_all()

    def _tick_lingering(self) -> bool:
        for borrowed in self._lingering.due(self._now()):
            self._return(borrowed)
        self._requests.withdraw_surplus()
        return bool(self._lingering)

    def _check_closed(self) -> None:
        if not self._closed or self._leased:
            return
        if self._link.up:
            self._link.close()
        elif self._link.down and not self._link.leaving and not self._adopted:
            waiting, self._closed = self._closed, []
            self._ticker.stop()
            self._linger_ticker.stop()

            def tell(_: object) -> None:
                for closed in waiting:
                    closed.callback(None)

            self._fallback.close().addBoth(tell)
