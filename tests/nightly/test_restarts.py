"""The command `tests.nightly.restarts` in small: two restarts."""

from __future__ import annotations

from tests.nightly.restarts import Restarts


class RestartTests(Restarts):
    timeout = 300
    restarts = 2
    letters = 300

    async def test_two_restarts(self) -> None:
        await self.runTest()
        self.assertEqual(self.ledger.told["accepted"], self.ledger.taken["accepted"])
        self.assertGreaterEqual(self.ledger.deliveries["result"], self.letters)
