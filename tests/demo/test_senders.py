"""Four processes that share a keeper: all mail goes over its sessions, or it is told why not."""

from __future__ import annotations

import os
import signal
import sys
from email import message_from_bytes
from pathlib import Path
from unittest import mock

import attrs
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

import mailcache
from mailcache.demo import senders
from mailcache.demo.measuring import DemoFailed, Measured
from mailcache.demo.senders import PROCESSES, SharedKeeper, shares
from mailcache.testing import Fault, SMTPServer
from tests.helpers import ca_file, certificate


def importable(case: SynchronousTestCase) -> None:
    """Let processes find this mailcache, whatever folder the tests run in."""
    changed = mock.patch.dict(os.environ, PYTHONPATH=str(Path(mailcache.__file__).parent.parent))
    changed.start()
    case.addCleanup(changed.stop)


class SharesTests(SynchronousTestCase):
    def test_odd(self) -> None:
        self.assertEqual(shares(7, 4), [2, 2, 2, 1])
        self.assertEqual(shares(3, 4), [1, 1, 1, 0])

    def test_sum(self) -> None:
        """Nothing is lost, and none has two more than another."""
        for whole in range(30):
            for parts in range(1, 8):
                divided = shares(whole, parts)
                self.assertEqual((sum(divided), len(divided)), (whole, parts))
                self.assertLessEqual(max(divided) - min(divided), 1)


@attrs.frozen
class Listening:
    """In place of a server process: one of this process, whose messages can be looked at."""

    port: int
    ca_file: str


class SharedKeeperTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        importable(self)

    def serve(self, **options: object) -> tuple[SMTPServer, Listening]:
        server = SMTPServer(reactor, certificate=certificate(), **options)
        server.listen()
        self.addCleanup(server.close)
        return server, Listening(server.port, ca_file())

    def start(self, at_a_time: int) -> SharedKeeper:
        way = SharedKeeper(at_a_time)
        self.addCleanup(deferLater, reactor, 0.0)  # what it listened to is closed by then
        # In a thread: the server of this process answers the keeper's QUIT meanwhile.
        self.addCleanup(deferToThread, way.__exit__, None, None, None)
        way.__enter__()
        way.wait_ready()
        return way

    async def send(self, messages: int, at_a_time: int) -> tuple[SMTPServer, Measured]:
        server, listening = self.serve()
        told: list[int] = []
        measured = await self.start(at_a_time).measure(reactor, listening, messages, told.append)  # type: ignore[arg-type]
        self.assertEqual((server.message_count, server.violations), (messages, []))
        subjects = {message_from_bytes(each.content)["Subject"] for each in server.messages}
        self.assertEqual(subjects, {f"message {number} of a demonstration" for number in range(1, messages + 1)})
        self.assertLessEqual(server.connection_count, at_a_time)
        self.assertEqual(server.handshake_count, server.connection_count)
        self.assertEqual((told, told[-1]), (sorted(told), messages))
        return server, measured

    async def test_odd_numbers(self) -> None:
        """Each message is sent once, over no more sessions than there are senders."""
        _, measured = await self.send(7, 3)
        self.assertTrue(measured.cpu_seconds > 0 and measured.seconds > 0 and measured.waited > 0)

    async def test_one_session(self) -> None:
        """All four share it."""
        server, _ = await self.send(40, 1)
        self.assertEqual(server.connection_count, 1)

    async def test_more_senders_than_messages(self) -> None:
        await self.send(1, 50)

    async def test_refused(self) -> None:
        """A refusal is told as it is in this process."""
        _, listening = self.serve(faults=[Fault("rcpt", "5xx", connection=1, transaction=2)])
        way = self.start(2)
        with self.assertRaisesRegex(DemoFailed, r"^message \d+: the server has refused it: 55"):
            await way.measure(reactor, listening, 40, lambda _: None)  # type: ignore[arg-type]

    async def test_sender_lost(self) -> None:
        _, listening = self.serve()
        way = self.start(2)

        def sent(_: int) -> None:
            if way._processes[0].process.poll() is None:
                os.kill(way._processes[0].process.pid, signal.SIGKILL)

        with self.assertRaisesRegex(DemoFailed, "^a sender broke down$"):
            await way.measure(reactor, listening, 100_000, sent)  # type: ignore[arg-type]

    async def test_no_keeper(self) -> None:
        """Nothing is sent without it: there is no fallback."""
        server, listening = self.serve()
        way = self.start(2)
        os.kill(way._keeper.pid, signal.SIGKILL)
        with self.assertRaisesRegex(DemoFailed, "^the keeper broke down$"):
            await way.measure(reactor, listening, 8, lambda _: None)  # type: ignore[arg-type]
        self.assertEqual(server.message_count, 0)


class StartTests(SynchronousTestCase):
    """One that does not start: what it has said last is told."""

    def check(self, expected: str) -> None:
        importable(self)
        with self.assertRaisesRegex(DemoFailed, expected), SharedKeeper(PROCESSES) as way:
            way.wait_ready()

    def test_keeper(self) -> None:
        self.patch(senders, "KEEPER", (sys.executable, "-c", "raise SystemExit('one\\nno socket')"))
        self.check("^the keeper did not start: no socket$")

    def test_sender(self) -> None:
        self.patch(senders, "SENDER", (sys.executable, "-c", "raise SystemExit('no sender')"))
        self.check("^a sender did not start: no sender$")
