"""Figures as they are printed, one to a line, and what is told of many samples of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import attrs

SURE = 2.0
"""Standard errors within which a difference is noise: one in forty is larger by chance."""


class Report:
    """Prints figures, and knows which of them break what was promised.

    :ivar broken: the lines of those that do.
    """

    def __init__(self, write: Callable[[str], object] = print) -> None:
        self._write = write
        self.broken: list[str] = []

    def say(self, name: str, value: object) -> None:
        """A figure that nothing is promised of."""
        self._write(f"{name}: {_told(value)}")

    def exactly(self, name: str, value: object, promised: object) -> None:
        """A figure that must be this."""
        self._judge(f"{name}: {_told(value)} (promised: {_told(promised)})", value == promised)

    def at_most(self, name: str, value: float, promised: float, noise: float = 0.0) -> None:
        """A figure that must not be more than ``promised``.

        :param noise: what it is uncertain by; the promise is broken where that does not explain the excess.
        """
        by = f" +- {_told(noise)}" if noise else ""
        self._judge(f"{name}: {_told(value)}{by} (promised: at most {_told(promised)})", value - noise <= promised)

    def at_least(self, name: str, value: float, promised: float) -> None:
        """A figure that must not be less than ``promised``."""
        self._judge(f"{name}: {_told(value)} (promised: at least {_told(promised)})", value >= promised)

    def _judge(self, line: str, kept: bool) -> None:
        if not kept:
            self.broken.append(line)
            line = f"{line} BROKEN"
        self._write(line)

    @property
    def status(self) -> int:
        """What the command ends with."""
        return 1 if self.broken else 0


def _told(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of them, of 0 to 1, do not exceed.

    :raises ValueError: for no values.
    """
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@attrs.frozen
class Trend:
    """A straight line through samples by least squares: what it rises by for each unit, and the standard error."""

    slope: float
    error: float

    @property
    def noise(self) -> float:
        return SURE * self.error


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """The trend of (position, value).

    :raises ValueError: for less than three points, or all at one position.
    """
    if len(points) < 3:
        raise ValueError(f"{len(points)} points, three at least are wanted")
    middle, mean = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    if not spread:
        raise ValueError("all points are at one position")
    slope = sum((x - middle) * (y - mean) for x, y in points) / spread
    rest = sum((y - mean - slope * (x - middle)) ** 2 for x, y in points)
    return Trend(slope, math.sqrt(rest / (len(points) - 2) / spread))


@attrs.frozen
class Drift:
    """By how much of the first the last samples differ, and the noise of that."""

    first: float
    last: float
    share: float
    noise: float


def drift(first: Sequence[float], last: Sequence[float]) -> Drift:
    """How far the mean has moved from the ``first`` samples to the ``last``.

    :raises ValueError: for less than two on a side.
    """
    if min(len(first), len(last)) < 2:
        raise ValueError("two samples at least are wanted on each side")
    was, now = fmean(first), fmean(last)
    error = math.hypot(stdev(first) / math.sqrt(len(first)), stdev(last) / math.sqrt(len(last)))
    return Drift(was, now, (now - was) / was, SURE * error / was)
