"""``python -m tests.fuzz``: each target for some time under atheris; status 1 if one has broken a promise.

A run begins with a planted defect, which must be found: an engine that finds nothing would prove nothing. Then each
target runs in a process of its own. It needs the extra ``fuzz``.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.running import Run, fuzz
from tests.fuzz.table import NAMES, target
from tests.fuzz.target import Target

PLANTED_SECONDS = 20
"""Seconds for the planted defect, which takes one or two."""


def main() -> int:
    options = _options()
    if find_spec("atheris") is None:
        print("atheris is not installed: pip install '.[fuzz]'")
        return 2
    seed = options.seed if options.seed is not None else random.randrange(1, 2**31)
    print(f"seed {seed}")
    planted = fuzz(target("planted"), PLANTED_SECONDS, seed)
    if not planted.crashes:
        print(f"the planted defect was not found in {planted.executions:,} executions\n{planted.said}")
        return 1
    print(f"the planted defect was found after {planted.executions:,} executions")

    targets = [target(name) for name in options.target or NAMES]

    def one(what: Target) -> Run:
        run = fuzz(what, options.seconds, seed)
        print(run, flush=True)
        if run.failed:
            crashes = [data.hex() for data in run.crashes]
            print(f"{run.name}: {crashes or f'ended with status {run.status}'}\n{run.said}", flush=True)
        if options.keep is not None:
            keep(run, options.keep)
        return run

    with ThreadPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(one, targets))
    executions, crashes = sum(run.executions for run in runs), sum(len(run.crashes) for run in runs)
    print(f"{len(runs)} targets, {executions:,} executions, {crashes} crashes")
    return 1 if any(run.failed for run in runs) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--target", nargs="+", choices=NAMES, help="these only; all")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where new seeds and crashes are written")
    parser.add_argument("--seed", type=int, help="of the mutations; a new one each time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time; one for each CPU")
    return parser.parse_args()


def keep(run: Run, folder: Path) -> None:
    """Write down what a run has found, one file for each input."""
    for kind, inputs in (("seeds", run.new), ("crashes", run.crashes)):
        place = folder / run.name / kind
        place.mkdir(parents=True, exist_ok=True)
        corpus.spread(inputs, place)


if __name__ == "__main__":
    sys.exit(main())
