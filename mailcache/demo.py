"""``mailcache demo``: the same mail sent in several ways to a server on loopback, and what each has cost.

The server is a process of its own for each way, so that its counts are of that way alone and its CPU is nobody's
here. A way is a name and the cache that goes with it: see `WAYS`.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack
from email.utils import formatdate
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

import attrs
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from mailcache.delivery import deliver
from mailcache.destination import Destination
from mailcache.limits import Limits
from mailcache.memory import MemorySessionCache
from mailcache.message import Envelope
from mailcache.result import DeliveryError, UncertainDelivery
from mailcache.trust.policy import TLSPolicy

T = TypeVar("T")

SERVER = (sys.executable, "-m", "mailcache.testing", "--tls", "starttls")
"""What runs the server; it ends when its standard input does, so that it never outlives this process."""

SERVER_LIMIT = 30.0
"""Seconds for the server to start, or to end, on a machine that is busy."""

MAX_MESSAGES = 100_000
"""The server keeps every message in memory: at this many it takes about 1 GB."""

MAX_SENDERS = 50
"""Connections that may wait to be accepted (the backlog of `IReactorTCP.listenTCP`)."""

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C has ended: 128 and the number of SIGINT."""

TEXT = (
    "Dear reader,\r\n\r\n"
    + "This is one line of a message that is as long as ordinary mail is, about four kB.\r\n" * 48
    + "\r\nYours,\r\nmailcache\r\n"
)


class DemoFailed(Exception):  # noqa: N818  (reads as the event it reports)
    """The demonstration could not be carried out, or not all mail has arrived; the text is for the user."""


def _uncached(reactor: Any, senders: int) -> MemorySessionCache:
    """Nothing is kept: each message has a connection of its own, with a QUIT that its sender waits for."""
    return MemorySessionCache(
        reactor, Limits(max_uses=1, sessions_per_destination=senders, sessions_per_endpoint=senders)
    )


def _in_memory(reactor: Any, senders: int) -> MemorySessionCache:
    """Sessions are kept in this process."""
    return MemorySessionCache(reactor, Limits(sessions_per_destination=senders, sessions_per_endpoint=senders))


WAYS: dict[str, Callable[[Any, int], Any]] = {
    "a connection for each": _uncached,
    "kept sessions": _in_memory,
}
"""The rows of the table: what makes the `ISessionCache` of each, for so many senders at a time."""


# -- the server ------------------------------------------------------------------------------------------------


@attrs.frozen
class Counts:
    """What a server has seen."""

    connections: int
    handshakes: int
    messages: int
    violations: Sequence[str]


