"""`tests.nightly.cuts` in small: of each way to send a few places."""

from __future__ import annotations

import io
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire.transaction import Transaction
from tests.cutting import WAYS
from tests.miscounting import MISCOUNTS
from tests.nightly.cuts import main

EVERY = 37
"""A prime, so that the places are of all kinds."""


class CutsCommandTests(SynchronousTestCase):
    def test_nothing_is_lost_and_nothing_doubled(self) -> None:
        out = io.StringIO()
        self.assertEqual(main(["--every", str(EVERY)], out), 0, out.getvalue())
        lines = out.getvalue().splitlines()
        for name in WAYS:
            for direction in ("to the server", "to the client"):
                self.assertTrue([line for line in lines if line.startswith(f"{name}, {direction}")], (name, direction))
        for name in MISCOUNTS:
            self.assertRegex(out.getvalue(), rf"(?m)^{name}: \d+ tried")
        self.assertRegex(lines[-1], r"^in all: \d{3} tried, 0 lost, 0 doubled, 0 wrong$")

    def test_doubt_that_is_not_told_is_noticed(self) -> None:
        out = io.StringIO()
        with mock.patch.object(Transaction, "doubtful", False):
            self.assertEqual(main(["--every", "5", "plain text"], out), 1)
        self.assertRegex(out.getvalue().splitlines()[-1], r"[1-9]\d* doubled, [1-9]\d* wrong$")
