"""The cache in memory: the pool's decisions carried out, on a reactor and a clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.accounts import Account, Whose
from mailcache.connection import Connection, Cut
from mailcache.destination import Destination, Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.interfaces import IRouter, ISession, ISessionCache
from mailcache.lease import Lease
from mailcache.limits import Limits, Timeouts, patience
from mailcache.members import IDLE, LEASED, NEVER, OPENING, Action, Close, Fail, Grant, Member, Open, Request
from mailcache.opening import Opener, Proxy
from mailcache.pool import Pool, closed_error
from mailcache.result import DeliveryError
from mailcache.routing.hosts import HostRouter
from mailcache.routing.route import Route
from mailcache.session import Session
from mailcache.ticker import Ticker, interval_for
from mailcache.tokens import Tokens
from mailcache.trust.evidence import CLEAR

CLOSE_LIMIT = 30.0
"""Seconds that `close` gives transactions under way before it aborts them: what supervisors allow before they kill."""


@implementer(ISessionCache)
class MemorySessionCache:
    """Sessions kept in this process.

    :param reactor: provides TCP and UNIX connections, time and name resolution.
    :param limits: how much is kept, and how long.
    :param timeouts: how long peers may take.
    :param router: an `IRouter`; ``None`` finds hosts by their addresses.
    :param clock: gives monotonic seconds; ``None`` is `time.monotonic`. With a `task.Clock` as the reactor, give its
        ``seconds``.
    :param proxies: for each name that destinations may give as their proxy, a callable that takes a host, a name or an
        address, and a port, and gives the `IStreamClientEndpoint` which connects there by way of the proxy.
    :raises ValueError: if ``limits``, ``timeouts`` or ``proxies`` are of another type.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        router: Any = None,
        *,
        clock: Callable[[], float] | None = None,
        proxies: Mapping[str, Proxy] | None = None,
    ) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise ValueError(f"limits: a Limits object is wanted, not {type(limits).__name__}")
        if timeouts is not None and not isinstance(timeouts, Timeouts):
            raise ValueError(f"timeouts: a Timeouts object is wanted, not {type(timeouts).__name__}")
        proxies = proxies if proxies is not None else {}
        if not isinstance(proxies, Mapping) or not all(map(callable, proxies.values())):
            raise ValueError("proxies: callables by name are wanted, each of which takes a host and a port")
        self.clock = reactor
        self._now = clock if clock is not None else time.monotonic
        self._limits = limits if limits is not None else Limits()
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._router = IRouter(router) if router is not None else HostRouter(reactor)
        self._pool = Pool(self._limits, time.time)
        self._opener = Opener(reactor, self._timeouts, self._now, time.time, self._connection_gone, proxies)
        self._ticker = Ticker(reactor, interval_for(self._limits, self._timeouts), self._tick)
        self._tokens = Tokens(reactor, self._timeouts.auth)
        self._timeouts_of: Callable[[Destination], Timeouts] | None = None
        self._connections: dict[Connection, Member] = {}
        # Those that may have a deadline. Idle ones have none and leave this with the next tick, which costs nothing
        # for them then, however many there are.
        self._working: dict[Connection, Member] = {}
        self._openings: dict[Member, Deferred[Session]] = {}
        self._lookups: dict[Destination, Deferred[Route]] = {}
        self._granted: dict[Request, Deferred[ISession]] = {}
        self._observe = self._log.observer
        self._todo: deque[Action] = deque()
        self._carrying_out = False
        self._watchers: list[Callable[[Session], None]] = []
        self._handshakes = 0
        self._close_deadline: float | None = None
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
        if destination.lineage is not None:
            if destination.supplied and not self._pool.closed:
                patience(timeout, self._limits.wait_timeout)
                again = partial(self.acquire, needs=needs, fresh=fresh, avoid=avoid, timeout=timeout)
                return self._tokens.with_token(destination, again)
            for older in self._tokens.superseded(destination):
                self._carry_out(self._pool.retire(older))
        now = self._now()
        pool = self._pool
        member = None if fresh else pool.take(destination, needs, avoid, now)
        if member is not None:
            return succeed(self._lease(member, now))
        request = Request(destination, needs, fresh, avoid, patience(timeout, self._limits.wait_timeout))
        granted: Deferred[ISession] = Deferred(lambda _: self._cancelled(request))
        self._granted[request] = granted
        self._ticker.start()
        self._carry_out(pool.request(request, now))
        return granted

    def statistics(self) -> Deferred[dict[str, Any]]:
        pool = self._pool
        total = pool.accounts.total()
        return succeed(
            {
                "leased": pool.count(LEASED),
                "idle": pool.count(IDLE),
                "opening": pool.count(OPENING),
                "waiting": pool.waiting,
                "hits": pool.hits,
                "handshakes": self._handshakes,
                "fallbacks": 0,
                "misses": dict(pool.misses),
                "evictions": dict(pool.evictions),
                "transactions": total.transactions,
                "saved_handshakes": total.saved_handshakes,
                "saved_seconds": total.saved_seconds,
            }
        )

    def accounts(self) -> list[tuple[Whose, Account]]:
        """What keeping sessions has saved, by destination; for as many of these as there is room."""
        return self._pool.accounts.rows()

    def interval(self) -> dict[str, int]:
        """What has happened since this was asked the last time; see `mailcache.pool.Pool.interval`."""
        return self._pool.interval()

    def close(self, limit: float = CLOSE_LIMIT) -> Deferred[None]:
        """See `mailcache.interfaces.ISessionCache`.

        :param limit: seconds that transactions under way have; then they are aborted. A later call can shorten it.
        """
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        deadline = self._now() + limit
        if self._close_deadline is None or deadline < self._close_deadline:
            self._close_deadline = deadline
        if not self._pool.closed:
            self._ticker.start()
            self._carry_out(self._pool.close())
            self._tokens.close(closed_error())
            for lookup in list(self._lookups.values()):
                lookup.cancel()
        self._check_closed()
        return closed

    def watch(self, session_gone: Callable[[Session], None]) -> None:
        """Have ``session_gone`` called with each session whose socket is closed."""
        self._watchers.append(session_gone)

    # -- configuration -----------------------------------------------------------------------------------------

    def reconfigure(
        self,
        limits: Limits,
        timeouts: Timeouts,
        limits_of: Callable[[Destination], Limits] | None = None,
        timeouts_of: Callable[[Destination], Timeouts] | None = None,
        interval: float | None = None,
    ) -> None:
        """Have other limits from now on. What is open stays as it is: see `retire`.

        :param limits_of: gives the limits of a destination: how many sessions it may have, and how they are kept.
        :param timeouts_of: gives the time limits of sessions that are opened for a destination.
        :param interval: seconds between looks at what is late; ``None`` follows from ``limits`` and ``timeouts``.
        """
        self._limits = limits
        self._timeouts = timeouts
        self._timeouts_of = timeouts_of
        self._opener = attrs.evolve(self._opener, timeouts=timeouts)
        self._ticker.stop()
        self._ticker = Ticker(self.clock, interval or interval_for(limits, timeouts), self._tick)
        if not self._pool.empty or self._connections:
            self._ticker.start()
        self._carry_out(self._pool.reconfigure(limits, limits_of, self._now()))

    def retire(self, outdated: Callable[[Destination], bool], reason: str) -> None:
        """End the sessions of those destinations: idle ones now, the others when they are released.

        :param reason: what they are counted under, as evictions.
        """
        self._carry_out(self._pool.retire_all(lambda member: outdated(member.destination), reason))

    # -- leases ------------------------------------------------------------------------------------------------

    def _lease(self, member: Member, now: float) -> Lease:
        session = member.session
        assert isinstance(session, Session)
        connection = session.connection
        # One that was lost a moment ago has no deadline any more.
        if connection in self._connections:
            self._working[connection] = member
        if session.uses and session.evidence is not CLEAR:
            self._log_reuse(member, session, now)
        return Lease(self, member, session)

    def _log_reuse(self, member: Member, session: Session, now: float) -> None:
        """What its TLS has shown serves again; in clear text there is nothing to tell."""
        # What `Logger.info` would do, without building again for each message what is the same for all of them.
        event = session.log_facts.copy()
        event["use"] = session.uses + 1
        event["age"] = now - member.opened_at
        event["verdict"] = member.verdict.reason
        event["log_time"] = time.time()
        self._observe(event)

    def released(self, member: Member, session: Session) -> None:
        """See `mailcache.lease.Owner`."""
        reusable = session.reusable
        if not reusable and session.busy:
            session.abandon()
        self._carry_out(self._pool.released(member, reusable, self._now()))

    def discarded(self, member: Member, session: Session) -> None:
        """See `mailcache.lease.Owner`."""
        if session.busy:
            session.abandon()
        self._carry_out(self._pool.released(member, False, self._now()))

    # -- what the pool wants done --------------------------------------------------------------------------------

    def _carry_out(self, actions: list[Action]) -> None:
        """Do these in their order, behind what is to be done already: what is done calls for more at times."""
        if not actions:
            return
        self._todo.extend(actions)
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            self._do_all()
        finally:
            self._carrying_out = False
        self._check_closed()

    def _do_all(self) -> None:
        while self._todo:
            action = self._todo.popleft()
            if isinstance(action, Grant):
                self._grant(action.request, action.member)
            elif isinstance(action, Open):
                self._open(action.member)
            elif isinstance(action, Close):
                self._end(action.member, action.reason)
            elif isinstance(action, Fail):
                self._fail(action.request, action.error)
            else:
                self._resolve(action.destination)

    def _grant(self, request: Request, member: Member) -> None:
        granted = self._granted.pop(request, None)
        if granted is not None:
            granted.callback(self._lease(member, self._now()))
            return
        # It was cancelled after it was decided.
        session = member.session
        assert isinstance(session, Session)
        self.released(member, session)

    def _fail(self, request: Request, error: DeliveryError) -> None:
        granted = self._granted.pop(request, None)
        if granted is not None:
            granted.errback(Failure(error))

    def _cancelled(self, request: Request) -> None:
        if self._granted.pop(request, None) is not None:
            self._carry_out(self._pool.cancel(request, self._now()))

    def _resolve(self, destination: Destination) -> None:
        lookup: Deferred[Route] = maybeDeferred(self._router.route, destination)
        self._lookups[destination] = lookup
        lookup.addCallback(_checked).addCallbacks(
            lambda route: self._routed(destination, route),
            lambda failure: self._unroutable(destination, failure),
        )
        lookup.addErrback(self._surprised)

    def _routed(self, destination: Destination, route: Route) -> None:
        self._lookups.pop(destination, None)
        self._carry_out(self._pool.routed(destination, route, self._now()))

    def _unroutable(self, destination: Destination, failure: Failure) -> None:
        self._lookups.pop(destination, None)
        error = failure.value
        if not isinstance(error, DeliveryError):
            error = DeliveryError(f"no route to {destination}: {error}", phase="routing")
            error.__cause__ = failure.value
        self._carry_out(self._pool.unroutable(destination, error, self._now()))

    def _open(self, member: Member) -> None:
        candidate = member.candidate
        opener = self._opener
        if self._timeouts_of is not None:
            opener = attrs.evolve(opener, timeouts=self._timeouts_of(member.destination))
        opening = opener.open(
            member.destination,
            candidate.hop,
            candidate.key,
            candidate.requirement,
            lambda connection: self._connected(member, connection),
        )
        self._openings[member] = opening
        opening.addCallbacks(
            lambda session: self._opened(member, session), lambda failure: self._not_opened(member, failure)
        )
        opening.addErrback(self._surprised)

    def _connected(self, member: Member, connection: Connection) -> None:
        self._connections[connection] = self._working[connection] = member

    def _opened(self, member: Member, session: Session) -> None:
        self._openings.pop(member, None)
        if session.evidence.version is not None:
            self._handshakes += 1
        session.on_cut = lambda cut: self._session_cut(member, cut)
        now = self._now()
        actions = self._pool.opened(member, session, now)
        self._log.info(
            "session {session} to {host}[{address}] made in {setup:.3f} s: {version} {cipher}, {verdict}",
            setup=session.setup_seconds,
            use=1,
            age=0.0,
            verdict=session.verdict.reason,
            **session.log_facts,
        )
        session.log_facts |= {
            "log_level": LogLevel.info,
            "log_logger": self._log,
            "log_namespace": self._log.namespace,
            "log_source": self,
            "log_format": "session {session} to {host}[{address}] reused: {version} {cipher}, {verdict}, "
            "use {use}, {age:.1f} s old",
        }
        self._carry_out(actions)

    def _not_opened(self, member: Member, failure: Failure) -> None:
        self._openings.pop(member, None)
        error = failure.value
        if isinstance(error, CancelledError):
            error = closed_error()
        elif not isinstance(error, DeliveryError):
            self._surprised(failure)
            error = DeliveryError(f"opening a session failed: {error}", phase="connect")
        gone = member not in self._connections.values()
        if not isinstance(failure.value, CancelledError):
            self._log.info(
                "no session with {endpoint}: {error}",
                endpoint=str(member.candidate.endpoint),
                error=str(error),
            )
        self._carry_out(self._pool.failed(member, error, self._now(), gone=gone))
        self._check_closed()

    def _surprised(self, failure: Failure) -> None:
        self._log.failure("a defect in mailcache or in a router", failure)

    def _end(self, member: Member, reason: str) -> None:
        opening = self._openings.get(member)
        if opening is not None:
            opening.cancel()
            return
        session = member.session
        assert isinstance(session, Session)
        self._log.debug("session {session} ended: {reason}", session=session.id, reason=reason)
        connection = session.connection
        if connection in self._connections:
            self._working[connection] = member
        session.end()

    # -- connections -----------------------------------------------------------------------------------------------

    def _connection_gone(self, connection: Connection) -> None:
        member = self._connections.pop(connection, None)
        self._working.pop(connection, None)
        if member is not None:
            if isinstance(member.session, Session):
                for watcher in self._watchers:
                    watcher(member.session)
            self._carry_out(self._pool.gone(member, self._now()))
        self._check_closed()

    def _session_cut(self, member: Member, cut: Cut) -> None:
        self._log.debug("session {session} lost: {cut}", session=getattr(member.session, "id", "?"), cut=str(cut))
        self._pool.lost(member, cut.reason if cut.reply is None else str(cut.reply.code))

    def _tick(self) -> bool:
        now = self._now()
        for connection, member in tuple(self._working.items()):
            if connection.deadline <= now:
                connection.expire()
            elif connection.deadline == NEVER and member.state == IDLE:
                self._working.pop(connection, None)
        self._carry_out(self._pool.tick(now))
        if self._close_deadline is not None and self._close_deadline <= now:
            for connection in list(self._connections):
                connection.cut("aborted", "the cache was closed")
        return not self._pool.empty or bool(self._connections)

    def _check_closed(self) -> None:
        if self._closed and self._pool.empty and not self._todo:
            self._ticker.stop()
            waiting, self._closed = self._closed, []
            for closed in waiting:
                closed.callback(None)


def _checked(route: Route) -> Route:
    if not route.hops:
        raise ValueError("the router gave no hop")
    return route
