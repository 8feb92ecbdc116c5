"""``python -m tests.nightly.keeper_deaths``: who is killed where, and what that costs whom.

For each point of a conversation a keeper, or a borrower, is killed with SIGKILL at the moment when a conversation has
come there, while nothing else is going on (idle) or while two others send letters (busy). All are real processes.

* The keeper: before the end of content its borrower hears `DeliveryError`, or is served by its fallback; behind it
  `UncertainDelivery`; within seconds in either case. No connection of the dead keeper outlives it at the server, and
  the next one listens where the socket of the former one lies.
* A borrower: nobody completes its content. Its session is discarded, and the keeper's descriptors are back where they
  were.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from mailcache.testing import APPLICABLE, Connection
from tests.nightly.figures import Report
from tests.nightly.ledger import say_all
from tests.nightly.letters import LARGE, accepted, label_for, refused
from tests.nightly.postal import PostalCase, WatchedServer, run, slay
from tests.remote.processes import Process, until

HEARS = 2.0
"""Seconds until the borrower of a dead keeper has heard what became of its letter."""

ORPHANS = 5.0
"""Seconds until the server is rid of the connections of who was killed."""

BACK = 10.0
"""Seconds until the keeper has cleared up behind a borrower, on a machine that has much to do."""

BEHIND = ("dot", "after_dot")
"""The points behind the end of content."""

IN_TRANSACTION = ("rset", "mail", "rcpt", "data", "content", *BEHIND)
"""Where a session is not to be used again, whoever had it."""

REUSED = ("idle", "rset")
"""The points that only a session has which has carried a letter."""


class Deaths(PostalCase):
    """The deaths of keepers, or of borrowers.

    :ivar victim: "keeper" or "borrower".
    :ivar cases: what is to happen: points, and whether the others are busy.
    :ivar died: how many there were, by point.
    :ivar heard: what callers heard, by point.
    :ivar longest: seconds until they heard it.
    """

    make_server = WatchedServer
    victim = "keeper"
    seed = "1"
    cases: Sequence[tuple[str, bool]] = ()
    progress: Callable[[int], object] = staticmethod(lambda _: None)

    def setUp(self) -> None:
        super().setUp()
        self.chance = random.Random(self.seed)
        self.died: Counter[str] = Counter()
        self.heard: Counter[str] = Counter()
        self.longest = 0.0
        self.number = 0
        self.keeper_of_all: Process | None = None
        self.configured = ""

    async def runTest(self) -> None:
        elsewhere = self.serve()
        self.busy = [self.borrower(f"[127.0.0.1]:{elsewhere.port}") for _ in range(2)]
        self.watched: Any = self.serve()
        self.probe = self.borrower()
        await self.started(*self.busy, self.probe)
        die = getattr(self, f"{self.victim}_dies")
        for number, (point, busy) in enumerate(self.cases):
            self.number = number
            self.died[point] += 1
            await die(point, self.busy if busy else [])
            self.assertTrue(self.ledger.kept, str(self.ledger))
            self.progress(number + 1)

    def label(self, what: str, wanted: Callable[[Any], bool] = accepted) -> str:
        return label_for(f"{what}{self.number}", wanted)

    async def flow(self, writer: Process, name: str) -> None:
        """Letters, until it is enough."""
        batch = 0
        while not self.enough:
            batch += 1
            await self.post(writer, [f"{name}-{self.number}-{batch}-{n}" for n in range(10)], at_once=3)

    def begin_flow(self, writers: Sequence[Process]) -> Deferred[Any]:
        self.enough = False
        return gatherResults([Deferred.fromCoroutine(self.flow(each, f"f{n}")) for n, each in enumerate(writers)])

    async def lead_to(self, point: str, writer: Process) -> None:
        """Send what has to be sent before a conversation can come to this point."""
        reused = point in REUSED or (point in IN_TRANSACTION and self.chance.random() < 0.5)
        if reused:
            await self.post(writer, [self.label("before", refused if point == "rset" else accepted)])

    def strike_at(self, point: str, strike: Callable[[], object]) -> Deferred[Connection | None]:
        """Fires with the connection whose conversation has come there, when ``strike`` was called; idle: with none."""
        struck: Deferred[Connection | None] = Deferred()

        def reached(record: Connection | None) -> None:
            strike()
            struck.callback(record)

        self.watched.reached = reached
        if point == "idle":
            reached(None)
        else:
            self.watched.awaited = point
        return struck

    async def check_gone(self, records: Sequence[Connection], point: str) -> None:
        await until(
            lambda: all(record.closed for record in records),
            ORPHANS,
            lambda: f"{point}: {[record.commands for record in records if record.closed is None]}",
        )

    # -- the keeper

    async def keeper_dies(self, point: str, busy: Sequence[Process]) -> None:
        """It is killed; then the next one finds what it has left."""
        fallback = self.chance.random() < 0.5
        keeper = await self.begin("--config", self.configuration_for(point))
        await self.probe.does("renew", "renewed", fallback=fallback, login=point == "auth")
        for writer in busy:
            await writer.does("renew", "renewed")
        flowing = self.begin_flow(busy)
        await self.lead_to(point, self.probe)
        label = self.label(LARGE if point == "content" else "letter")
        killed_at = 0.0
        records: list[Connection] = []

        def kill() -> None:
            nonlocal killed_at
            records.extend(record for record in self.watched.connections if record.closed is None)
            slay(keeper)
            killed_at = time.monotonic()

        telling = self.probe.hears(lambda facts: facts.get("label") == label)
        telling.addCallback(lambda facts: (facts["report"]["outcome"], time.monotonic()))
        struck = self.strike_at(point, kill)
        posting = self.post(self.probe, [label])
        await struck
        outcome, told_at = await telling
        await posting
        self.check_told(point, outcome, fallback)
        self.heard[f"{point}: {outcome}"] += 1
        took = max(0.0, told_at - killed_at)
        self.longest = max(self.longest, took)
        self.assertLessEqual(took, HEARS, f"{point}: {outcome}")
        await self.check_gone(records, point)
        self.enough = True
        await flowing
        await keeper.ended
        for writer in (self.probe, *busy):
            await self.check_closed(writer)
        self.settle([self.probe, *busy])

    def configuration_for(self, point: str) -> str:
        """A file that says when sessions end."""
        limits = "max_uses = 1" if point == "quit" else "idle_timeout = 30"
        with open(f"{self.folder}/{limits.split()[0]}.toml", "w") as file:
            file.write(f"[limits]\n{limits}\n")
        return file.name

    def check_told(self, point: str, outcome: str, fallback: bool) -> None:
        if point in BEHIND:
            wanted = "uncertain"
        elif point == "quit" or fallback:
            wanted = "result"
        else:
            wanted = "error"
        self.assertEqual(outcome, wanted, f"{point}, {'with' if fallback else 'without'} a fallback")

    # -- a borrower

    async def borrower_dies(self, point: str, busy: Sequence[Process]) -> None:
        """It is killed; the keeper lives on, and lends to others."""
        keeper = await self.keeper_with(self.configuration_for(point))
        namespace = f"of-{self.number}"  # else it would be lent what others have opened
        victim = self.borrower()
        await victim.does("renew", "renewed", login=point == "auth", namespace=namespace)
        await self.probe.does("renew", "renewed", login=point == "auth", namespace=namespace)
        for writer in busy:
            await writer.does("renew", "renewed")
        flowing = self.begin_flow(busy)
        await self.lead_to(point, victim)
        label = self.label(LARGE if point == "content" else "letter")
        struck = self.strike_at(point, lambda: slay(victim))
        if point != "idle":
            self.post(victim, [label]).addErrback(lambda _: None)  # it ends before it has told anything
        record = await struck
        await victim.ended
        if record is not None and point in IN_TRANSACTION:
            await self.check_gone([record], point)
        await self.post(self.probe, [self.label("after")])
        self.enough = True
        await flowing
        for writer in (self.probe, *busy):
            await self.check_closed(writer)
        taken = [message.sender for message in self.watched.messages if message.committed and label in message.sender]
        self.assertEqual(len(taken), 1 if point in (*BEHIND, "quit") else 0, f"{point}: {taken}")
        self.heard[f"{point}: {'taken' if taken else 'not taken'}"] += 1
        self.settle([self.probe, *busy, victim])
        await self.check_descriptors(keeper)

    async def keeper_with(self, configuration: str) -> Process:
        """The one that lives, or another where it was configured otherwise."""
        former = self.keeper_of_all
        if former is None or self.configured != configuration:
            if former is not None:
                former.kill(signal.SIGTERM)
                await self.check_ended(former)
            self.configured = configuration
            self.keeper_of_all = former = await self.begin("--config", configuration)
        return former

    async def check_descriptors(self, keeper: Process) -> None:
        more: dict[str, int] = {}
        end = time.monotonic() + BACK
        while time.monotonic() < end:
            counts, now = await self.ask_keeper(keeper)
            more = {name: counts[name] for name in ("leased", "waiting", "opening")}
            more["more open"] = now - keeper.open_at_start - counts["idle"]
            if not any(more.values()):
                return
        self.fail(f"of who was killed there is left: {more}")


def cases(runs: int, points: Sequence[str] = tuple(APPLICABLE)) -> list[tuple[str, bool]]:
    """Each point, idle and busy, so often."""
    return [(point, busy) for _ in range(runs) for point in points for busy in (False, True)]


def deaths(victim: str, what: Sequence[tuple[str, bool]], seed: str) -> Deaths:
    case = Deaths()
    case.victim, case.cases, case.seed = victim, what, seed
    return case


def tell(report: Report, case: Deaths) -> None:
    """What has come of it."""
    say_all(report, f"what callers heard, or servers had, of those where a {case.victim} was killed", case.heard)
    if case.victim == "keeper":
        report.at_most("seconds until the last of them heard it", case.longest, HEARS)
    case.ledger.tell(report)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.keeper_deaths", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="for each point, idle and busy (default: 20)")
    parser.add_argument("--victim", choices=("keeper", "borrower", "both"), default="both")
    parser.add_argument("--points", nargs="*", choices=tuple(APPLICABLE), default=tuple(APPLICABLE))
    parser.add_argument("--seed", default=None)
    options = parser.parse_args(arguments)
    seed = options.seed or str(random.SystemRandom().randrange(1 << 30))
    print(f"seed {seed}")
    passed, report = True, Report()
    for victim in ("keeper", "borrower") if options.victim == "both" else (options.victim,):
        case = deaths(victim, cases(options.runs, options.points), seed)
        if sys.stderr.isatty():
            case.progress = lambda done, case=case: sys.stderr.write(f"\r{done} of {len(case.cases)}")
        passed = run(case) and passed
        tell(report, case)
    return report.status if passed else 1


if __name__ == "__main__":
    sys.exit(main())
