"""Level "may": where TLS is offered and does not work, and from when on clear text will do instead.

Postfix tries again in clear text at once, with mail that is older than 300 s. Here a delivery never falls back by
itself: whoever breaks a handshake must go on breaking it for as long, and what goes in clear is the next delivery.
"""

from __future__ import annotations

from collections import OrderedDict

from mailcache.destination import Endpoint

PATIENCE = 300.0
"""Seconds for which TLS must have failed (Postfix minimal_backoff_time), and for which what was made in clear text
instead is used."""

MAX_REMEMBERED = 10_000
"""Endpoints remembered, the one that failed longest ago forgotten first."""


class Opportunism:
    """How TLS has failed, by endpoint, since it last worked there."""

    def __init__(self) -> None:
        self._failures: OrderedDict[Endpoint, tuple[float, float]] = OrderedDict()

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """A handshake that the server has asked for has failed."""
        first, _ = self._failures.get(endpoint, (now, now))
        self._failures[endpoint] = (first, now)
        self._failures.move_to_end(endpoint)
        if len(self._failures) > MAX_REMEMBERED:
            self._failures.popitem(last=False)

    def worked(self, endpoint: Endpoint) -> None:
        """A handshake has succeeded: the past is forgotten."""
        self._failures.pop(endpoint, None)

    def clear(self, endpoint: Endpoint, now: float) -> bool:
        """Whether to go in clear text now. Some time after the last failure TLS is tried again, by one delivery."""
        failures = self._failures.get(endpoint)
        if failures is None:
            return False
        first, last = failures
        return first + PATIENCE <= now < last + 2 * PATIENCE
