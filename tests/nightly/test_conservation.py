"""The command `tests.nightly.conservation` in small; and that its books would show what must not be."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import Message
from tests.nightly import conservation
from tests.nightly.conservation import FAIR, IDLE_DEATHS, Proof, Weather, prove, tell_fair
from tests.nightly.figures import Report
from tests.nightly.ledger import Ledger
from tests.nightly.letters import letter

SEED = "1"
MEMORY = 10_000
"""Deliveries with the cache in memory."""
KEEPER = 1_000
"""Deliveries through a keeper."""


class ConservationTests(SynchronousTestCase):
    """Nothing lost, nothing doubled, nothing mixed, and nothing left over."""

    def check(self, proof: Proof, deliveries: int) -> None:
        told = str(proof.ledger)
        self.assertTrue(proof.ledger.kept, told)
        self.assertEqual(sum(proof.ledger.deliveries.values()), deliveries, told)

    def check_fair(self, proof: Proof) -> None:
        report = Report()
        tell_fair(report, proof)
        self.assertEqual(report.broken, [])

    def test_memory(self) -> None:
        proof = prove(MEMORY, SEED, Weather())
        self.check(proof, MEMORY)
        self.assertGreater(len(proof.faults), 12)
        self.assertGreater(proof.counts["messages answered on kept sessions"], MEMORY // 4)
        self.assertEqual(set(proof.ledger.deliveries), {"result", "error", "uncertain", "cancelled"})

    def test_keeper(self) -> None:
        proof = prove(KEEPER, SEED, Weather(), "keeper")
        self.check(proof, KEEPER)
        self.assertGreater(proof.counts["messages answered on kept sessions"], KEEPER // 4)

    def test_no_fault_at_all(self) -> None:
        """Then every letter has its verdict, and is there once."""
        proof = prove(1_000, SEED, FAIR)
        self.check(proof, 1_000)
        self.check_fair(proof)

    def test_idle_sessions_die(self) -> None:
        """Half of them, every few moments: nobody notices."""
        for cache in conservation.CACHES:
            proof = prove(1_000, SEED, IDLE_DEATHS, cache)
            self.check(proof, 1_000)
            self.check_fair(proof)
            self.assertGreater(proof.faults["idle"], 100)

    def test_command(self) -> None:
        with redirect_stdout(io.StringIO()) as said:
            self.assertEqual(conservation.main(["--deliveries", "20", "--seed", SEED]), 0)
        self.assertIn("seed 1, foul weather, memory", said.getvalue())
        self.assertIn("taken twice (doubles): 0", said.getvalue())


class LedgerTests(SynchronousTestCase):
    """What must not be is seen."""

    def setUp(self) -> None:
        self.ledger = Ledger()
        self.letter = next(what for n in range(100) if len((what := letter(f"a-{n}")).recipients) == 2)
        self.ledger.begin(self.letter.label)

    def at_server(self, times: int = 1, **different: object) -> None:
        what = self.letter
        facts = {"sender": what.sender, "recipients": what.recipients, "content": what.arriving, **different}
        message = Message(mock.Mock(), 1, parameters=(), recipient_parameters={}, octets=0, **facts)  # type: ignore[arg-type]
        message.accepted.extend(what.recipients)
        for _ in range(times):
            self.ledger.take(message)

    def settled(self, outcome: str, **told: object) -> tuple[int, int, int, int]:
        """Doubles, lies, losses, mixed letters."""
        self.ledger.hear(self.letter.label, {"outcome": outcome, **told})
        self.ledger.settle()
        ledger = self.ledger
        found = (ledger.doubles, ledger.lies, ledger.losses, ledger.mixed)
        self.assertEqual(ledger.kept, not any(found), str(ledger))
        return found

    def test_as_it_should_be(self) -> None:
        self.at_server()
        self.assertEqual(self.settled("result", accepted=self.letter.recipients), (0, 0, 0, 0))

    def test_doubt(self) -> None:
        one, two = self.letter.recipients
        self.at_server()
        self.assertEqual(self.settled("uncertain", accepted=[one], undecided=[two]), (0, 0, 0, 0))

    def test_double(self) -> None:
        self.at_server(2)
        self.assertEqual(self.settled("result", accepted=self.letter.recipients), (2, 0, 0, 0))

    def test_double_in_doubt(self) -> None:
        self.at_server(2)
        self.assertEqual(self.settled("uncertain", undecided=self.letter.recipients), (2, 0, 0, 0))

    def test_lie(self) -> None:
        self.at_server()
        self.assertEqual(self.settled("error"), (0, 2, 0, 0))

    def test_loss(self) -> None:
        self.assertEqual(self.settled("result", accepted=self.letter.recipients), (0, 0, 2, 0))

    def test_truncated(self) -> None:
        self.at_server(content=self.letter.arriving[:-1])
        self.assertEqual(self.settled("result", accepted=self.letter.recipients), (0, 0, 0, 1))

    def test_another_ones_recipient(self) -> None:
        self.at_server(recipients=("ok0.somebody@to.test",))
        self.assertEqual(self.settled("result", accepted=self.letter.recipients), (0, 0, 0, 1))

    def test_nothing_was_told(self) -> None:
        self.ledger.settle()
        self.assertFalse(self.ledger.kept)

    def test_a_recipient_was_forgotten(self) -> None:
        self.ledger.hear(self.letter.label, {"outcome": "result", "rejected": self.letter.recipients[:1]})
        self.ledger.settle()
        self.assertFalse(self.ledger.kept)
