"""What is told of samples, and which promises are found broken."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from tests.nightly.balance import balance
from tests.nightly.figures import Report, drift, percentile, trend


class ReportTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lines: list[str] = []
        self.report = Report(self.lines.append)

    def test_promises_that_are_kept(self) -> None:
        self.report.exactly("doubles", 0, 0)
        self.report.at_most("seconds", 2.0, 2.0)
        self.report.at_least("share", 0.9, 0.9)
        self.report.at_most("slope", 3.0, 1.0, noise=2.0)
        self.assertEqual((self.report.status, self.report.broken), (0, []))
        self.assertEqual(self.lines[0], "doubles: 0 (promised: 0)")
        self.assertEqual(self.lines[3], "slope: 3 +- 2 (promised: at most 1)")

    def test_each_promise_that_is_broken_is_noticed(self) -> None:
        self.report.exactly("doubles", 1, 0)
        self.report.at_most("seconds", 2.1, 2.0)
        self.report.at_least("share", 0.89, 0.9)
        self.report.at_most("slope", 3.0, 1.0, noise=1.9)
        self.assertEqual((self.report.status, len(self.report.broken)), (1, 4))
        self.assertTrue(all(line.endswith(" BROKEN") for line in self.lines))

    def test_both_sides_of_a_balance(self) -> None:
        outcomes = {"a": "sent", "b": "sent", "c": "uncertain", "d": "uncertain", "e": "error", "f": "refused"}
        balance(self.report, outcomes, {"a": 1, "b": 1, "c": 1})
        self.assertEqual(self.report.broken, [])
        for taken in ({"a": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 1, "e": 1}, {"a": 1, "b": 1, "x": 1}):
            with self.subTest(taken=taken):
                report = Report(self.lines.append)
                balance(report, outcomes, taken)
                self.assertEqual(report.status, 1)


class StatisticsTests(SynchronousTestCase):
    def test_percentiles(self) -> None:
        self.assertEqual([percentile(range(1, 101), share) for share in (0.0, 0.5, 0.99, 1.0)], [1, 50, 99, 100])
        self.assertRaises(ValueError, percentile, [], 0.5)

    def test_a_line_is_found_through_noise(self) -> None:
        chance = random.Random(1)
        found = trend([(x, 3.0 * x + chance.gauss(0, 5)) for x in range(200)])
        self.assertLess(abs(found.slope - 3.0), 2 * found.noise)
        self.assertLess(found.noise, 0.1)

    def test_what_is_flat_has_no_slope_beyond_noise(self) -> None:
        chance = random.Random(2)
        found = trend([(x, chance.gauss(100, 5)) for x in range(200)])
        self.assertLess(abs(found.slope), found.noise)

    def test_too_little_for_a_line(self) -> None:
        for points in ([], [(0, 1), (1, 2)], [(1, 1), (1, 2), (1, 3)]):
            self.assertRaises(ValueError, trend, points)

    def test_drift_is_a_share_of_the_first(self) -> None:
        found = drift([10.0, 10.0, 10.0], [11.0, 11.0, 11.0])
        self.assertAlmostEqual(found.share, 0.1)
        self.assertEqual(found.noise, 0.0)
        self.assertGreater(drift([8.0, 12.0, 10.0], [10.0, 12.0, 11.0]).noise, 0.2)
        self.assertRaises(ValueError, drift, [1.0], [1.0, 2.0])
