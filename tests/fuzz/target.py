"""What a target is, and how one of its inputs is tried."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import attrs
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

LONGEST = 1.0
"""Seconds of CPU that an input may take: what takes longer is taken for a hang."""

MAX_INPUT = 4_096
"""Bytes of an input, unless its target says otherwise. `tests.fuzz.choices.expanded` makes more of them."""


class BrokenPromiseError(AssertionError):
    """An input has shown a defect."""


@attrs.frozen
class Target:
    """Something that takes bytes from outside.

    :ivar check: tries one input; raises for any broken promise.
    :ivar beginnings: inputs by hand, from which all others have grown.
    :ivar words: parts that are worth trying anywhere.
    :ivar max_input: bytes of an input.
    """

    name: str
    check: Callable[[bytes], object]
    beginnings: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    max_input: int = MAX_INPUT

    def run(self, data: bytes) -> None:
        """Try ``data``: no exception may come out of it, nor be logged, nor be left in a Deferred; it may not hang."""
        logged: list[str] = []

        def note(event: Any) -> None:
            if event.get("log_failure") is not None or event.get("log_level") is LogLevel.critical:
                failure = event.get("log_failure")
                logged.append(formatEvent(event) + (f"\n{failure.getTraceback()}" if failure is not None else ""))

        # What becomes garbage in this run is collected at its end, so that a Deferred that fails unheard says so here.
        gc.collect(0)
        was_enabled = gc.isenabled()
        gc.disable()
        globalLogPublisher.addObserver(note)
        began = time.process_time()
        try:
            self.check(data)
            taken = time.process_time() - began
            gc.collect(0)
        finally:
            globalLogPublisher.removeObserver(note)
            if was_enabled:
                gc.enable()
        if logged:
            raise BrokenPromiseError(f"{self.name}: logged as a failure: {' / '.join(logged)}")
        if taken > LONGEST:
            raise BrokenPromiseError(f"{self.name}: {taken:.1f} s of CPU for {len(data)} bytes")
