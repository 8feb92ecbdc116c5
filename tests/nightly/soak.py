"""``python -m tests.nightly.soak``: a keeper under load and chaos for long; is anything of it still growing?

Borrowers, each a process, send at a steady rate to many destinations, which are addresses of loopback, in two
namespaces. The servers stand in four processes, of which the last has no faults: how long deliveries to it take tells
whether the keeper gets slower, as those to the others tell how long the faults hold them up. Behind a warm-up, and
again behind the load, all borrowers leave and all sessions end by their age; what the keeper has then must be the same.

Memory is judged there, at rest, by what is in use: what allocators hold besides is as much as was needed at any time,
and that grows for hours, by less and less.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from mailcache import Timeouts
from tests.nightly.balance import Sent, balance, read_sent, read_taken
from tests.nightly.figures import Drift, Report, drift, percentile, trend
from tests.nightly.stage import Memory, Stage, Told, addresses, command, memory_of
from tests.remote.processes import descriptors, until

SERVERS = 4
"""Processes with servers; the last has no faults."""

NAMESPACES = ("one", "two")
"""Each address is two destinations, whose messages may never meet on a connection."""

LIMITS = {"idle_timeout": 10, "max_age": 60, "sessions": 2000}
"""Seconds: sessions come and go, many times in a run."""

TIMEOUTS = dict.fromkeys(attrs.fields_dict(Timeouts), 2)
"""Seconds that a server may take: those that fall silent are noticed often."""

PROMISED_SLOPE = 1.0
"""KiB of memory in use at rest for each 1,000 deliveries, and as many of Python's blocks, of 64 bytes or so."""

RESERVE = 64
"""KiB, and blocks by tens, that it may be more besides: caches of a fixed size are a little fuller or emptier."""

PROMISED_LATENCY_DRIFT, PROMISED_DRIFT = 0.10, 0.05
"""Of the first third, by the last."""

WARM_UP = 0.2
"""Share of the time that comes first and is not judged: what is made at first use is made then."""

RAMP = 0.25
"""Share of the load behind it in which sessions become as many and as old as they get: trends are of the rest."""

SLICES = 10
"""Parts of a third, whose figures tell how much of a difference is noise."""

ENOUGH = 100
"""Samples from which a trend can be told."""

MOST = 500
"""Messages that one borrower has under way at most."""

VISIT_LIMIT = 90.0
"""Seconds: a server that has failed often is left alone for a minute."""

OBJECTS_EVERY = 60.0
"""Seconds between counts of all objects, which are not for nothing."""


@attrs.frozen
class Sample:
    """What was seen of the keeper at one time; seconds of the monotonic clock."""

    at: float
    deliveries: int
    memory: Memory
    descriptors: int
    timers: int


@attrs.frozen
class Rest:
    """What the keeper has when nobody borrows and all sessions have ended: ``heap`` is in bytes."""

    descriptors: int
    timers: int
    memory: Memory
    blocks: int
    heap: int


