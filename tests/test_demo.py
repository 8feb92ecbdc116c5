"""The demonstration: what it shows is true, it notices lost mail, and it leaves no process behind."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase, TestCase

import mailcache
from mailcache import Destination, Limits, MemorySessionCache, demo
from mailcache.testing import Fault, SMTPServer
from tests.helpers import Bed, verdict_of

ROOT = Path(mailcache.__file__).parent.parent
COMMAND = (sys.executable, "-m", "mailcache.cli", "demo")
LIMIT = 60.0


def cells(output: str) -> dict[str, list[str]]:
    """The numbers in each row of the table, by the row's name."""
    rows = {}
    for name in demo.WAYS:
        (found,) = re.findall(rf"(?m)^{re.escape(name)} +(.*)$", output)
        rows[name] = found.split()
    return rows


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not waited for is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


class CommandTests(SynchronousTestCase):
    """The whole of it, as it is run by people."""

    def test_table(self) -> None:
        """Each message has its connection, or all share a few; no bar where there is no terminal."""
        done = subprocess.run(
            [*COMMAND, "--messages", "40", "--senders", "3"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        rows = cells(done.stdout)
        self.assertEqual(rows["a connection for each"][:2], ["40", "40"])
        connections, handshakes, *rest = rows["kept sessions"]
        self.assertEqual(connections, handshakes)
        self.assertIn(int(connections), range(1, 4))
        self.assertEqual([float(number.replace(",", "")) > 0 for number in rest], [True] * 3)

    @contextmanager
    def on_terminal(self) -> Iterator[tuple[subprocess.Popen[bytes], list[int], int]]:
        """A demonstration that goes on for long, its servers, and its terminal, once the bar has moved."""
        terminal, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "--messages", "100000"], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        try:
            self.read_until(terminal, rb"\[[#.]+\] [1-9][\d,]*/100,000")
            yield process, children(process.pid), terminal
        finally:
            process.kill()
            process.wait()
            os.close(terminal)

    def read_until(self, terminal: int, pattern: bytes) -> bytes:
        seen = b""
        end = time.monotonic() + LIMIT
        while not re.search(pattern, seen):
            readable, _, _ = select.select([terminal], [], [], end - time.monotonic())
            self.assertTrue(readable, seen)
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # EIO: all of the other end is closed
                self.fail(seen)
        return seen

    def check_gone(self, servers: list[int]) -> None:
        end = time.monotonic() + LIMIT
        while any(map(lives, servers)):
            self.assertLess(time.monotonic(), end, "a server has been left behind")
            time.sleep(0.02)

    def test_interrupt(self) -> None:
        """Ctrl-C ends it with the usual status, quietly, and ends the servers."""
        with self.on_terminal() as (process, servers, terminal):
            self.assertEqual(len(servers), len(demo.WAYS))
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(LIMIT), 130)
            self.check_gone(servers)
            rest = self.read_until(terminal, rb"\x1b\[K")
            self.assertNotIn(b"Traceback", rest)
            self.assertTrue(rest.endswith(b"\r\x1b[K"), rest)

    def test_killed(self) -> None:
        """Even when it can't do anything about it, its servers end."""
        with self.on_terminal() as (process, servers, _):
            process.kill()
            process.wait(LIMIT)
            self.check_gone(servers)

    def test_server_killed(self) -> None:
        """Without its server it fails, and says at which message."""
        with self.on_terminal() as (process, servers, terminal):
            os.kill(servers[0], signal.SIGKILL)
            said = self.read_until(terminal, rb"mailcache demo: message [\d,]+: .*\r\n")
            self.assertEqual(process.wait(LIMIT), 1)
            self.assertNotIn(b"Traceback", said)
            self.check_gone(servers)


class ServerProcessTests(SynchronousTestCase):
    """Servers that are no servers."""

    def check(self, program: str, expected: str) -> None:
        self.patch(demo, "SERVER", (sys.executable, "-c", program))
        with self.assertRaisesRegex(demo.DemoFailed, expected), demo.Server() as server:
            self.assertFalse(lives(server._process.pid) and server.finish())

    def test_does_not_start(self) -> None:
        self.check("raise SystemExit('one\\nno port')", "the server did not start: no port$")

    def test_hangs(self) -> None:
        self.patch(demo, "SERVER_LIMIT", 0.1)
        self.check("input()", "the server did not start$")

    def test_does_not_end(self) -> None:
        self.patch(demo, "SERVER_LIMIT", 2.0)
        start = 'print(\'{"port": 1, "certificate_authority": ""}\', flush=True)'
        self.check(f"import time; {start}; time.sleep(60)", "the server did not end within 2 s")

    def test_breaks_down(self) -> None:
        start = 'print(\'{"port": 1, "certificate_authority": ""}\', flush=True)'
        self.check(f"{start}; input()", "the server broke down: EOFError")


