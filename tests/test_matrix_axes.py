"""The fault matrix on each axis, with the cache in memory; in plain text also over a keeper."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import KeeperBed
from tests.matrix_axes import AXES, tests_of
from tests.test_fault_matrix import count_tests, rows

PlainTextTests = tests_of("plain text")
FirstByteTLSTests = tests_of("TLS from the first byte")
LMTPTests = tests_of("LMTP")
UnpipelinedTests = tests_of("no PIPELINING")
OneFlightTests = tests_of("one flight")
KeeperPlainTextTests = tests_of("plain text", KeeperBed)


class AxesTests(SynchronousTestCase):
    def test_as_many_rows_are_run_as_there_are(self) -> None:
        cases = [PlainTextTests, FirstByteTLSTests, LMTPTests, UnpipelinedTests, OneFlightTests, KeeperPlainTextTests]
        self.assertEqual([count_tests(case) for case in cases], [493, 537, 592, 592, 536, 493])

    def test_every_rule_holds_for_a_row(self) -> None:
        for name, axis in AXES.items():
            for keeper in (False, True):
                used = {id(axis.rule_for(row, keeper)) for row in rows()}
                wanted = axis.kept_by_keeper + axis.rules if keeper else axis.rules
                self.assertEqual([rule for rule in wanted if id(rule) not in used], [], name)
