"""The command `tests.nightly.keeper_conservation` in small."""

from __future__ import annotations

from tests.nightly.keeper_conservation import Conservation

DELIVERIES = 500


class ConservationTests(Conservation):
    timeout = 300
    deliveries = DELIVERIES
    every = 25
    seed = "3"

    async def test_small(self) -> None:
        await self.runTest()
        ledger = self.ledger
        self.assertEqual(sum(ledger.deliveries.values()), DELIVERIES)
        self.assertGreater(ledger.deliveries["result"], DELIVERIES // 10)
        self.assertGreater(sum(self.faults.values()), 0)
        self.assertGreater(self.happened["borrowers killed"] + self.happened["keepers killed"], 0)