class Server:
    """A server process. To be used in a ``with`` statement, whose end is its end."""

    port: int
    ca_file: str

    def __init__(self) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)

    def __enter__(self) -> Server:
        # A session of its own: Ctrl-C is for us alone, and our end is its end.
        self._process = subprocess.Popen(  # noqa: S603  (the command is a constant)
            SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, start_new_session=True
        )
        try:
            facts = self._first_line()
            self.port = facts["port"]
            handle, self.ca_file = tempfile.mkstemp(".pem", "mailcache-demo-")
            with os.fdopen(handle, "w") as file:
                file.write(facts["certificate_authority"])
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()
        Path(self.ca_file).unlink(missing_ok=True)

    def _kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def _first_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], SERVER_LIMIT)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self._process.kill()
            self._process.wait()
            raise DemoFailed(f"the server did not start{self._complaint()}")
        return dict(json.loads(line))

    def finish(self) -> Counts:
        """End the server; gives what it has seen."""
        try:
            said, _ = self._process.communicate(timeout=SERVER_LIMIT)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"the server did not end within {SERVER_LIMIT:g} s") from None
        if self._process.returncode or not said:
            raise DemoFailed(f"the server broke down{self._complaint()}")
        return Counts(**json.loads(said))

    def _complaint(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


# -- what is measured ------------------------------------------------------------------------------------------


class Progress:
    """A bar on a terminal; nothing elsewhere."""

    EVERY = 0.1  # seconds: quick enough for the eye, and no burden for what is measured

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty()
        self._next = 0.0

    def at(self, name: str, of: int, done: int) -> None:
        """So many are done; the last one is always shown."""
        if not self._shown or (done < of and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + self.EVERY
        counted = f"{done:,}/{of:,}"
        room = min(40, shutil.get_terminal_size().columns - len(name) - len(counted) - 6)
        filled = max(0, room) * done // of
        bar = f" [{'#' * filled}{'.' * (room - filled)}]" if room > 0 else ""
        self._stream.write(f"\r{name}{bar} {counted}")
        self._stream.flush()

    def clear(self) -> None:
        """Leave the line empty."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


@attrs.frozen
class Measured:
    """What one way has cost this process."""

    seconds: float
    cpu_seconds: float
    waited: float  # seconds, the sum over all deliveries


@attrs.frozen
class Row:
    """One row of the table."""

    name: str
    counts: Counts
    measured: Measured


def message(number: int, at: float) -> bytes:
    """A message as a mail client would make it, each with a Message-ID of its own."""
    head = (
        f"Message-ID: <{number}.{at:.6f}@example.com>\r\n"
        f"Date: {formatdate(at)}\r\n"
        f"Subject: message {number} of a demonstration\r\n"
        "From: Ann <ann@example.com>\r\n"
        "To: Ben <ben@example.org>\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "\r\n"
    )
    return (head + TEXT).encode("ascii")


async def measure(cache: Any, where: Destination, messages: int, senders: int, done: Callable[[int], None]) -> Measured:
    """Send it all, close ``cache``, and tell what that took.

    :param done: called with the number of messages that are sent.
    :raises DemoFailed: if a message was not taken.
    """
    numbers = iter(range(1, messages + 1))
    at = time.time()
    waited = 0.0
    sent = 0

    async def send(some: Iterator[int]) -> None:
        nonlocal waited, sent
        for number in some:
            began = time.perf_counter()
            envelope = Envelope("ann@example.com", ["ben@example.org"])
            try:
                result = await deliver(cache, where, envelope, message(number, at))
            except (DeliveryError, UncertainDelivery) as error:
                raise DemoFailed(f"message {number}: {error}") from error
            if result.rejected:
                raise DemoFailed(f"message {number}: the server has refused it: {result.reply}")
            waited += time.perf_counter() - began
            sent += 1
            done(sent)

    gc.collect()
    cpu, started = time.process_time(), time.perf_counter()
    sending = [Deferred.fromCoroutine(send(numbers)) for _ in range(senders)]
    try:
        await gatherResults(sending, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
    finally:
        for sender in sending:
            sender.cancel()
    await cache.close()
    return Measured(time.perf_counter() - started, time.process_time() - cpu, waited)


def check(name: str, counts: Counts, messages: int) -> None:
    """All mail must have arrived, and nothing in a wrong way.

    :raises DemoFailed: that says what is wrong.
    """
    if counts.messages != messages:
        raise DemoFailed(f"{name}: the server got {counts.messages:,} of {messages:,} messages")
    if counts.handshakes != counts.connections:
        raise DemoFailed(f"{name}: {counts.connections:,} connections, but {counts.handshakes:,} TLS handshakes")
    if counts.violations:
        raise DemoFailed(f"{name}: the server complains: {counts.violations[0]}")


# -- what is shown ---------------------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """The rows under their headings, every line ended."""
    heads = ("", "connections", "handshakes", "messages/s", "CPU ms/message", "ms/message")
    lines = [heads]
    for row in rows:
        messages, took = row.counts.messages, row.measured
        lines.append(
            (
                row.name,
                f"{row.counts.connections:,}",
                f"{row.counts.handshakes:,}",
                f"{messages / took.seconds:,.0f}",
                f"{took.cpu_seconds / messages * 1e3:.3f}",
                f"{took.waited / messages * 1e3:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for first, *others in lines:
        text += first.ljust(widths[0])
        text += "".join("  " + cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)) + "\n"
    return text


def introduction(messages: int, senders: int) -> str:
    """What is going to happen."""
    size = len(message(messages, 0.0)) / 1000
    at_a_time = "one after another" if senders == 1 else f"{senders} at a time"
    return (
        f"{messages:,} messages of {size:.1f} kB, {at_a_time}, over STARTTLS with a verified certificate,\n"
        "to a server on loopback that is a process of its own. First each message has a connection\n"
        "to itself, with QUIT at its end; then sessions are kept.\n\n"
    )


EXPLANATION = """
Connections and handshakes are as the server has counted them, and it has all the messages. CPU is
this process's. ms/message is the mean time from deliver() to its result. Loopback has no distance:
over a network a message on a new connection waits for 8 round trips, on a kept session for 2.
"""


def run(messages: int, senders: int, out: TextIO, progress: TextIO) -> int:
    """The command; gives its exit status.

    :raises DemoFailed: that says what went wrong.
    """
    out.write(introduction(messages, senders))
    out.flush()
    bar = Progress(progress)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Server()) for name in WAYS}
        try:
            measured = _in_reactor(lambda reactor: _all_ways(reactor, servers, messages, senders, bar))
        finally:
            bar.clear()
        if measured is None:
            return INTERRUPTED
        rows = [Row(name, server.finish(), measured[name]) for name, server in servers.items()]
    for row in rows:
        check(row.name, row.counts, messages)
    out.write(table(rows) + EXPLANATION)
    return 0


async def _all_ways(
    reactor: Any, servers: dict[str, Server], messages: int, senders: int, bar: Progress
) -> dict[str, Measured]:
    measured = {}
    for name, make_cache in WAYS.items():
        server = servers[name]
        where = Destination(f"[127.0.0.1]:{server.port}", tls=TLSPolicy("verify", ca_file=server.ca_file))
        cache = make_cache(reactor, senders)
        measured[name] = await measure(cache, where, messages, senders, partial(bar.at, name, messages))
    return measured


def _in_reactor(work: Callable[[Any], Coroutine[Any, Any, T]]) -> T | None:
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
