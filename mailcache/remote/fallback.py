"""Who serves a borrower's callers while there is no keeper."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailcache.limits import Limits
from mailcache.remote.asking import Waiter
from mailcache.result import DeliveryError

FALLBACK_LIMITS = Limits(sessions_per_destination=1, sessions_per_endpoint=1, idle_timeout=2, idle_timeout_mx=2)
"""What is kept while there is no keeper: little, so that many borrowers without one do not crowd a server."""


class Fallback:
    """A cache of the borrower's own, for whom no keeper has served.

    :param cache: an `ISessionCache`; with ``None`` they fail.
    :ivar served: how many were sent there.
    """

    _log = Logger()

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.served = 0

    def serve(self, waiter: Waiter, now: float) -> None:
        """Give ``waiter`` a session without a keeper."""
        if self._cache is None:
            error = DeliveryError("no keeper has served it, and there is no fallback", phase="waiting")
            waiter.granted.errback(Failure(error))
            return
        self.served += 1
        self._log.warn("a session with {destination} is had without a keeper", destination=str(waiter.destination))
        # An endpoint is avoided for what happened by way of the keeper, and that was its end as like as not.
        waiter.instead = self._cache.acquire(
            waiter.destination, needs=waiter.needs, fresh=waiter.fresh, timeout=max(0.0, waiter.deadline - now)
        )
        waiter.instead.addCallbacks(waiter.granted.callback, waiter.granted.errback)

    def statistics(self) -> list[Deferred[dict[str, Any]]]:
        """The counts of its cache, if there is one."""
        return [self._cache.statistics()] if self._cache is not None else []

    def close(self) -> Deferred[Any]:
        """Fires when its cache is closed."""
        closed: Deferred[Any] = self._cache.close() if self._cache is not None else succeed(None)
        return closed