class CheckTests(SynchronousTestCase):
    """What the server has seen must be what was sent."""

    right = demo.Counts(connections=4, handshakes=4, messages=1000, violations=[])

    def test_right(self) -> None:
        demo.check("kept", self.right, 1000)

    def test_wrong(self) -> None:
        for wrong, expected in (
            ({"messages": 999}, "kept: the server got 999 of 1,000 messages"),
            ({"messages": 1001}, "kept: the server got 1,001 of 1,000 messages"),
            ({"handshakes": 3}, "kept: 4 connections, but 3 TLS handshakes"),
            ({"violations": ["connection 1: bare LF"]}, "kept: the server complains: connection 1: bare LF"),
        ):
            error = self.assertRaises(demo.DemoFailed, demo.check, "kept", attrs.evolve(self.right, **wrong), 1000)
            self.assertEqual(str(error), expected)


class MeasureTests(TestCase):
    """What is sent, over real sockets."""

    def serve(self, **options: object) -> tuple[SMTPServer, Destination]:
        from twisted.internet import reactor

        server = SMTPServer(reactor, **options)
        server.listen()
        self.addCleanup(server.close)
        return server, Destination(f"[127.0.0.1]:{server.port}")

    async def send(
        self, where: Destination, cache: MemorySessionCache, senders: int
    ) -> tuple[demo.Measured, list[int]]:
        told: list[int] = []
        self.addCleanup(cache.close)
        return await demo.measure(cache, where, 12, senders, told.append), told

    async def test_messages(self) -> None:
        """They are mail of some kB, each its own, and all are there when it returns, connections closed by QUIT."""
        from twisted.internet import reactor

        for make_cache in demo.WAYS.values():
            server, where = self.serve()
            measured, told = await self.send(where, make_cache(reactor, 3), 3)
            self.assertEqual(told, list(range(1, 13)))
            self.assertEqual((server.message_count, server.violations), (12, []))
            self.assertTrue(all(connection.quit_seen for connection in server.connections))
            self.assertTrue(measured.cpu_seconds > 0 and 0 < measured.seconds < measured.waited)
            messages = [message_from_bytes(each.content) for each in server.messages]
            self.assertEqual(len({each["Message-ID"] for each in messages}), 12)
            for each in messages:
                self.assertEqual(each.defects, [])
                self.assertTrue(each["Subject"] and each["From"] and each["To"])
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
        await self.send(where, demo._uncached(reactor, 2), 2)
        self.assertEqual((server.connection_count, most), (12, 2))

    async def test_refused(self) -> None:
        """A refusal is told, with the number of the message, and the other senders stop."""
        from twisted.internet import reactor

        server, where = self.serve(faults=[Fault("rcpt", "5xx", connection=1, transaction=2)])
        sending = self.send(where, demo._in_memory(reactor, 2), 2)
        with self.assertRaisesRegex(demo.DemoFailed, r"message \d+: the server has refused it: 55"):
            await sending
        self.assertLess(server.message_count, 12)

    async def test_cut(self) -> None:
        """So is a message that nobody knows of."""
        from twisted.internet import reactor

        _, where = self.serve(faults=[Fault("after_dot", "rst", connection=1, transaction=1)])
        with self.assertRaisesRegex(demo.DemoFailed, "message 1: delivered or not, nobody can know"):
            await self.send(where, demo._in_memory(reactor, 1), 1)


class ShownTests(SynchronousTestCase):
    def test_table(self) -> None:
        """Numbers stand under the end of their headings."""
        counts = demo.Counts(connections=1000, handshakes=1000, messages=1000, violations=[])
        row = demo.Row("kept", counts, demo.Measured(seconds=0.5, cpu_seconds=0.25, waited=2.0))
        self.assertEqual(
            demo.table([row]),
            "      connections  handshakes  messages/s  CPU ms/message  ms/message\n"
            "kept        1,000       1,000       2,000           0.250       2.000\n",
        )

    def test_bar(self) -> None:
        """It fits a narrow terminal, where it has no room it is numbers alone, and it is cleared."""
        for columns, expected in (("80", "[####################....................] 5/10"), ("16", "5/10")):
            self.patch(os, "environ", {**os.environ, "COLUMNS": columns})
            stream = io.StringIO()
            stream.isatty = lambda: True  # type: ignore[method-assign]
            bar = demo.Progress(stream)
            bar.at("sending", 10, 5)
            bar.at("sending", 10, 6)  # too soon
            bar.clear()
            self.assertEqual(stream.getvalue(), f"\rsending {expected}\r\x1b[K")

    def test_round_trips(self) -> None:
        """The numbers of round trips that the explanation names."""
        taken = []
        for limits in (Limits(max_uses=1), Limits()):
            bed = Bed(latency=0.05, limits=limits)
            bed.deliver()
            bed.reactor.run_for(1)
            began = bed.reactor.seconds()
            self.assertEqual(verdict_of(bed.deliver()), "SENT")
            taken.append(round((bed.reactor.seconds() - began) / 0.1, 3))
            bed.close()
        self.assertEqual(taken, [8, 2])
        self.assertIn("waits for 8 round trips, on a kept session for 2", demo.EXPLANATION)


class ReactorTests(SynchronousTestCase):
    def test_failure_at_once(self) -> None:
        """Work that fails before it has waited for anything ends the reactor too."""
        program = (
            "from mailcache import demo\n"
            "async def work(reactor): raise demo.DemoFailed('at once')\n"
            "try: demo._in_reactor(work)\n"
            "except demo.DemoFailed as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        self.assertEqual((done.stdout, done.stderr), ("at once\n", ""))
