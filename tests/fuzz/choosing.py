"""Which inputs are worth keeping: ``python -m tests.fuzz.choosing FOLDER`` adds what a run has kept to ``corpus``.

An input is kept if it does something that none before it does, the shortest first: a step from one line of mailcache
to another, or such a step more often than before, in powers of two. Where that leaves fewer than are wanted, the
shortest of the others are kept, too: what they do is the same, in another order.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import mailcache
from tests.fuzz import corpus
from tests.fuzz.table import ENOUGH, MAIN, NAMES, target
from tests.fuzz.target import Target

MOST = 700
"""Inputs of one target, so that all can be replayed with each change."""

ENOUGH_OF_OTHERS = 150
"""Inputs of a target that is not one of the main ones."""

LONGEST = 420
"""Bytes of an input that is kept: what is longer is tried by fuzzers, and not stored."""

_ROOT = str(Path(mailcache.__file__).parent)

Feature = tuple[object, ...]


def features(what: Target, data: bytes) -> set[Feature]:
    """What an input does."""
    steps: Counter[Feature] = Counter()

    def within(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_ROOT):
            return None
        last = 0

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            steps[code.co_filename, last, frame.f_lineno] += 1
            last = frame.f_lineno
            return line

        return line

    sys.settrace(within)
    try:
        what.run(data)
    finally:
        sys.settrace(None)
    return {(*step, count.bit_length()) for step, count in steps.items()}


def chosen(what: Target, inputs: list[bytes], enough: int) -> list[bytes]:
    """Those of ``inputs`` that are kept, beside those by hand."""
    by_hand = corpus.ordered(what.beginnings)
    enough -= len(by_hand)
    seen: set[Feature] = set().union(*(features(what, data) for data in by_hand))
    kept, others = [], []
    for data in corpus.ordered(set(inputs) - set(by_hand)):
        if len(data) > LONGEST or len(kept) >= MOST:
            continue
        found = features(what, data)
        if found <= seen:
            others.append(data)
        else:
            seen |= found
            kept.append(data)
    return kept + others[: max(0, enough - len(kept))]


def main() -> None:
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or NAMES:
        what = target(name)
        found = corpus.gathered(folder / name / "seeds") if (folder / name / "seeds").exists() else []
        inputs = [*corpus.load(name), *found]
        kept = chosen(what, inputs, ENOUGH if name in MAIN else ENOUGH_OF_OTHERS)
        corpus.store(name, kept)
        size = corpus.path_of(name).stat().st_size
        by_hand = len(what.beginnings)
        print(f"{name:<14} {by_hand:>4} by hand, {len(set(inputs)):>5} found, {len(kept):>4} kept: {size:>8,} bytes")


if __name__ == "__main__":
    main()
