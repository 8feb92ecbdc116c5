"""The long proofs of descriptors, memory and time in small: the same code, with fewer of everything."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from tests.nightly import idle_sessions, leaks, slow_peers, upstream_restart
from tests.nightly.figures import Report


class SmallTests(TestCase):
    timeout = 100

    async def check(self, proof: Any, *arguments: str, but: str = "nothing") -> list[str]:
        """All promises are kept, those aside whose figures begin with ``but``; gives the lines."""
        lines: list[str] = []
        report = Report(lines.append)
        await proof.run(reactor, proof.parse(arguments), report)
        broken = [line for line in report.broken if not line.startswith(but)]
        self.assertEqual(broken, [], "\n".join(lines))
        return lines

    async def test_idle_sessions_are_all_alive(self) -> None:
        # The processor of so few for so short is mostly what a keeper takes without any.
        lines = await self.check(idle_sessions, "--sessions", "60", "--seconds", "0.5", but="percent of CPU")
        self.assertIn("messages that idle TLS sessions took: 60 (promised: 60)", lines)

    async def test_nothing_is_left_of_many_caches(self) -> None:
        # One closed cache more or less that is not collected yet counts among so few.
        few = ("--cycles", "40", "--chaos", "0.1", "--seed", "1")
        lines = await self.check(leaks, *few, but="objects of ours more than before (cache in memory)")
        self.assertIn("descriptors (keeper): 11 (promised: 11)", lines)

    async def test_a_server_that_restarts_is_not_besieged(self) -> None:
        lines = await self.check(upstream_restart, "--sessions", "60", "--seconds", "2")
        self.assertIn("what came of the next message (unnoticed): {'sent': 1} (promised: {'sent': 1})", lines)

    async def test_slow_servers_do_not_hold_up_good_ones(self) -> None:
        # In so short a time the share is mostly noise: that they go on at all is what can be told.
        few = ("--slow", "30", "--good", "10", "--seconds", "1", "--turns", "1", "--at-once", "10", "--share", "0.3")
        await self.check(slow_peers, *few)
