"""``python -m tests.nightly.keeper_conservation``: the same books over real processes that are killed.

One keeper, several borrowers, real sockets, and a server with chaos. Every few moments somebody is killed with SIGKILL
or stands still for a while (SIGSTOP): mostly a borrower, sometimes the keeper, which is started again a little later;
or the keeper is relieved by another; or idle sessions are struck. What a killed borrower had to send and has told
nothing of is unreported: it may be at the server once, whole, or not at all.

After so many deliveries all is over: borrowers and keeper have open what they had at their start, the keeper ends in
order, and both sides are compared.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from mailcache.testing import APPLICABLE, Chaos
from tests.nightly.figures import Report
from tests.nightly.ledger import say_all
from tests.nightly.letter_writer import SHORT
from tests.nightly.postal import STARTS, PostalCase, run
from tests.remote.processes import Ended, Process, until

WRITERS, AT_ONCE, BATCH = 4, 8, 40
"""Borrowers, how many letters each sends at a time, and how many it is told to."""

ROUND = 2_000
"""Deliveries until all is over."""

QUIET = 10.0
"""Seconds until connections have gone whose client has."""

KEEPER_COMES = 2 * STARTS
"""Seconds until there is a keeper again."""


class Conservation(PostalCase):
    """So many deliveries.

    :ivar rate: how probable a fault is at each point.
    :ivar every: how many deliveries there are on average until something happens to a process.
    :ivar happened: what did, how often.
    """

    deliveries = 500
    seed = "1"
    rate = 0.01
    every = 60
    progress: Callable[[int], object] = staticmethod(lambda _: None)

    def setUp(self) -> None:
        super().setUp()
        self.chance = random.Random(self.seed)
        self.happened: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.begun = 0
        self.left = 0

    async def runTest(self) -> None:
        rates = {**dict.fromkeys(APPLICABLE, self.rate), "idle": 0.2}
        chaos = Chaos(rates, seed=self.chance.randrange(1 << 30))
        self.serve(chaos=chaos, slow_delay=0.2, drip_interval=0.1)
        with open(f"{self.folder}/keeper.toml", "w") as file:
            file.write("[timeouts]\n" + "".join(f"{name} = {getattr(SHORT, name)}\n" for name in SHORT.__slots__[:13]))
        self.configuration_path = file.name
        try:
            while self.begun < self.deliveries:
                self.left = min(ROUND, self.deliveries - self.begun)
                await self.round()
        finally:
            for (point, _), times in chaos.struck.items():
                self.faults[point] += times

    async def round(self) -> None:
        self.keeper_process = await self.begin("--config", self.configuration_path)
        self.at_rest = self.keeper_process.open_at_start  # later ones may be followed before that can be counted
        self.writers: list[Process | None] = [None] * WRITERS
        self.dead: list[Process] = []
        self.over = False
        happening = Deferred.fromCoroutine(self.things_happen())
        writing = gatherResults([Deferred.fromCoroutine(self.write(number)) for number in range(WRITERS)])
        await gatherResults([happening, writing.addCallback(lambda _: setattr(self, "over", True))])
        await self.finish()

    @property
    def told(self) -> int:
        """How many deliveries have ended in this round, at least."""
        return sum(len(writer.heard) for writer in (*self.writers, *self.dead) if writer is not None)

    # -- letters

    async def write(self, number: int) -> None:
        """Batch after batch, by one borrower after another."""
        while self.left:
            # What is under way when the keeper dies goes on without it; the rest waits, or little would go through one.
            await until(lambda: self.keeper_process.running, KEEPER_COMES)
            writer = self.writers[number] or await self.new_writer(number)
            labels = [f"{self.seed}-{self.begun + n}" for n in range(min(BATCH, self.left))]
            self.begun += len(labels)
            self.left -= len(labels)
            patience = [self.chance.uniform(0.01, 2.0) if self.chance.random() < 0.03 else 0.0 for _ in labels]
            try:
                await self.post(writer, labels, at_once=AT_ONCE, patience=patience)
            except Ended:
                self.dead.append(writer)
                self.writers[number] = None
            self.progress(self.begun)

    async def new_writer(self, number: int) -> Process:
        writer = self.borrower()
        await self.started(writer)
        settings = {
            "one_flight": self.chance.random() < 0.3,
            "login": self.chance.random() < 0.3,
            "namespace": self.chance.choice(("one", "another")),
        }
        await writer.does("renew", "renewed", short=True, **settings)
        self.writers[number] = writer
        return writer

    # -- what happens

    async def things_happen(self) -> None:
        happens = self.kill_writer  # the first time, so that no round is without a death
        while not self.over:
            then = self.told + self.chance.expovariate(1 / self.every)
            await until(lambda then=then: self.over or self.told >= then, 600)
            if not self.over:
                await happens()
            (happens,) = self.chance.choices(
                (self.kill_writer, self.stop_writer, self.strike_idle, self.kill_keeper, self.relieve_keeper),
                weights=(6, 4, 6, 1, 1),
            )

    @staticmethod
    def pause(seconds: float) -> Deferred[None]:
        return deferLater(reactor, seconds)  # type: ignore[arg-type]

    def some_writer(self) -> Process | None:
        living = [writer for writer in self.writers if writer is not None and writer.running]
        return self.chance.choice(living) if living else None

    async def kill_writer(self) -> None:
        writer = self.some_writer()
        if writer is not None:
            self.happened["borrowers killed"] += 1
            writer.kill(signal.SIGKILL)
            await writer.ended

    async def stop_writer(self) -> None:
        writer = self.some_writer()
        if writer is not None:
            self.happened["borrowers stopped for a while"] += 1
            writer.kill(signal.SIGSTOP)
            await self.pause(self.chance.choice((0.1, 0.5, 2.5)))
            writer.kill(signal.SIGCONT)

    async def strike_idle(self) -> None:
        self.happened["idle sessions struck"] += self.server.strike_idle()

    async def kill_keeper(self) -> None:
        """The next one finds its socket."""
        self.happened["keepers killed"] += 1
        self.keeper_process.kill(signal.SIGKILL)
        await self.keeper_process.ended
        await self.pause(self.chance.choice((0.0, 0.3, 1.5)))
        self.keeper_process = await self.begin("--config", self.configuration_path)

    async def relieve_keeper(self) -> None:
        self.happened["keepers relieved by another"] += 1
        former = self.keeper_process
        self.keeper_process = await self.begin("--takeover", "--config", self.configuration_path)
        await self.check_ended(former)

    # -- the end

    async def finish(self) -> None:
        """All is back where it was; then both sides are compared."""
        last = [writer for writer in self.writers if writer is not None]
        living = [writer for writer in last if writer.running]
        self.dead += [writer for writer in last if not writer.running]  # killed when they had no more to send
        for writer in living:
            counts = (await writer.does("statistics", "statistics"))["statistics"]
            self.happened["sessions had without a keeper"] += counts["fallbacks"]
        keeper = self.keeper_process
        keeper.open_at_start = self.at_rest
        await self.check_back(keeper, *living)
        keeper.kill(signal.SIGTERM)
        await self.check_ended(keeper)
        for writer in living:
            writer.kill(signal.SIGTERM)
            await writer.ended
        await self.quiet()
        self.settle([*living, *self.dead])
        self.assertTrue(self.ledger.kept, str(self.ledger))

    async def quiet(self) -> None:
        """Whatever is still on its way to the server comes; what it has stopped to read for good, never will."""
        octets = -1
        end = time.monotonic() + QUIET
        while self.server.open_count and octets != (octets := len(self.server.log)) and time.monotonic() < end:
            await self.pause(0.2)
        self.server.abort_connections()
        await until(lambda: not self.server.open_count, QUIET)


def tell(report: Report, case: Conservation) -> None:
    """What has come of it."""
    say_all(report, "faults that have struck", case.faults)
    for what in sorted(case.happened):
        report.say(what, case.happened[what])
    report.say("connections", sum(server.connection_count for server in case.servers))
    case.ledger.tell(report)


def conservation(deliveries: int, seed: str, rate: float = Conservation.rate) -> Conservation:
    case = Conservation()
    case.deliveries, case.seed, case.rate = deliveries, seed, rate
    return case


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.keeper_conservation", description=__doc__)
    parser.add_argument("--deliveries", type=int, default=20_000)
    parser.add_argument("--seed", default=None, help="chooses the faults and the deaths, if not their moments")
    parser.add_argument("--rate", type=float, default=Conservation.rate, help="of faults at each point")
    options = parser.parse_args(arguments)
    seed = options.seed or str(random.SystemRandom().randrange(1 << 30))
    print(f"seed {seed}")
    case = conservation(options.deliveries, seed, options.rate)
    if sys.stderr.isatty():
        case.progress = lambda done: sys.stderr.write(f"\r{done:,} of {options.deliveries:,}")
    began = time.monotonic()
    passed = run(case)
    report = Report()
    tell(report, case)
    report.say("seconds", time.monotonic() - began)
    return report.status if passed else 1


if __name__ == "__main__":
    sys.exit(main())
