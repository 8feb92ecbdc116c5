"""What a keeper logs of itself now and then: Postfix's four lines of statistics (scache(8))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mailcache.memory import MemorySessionCache

EVERY = 600.0
"""Seconds of an interval (Postfix connection_cache_status_update_time)."""


@attrs.frozen
class Interval:
    """What has happened in one interval.

    :ivar began: when, in words.
    :ivar by_destination: leases of a session that was kept for the same destination.
    :ivar by_address: leases of a session that was kept for another one with the same address.
    :ivar misses: requests that no kept session served.
    :ivar destinations: the most that had sessions at one time; and so for the others.
    """

    began: str
    by_destination: int
    by_address: int
    misses: int
    destinations: int
    addresses: int
    connections: int

    def lines(self) -> list[str]:
        """The lines; those that would say nothing are left out, and all where there was nothing."""
        lines = []
        others = self.by_address + self.misses
        if self.by_destination + others:
            lines.append(_lookup("domain", self.by_destination, others))
        if others:
            lines.append(_lookup("address", self.by_address, self.misses))
        if self.connections:
            lines.append(
                f"statistics: max simultaneous domains={self.destinations} addresses={self.addresses} "
                f"connection={self.connections}"
            )
        return [f"statistics: start interval {self.began}", *lines] if lines else []


def _lookup(kind: str, hits: int, misses: int) -> str:
    return f"statistics: {kind} lookup hits={hits} miss={misses} success={hits * 100 // (hits + misses)}%"


class Reporter:
    """Logs the statistics of ``cache`` every `EVERY` seconds while it runs, and once more when it is stopped.

    :param wall: gives the time in words, as Postfix does: "Nov 22 03:41:05".
    """

    _log = Logger()

    def __init__(self, reactor: Any, cache: MemorySessionCache, wall: Callable[[], str]) -> None:
        self._reactor = reactor
        self._cache = cache
        self._wall = wall
        self._call: IDelayedCall | None = None
        self._began = ""

    def start(self) -> None:
        """An interval begins."""
        self._cache.interval()
        self._begin()

    def stop(self) -> None:
        """The last interval has ended."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
            self._report()

    def _begin(self) -> None:
        self._began = self._wall()
        self._call = self._reactor.callLater(EVERY, self._ended)

    def _ended(self) -> None:
        self._report()
        self._begin()

    def _report(self) -> None:
        for line in Interval(self._began, **self._cache.interval()).lines():
            self._log.info("{line}", line=line)
