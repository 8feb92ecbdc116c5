"""When sessions that nobody uses are gone, on real sockets: a second late at most."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from mailcache import Destination, Limits, MemorySessionCache
from mailcache.testing import Fault, SMTPServer
from tests.helpers import certificate, verifying
from tests.remote.processes import until

LATE = 1.0
"""Seconds."""


class EvictionTimeTests(TestCase):
    def cache(self, **limits: Any) -> MemorySessionCache:
        cache = MemorySessionCache(reactor, Limits(**limits))
        self.addCleanup(cache.close)
        return cache

    async def park(self, cache: MemorySessionCache, sessions: int = 3) -> SMTPServer:
        """A server with which so many sessions are idle."""
        server = SMTPServer(reactor, certificate=certificate())
        server.listen()
        self.addCleanup(server.close)
        where = Destination(f"[127.0.0.1]:{server.port}", tls=verifying())
        leases = [await cache.acquire(where) for _ in range(sessions)]
        for lease in leases:
            lease.release()
        await until(lambda: server.open_count == sessions, 10)
        return server

    def idle(self, cache: MemorySessionCache) -> int:
        counts: dict[str, Any] = self.successResultOf(cache.statistics())
        return int(counts["idle"])

    async def test_an_idle_session_is_closed_within_a_second_behind_its_limit(self) -> None:
        for limit in (0.5, 1.0):
            cache = self.cache(idle_timeout=limit)
            server = await self.park(cache)
            began = time.monotonic()
            self.assertEqual(self.idle(cache), 3)
            await until(lambda server=server: not server.open_count, 10)  # type: ignore[misc]
            took = time.monotonic() - began
            self.assertEqual(self.idle(cache), 0)
            self.assertTrue(limit - LATE / 4 <= took <= limit + LATE, took)
            self.assertEqual([record.closed for record in server.connections], ["quit"] * 3)

    async def test_one_that_has_reached_its_age_is_closed_within_a_second_too(self) -> None:
        cache = self.cache(idle_timeout=60, max_age=1.0)
        server = await self.park(cache)
        began = time.monotonic()
        await until(lambda: not server.open_count, 10)
        # It is spread by a fifth.
        self.assertLessEqual(time.monotonic() - began, 1.2 + LATE)

    async def test_a_dead_one_is_gone_within_a_second_of_its_death(self) -> None:
        for kind in ("fin", "rst", "notify", "halfclose", "421", "restart"):
            with self.subTest(kind=kind):
                cache = self.cache(idle_timeout=60)
                server = await self.park(cache)
                server.arm(Fault("idle", kind))
                began = time.monotonic()
                server.strike_idle()
                await until(lambda cache=cache: not self.idle(cache), 10)  # type: ignore[misc]
                self.assertLessEqual(time.monotonic() - began, LATE)
                await until(lambda server=server: not server.open_count, 10)  # type: ignore[misc]
                self.assertLessEqual(time.monotonic() - began, LATE)
