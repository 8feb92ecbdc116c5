"""The command `tests.nightly.keeper_deaths` in small: some of the points, and each kind of ending."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.nightly.keeper_deaths import Deaths, cases


class DeathsTests(Deaths):
    timeout = 300
    seed = "2"

    async def test_keeper(self) -> None:
        self.cases = [
            ("banner", False), ("starttls", True), ("idle", False), ("mail", True), ("rset", False), ("content", True),
            ("dot", False), ("after_dot", True), ("quit", False),
        ]  # fmt: skip
        await self.runTest()
        self.assertEqual(sum(self.heard.values()), len(self.cases))
        self.assertEqual(self.ledger.doubles, 0)
        for outcome in ("error", "result", "uncertain"):
            self.assertGreater(self.ledger.deliveries[outcome], 0, outcome)

    async def test_borrower(self) -> None:
        self.victim = "borrower"
        self.cases = [
            ("ehlo", False), ("auth", True), ("idle", False), ("data", True), ("content", False), ("after_dot", True),
            ("quit", False),
        ]  # fmt: skip
        await self.runTest()
        self.assertEqual(self.heard["content: not taken"], 1)
        self.assertEqual(self.heard["after_dot: taken"], 1)


class CasesTests(SynchronousTestCase):
    def test_every_point_idle_and_busy(self) -> None:
        self.assertEqual(len(cases(20)), 16 * 2 * 20)
        self.assertEqual(len(set(cases(20))), 16 * 2)
