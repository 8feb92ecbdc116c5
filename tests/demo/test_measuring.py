"""What is sent, over real sockets."""

from __future__ import annotations

import time
from email import message_from_bytes
from email.utils import parsedate_to_datetime

from twisted.trial.unittest import TestCase

from mailcache import Destination, MemorySessionCache
from mailcache.demo.measuring import DemoFailed, Measured, measure
from mailcache.demo.running import in_memory, uncached
from mailcache.testing import Fault, SMTPServer


class MeasureTests(TestCase):
    def serve(self, **options: object) -> tuple[SMTPServer, Destination]:
        from twisted.internet import reactor

        server = SMTPServer(reactor, **options)
        server.listen()
        self.addCleanup(server.close)
        return server, Destination(f"[127.0.0.1]:{server.port}")

    async def send(self, where: Destination, cache: MemorySessionCache, senders: int) -> tuple[Measured, list[int]]:
        told: list[int] = []
        self.addCleanup(cache.close)
        return await measure(cache, where, range(5, 17), senders, told.append), told

    async def test_messages(self) -> None:
        """They are mail of some kB, each its own, and all are there when it returns, connections closed by QUIT."""
        from twisted.internet import reactor

        for make_cache in (uncached, in_memory):
            server, where = self.serve()
            measured, told = await self.send(where, make_cache(reactor, 3), 3)
            self.assertEqual(told, list(range(1, 13)))
            self.assertEqual((server.message_count, server.violations), (12, []))
            self.assertTrue(all(connection.quit_seen for connection in server.connections))
            self.assertTrue(measured.cpu_seconds > 0 and 0 < measured.seconds < measured.waited)
            messages = [message_from_bytes(each.content) for each in server.messages]
            self.assertEqual(len({each["Message-ID"] for each in messages}), 12)
            subjects = {f"message {number} of a demonstration" for number in range(5, 17)}
            self.assertEqual({each["Subject"] for each in messages}, subjects)
            for each in messages:
                self.assertEqual(each.defects, [])
                self.assertTrue(each["From"] and each["To"])
                self.assertLess(abs(parsedate_to_datetime(each["Date"]).timestamp() - time.time()), 600)
                self.assertGreater(len(each.get_payload()), 4000)

    async def test_uncached(self) -> None:
        """A connection for each, never more of them than senders."""
        from twisted.internet import reactor

        server, where = self.serve()
        most = 0

        def count(*_: object) -> None:
            nonlocal most
            most = max(most, server.open_count)

        server.verdict = count
        await self.send(where, uncached(reactor, 2), 2)
        self.assertEqual((server.connection_count, most), (12, 2))

    async def test_refused(self) -> None:
        """A refusal is told, with the number of the message, and the other senders stop."""
        from twisted.internet import reactor

        server, where = self.serve(faults=[Fault("rcpt", "5xx", connection=1, transaction=2)])
        with self.assertRaisesRegex(DemoFailed, r"message \d+: the server has refused it: 55"):
            await self.send(where, in_memory(reactor, 2), 2)
        self.assertLess(server.message_count, 12)

    async def test_cut(self) -> None:
        """So is a message that nobody knows of."""
        from twisted.internet import reactor

        _, where = self.serve(faults=[Fault("after_dot", "rst", connection=1, transaction=1)])
        with self.assertRaisesRegex(DemoFailed, "message 5: delivered or not, nobody can know"):
            await self.send(where, in_memory(reactor, 1), 1)
