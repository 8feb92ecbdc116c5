"""A keeper and a borrower of different versions: each does without the other, and mail goes on."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor

from mailcache import Destination, Envelope, RemoteSessionCache, deliver
from mailcache.remote import codec
from tests.helpers import SMALL, verifying
from tests.remote.processes import ProcessCase, until

OURS = codec.VERSION

KEEPER = """
import sys
from mailcache.remote import codec
codec.VERSION = int(sys.argv[1])
from twisted.application.twist._twist import Twist
Twist.main(["twist", "--log-level=warn", "mailcache", "--listen", "unix:" + sys.argv[2] + ":mode=600"])
"""
"""A keeper that speaks another version, and is like ours otherwise."""


class VersionTests(ProcessCase):
    async def fallbacks(self, version: int) -> int:
        """How often a borrower of this version does without the keeper, for two messages."""
        self.patch(codec, "VERSION", version)
        cache: Any = RemoteSessionCache(reactor, f"unix:{self.socket}")
        where = Destination(f"[127.0.0.1]:{self.server.port}", tls=verifying())
        for _ in range(2):
            result = await deliver(cache, where, Envelope("a@example.com", ["b@example.com"]), SMALL)
            self.assertEqual(result.rejected, {})
        counts = await cache.statistics()
        await cache.close()
        self.patch(codec, "VERSION", OURS)
        return int(counts["fallbacks"])

    async def test_the_next_one_and_the_one_before_both_ways(self) -> None:
        self.serve()
        for number, version in enumerate((OURS, OURS + 1, OURS - 1)):
            self.socket = f"/tmp/mailcache-{os.getpid()}-{number}.sock"
            process = self._spawn("-c", KEEPER, str(version), self.socket)
            await until(lambda: os.path.exists(self.socket) or not process.running, 20)  # noqa: B023  (awaited here)
            for borrower in (OURS - 1, OURS, OURS + 1):
                expected = 0 if borrower == version else 2
                self.assertEqual(await self.fallbacks(borrower), expected, f"keeper {version}, borrower {borrower}")
            self.assertTrue(process.running, process.output.decode())
        self.assertEqual(self.server.message_count, 3 * 3 * 2)
