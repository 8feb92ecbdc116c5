"""A borrower of a keeper, or a program with a cache of its own, that sends to many destinations: see `Orders`.

What came of each message is a line of the file that it is given: its label, its outcome ("sent", "refused", "error" or
"uncertain"), when it began and how long it took (seconds of the monotonic clock, which all processes share), and the
number of its destination.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from mailcache import (
    DeliveryError,
    Destination,
    Envelope,
    Limits,
    MemorySessionCache,
    RemoteSessionCache,
    Timeouts,
    TLSPolicy,
    UncertainDelivery,
    deliver,
)
from tests.nightly.orders import Orders, obey, reactor

BEAT = 0.05
"""Seconds between looks at how many deliveries are due."""


def destination(next_hop: str, namespace: str = "default", ca_file: str | None = None) -> Destination:
    """Where that is; without ``ca_file`` it is in clear text."""
    tls = TLSPolicy("none") if ca_file is None else TLSPolicy("verify", ca_file=ca_file)
    return Destination(next_hop, namespace=namespace, tls=tls)


class Senders(Orders):
    """Sends, and holds sessions."""

    def __init__(self) -> None:
        self.cache: Any = None
        self._make: Callable[[], Any] = lambda: None
        self.destinations: list[Destination] = []
        self.outcomes: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.under_way = 0
        self._file: IO[str] | None = None
        self._label = ""
        self._body = b""
        self._leases: list[Any] = []
        self._begun: list[Deferred[str]] = []

    async def do_open(
        self,
        destinations: list[dict[str, str]],
        label: str,
        keeper: str | None = None,
        outcomes: str | None = None,
        size: int = 0,
        timeouts: dict[str, float] | None = None,
        limits: dict[str, Any] | None = None,
        wait_timeout: float = Limits().wait_timeout,
    ) -> int:
        """Have a cache, a borrower's where there is a ``keeper``; gives how many destinations there are."""
        waits = Timeouts(**(timeouts or {}))

        def make() -> Any:
            if keeper is None:
                return MemorySessionCache(reactor, Limits(**(limits or {})), waits)
            # Without a fallback: what is sent goes over the keeper's sessions, or not at all.
            return RemoteSessionCache(
                reactor, f"unix:{keeper}", timeouts=waits, fallback=None, wait_timeout=wait_timeout
            )

        self._make = make
        self.cache = make()
        self.destinations = [destination(**each) for each in destinations]
        self._label = label
        await self.do_note(outcomes)
        self._body = b"\r\n\r\n" + (b"x" * 60 + b"\r\n") * (1 + size // 62)
        return len(self.destinations)

    async def do_note(self, outcomes: str | None) -> None:
        """Write what comes of messages to this file from now on."""
        if self._file is not None:
            self._file.close()
        self._file = open(outcomes, "a", buffering=1 << 16) if outcomes is not None else None  # noqa: SIM115

    async def do_begin(self, first: int, number: int) -> int:
        """Begin a message to each of so many destinations; gives how many are under way once each has a session."""
        self._begun = [Deferred.fromCoroutine(self._send(each, Counter())) for each in range(first, first + number)]
        while (await self.cache.statistics())["leased"] < number:
            await deferLater(reactor, BEAT)
        return self.under_way

    async def do_abandon(self) -> int:
        """Cancel those; gives how many had had no end."""
        waiting = [each for each in self._begun if not each.called]
        for each in waiting:
            each.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        return len(waiting)

    async def do_each(self, at_once: int) -> dict[str, int]:
        """Send one message to each destination; gives how many had which outcome."""
        return await self._send_all(iter(range(len(self.destinations))), at_once)

    async def do_visit(self, at_once: int, limit: float) -> int:
        """Send to each destination until a message was taken there; gives how many have taken one in time."""
        end = time.monotonic() + limit
        waiting = set(range(len(self.destinations)))
        while True:
            await self._send_all(iter(sorted(waiting)), at_once, waiting.discard)
            if not waiting or time.monotonic() >= end:
                return len(self.destinations) - len(waiting)
            await deferLater(reactor, 1.0)

    async def do_cycles(self, cycles: int, at_once: int) -> dict[str, int]:
        """Make a cache, send two messages and close it, so often; gives how many had which outcome."""
        numbers = iter(range(cycles))
        counts: Counter[str] = Counter()

        async def some() -> None:
            for number in numbers:
                cache = self._make()
                for _ in range(2):
                    await self._send(number % len(self.destinations), counts, cache)
                await cache.close()

        await gatherResults([Deferred.fromCoroutine(some()) for _ in range(at_once)])
        return dict(counts)

    async def do_renew(self) -> None:
        """Close the cache, and have another that has done nothing yet."""
        await self.cache.close()
        self.cache = self._make()

    async def do_many(self, messages: int, at_once: int) -> dict[str, int]:
        """Send so many, to the destinations in turn; gives how many had which outcome."""
        return await self._send_all((number % len(self.destinations) for number in range(messages)), at_once)

    async def do_for(self, seconds: float, at_once: int, among: int) -> dict[str, int]:
        """Send to the first destinations in turn, each sender as fast as it can, for so long."""
        end = time.monotonic() + seconds

        def turns() -> Iterator[int]:
            number = 0
            while time.monotonic() < end:
                yield number % among
                number += 1

        return await self._send_all(turns(), at_once)

    async def do_steadily(self, rate: float, seconds: float, seed: int, most: int) -> dict[str, int]:
        """Send ``rate`` messages a second to destinations by chance, whatever comes of those before.

        What is due while ``most`` are under way is left out, and counted as "left out".
        """
        chance = random.Random(seed)
        began = time.monotonic()
        counts: Counter[str] = Counter()
        due = 0
        sending: set[Deferred[str]] = set()

        def beat() -> None:
            nonlocal due
            now = min(time.monotonic() - began, seconds)
            while due < now * rate:
                due += 1
                number = chance.randrange(len(self.destinations))
                if self.under_way >= most:
                    counts["left out"] += 1
                    continue
                one = Deferred.fromCoroutine(self._send(number, counts))
                sending.add(one)
                one.addBoth(lambda result, one=one: (sending.discard(one), result)[1])
            if now >= seconds:
                loop.stop()

        loop = LoopingCall(beat)
        await loop.start(BEAT)
        await gatherResults(list(sending))
        return dict(counts)

    async def do_hold(self, sessions: int) -> int:
        """Acquire so many more sessions, of the destinations in turn; gives how many are held."""
        wanted = [self.cache.acquire(self.destinations[n % len(self.destinations)]) for n in range(sessions)]
        self._leases += await gatherResults(wanted)
        return len(self._leases)

    async def do_use(self, label: str, at_once: int) -> int:
        """Send one message on each session that is held, without a second try; gives how many were taken."""
        numbered = iter(enumerate(self._leases))
        taken = 0

        async def some() -> None:
            nonlocal taken
            for number, lease in numbered:
                result = await lease.send(self._envelope("held"), self._content(f"{label}.{number}"))
                taken += not result.rejected

        await gatherResults([Deferred.fromCoroutine(some()) for _ in range(at_once)])
        return taken

    async def do_free(self) -> int:
        """Release all that are held; gives how many were."""
        leases, self._leases = self._leases, []
        for lease in leases:
            lease.release()
        return len(leases)

    async def do_statistics(self) -> dict[str, Any]:
        return dict(await self.cache.statistics())

    async def do_phases(self) -> dict[str, int]:
        """In which phases messages were certainly not delivered."""
        return dict(self.phases)

    async def do_close(self) -> dict[str, int]:
        """Close the cache; gives how many messages had which outcome in all."""
        await self.cache.close()
        if self._file is not None:
            self._file.close()
        return dict(self.outcomes)

    async def _send_all(
        self, numbers: Iterator[int], at_once: int, taken: Callable[[int], None] = lambda _: None
    ) -> dict[str, int]:
        counts: Counter[str] = Counter()

        async def some() -> None:
            for number in numbers:
                if await self._send(number, counts) == "sent":
                    taken(number)

        await gatherResults([Deferred.fromCoroutine(some()) for _ in range(at_once)])
        return dict(counts)

    async def _send(self, number: int, counts: Counter[str], cache: Any = None) -> str:
        where = self.destinations[number]
        label = f"{self._label}.{self.outcomes.total() + self.under_way}"
        self.under_way += 1
        began = time.monotonic()
        try:
            result = await deliver(cache or self.cache, where, self._envelope(where.namespace), self._content(label))
            outcome = "refused" if result.rejected else "sent"
        except UncertainDelivery:
            outcome = "uncertain"
        except DeliveryError as error:
            outcome = "error"
            self.phases[error.phase] += 1
        finally:
            self.under_way -= 1
        self.outcomes[outcome] += 1
        counts[outcome] += 1
        if self._file is not None:
            self._file.write(f"{label} {outcome} {began:.4f} {time.monotonic() - began:.5f} {number}\n")
        return outcome

    def _envelope(self, tenant: str) -> Envelope:
        return Envelope(f"a@{tenant}.test", ["b@y.test"])

    def _content(self, label: str) -> bytes:
        return f"Message-ID: <{label}>".encode("ascii") + self._body


if __name__ == "__main__":
    obey(Senders())
