"""A world for whole caches: servers with faults, callers who change their minds, and books that are compared."""

from __future__ import annotations

import gc
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest import mock

from twisted.internet.defer import CancelledError
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from mailcache import DeliveryError, Destination, Envelope, Limits, deliver, memory
from mailcache.destination import Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.members import CLOSING, IDLE, LEASED, NEVER, OPENING
from mailcache.testing import MemoryReactor
from tests.cache_worlds.books import Birth, Book, WatchedMemory
from tests.cache_worlds.callers import Call, Holding, Message, nothing
from tests.cache_worlds.servers import ENDPOINTS, LATE, LONGEST, ROUTES, TIMEOUTS, destinations, make_servers
from tests.helpers import BEHIND_REFUSED_RSET, TableRouter, Unseekable


class World:
    """All that a cache has to do with.

    :ivar cache: the cache under test.
    :ivar memories: the caches in memory, with the sessions of which the sockets must agree.
    :ivar calls: what has not fired.
    :ivar holdings: leases that are held, and ``ended`` some that were.
    :ivar wrongs: what must not be, in words.
    """

    def __init__(self, limits: Limits, latency: float, slow_delay: float, restart_seconds: float) -> None:
        self.reactor = MemoryReactor(latency=latency)
        self.limits = limits
        self.wrongs: list[str] = []
        self.births: dict[str, Birth] = {}
        self.calls: list[Call] = []
        self.holdings: list[Holding] = []
        self.ended: list[Any] = []
        self.messages: dict[str, Message] = {}
        self.memories: list[WatchedMemory] = []
        self.ceilings: dict[Any, int] = {}
        self.traps: dict[str, Callable[[], object]] = {}
        self.dropped = 0
        self.reclaimed = 0
        self.jump = 0.0
        self.closed = False
        self._base = time.time()
        self._numbers = count(1)
        self._streams: dict[tuple[str, int], set[str]] = {}
        self._under_way: dict[tuple[str, int], str] = {}
        self._patch = mock.patch.object(memory, "time", SimpleNamespace(monotonic=self.reactor.seconds, time=self.wall))
        self._patch.start()
        globalLogPublisher.addObserver(self._logged)
        self.servers = make_servers(self.reactor, slow_delay, restart_seconds)
        for endpoint, server in self.servers.items():
            server.verdict = lambda point, argument, record, endpoint=endpoint: self._seen(
                endpoint, point, argument, record
            )
        self.router = TableRouter()
        self.router.table = dict(ROUTES)
        self.destinations = destinations()
        self.cache = self.make_cache()

    def make_cache(self) -> Any:
        return self.memory("cache", self.limits)

    def memory(self, name: str, limits: Limits) -> WatchedMemory:
        """A new cache in memory."""
        cache = WatchedMemory(self.reactor, limits, TIMEOUTS, self.router, clock=self.reactor.seconds)
        cache.book = self.book(name)
        self.memories.append(cache)
        self.set_ceilings()
        return cache

    def book(self, name: str) -> Book:
        return Book(name, self.reactor, self.wall, self.births, self.complain)

    def complain(self, what: str) -> None:
        self.wrongs.append(f"at {self.reactor.seconds():.3f} s: {what}")

    def wall(self) -> float:
        """Seconds since 1970, as far as the world's clock is right."""
        return self._base + self.reactor.seconds() + self.jump

    def _logged(self, event: Any) -> None:
        if event["log_level"] < LogLevel.error:
            return
        if "was dropped without release" in (event.get("log_format") or ""):
            self.reclaimed += 1
        else:
            failure = event.get("log_failure")
            self.complain(f"logged: {event.get('log_format')} {failure.getTraceback() if failure else ''}")

    # -- what callers do -------------------------------------------------------------------------------------------

    def caller(self, who: int) -> Any:
        """The cache that ``who`` asks."""
        return self.cache

    def stream_of(self, who: int, where: Destination) -> str:
        """All of an identity that messages may not share a session without."""
        return f"{where.namespace}-{where.credentials.username if where.credentials else ''}"

    def message(self, stream: str, size: int, recipients: int, refused: int) -> tuple[Message, Envelope]:
        label = f"m{next(self._numbers)}"
        names = [f"{'no' if number < refused else 'to'}{number}.{label}@to.test" for number in range(recipients)]
        line = f"{label} says this again and again\r\n".encode()
        content = f"Subject: {label}\r\n\r\n".encode() + line * (size // len(line)) + line
        message = self.messages[label] = Message(label, stream, tuple(names), content)
        return message, Envelope(f"{label}.{stream}@from.test", names)

    def deliver(
        self, who: int, where: str, *, size: int = 0, recipients: int = 1, refused: int = 0, source: str = "bytes",
        deadline: float | None = None,
    ) -> Call:  # fmt: skip
        """Begin a delivery."""
        destination = self.destinations[where]
        message, envelope = self.message(self.stream_of(who, destination), size, recipients, refused)
        content: Any = message.content
        if source != "bytes":
            content = io.BytesIO(content) if source == "file" else Unseekable(content)
        until = self.reactor.seconds() + (LONGEST if deadline is None else deadline)
        delivering = deliver(self.caller(who), destination, envelope, content, deadline)
        return Call(self, f"delivery of {message.label}", delivering, until, lambda told: self._told(message, told))

    def acquire(
        self, who: int, where: str, *, needs: Needs = NO_NEEDS, fresh: bool = False,
        avoid: frozenset[Endpoint] = frozenset(), timeout: float | None = None,
    ) -> Call:  # fmt: skip
        """Ask for a lease."""
        destination = self.destinations[where]
        stream = self.stream_of(who, destination)

        def take(value: Any) -> None:
            if not isinstance(value, Failure):
                self.holdings.append(Holding(value, destination, stream))
            elif not value.check(DeliveryError, CancelledError):
                self.complain(f"acquire failed: {value.getTraceback()}")

        leasing = self.caller(who).acquire(destination, needs=needs, fresh=fresh, avoid=avoid, timeout=timeout)
        return Call(self, f"lease of {where}", leasing, self.reactor.seconds() + LONGEST, take)

    def send(self, holding: Holding, *, size: int = 0, recipients: int = 1) -> Call | None:
        """Send a message on a lease."""
        message, envelope = self.message(holding.stream, size, recipients, 0)
        if holding.sending is not None:
            try:
                holding.lease.send(envelope, message.content)
            except RuntimeError:
                del self.messages[message.label]
                return None
            self.complain("two messages at a time on one lease")

        def told(value: Any) -> None:
            holding.sending = None
            self._told(message, value)

        sending = holding.lease.send(envelope, message.content)
        holding.sending = call = Call(
            self, f"{message.label} on a lease", sending, self.reactor.seconds() + LONGEST, told
        )
        if call.fired:
            holding.sending = None
        return call

    def _told(self, message: Message, value: Any) -> None:
        message.told = value.value if isinstance(value, Failure) else value

    def end(self, holding: Holding, how: str) -> None:
        """ "release" or "discard" a lease, or "drop" it."""
        self.holdings.remove(holding)
        if how == "drop":
            self.dropped += 1
        else:
            self.ended = [*self.ended[-3:], holding.lease]
            getattr(holding.lease, how)()

    def use_again(self, lease: Any, how: str) -> None:
        """Do something with a lease that has ended: nothing comes of it."""
        before = {cache.book.name: (dict(cache.book.held), self._states(cache)) for cache in self.memories}
        if how == "send":
            try:
                lease.send(Envelope("late@from.test", ["late@to.test"]), b"late\r\n")
            except RuntimeError:
                return
            self.complain("a lease that has ended was used")
        getattr(lease, how)()
        after = {cache.book.name: (dict(cache.book.held), self._states(cache)) for cache in self.memories}
        if before != after:
            self.complain(f"to {how} what has ended has changed {before} to {after}")

    def close(self) -> None:
        self.closed = True
        Call(self, "close", self.cache.close(), self.reactor.seconds() + 60, nothing)

    # -- what servers see ------------------------------------------------------------------------------------------

    def _seen(self, endpoint: Endpoint, point: str, argument: str, record: Any) -> bytes | None:
        where = (endpoint.address, record.number)
        if point == "mail":
            label, _, stream = argument.partition("@")[0].partition(".")
            self._under_way[where] = label
            self._check_stream(where, record, stream)
        elif point == "rcpt":
            name, _, label = argument.partition("@")[0].partition(".")
            refused_rset = f"connection {record.number}: {BEHIND_REFUSED_RSET}" in self.servers[endpoint].violations
            if self._under_way.get(where) != label and not refused_rset:
                self.complain(f"a recipient of {label} in the transaction of {self._under_way.get(where)}")
            if name.startswith("no"):
                return b"550 5.1.1 nobody of that name"
        trap = self.traps.pop(point, None)
        if trap is not None:
            trap()
        return None

    def _check_stream(self, where: tuple[str, int], record: Any, stream: str) -> None:
        streams = self._streams.setdefault(where, set())
        streams.add(stream)
        if not self.may_share(streams):
            self.complain(f"messages of {streams} came over one session")
        if (record.user or "") != stream.split("-")[1]:
            self.complain(f"{record.user} has sent a message of {stream}")

    def may_share(self, streams: set[str]) -> bool:
        return len(streams) == 1

    # -- time ------------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        self.reactor.run_for(seconds)

    # -- what must be true -----------------------------------------------------------------------------------------

    def check_in_time(self, call: Call) -> None:
        if self.reactor.seconds() > call.until + LATE:
            self.complain(f"{call.what} comes late: it was due at {call.until:g}")

    def check(self) -> None:
        """All that must be true between any two events."""
        for call in self.calls:
            self.check_in_time(call)
        for cache in self.memories:
            self._check_sockets(cache)
        self._check_limits()
        self._check_messages()
        assert not self.wrongs, "\n".join(self.wrongs)

    @staticmethod
    def _states(cache: WatchedMemory) -> Counter[str]:
        return Counter(member.state for member in cache._pool._places.members)

    def sockets(self) -> list[Any]:
        """The clients' ends of all connections with servers."""
        ports = {endpoint.port for endpoint in ENDPOINTS}
        return [end for end in self.reactor.connections if getattr(end.getPeer(), "port", None) in ports]

    def _check_sockets(self, cache: WatchedMemory) -> None:
        counts, states = _counts(cache), self._states(cache)
        if [counts[name] for name in (LEASED, IDLE, OPENING)] != [states[name] for name in (LEASED, IDLE, OPENING)]:
            self.complain(f"{cache.book.name} counts {counts}, and has {states}")
        known = states[LEASED] + states[IDLE] + states[CLOSING]
        sockets = len(cache._connections)
        if not known <= sockets <= known + states[OPENING]:
            self.complain(f"{cache.book.name} has {states}, and {sockets} sockets")
        for connection in cache._connections:
            if connection.deadline != NEVER and connection not in cache._working:
                self.complain(f"{cache.book.name} has a connection with a deadline that it does not look at")
        if not cache._working.keys() <= cache._connections.keys():
            self.complain(f"{cache.book.name} looks at connections that are gone")
        book = cache.book
        leased = [member.session for member in cache._pool._places.members if member.state == LEASED]
        if any(session is None or session.id not in book.held for session in leased):
            self.complain(f"{cache.book.name} has leases of {leased}, and callers of {sorted(book.held)}")
        if counts["waiting"] != len(book.pending):
            self.complain(f"{cache.book.name} counts {counts['waiting']} who wait, and {len(book.pending)} do")

    def _check_limits(self) -> None:
        owned = sum(len(cache._connections) for cache in self.memories)
        if owned != len(self.sockets()):
            self.complain(f"there are {len(self.sockets())} sockets, of which caches have {owned}")
        for what, counts, limit in self._limited():
            if max(counts) > self.ceilings.get(what, limit):
                self.complain(f"{counts} at {what}, and {self.ceilings.get(what, limit)} allowed")
        self.set_ceilings()

    def _limited(self) -> Iterator[tuple[Any, tuple[int, ...], int]]:
        """What is limited, how many there are (for servers: as they see it, and as the caches do), and the limit."""
        places = [member for cache in self.memories for member in cache._pool._places.members]
        at = Counter(member.candidate.endpoint for member in places)
        seen = {endpoint: server.open_count for endpoint, server in self.servers.items()}
        for endpoint in ENDPOINTS:
            most = sum(cache._limits.sessions_per_endpoint for cache in self.memories)
            yield endpoint, (seen[endpoint], at[endpoint]), most
        most = sum(cache._limits.sessions for cache in self.memories)
        yield "all servers", (sum(seen.values()), len(places)), most
        for cache in self.memories:
            limits, name = cache._limits, cache.book.name
            yield (name, "waiting"), (len(cache.book.pending),), limits.sessions + limits.waiters
            theirs = Counter(member.destination for member in cache._pool._places.members)
            for where, number in theirs.items():
                yield (name, where), (number,), cache._pool._limits_of(where).sessions_per_destination

    def set_ceilings(self) -> None:
        """The limits hold from now on, but for what is there already."""
        self.ceilings = {what: max(limit, *counts) for what, counts, limit in self._limited()}

    def _check_messages(self) -> None:
        """Taken by servers is what was told taken, and some of what is in doubt, and nothing twice."""
        taken: Counter[tuple[str, str]] = Counter()
        for server in self.servers.values():
            for seen in server.messages:
                label = seen.sender.partition(".")[0]
                message = self.messages[label]
                if not set(seen.recipients) <= set(message.recipients):
                    self.complain(f"{label} came for {seen.recipients}")
                if seen.content != message.content:
                    self.complain(f"{label} did not come whole")
                taken.update((label, recipient) for recipient in seen.accepted)
        for label, message in self.messages.items():
            for recipient in message.recipients:
                wrong = message.expected(recipient, taken[label, recipient])
                if wrong is not None:
                    self.complain(f"{label} for {recipient} {wrong}")

    # -- the end ---------------------------------------------------------------------------------------------------

    def finish(self, abrupt: bool) -> None:
        """All comes to its end, or is closed before that if it is to be ``abrupt``; and nothing is left."""
        try:
            self.traps.clear()
            for server in self.servers.values():
                server.disarm()
            if abrupt:
                self.close()
            self.await_calls(LONGEST)
            self.check()
            self.end_of_use()
            self.reactor.run_for(700)
            self.check()
            self.check_nothing_is_left()
        finally:
            self.forget()

    def end_of_use(self) -> None:
        if self.dropped != self.reclaimed:
            gc.collect()
        for holding in list(self.holdings):
            self.end(holding, "release")
        self.close()
        self.await_calls(150.0)

    def await_calls(self, limit: float) -> None:
        """All that was asked for comes to its end."""
        try:
            self.reactor.run_until(lambda: not self.calls, limit)
        except AssertionError:
            raise AssertionError(f"without an end: {[call.what for call in self.calls]}") from None

    def check_nothing_is_left(self) -> None:
        violations = {each.partition(": ")[2] for server in self.servers.values() for each in server.violations}
        assert violations <= {BEHIND_REFUSED_RSET}, violations
        untold = [label for label, message in self.messages.items() if message.told is None]
        assert not untold, f"nothing was told of {untold}"
        assert self.dropped == self.reclaimed, (self.dropped, self.reclaimed)
        for cache in self.memories:
            counts = _counts(cache)
            assert not any(counts[name] for name in ("leased", "idle", "opening", "waiting")), counts
            assert cache._pool.empty
            assert not (
                cache._granted
                or cache._openings
                or cache._lookups
                or cache._connections
                or cache._working
                or cache._todo
            )
            assert not (cache.book.pending or cache.book.held), (cache.book.pending, cache.book.held)
        assert [server.open_count for server in self.servers.values()] == [0, 0, 0]
        assert self.reactor.getDelayedCalls() == [], self.reactor.getDelayedCalls()
        assert self.reactor.connections == [], self.reactor.connections
        assert self.reactor.descriptors == {}, self.reactor.descriptors

    def forget(self) -> None:
        self._patch.stop()
        globalLogPublisher.removeObserver(self._logged)


def _counts(cache: Any) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    cache.statistics().addCallback(found.append)
    return found[0]
