"""``python -m tests.nightly.matrix``: the fault matrix on every axis, with the cache in memory and over a keeper.

Nothing is left to chance, so there is no seed. It prints how many rows were run on each axis, and how many of them
came out otherwise than they must.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO
from unittest import TestResult, defaultTestLoader

from tests.helpers import Bed, KeeperBed
from tests.matrix_axes import AXES, tests_of

SIDES: dict[str, type[Bed]] = {"memory": Bed, "keeper": KeeperBed}


def run(every: int, out: TextIO) -> int:
    """Run every so-many-th row of each axis; gives how many came out wrong."""
    wrong = 0
    for axis in AXES:
        for side, make_bed in SIDES.items():
            case = tests_of(axis, make_bed, lambda number: number % every == 0)
            result = TestResult()
            defaultTestLoader.loadTestsFromTestCase(case).run(result)
            failed = result.failures + result.errors
            wrong += len(failed)
            out.write(f"{axis}, {side}: {result.testsRun} rows run, {len(failed)} came out wrong\n")
            for test, traceback in failed:
                out.write(f"{test.id()}\n{traceback}\n")
    return wrong


def main(arguments: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.matrix", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="run only every so-many-th row of each axis")
    return 1 if run(parser.parse_args(arguments).every, out) else 0


if __name__ == "__main__":
    sys.exit(main())
