"""`tests.nightly.matrix` in small."""

from __future__ import annotations

import io
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.matrix_axes import AXES, AxisCase
from tests.nightly.matrix import SIDES, main

EVERY = 151
"""A prime, so that the rows are of all kinds."""


class MatrixCommandTests(SynchronousTestCase):
    def test_some_rows_of_each_axis(self) -> None:
        out = io.StringIO()
        self.assertEqual(main(["--every", str(EVERY)], out), 0, out.getvalue())
        lines = out.getvalue().splitlines()
        self.assertEqual(len(lines), len(AXES) * len(SIDES))
        self.assertEqual(lines[1], "plain text, keeper: 4 rows run, 0 came out wrong")

    def test_a_verdict_that_is_wrong_is_told(self) -> None:
        out = io.StringIO()
        with mock.patch.object(AxisCase, "check_attempts", side_effect=AssertionError("one too many")):
            self.assertEqual(main(["--every", str(EVERY)], out), 1)
        self.assertIn("one too many", out.getvalue())
