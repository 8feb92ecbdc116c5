"""When a keeper has lived long enough."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mailcache.daemon.retirement import LOOK_EVERY, Life, Retirement, resident_memory


class RetirementTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = 1_000
        self.looks = 0
        self.heard: list[str] = []

    def look(self) -> int:
        self.looks += 1
        return self.memory

    def retirement(self, **life: Any) -> Retirement:
        found = Retirement(self.clock, Life(**life), self.heard.append, self.look)
        found.start()
        return found

    def test_never(self) -> None:
        self.retirement()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_age(self) -> None:
        self.retirement(retire_after=3600)
        self.clock.advance(3599)
        self.assertEqual(self.heard, [])
        self.clock.advance(1)
        self.assertEqual(self.heard, ["it is 3600 s old"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_memory(self) -> None:
        """Looked at once a second at most; as much as is allowed is allowed."""
        self.retirement(max_memory=5_000)
        self.memory = 5_000
        self.clock.pump([0.25] * 42)
        self.assertEqual((self.heard, self.looks), ([], 10 / LOOK_EVERY))
        self.memory = 5_001
        self.clock.pump([0.1] * 10)
        (why,) = self.heard
        self.assertIn("5001 bytes", why)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_once(self) -> None:
        self.retirement(retire_after=5, max_memory=500)
        self.clock.pump([1.0] * 10)
        self.assertEqual(len(self.heard), 1)

    def test_stopped(self) -> None:
        for life in ({"retire_after": 5}, {"max_memory": 500}):
            self.retirement(**life).stop()
            self.clock.advance(10)
        self.assertEqual((self.heard, self.clock.getDelayedCalls()), ([], []))

    def test_wrong_values(self) -> None:
        wrong: tuple[dict[str, Any], ...] = (
            {"retire_after": -1}, {"retire_after": "5"}, {"retire_after": float("inf")}, {"retire_after": True},
            {"max_memory": -1}, {"max_memory": 1.5}, {"drain_limit": float("nan")}, {"drain_limit": None},
        )  # fmt: skip
        for life in wrong:
            with self.assertRaises(ValueError) as caught:
                Life(**life)
            self.assertIn(next(iter(life)), str(caught.exception))

    def test_resident_memory(self) -> None:
        before = resident_memory()
        self.assertGreater(before, 5_000_000)
        held = b"x" * 50_000_000
        self.assertGreater(resident_memory() - before, len(held) / 2)
