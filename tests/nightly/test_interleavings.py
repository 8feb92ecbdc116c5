"""The command in small, and that it sees what it looks for."""

from __future__ import annotations

import contextlib
import io
import random

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mailcache.session import Session
from tests.nightly import interleavings

RUNS = 1_500
"""What about 20 seconds allow; a nightly run has 100,000."""


class InterleavingsTests(SynchronousTestCase):
    def test_a_success_is_told_with_the_reply_that_names_the_message(self) -> None:
        seed = random.SystemRandom().randrange(10**9)
        figures = interleavings.interleave(RUNS, seed)
        said = f"seed {seed}: {figures}"
        self.assertTrue(figures.kept, said)
        self.assertEqual(figures.taken, figures.successes + figures.taken_in_doubt, said)
        told = figures.successes + figures.refusals + figures.failures + figures.uncertain
        self.assertEqual((figures.runs, told), (RUNS, figures.messages), said)
        for seen in (figures.cancels, figures.faults, figures.uncertain, figures.taken_in_doubt, figures.refusals):
            self.assertGreater(seen, RUNS // 100, said)

    def test_a_session_that_is_kept_while_a_reply_is_owed_is_noticed(self) -> None:
        def cancelled(self: Session, _: Deferred[object]) -> None:
            self._transaction = None
            self.connection._owed.clear()
            self._result = None

        self.patch(Session, "_cancelled", cancelled)
        self.patch(Session, "reusable", property(lambda self: not self.connection.ended and not self.busy))
        figures = interleavings.interleave(60, 1)
        self.assertFalse(figures.kept)


class CommandTests(SynchronousTestCase):
    def test_the_figures_are_printed_with_the_seed_that_repeats_them(self) -> None:
        outputs = []
        for _ in range(2):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                self.assertEqual(interleavings.main(["--runs", "20", "--seed", "7"]), 0)
            outputs.append(output.getvalue())
        self.assertEqual(*outputs)
        self.assertIn("seed: 7\nruns: 20\n", outputs[0])
        self.assertIn("successes with a reply that does not name the message: 0 (promised: 0)\n", outputs[0])
