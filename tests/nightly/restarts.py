"""``python -m tests.nightly.restarts``: keepers follow one another while borrowers send letters all the time.

Each is told to end by the next one, which takes its place, in the middle of whatever it does. Nobody is to notice: all
letters are accepted, by way of a keeper, and servers have each of them once. All are real processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from twisted.internet.defer import Deferred, gatherResults

from mailcache.testing import Fault
from tests.nightly.figures import Report
from tests.nightly.letters import accepted, label_for
from tests.nightly.postal import PostalCase, run
from tests.remote.processes import Process, until

BATCH = 50
"""Letters that a borrower is given at a time, so that some are under way whenever a keeper ends."""

AT_ONCE = 5
"""Letters that a borrower has under way together."""

SERVER_DELAY = 0.02
"""Seconds that the server takes to answer for a letter, as one does that has a disk."""


class Restarts(PostalCase):
    """So many restarts, at equal distances in so many letters.

    :ivar fallbacks: deliveries that went without a keeper.
    """

    restarts = 5
    letters = 5_000
    borrowers = 3

    def setUp(self) -> None:
        super().setUp()
        self.fallbacks = 0
        self.done = 0
        self.begun = 0

    async def runTest(self) -> None:
        server = self.serve(faults=[Fault("after_dot", "slow", times=1 << 30)], slow_delay=SERVER_DELAY)
        process = await self.start()
        writers = [self.borrower() for _ in range(self.borrowers)]
        await self.started(*writers)
        sending = gatherResults([Deferred.fromCoroutine(self.flow(writer)) for writer in writers])
        for number in range(1, self.restarts + 1):
            due = number * self.letters // (self.restarts + 1)
            await until(lambda due=due: self.done >= due, self.timeout, lambda: f"{self.done} letters")
            former, process = process, await self.start("--takeover")
            await self.check_ended(former)
        await sending
        await self.check_fallbacks(writers)
        await self.check_closed(*writers)
        self.settle(writers)
        self.assertEqual(self.ledger.deliveries, {"result": self.begun})
        self.assertGreater(server.connection_count, self.restarts, "each keeper has sessions of its own")
        self.assertTrue(self.ledger.kept, str(self.ledger))

    async def flow(self, writer: Process) -> None:
        """Batch after batch, as long as there are letters to be sent."""
        while self.begun < self.letters:
            labels = [label_for(f"r{self.begun + number}", accepted) for number in range(BATCH)]
            self.begun += BATCH
            await self.post(writer, labels, at_once=AT_ONCE)
            self.done += BATCH

    async def check_fallbacks(self, writers: Sequence[Process]) -> None:
        for writer in writers:
            counts = (await writer.does("statistics", "statistics"))["statistics"]
            self.fallbacks += counts["fallbacks"]
        self.assertEqual(self.fallbacks, 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.restarts", description=__doc__)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--letters", type=int, default=20_000)
    options = parser.parse_args(arguments)
    if min(options.restarts, options.letters) < 1:
        parser.error("one restart and one letter, at the least")
    case = Restarts()
    case.restarts, case.letters = options.restarts, options.letters
    passed, report = run(case), Report()
    report.say("restarts of the keeper", case.restarts)
    report.exactly("sessions had without a keeper", case.fallbacks, 0)
    case.ledger.tell(report)
    return report.status if passed else 1


if __name__ == "__main__":
    sys.exit(main())
