"""Every applicable row of the fault matrix, over STARTTLS: verdict, attempts, fate of the session, nothing hangs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Timeouts
from mailcache.testing import Fault
from tests.helpers import BEHIND_REFUSED_RSET, CREDENTIALS, LARGE, SMALL, Bed, verdict_of

MATRIX = Path(__file__).with_name("fault_matrix.tsv")
SHORT = Timeouts(connect=30, greeting=60, ehlo=60, starttls=60, auth=60, mail=60, rcpt=60, data=60, content=60, dot=600)
"""The defaults, with those before the end of content so short that a reply that drips in is too late."""

PROBE = "probe@example.com"


def rows() -> Iterator[dict[str, str]]:
    with MATRIX.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["applicable"] == "yes":
                yield row


class MatrixCase(SynchronousTestCase):
    """How a row is run. A subclass has the tests, which `add_tests` makes."""

    make_bed: type[Bed] = Bed
    refuses_rset = False
    recipients: tuple[str, ...] = ("b@example.com",)

    def settings(self) -> dict[str, Any]:
        """What a bed is made with, beside the fault."""
        return {}

    def content_for(self, row: dict[str, str]) -> bytes:
        """So much that the fault strikes when some of it has come, where it is to strike there."""
        return LARGE if row["point"] == "content" else SMALL

    def bed(self, row: dict[str, str], transaction: int) -> Bed:
        point = row["point"]
        in_setup = point in ("connect", "banner", "ehlo", "starttls", "handshake", "ehlo2", "auth")
        fault = Fault(point, row["fault"], connection=1, transaction=None if in_setup else transaction)
        settings = self.settings()
        if point == "auth":
            users = {"users": {"user": CREDENTIALS.password}}
            settings |= {"credentials": CREDENTIALS, "server": {**settings.get("server", {}), **users}}
        return self.make_bed(faults=[fault], timeouts=SHORT, **settings)

    def check_verdict(self, bed: Bed, row: dict[str, str], value: Any, connections_before: int) -> None:
        expected = row["message"]
        word = "SENT" if expected == "RETRY" else expected
        self.assertEqual(verdict_of(value), word, f"{value!r}: {bed.server.log}")
        self.check_attempts(bed, row, connections_before)
        committed = sum(message.committed and message.sender == PROBE for message in bed.server.messages)
        if word == "SENT":
            self.assertEqual(committed, 1)
        elif word == "UNKNOWN":
            self.assertLessEqual(committed, 1)
        else:
            self.assertEqual(committed, 0)

    def check_attempts(self, bed: Bed, row: dict[str, str], connections_before: int) -> None:
        """How many connections the message has cost, beside those that were there."""
        attempts = bed.server.connection_count - connections_before
        if row["message"] == "RETRY":
            self.assertEqual(attempts, 1)
        else:
            self.assertEqual(attempts, 0 if connections_before else int(row["attempts"]))

    def check_fate(self, bed: Bed, fate: str) -> None:
        """What became of the first connection: seen by the server, and by the next delivery."""
        first = bed.server.connections[0]
        if fate in ("DISCARD", "QUIT"):
            bed.reactor.run_until(lambda: first.closed is not None, 60)
            self.assertEqual(first.quit_seen, fate == "QUIT")
        before = bed.server.connection_count
        value = bed.deliver(sender="next@example.com")
        self.assertEqual(verdict_of(value), "SENT", f"{value!r}: {bed.server.log}")
        if fate == "KEEP":
            self.assertEqual(bed.server.connection_count, before)
        self.assertEqual(bed.server.message_count, sum(m.committed for m in bed.server.messages))
        self.finish(bed)

    def finish(self, bed: Bed) -> None:
        bed.close()
        bed.reactor.run_for(700)
        self.assertEqual(bed.server.open_count, 0)
        # Behind a RSET that the server refuses comes the MAIL that was pipelined with it.
        refused_rset = {f"connection 1: {BEHIND_REFUSED_RSET}"} if self.refuses_rset else set()
        self.assertEqual(set(bed.server.violations), refused_rset)
        self.assertEqual(bed.reactor.getDelayedCalls(), [])

    def run_at_session(self, row: dict[str, str]) -> None:
        """The fault strikes the message: on a new session, or on one that has carried a message."""
        reused = row["phase"] == "reused"
        bed = self.bed(row, transaction=2 if reused else 1)
        if reused:
            self.assertEqual(verdict_of(bed.deliver(sender="first@example.com")), "SENT")
        before = bed.server.connection_count
        value = bed.deliver(self.content_for(row), sender=PROBE, recipients=self.recipients)
        self.check_verdict(bed, row, value, before)
        self.check_fate(bed, row["session"])

    def run_idle(self, row: dict[str, str]) -> None:
        """The fault strikes a session that nobody uses: it is gone from the cache within a second."""
        bed = self.bed(row, transaction=1)
        self.assertEqual(verdict_of(bed.deliver(sender="first@example.com")), "SENT")
        self.assertEqual(bed.counts(), (0, 1, 0, 0))
        bed.server.strike_idle()
        bed.reactor.run_for(1)
        self.assertEqual(bed.counts()[1], 1 if row["session"] == "KEEP" else 0)
        self.check_fate(bed, row["session"])

    def run_rset(self, row: dict[str, str]) -> None:
        """RSET is due after a refused message, and goes with the next one: the first verdict stands whatever comes."""
        self.refuses_rset = row["fault"] in ("4xx", "5xx")
        bed = self.bed(row, transaction=1)
        bed.server.arm(Fault("rcpt", "5xx", connection=1, transaction=1))
        self.assertEqual(verdict_of(bed.deliver(sender="first@example.com")), "PERM")
        self.assertEqual(bed.counts(), (0, 1, 0, 0))
        value = bed.deliver(sender=PROBE, recipients=self.recipients)
        if row["phase"] == "reused":
            self.check_verdict(bed, row, value, 1)
        else:
            self.assertEqual(verdict_of(value), "SENT")
        self.check_fate(bed, row["session"])

    def run_quit(self, row: dict[str, str]) -> None:
        """The fault strikes QUIT: the message's verdict stands, and the socket is gone within 5 seconds."""
        reused = row["phase"] == "reused"
        bed = self.bed(row, transaction=2 if reused else 1)
        if reused:
            bed.deliver(sender="first@example.com")
        self.check_verdict(bed, row, bed.deliver(sender=PROBE, recipients=self.recipients), 0)
        bed.end()
        bed.reactor.run_for(SHORT.quit + 0.5)
        self.assertEqual(bed.counts(), (0, 0, 0, 0))
        self.finish(bed)


def _test_of(row: dict[str, str]) -> Callable[[MatrixCase], None]:
    runner = {"idle": "run_idle", "rset": "run_rset", "quit": "run_quit"}.get(row["point"], "run_at_session")

    def test(self: MatrixCase) -> None:
        getattr(self, runner)(row)

    test.__doc__ = f"{row['fault']} at {row['point']}, {row['phase']} session: {row['message']}, {row['session']}."
    return test


def add_tests(case: type[MatrixCase], wanted: Iterable[dict[str, str]]) -> None:
    """A test in ``case`` for each of these rows."""
    for row in wanted:
        setattr(case, f"test_{row['point']}_{row['fault']}_{row['phase']}", _test_of(row))


def count_tests(case: type[MatrixCase]) -> int:
    """How many rows ``case`` runs."""
    return sum(name.startswith("test_") for name in dir(case))


class MatrixTests(MatrixCase):
    """One test for each row."""


add_tests(MatrixTests, rows())


class MatrixItselfTests(SynchronousTestCase):
    def test_all_of_it_is_run(self) -> None:
        self.assertEqual(count_tests(MatrixTests), 592)
