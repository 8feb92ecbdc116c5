"""Which destinations are busy: where sessions are kept on demand, only those of busy ones are."""

from __future__ import annotations

from collections import OrderedDict

from mailcache.destination import Destination

BACK_TO_BACK = 1.0
"""Seconds within which one delivery follows another back to back (Postfix's queue manager: one tick of its clock)."""

MAX_REMEMBERED = 10_000
"""Destinations remembered, the one longest unused forgotten first: it then counts as never used."""


class _Record:
    __slots__ = ("active", "busy", "last_done")

    def __init__(self) -> None:
        self.active = 0
        self.last_done = float("-inf")
        self.busy = False


class Demand:
    """How leases follow each other, by destination, as Postfix's queue manager looks at deliveries.

    A destination becomes busy when a lease begins back to back with the end of another; that several are leased at
    one time is not enough, since a burst is over when its first messages are. It stays busy while leases begin back
    to back, or beside others.
    """

    def __init__(self) -> None:
        self._records: OrderedDict[Destination, _Record] = OrderedDict()

    def began(self, destination: Destination, now: float) -> None:
        """A lease for ``destination`` begins."""
        record = self._records.get(destination)
        if record is None:
            record = self._records[destination] = _Record()
            if len(self._records) > MAX_REMEMBERED:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(destination)
        back_to_back = now - record.last_done <= BACK_TO_BACK
        record.busy = back_to_back or (record.busy and record.active > 0)
        record.active += 1

    def ended(self, destination: Destination, now: float) -> None:
        """A lease for ``destination`` has ended."""
        record = self._records.get(destination)
        if record is not None:
            record.active = max(0, record.active - 1)
            record.last_done = now

    def busy(self, destination: Destination) -> bool:
        """Whether the sessions of ``destination`` are to be kept."""
        record = self._records.get(destination)
        return record is not None and record.busy
