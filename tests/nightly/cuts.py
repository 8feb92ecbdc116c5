"""``python -m tests.nightly.cuts``: connections cut at every octet of a transaction, and servers that miscount.

Nothing is left to chance, so there is no seed. It prints for each way to send how many cuts were tried in which
direction and how; how many messages were lost (reported as sent, and taken by nobody) or doubled (taken twice, or
taken and reported as not sent); and how many verdicts were not what the phase rules say. The same for servers whose
replies are one too few or too many, and for those that say the last one again some time later.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from tests.cutting import WAYS, sweep
from tests.miscounting import MISCOUNTS

PROBLEMS = ("lost", "doubled", "wrong")


class Tally:
    """What was tried, and what was wrong with it, by kind."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.tried: Counter[str] = Counter()
        self.wrong: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, title: str, problems: Sequence[tuple[str, str]]) -> None:
        """One was tried."""
        self.tried[kind] += 1
        for problem in {problem for problem, _ in problems}:
            self.wrong[kind, problem] += 1
        for problem, why in problems:
            self.out.write(f"{title}: {problem}: {why}\n")

    def tell(self) -> None:
        """Write the figures, each kind in a line of its own."""
        for kind, count in self.tried.items():
            counted = ", ".join(f"{self.wrong[kind, problem]} {problem}" for problem in PROBLEMS)
            self.out.write(f"{kind}: {count} tried, {counted}\n")
        self.out.flush()


def run(names: Sequence[str], every: int, out: TextIO) -> int:
    """Try every so-many-th of all that these ways have; gives how many have come out wrong."""
    everything = Tally(out)
    for name in names:
        tally = Tally(out)
        if name in WAYS:
            for cut in sweep([name], every):
                kind = f"{name}, {cut.place.direction}, {cut.place.how}"
                tally.add(kind, f"{name}, {cut.session}, {cut.place}", cut.problems)
        else:
            for number, case in enumerate(MISCOUNTS[name]()):
                if number % every == 0:
                    tally.add(name, case.title, case.run())
        tally.tell()
        for kind, count in tally.tried.items():
            everything.tried["in all"] += count
            for problem in PROBLEMS:
                everything.wrong["in all", problem] += tally.wrong[kind, problem]
    everything.tell()
    return everything.wrong.total()


def main(arguments: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Gives the exit status."""
    names = [*WAYS, *MISCOUNTS]
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.cuts", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try only every so-many-th")
    parser.add_argument("way", nargs="*", help=f"of these ways only: {'; '.join(names)}")
    wanted = parser.parse_args(arguments)
    for name in wanted.way:
        if name not in names:
            parser.error(f"no way is called {name!r}")
    return 1 if run(wanted.way or names, wanted.every, out) else 0


if __name__ == "__main__":
    sys.exit(main())
