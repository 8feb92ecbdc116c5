"""The soak in small: all of its processes, faults too, and all is back where it was."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from tests.nightly import soak
from tests.nightly.figures import Report


class SoakTests(TestCase):
    async def test_a_keeper_has_behind_the_load_what_it_had_before(self) -> None:
        self.patch(soak, "LIMITS", {**soak.LIMITS, "idle_timeout": 1})
        lines: list[str] = []
        report = Report(lines.append)
        options = soak.parse(
            ["--minutes", "0.05", "--destinations", "16", "--borrowers", "2", "--rate", "60", "--chaos", "0.03"]
        )
        await soak.run(reactor, options, report)
        self.assertEqual(report.broken, [], "\n".join(lines))
        self.assertIn("destinations: 16", lines)
        self.assertIn("doubles: taken more than once: 0 (promised: 0)", lines)