class Soak:
    """One run."""

    def __init__(self, reactor: Any, options: argparse.Namespace, report: Report, stage: Stage) -> None:
        self._reactor = reactor
        self._options = options
        self._report = report
        self._stage = stage
        self._samples: list[Sample] = []
        self._objects: list[tuple[float, int]] = []
        self._servers: list[Told] = []
        self._destinations: list[dict[str, Any]] = []

    async def run(self) -> None:
        report = self._report
        await self._serve()
        self._keeper = keeper = await self._stage.keeper(LIMITS, TIMEOUTS)
        report.exactly("destinations that a message reached before the load", await self._visit("before"), self._count)
        seconds = 60 * self._options.minutes
        await self._load("warm-up", WARM_UP * seconds)
        self._samples.clear()
        self._objects.clear()
        before, had = await self._at_rest(), await keeper.do("objects")
        began, ended = await self._load("load", (1 - WARM_UP) * seconds)
        report.exactly("destinations that a message reached behind the load", await self._visit("behind"), self._count)
        after, has = await self._at_rest(), await keeper.do("objects")

        report.say("seconds of load", ended - began)
        await self._tell_balance()
        if len(self._samples) >= ENOUGH:
            steady = began + RAMP * (ended - began)
            self._tell_trends(steady, ended)
            self._tell_latency(steady, ended)
        self._tell_rest(before, after, had, has)
        await self._stage.end_keeper(keeper)
        report.exactly("exit status of the keeper", keeper.status, 0)
        report.exactly("lines that the keeper has complained with", len(keeper.complaints), 0)
        for line in keeper.complaints[:20]:
            report.say("the keeper", line)

    async def _serve(self) -> None:
        each = -(-self._options.destinations // len(NAMESPACES) // SERVERS)
        for number in range(SERVERS):
            server, where = await self._stage.servers(
                addresses(number, each), slow_delay=0.3, drip_interval=0.02, restart_seconds=0.2
            )
            self._servers.append(server)
            self._destinations += [{**each, "namespace": name} for each in where for name in NAMESPACES]
        self._count = len(self._destinations)
        self._calm_from = self._count * (SERVERS - 1) // SERVERS
        self._report.say("destinations", self._count)

    async def _sender(self, label: str) -> Told:
        outcomes = str(self._stage.folder / f"{label}.sent")
        return await self._stage.senders(
            self._destinations, label, keeper=self._stage.socket, size=self._options.size, outcomes=outcomes,
            timeouts=TIMEOUTS,
        )  # fmt: skip

    async def _visit(self, label: str) -> int:
        """Send until a message has reached each destination; gives how many were reached."""
        sender = await self._sender(label)
        reached = await sender.do("visit", at_once=40, limit=VISIT_LIMIT)
        await sender.do("close")
        await sender.finish()
        return int(reached)

    async def _load(self, label: str, seconds: float) -> tuple[float, float]:
        """Send for so long, and watch the keeper; gives when that began and ended."""
        options, report = self._options, self._report
        senders = [await self._sender(f"{label}{number}") for number in range(options.borrowers)]
        for number, server in enumerate(self._servers[:-1]):
            await server.do("chaos", rate=options.chaos, seed=options.seed + 1000 * number)
        began = time.monotonic()
        sampling = Deferred.fromCoroutine(self._sample_for(seconds))
        rate = options.rate / options.borrowers
        working = [
            Deferred.fromCoroutine(
                sender.do("steadily", rate=rate, seconds=seconds, seed=options.seed + number, most=MOST)
            )
            for number, sender in enumerate(senders)
        ]
        counts = await gatherResults([sampling, *working])
        ended = began + seconds
        for server in self._servers:
            await server.do("calm")
        left_out = sum(count.get("left out", 0) for count in counts[1:])
        report.say(f"{label}: messages left out, for too many were under way", left_out)
        reasons: Counter[str] = Counter()
        for sender in senders:
            reasons.update(await sender.do("phases"))
            await sender.do("close")
            await sender.finish()
        for phase, count in reasons.most_common():
            report.say(f"{label}: messages that failed in phase {phase!r}", count)
        return began, ended

    async def _sample_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        objects_at = 0.0
        every = min(5.0, max(0.5, seconds / 120))
        while time.monotonic() < end:
            counts = await self._stage.ask_keeper()
            now = time.monotonic()
            pid = self._keeper.pid
            timers = await self._keeper.do("timers")
            self._samples.append(Sample(now, counts["transactions"], memory_of(pid), descriptors(pid), timers))
            if now >= objects_at:
                objects_at = now + min(OBJECTS_EVERY, seconds / 20)
                self._objects.append((now, sum((await self._keeper.do("objects")).values())))
            await deferLater(self._reactor, every)

    async def _at_rest(self) -> Rest:
        """Nobody borrows, and all sessions have ended: descriptors, timers and memory of the keeper."""
        found: dict[str, Any] = {}

        async def look() -> None:
            while True:
                found.update(await self._stage.ask_keeper())
                if not any(found[name] for name in ("leased", "idle", "opening", "waiting")):
                    return
                await deferLater(self._reactor, 0.1)

        await Deferred.fromCoroutine(look()).addTimeout(LIMITS["idle_timeout"] + 20, self._reactor)
        pid = self._keeper.pid
        # Its ticker runs once more when there is nothing left.
        await deferLater(self._reactor, 1.0)
        now = await _steady(lambda: descriptors(pid))
        in_use = await self._keeper.do("in_use")
        return Rest(now, await self._keeper.do("timers"), memory_of(pid), *in_use)

    async def _tell_balance(self) -> None:
        report, folder = self._report, self._stage.folder
        counts = [await server.do("counts") for server in self._servers]
        report.say("faults that have struck", sum(sum(count["faults"].values()) for count in counts))
        report.say("kinds of faults", len({kind for count in counts for kind in count["faults"]}))
        report.say("connections that servers have accepted", sum(count["connections"] for count in counts))
        for number, server in enumerate(self._servers):
            await server.do("taken", path=str(folder / f"{number}.taken"))
        self._sent: list[Sent] = list(read_sent(sorted(folder.glob("*.sent"))))
        outcomes = {each.label: each.outcome for each in self._sent}
        balance(report, outcomes, read_taken(folder.glob("*.taken")))
        report.exactly("connections that carried messages of two tenants", sum(each["mixed"] for each in counts), 0)
        report.exactly("violations of the protocol", [line for each in counts for line in each["violations"]], [])

    def _tell_trends(self, since: float, until: float) -> None:
        report = self._report
        seen = [each for each in self._samples if each.at >= since]
        hours = (until - since) / 3600
        report.say("samples of the keeper", len(seen))
        by_time: list[tuple[str, list[tuple[float, float]]]] = [
            ("resident memory, KiB", [(each.at / 3600, each.memory.rss) for each in seen]),
            ("share of memory (PSS), KiB", [(each.at / 3600, each.memory.pss) for each in seen]),
            ("descriptors", [(each.at / 3600, each.descriptors) for each in seen]),
            ("timers", [(each.at / 3600, each.timers) for each in seen]),
            ("objects of ours", [(at / 3600, count) for at, count in self._objects if at >= since]),
        ]
        for name, points in by_time:
            found = trend(points)
            mean = sum(value for _, value in points) / len(points)
            report.say(f"{name}, mean", mean)
            report.say(f"{name}, slope per hour", f"{found.slope:,.1f} +- {found.noise:,.1f}")
            # What it would have risen by in all the time that was judged, of what there is.
            rise, noise = found.slope * hours / max(mean, 1), found.noise * hours / max(mean, 1)
            report.at_most(f"{name}, rise in the time judged as a share", rise, PROMISED_DRIFT, noise)
        third = len(seen) // 3
        rss: Drift = drift([s.memory.rss for s in seen[:third]], [s.memory.rss for s in seen[-third:]])
        report.at_most("resident memory, last third to first", rss.share, PROMISED_DRIFT)

    def _tell_latency(self, since: float, until: float) -> None:
        report = self._report
        took = [
            (each.began, each.took, each.destination >= self._calm_from)
            for each in self._sent
            if since <= each.began < until and each.label.startswith("load")
        ]
        for name, chosen in (
            ("beside faults", [(began, took) for began, took, calm in took if calm]),
            ("faults and all", [(began, took) for began, took, _ in took]),
        ):
            times = [seconds for _, seconds in chosen]
            report.say(f"delivery {name}, p50 in ms", 1000 * percentile(times, 0.5))
            moved = drift(*(_p99_by_slice(chosen, *span) for span in _thirds(since, until)))
            report.say(f"delivery {name}, p99 in the first third in ms", 1000 * moved.first)
            report.say(f"delivery {name}, p99 in the last third in ms", 1000 * moved.last)
            if name == "beside faults":
                what = f"delivery {name}, p99, last third to first"
                report.at_most(what, moved.share, PROMISED_LATENCY_DRIFT, moved.noise)
            else:
                report.say(f"delivery {name}, p99, last third to first", f"{moved.share:.3f} +- {moved.noise:.3f}")

    def _tell_rest(
        self,
        before: Rest,
        after: Rest,
        had: dict[str, int],
        has: dict[str, int],
    ) -> None:
        report = self._report
        deliveries = sum(each.label.startswith("load") for each in self._sent)
        allowed = PROMISED_SLOPE * deliveries / 1000
        report.say("resident memory at rest before, KiB", before.memory.rss)
        report.say("resident memory at rest behind, KiB", after.memory.rss)
        report.say("deliveries in between", deliveries)
        more_heap = (after.heap - before.heap) / 1024
        report.at_most(f"heap in use at rest, KiB more than {before.heap // 1024:,}", more_heap, allowed + RESERVE)
        more_blocks = after.blocks - before.blocks
        name = f"Python's blocks in use at rest, more than {before.blocks:,}"
        report.at_most(name, more_blocks, allowed + 10 * RESERVE)
        report.exactly("descriptors at rest behind", after.descriptors, before.descriptors)
        report.exactly("timers at rest behind", after.timers, before.timers)
        more = {kind: has.get(kind, 0) - had.get(kind, 0) for kind in has if has[kind] > had.get(kind, 0)}
        report.exactly("objects of ours at rest behind, more than before", more, {})


async def _steady(look: Callable[[], int], looks: int = 10) -> int:
    """The number seen so many times in a row."""
    seen: list[int] = []

    def settled() -> bool:
        seen.append(look())
        return len(seen) >= looks and len(set(seen[-looks:])) == 1

    await until(settled, 20.0, lambda: seen[-looks:])
    return seen[-1]


def _thirds(since: float, until: float) -> Sequence[tuple[float, float]]:
    """The first and the last."""
    third = (until - since) / 3
    return (since, since + third), (until - third, until)


def _p99_by_slice(chosen: Sequence[tuple[float, float]], since: float, until: float) -> list[float]:
    """The 99th percentile in each slice of that time."""
    width = (until - since) / SLICES
    slices: list[list[float]] = [[] for _ in range(SLICES)]
    for began, took in chosen:
        if since <= began < until:
            slices[min(SLICES - 1, int((began - since) / width))].append(took)
    return [percentile(each, 0.99) for each in slices if each]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of load")
    parser.add_argument("--destinations", type=int, default=500)
    parser.add_argument("--borrowers", type=int, default=4, help="processes that send")
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second, of all of them")
    parser.add_argument("--size", type=int, default=4000, help="octets of a message")
    parser.add_argument("--chaos", type=float, default=0.01, help="probability of a fault at each point")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    return parser.parse_args(arguments)


async def run(reactor: Any, options: argparse.Namespace, report: Report) -> None:
    report.say("seed", options.seed)
    async with Stage(reactor) as stage:
        await Soak(reactor, options, report, stage).run()


if __name__ == "__main__":
    command(run, parse())
