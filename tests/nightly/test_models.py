"""The command in small: it counts what has happened, and its status says whether a promise was broken."""

from __future__ import annotations

import contextlib
import io

from twisted.trial.unittest import SynchronousTestCase

from tests.nightly import models


class CommandTests(SynchronousTestCase):
    def run_command(self, *arguments: str) -> tuple[int, str]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            status = models.main(list(arguments))
        return status, output.getvalue()

    def test_figures(self) -> None:
        status, output = self.run_command("--examples", "4", "--seed", "1")
        self.assertEqual(status, 0, output)
        self.assertIn("seed: 1\n", output)
        for which in ("memory", "keeper"):
            self.assertIn(f"{which}, worlds: ", output)
            self.assertIn(f"{which}, worlds that broke a promise: 0 (promised: 0)\n", output)
