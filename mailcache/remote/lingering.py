"""Freed leases that stay here for a moment, since the next message mostly needs them again."""

from __future__ import annotations

from mailcache.destination import Destination, Endpoint
from mailcache.remote.asking import Waiter
from mailcache.remote.borrowed import Borrowed


class Lingering:
    """Sessions that nobody here uses, and that the keeper has not back yet."""

    def __init__(self) -> None:
        self._sessions: dict[Borrowed, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, borrowed: Borrowed) -> bool:
        return borrowed in self._sessions

    def all(self) -> list[Borrowed]:
        """Those there are now."""
        return list(self._sessions)

    def add(self, borrowed: Borrowed) -> None:
        """``borrowed`` lingers from now on, until its `Borrowed.linger_until`."""
        self._sessions[borrowed] = None

    def remove(self, borrowed: Borrowed) -> None:
        """``borrowed`` goes back, if it is here."""
        self._sessions.pop(borrowed, None)

    def clear(self) -> None:
        """There is no keeper for them to go back to."""
        self._sessions.clear()

    def take(self, waiter: Waiter) -> Borrowed | None:
        """The first that ``waiter`` may have, for whom it lingers no more."""
        for borrowed in self._sessions:
            if waiter.takes(borrowed):
                del self._sessions[borrowed]
                return borrowed
        return None

    def in_the_way(self, destination: Destination, endpoint: Endpoint | None) -> list[Borrowed]:
        """Those which the keeper may serve ``destination`` with, for which they did not linger.

        :param endpoint: where it was served the last time, if it was.
        """
        wanted = (destination.identity, destination.tls_class)
        return [
            borrowed
            for borrowed in self._sessions
            if endpoint in (None, borrowed.session.key.endpoint)
            and wanted == (borrowed.session.key.identity, borrowed.session.key.tls_class)
        ]

    def due(self, now: float) -> list[Borrowed]:
        """Those that have lingered long enough."""
        return [borrowed for borrowed in self._sessions if borrowed.linger_until <= now]
