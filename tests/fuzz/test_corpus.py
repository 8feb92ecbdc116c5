"""All inputs that are stored are tried again, without a fuzzer; and what fuzzers are run by is as it should be."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.internet.defer import fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz import corpus
from tests.fuzz import target as target_module
from tests.fuzz.choices import MAX_STREAM, Choices, cut, expanded, one_by_one
from tests.fuzz.running import parsed
from tests.fuzz.table import ENOUGH, MAIN, NAMES, target
from tests.fuzz.target import BrokenPromiseError, Target

LARGEST = 1_572_864
"""Bytes that all files of the corpus may have together."""


class ReplayTests(SynchronousTestCase):
    """Each stored input of each target, and those by hand."""

    def replay(self, name: str) -> None:
        what = target(name)
        for data in corpus.ordered([*what.beginnings, *corpus.load(name)]):
            try:
                what.run(data)
            except Exception as error:
                raise AssertionError(f"{name}: {data.hex()}") from error


def _replay(name: str) -> Any:
    def test(self: ReplayTests) -> None:
        self.replay(name)

    return test


for _name in NAMES:
    setattr(ReplayTests, f"test_{_name}", _replay(_name))


class StoredTests(SynchronousTestCase):
    """The files."""

    def test_there_are_enough(self) -> None:
        self.assertLessEqual(MAIN, set(NAMES))
        for name in NAMES:
            inputs, by_hand = corpus.load(name), target(name).beginnings
            self.assertGreaterEqual(len({*inputs, *by_hand}), ENOUGH if name in MAIN else 100, name)
            self.assertEqual(inputs, corpus.ordered(inputs), name)
            self.assertLessEqual(max(map(len, inputs)), target(name).max_input, name)

    def test_they_are_small(self) -> None:
        files = list(corpus.FOLDER.iterdir())
        self.assertEqual({path.stem for path in files}, set(NAMES))
        self.assertLessEqual(sum(path.stat().st_size for path in files), LARGEST)


class TargetTests(SynchronousTestCase):
    """What makes an input a crash."""

    def broken(self, check: Any) -> str:
        with self.assertRaises(BrokenPromiseError) as caught:
            Target("test", check, ()).run(b"")
        return str(caught.exception)

    def test_an_exception_comes_out(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            Target("test", lambda data: 1 // len(data), ()).run(b"")

    def test_a_deferred_that_fails_unheard(self) -> None:
        self.assertIn("unheard", self.broken(lambda _: fail(ValueError("unheard")) and None))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_failure_that_is_logged(self) -> None:
        self.assertIn("odd", self.broken(lambda _: Logger().failure("odd", Failure(ValueError("odd")))))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_hang(self) -> None:
        self.patch(target_module, "LONGEST", 0.01)
        self.assertIn("of CPU", self.broken(lambda _: sum(range(2_000_000))))

    def test_all_is_well(self) -> None:
        Target("test", lambda _: None, ()).run(b"")


class ChoicesTests(SynchronousTestCase):
    """How inputs are read."""

    def test_choices(self) -> None:
        choices = Choices(b"\5\3abc\1x\2\1\0rest")
        found = (choices.byte(), choices.piece(), choices.flag(), choices.below(7), choices.number(), choices.rest())
        self.assertEqual(found, (5, b"abc", True, ord("x") % 7, 256, b"rest"))
        self.assertEqual((choices.left, choices.byte(), choices.piece(), choices.flag()), (0, 0, b"", False))
        self.assertEqual(Choices(b"\xffab").piece(), b"ab")

    def test_cut(self) -> None:
        self.assertEqual(cut(b"abcd", b"\x80\x40\x80"), [b"a", b"b", b"cd"])
        self.assertEqual((cut(b"", b"\x80"), cut(b"ab", b"")), ([], [b"ab"]))
        self.assertEqual(one_by_one(b"abc"), [b"a", b"b", b"c"])

    def test_expanded(self) -> None:
        self.assertEqual(expanded(b"a\nbc\n\xfe\2d\xfd\1"), b"a\nbc\nbc\nbc\nd" + b"d" * 64)
        self.assertEqual(expanded(b"\xfd\1\xfe\1\xfe"), b"\xfe")
        self.assertEqual(len(expanded(b"a" + b"\xfd\xff" * 100)), MAX_STREAM)


class ReportTests(SynchronousTestCase):
    """What the engine says is read."""

    SAID: ClassVar[str] = (
        "#2\tINITED cov: 10 ft: 20 corp: 1/1b exec/s: 0 rss: 50Mb\n"
        "#4096\tNEW    cov: 115 ft: 782 corp: 80/9Kb exec/s: 100 rss: 60Mb\n"
        "#5000\tDONE   cov: 117 ft: 828 corp: 90/9Kb exec/s: 100 rss: 60Mb\n"
        "Done 5000 runs in 50 second(s)\nstat::number_of_executed_units: 5000\n"
    )

    def test_done(self) -> None:
        run = parsed("replies", self.SAID, 50.0, (b"new",), ())
        self.assertEqual((run.executions, run.coverage, run.features, run.failed), (5_000, 117, 828, False))
        for words in ("replies", "5,000 executions", "100 a second", "1 new seeds", "crashes 0"):
            self.assertIn(words, str(run))

    def test_failed(self) -> None:
        self.assertTrue(parsed("replies", self.SAID, 50.0, (), (b"crash",)).failed)
        self.assertTrue(parsed("replies", "ImportError: no such module", 1.0, (), ()).failed)
        died = self.SAID.split("Done")[0]
        self.assertTrue(parsed("replies", died, 50.0, (), (), status=-9).failed)
