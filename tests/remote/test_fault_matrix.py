"""The fault matrix over a keeper: all rows, with the same verdicts, attempts and fates as with the cache in memory."""

from __future__ import annotations

from tests import test_fault_matrix
from tests.helpers import KeeperBed


class MatrixTests(test_fault_matrix.MatrixTests):
    """A borrower meets the fault, and the keeper has the session."""

    make_bed = KeeperBed
