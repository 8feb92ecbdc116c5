"""The signals that a keeper obeys."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class Signals:
    """Calls ``end`` with the name of SIGTERM or SIGINT each time it comes, and ``reload`` for SIGHUP, from the reactor.

    Twisted's own handlers stop the reactor, which ends the process with the signal: to a supervisor that reads as a
    failure. They are replaced when the reactor has set them.
    """

    def __init__(self, reactor: Any, end: Callable[[str], object], reload: Callable[[], object]) -> None:
        self._reactor = reactor
        self._end = end
        self._reload = reload
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Obey them from now on, or from when the reactor runs."""
        self._reactor.callWhenRunning(self._install)

    def _install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._caught)

    def uninstall(self) -> None:
        """Obey them no more: what was done about them before is done again."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reactor.callFromThread(self._reload)
        else:
            self._reactor.callFromThread(self._end, signal.Signals(number).name)
