"""The demonstration as a whole: the ways of sending, one after another, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TextIO, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mailcache.demo.measuring import Measured, measure, message
from mailcache.demo.senders import PROCESSES, SharedKeeper
from mailcache.demo.server import Server, check, destination
from mailcache.demo.table import Progress, Row, table
from mailcache.limits import Limits
from mailcache.memory import MemorySessionCache

T = TypeVar("T")

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C has ended: 128 and the number of SIGINT."""


class Way(Protocol):
    """A way of sending: a context manager that has what it needs."""

    def __enter__(self) -> Way: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def wait_ready(self) -> object:
        """Wait until it has what it needs."""

    async def measure(self, reactor: Any, server: Server, messages: int, done: Callable[[int], None]) -> Measured:
        """Send, and tell what that took; ``done`` is called with how many are sent."""


class InThisProcess:
    """Sending from this process, over a cache in memory.

    :param make_cache: makes it, for so many senders at a time.
    """

    def __init__(self, make_cache: Callable[[Any, int], MemorySessionCache], senders: int) -> None:
        self._make_cache = make_cache
        self._senders = senders

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """There is nothing to end."""

    def wait_ready(self) -> None:
        """There is nothing to wait for."""

    async def measure(self, reactor: Any, server: Server, messages: int, done: Callable[[int], None]) -> Measured:
        """Send, and tell what that took.

        :raises DemoFailed: if a message was not taken.
        """
        cache = self._make_cache(reactor, self._senders)
        where = destination(server.port, server.ca_file)
        return await measure(cache, where, range(1, messages + 1), self._senders, done)


def uncached(reactor: Any, senders: int) -> MemorySessionCache:
    """Nothing is kept: each message has a connection of its own, with a QUIT that its sender waits for."""
    return MemorySessionCache(
        reactor, Limits(max_uses=1, sessions_per_destination=senders, sessions_per_endpoint=senders)
    )


def in_memory(reactor: Any, senders: int) -> MemorySessionCache:
    """Sessions are kept in this process."""
    return MemorySessionCache(reactor, Limits(sessions_per_destination=senders, sessions_per_endpoint=senders))


WAYS: dict[str, Callable[[int], Way]] = {
    "a connection for each": partial(InThisProcess, uncached),
    "kept sessions": partial(InThisProcess, in_memory),
    f"a keeper, {PROCESSES} processes": SharedKeeper,
}
"""The rows of the table, and how each is sent, for so many senders at a time."""


def introduction(messages: int, senders: int) -> str:
    """What is going to happen."""
    size = len(message(messages, 0.0)) / 1000
    at_a_time = "one after another" if senders == 1 else f"{senders} at a time"
    return (
        f"{messages:,} messages of {size:.1f} kB, {at_a_time}, over STARTTLS with a verified certificate,\n"
        "to a server on loopback that is a process of its own. First each message has a connection\n"
        "to itself, with QUIT at its end; then sessions are kept; at last a keeper, twist mailcache,\n"
        "keeps them, and four processes send a share of the messages each over its sessions.\n\n"
    )


EXPLANATION = """
Connections and handshakes are as the server has counted them, and it has all the messages. CPU is
that of all who send, while they send: this process, then the keeper and its four processes together.
ms/message is the mean time from deliver() to its result. Loopback has no distance: over a network a
message on a new connection waits for 8 round trips, on a kept session for 2.
"""


def run(messages: int, senders: int, out: TextIO, progress: TextIO) -> int:
    """The command; gives its exit status.

    :raises DemoFailed: that says what went wrong.
    """
    out.write(introduction(messages, senders))
    out.flush()
    bar = Progress(progress)
    with ExitStack() as serving:
        servers = {name: serving.enter_context(Server()) for name in WAYS}
        with ExitStack() as sending:
            ways = {name: sending.enter_context(make(senders)) for name, make in WAYS.items()}
            # All of them start at the same time, and no start is in what is measured.
            for server in servers.values():
                server.wait_ready()
            for way in ways.values():
                way.wait_ready()
            try:
                measured = in_reactor(lambda reactor: _all_ways(reactor, ways, servers, messages, bar))
            finally:
                bar.clear()
        if measured is None:
            return INTERRUPTED
        rows = [Row(name, server.counts(), measured[name]) for name, server in servers.items()]
    for row in rows:
        check(row.name, row.counts, messages)
    out.write(table(rows) + EXPLANATION)
    return 0


async def _all_ways(
    reactor: Any, ways: dict[str, Way], servers: dict[str, Server], messages: int, bar: Progress
) -> dict[str, Measured]:
    return {
        name: await way.measure(reactor, servers[name], messages, partial(bar.at, name, messages))
        for name, way in ways.items()
    }


def in_reactor(work: Callable[[Any], Coroutine[Any, Any, T]]) -> T | None:
    """Run the reactor for ``work``; gives its result, or ``None`` if a signal has ended it before."""
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    results: list[T] = []
    failures: list[Failure] = []
    interrupted = False
    working: Deferred[None] = Deferred()

    def begin() -> None:
        nonlocal working
        working = Deferred.fromCoroutine(work(reactor)).addCallbacks(results.append, failures.append)
        working.addBoth(lambda _: None if interrupted else reactor.stop())

    def shut_down() -> None:
        nonlocal interrupted
        interrupted = not (results or failures)
        working.cancel()

    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", shut_down)
    reactor.run()
    if interrupted:
        return None
    for failure in failures:
        failure.raiseException()
    return results[0]
