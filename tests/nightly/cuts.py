"""``python -m tests.nightly.cuts``: connections cut at every octet of a transaction, in both directions.

Nothing is left to chance, so there is no seed. It prints for each way to send how many cuts were tried in which
direction and how; how many messages were lost (reported as sent, and taken by nobody) or doubled (taken twice, or
taken and reported as not sent); and how many verdicts were not what the phase rules say.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from tests.cutting import WAYS, sweep

PROBLEMS = ("lost", "doubled", "wrong")


def run(names: Sequence[str], every: int, out: TextIO) -> int:
    """Cut these ways at every so-many-th place; gives how many of the cuts have come out wrong."""
    in_all: Counter[str] = Counter()
    for name in names:
        cuts: Counter[tuple[str, str]] = Counter()
        problems: Counter[tuple[str, str, str]] = Counter()
        for cut in sweep([name], every):
            kind = (cut.place.direction, cut.place.how)
            cuts[kind] += 1
            in_all["failed"] += bool(cut.problems)
            for problem in {problem for problem, _ in cut.problems}:
                problems[(*kind, problem)] += 1
                in_all[problem] += 1
            for problem, why in cut.problems:
                out.write(f"{name}, {cut.session}, {cut.place}: {problem}: {why}\n")
        for kind, count in cuts.items():
            in_all["cuts"] += count
            counted = ", ".join(f"{problems[(*kind, problem)]} {problem}" for problem in PROBLEMS)
            out.write(f"{name}, {kind[0]}, {kind[1]}: {count} cuts, {counted}\n")
            out.flush()
    counted = ", ".join(f"{in_all[problem]} {problem}" for problem in PROBLEMS)
    out.write(f"in all: {in_all['cuts']} cuts, {counted}\n")
    return in_all["failed"]


def main(arguments: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.cuts", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="cut only at every so-many-th place")
    parser.add_argument("way", nargs="*", help=f"of these ways only: {'; '.join(WAYS)}")
    wanted = parser.parse_args(arguments)
    for name in wanted.way:
        if name not in WAYS:
            parser.error(f"no way is called {name!r}")
    return 1 if run(wanted.way or list(WAYS), wanted.every, out) else 0


if __name__ == "__main__":
    sys.exit(main())
