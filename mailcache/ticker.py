"""One timer for all deadlines and ages of a cache, on a clock that can be given."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mailcache.limits import Limits, Timeouts

SHORTEST, LONGEST = 0.01, 0.25
"""Bounds of the interval in seconds: a limit is noticed at most a quarter of a second late."""


def interval_for(limits: Limits, timeouts: Timeouts) -> float:
    """Seconds between ticks that notice the shortest of these limits at most a tenth late."""
    named: list[float] = list(attrs.astuple(timeouts))
    named += [limits.idle_timeout, limits.idle_timeout_mx, limits.max_age, limits.wait_timeout]
    return min(LONGEST, max(SHORTEST, min(named) / 10))


class Ticker:
    """Calls ``tick`` every ``interval`` seconds while it returns true; `start` sets it going again."""

    def __init__(self, reactor: IReactorTime, interval: float, tick: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._interval = interval
        self._tick = tick
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Tick from now on, if it does not already."""
        if self._call is None:
            self._call = self._reactor.callLater(self._interval, self._run)

    def stop(self) -> None:
        """Tick no more until it is started again."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _run(self) -> None:
        self._call = None
        # A tick that raises is reported by the reactor, and must not be the last: all deadlines hang on it.
        again = True
        try:
            again = self._tick()
        finally:
            if again:
                self.start()
