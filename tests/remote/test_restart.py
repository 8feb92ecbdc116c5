"""Keepers that end and begin, as real processes under load: no message is lost or doubled, none goes without them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from mailcache.testing import Fault
from tests.remote.processes import Process, ProcessCase, until

LISTENS = 20.0
"""Seconds that the start of a process may take on a machine that has much to do."""


def listener(path: str) -> int:
    """The process that listens at ``path``; 0 for none."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return 0
        pid: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid


class RestartCase(ProcessCase):
    """Keepers at one path, one after another."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp(dir="/tmp")
        self.addCleanup(shutil.rmtree, self.folder)
        self.socket = f"{self.folder}/keeper"

    def launch(self, *options: str, listen: str | None = None, **spawn: Any) -> Process:
        """A keeper's process, whatever comes of it."""
        where = listen if listen is not None else f"unix:{self.socket}"
        return self._spawn(
            "-m", "twisted", f"--reactor={self.reactor_name}", "--log-format=text", "mailcache",
            "--listen", where, *options, **spawn,
        )  # fmt: skip

    async def start(self, *options: str, within: float = LISTENS, **spawn: Any) -> Process:
        """A keeper that listens."""
        process = self.launch(*options, **spawn)
        await until(
            lambda: not process.running or listener(self.socket) == process.pid, within, lambda: process.output.decode()
        )
        self.assertTrue(process.running, process.output.decode())
        return process

    async def check_ended(self, process: Process) -> None:
        """It ends in order, as a supervisor sees it."""
        await process.ended.addTimeout(LISTENS, reactor)
        self.assertEqual(process.status, 0, process.output.decode())
        self.assertNotIn(b"Traceback", process.output)

    def hold(self, borrower: Process) -> Deferred[dict[str, Any]]:
        return borrower.does("hold", "held")

    async def draining(self, process: Process) -> None:
        """It has heard that it is to end, and has not ended."""
        await until(lambda: b"ending, with" in process.output, LISTENS, lambda: process.output.decode())
        self.assertTrue(process.running)

    async def check_no_fallback(self, *borrowers: Process) -> None:
        for borrower in borrowers:
            counts = (await borrower.does("statistics", "statistics"))["statistics"]
            self.assertEqual(counts["fallbacks"], 0)


class EndTests(RestartCase):
    """How a keeper ends."""

    async def test_age(self) -> None:
        process = await self.start("--retire-after", "2")
        await self.check_ended(process)
        self.assertEqual(os.listdir(self.folder), [])
        self.assertIn(b"it is 2 s old", process.output)

    async def test_memory(self) -> None:
        process = await self.start("--max-memory", "1000000")
        await self.check_ended(process)
        self.assertIn(b"bytes of memory", process.output)

    async def test_transaction_under_way(self) -> None:
        """SIGTERM and SIGINT: the message is delivered, then the process ends with success."""
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.serve(faults=[Fault("after_dot", "slow")], slow_delay=1.5)
            process = await self.start()
            borrower = self.borrower()
            await self.started(borrower)
            sending = borrower.does("send", "done", labels=["last@test"], at_once=1)
            await until(lambda server=server: server.connections and server.connections[0].transactions, 10)
            process.kill(number)
            await self.draining(process)
            await sending
            await self.check_ended(process)
            self.check_outcomes([borrower], 1)
            self.assertEqual(self.committed(), {"last@test": 1})
            self.assertEqual([record.quit_seen for record in server.connections], [True])
            await self.check_no_fallback(borrower)

    async def test_second_signal(self) -> None:
        """The first waits for a lease, the second does not."""
        self.serve()
        process = await self.start()
        borrower = self.borrower()
        await self.started(borrower)
        await self.hold(borrower)
        process.kill(signal.SIGTERM)
        await self.draining(process)
        self.assertEqual(os.listdir(self.folder), [], "it listens no more")
        process.kill(signal.SIGTERM)
        await self.check_ended(process)
        self.assertIn(b"ending now", process.output)
        late = await borrower.does("use", "outcome", label="late@test")
        self.assertEqual(late["outcome"], "error")

    async def test_lease_beyond_the_limit(self) -> None:
        server = self.serve()
        process = await self.start("--drain-limit", "0.3")
        borrower = self.borrower()
        await self.started(borrower)
        await self.hold(borrower)
        process.kill(signal.SIGTERM)
        await self.check_ended(process)
        late = await borrower.does("use", "outcome", label="late@test")
        self.assertEqual((late["outcome"], server.message_count), ("error", 0))


class FlowCase(RestartCase):
    """Borrowers that send all the time."""

    async def send(self, borrower: Process, name: str) -> None:
        """Batch after batch, until the test says that it is enough."""
        while not self.enough:
            labels = [f"{name}-{self.batches}-{number}@test" for number in range(20)]
            self.batches += 1
            await borrower.does("send", "done", labels=labels, at_once=5)

    def begin(self, *borrowers: Process) -> Deferred[Any]:
        self.enough = False
        self.batches = 0
        flows = [self.send(borrower, f"flow{number}") for number, borrower in enumerate(borrowers)]
        return gatherResults([Deferred.fromCoroutine(flow) for flow in flows])

    async def check_flow(self, sending: Deferred[Any], *borrowers: Process) -> None:
        """All that was begun was sent, once, and through a keeper."""
        self.enough = True
        await sending
        outcomes = self.check_outcomes(borrowers, 20 * self.batches)
        self.assertEqual(set(outcomes.values()), {"sent"})
        await self.check_no_fallback(*borrowers)
        await self.check_closed(*borrowers)


class TakeoverTests(FlowCase):
    """A keeper that takes the place of another."""

    timeout = 120

    async def test_five_restarts_under_load(self) -> None:
        self.serve(faults=[Fault("after_dot", "slow", times=1_000_000)], slow_delay=0.02)
        process = await self.start()
        borrowers = [self.borrower() for _ in range(3)]
        await self.started(*borrowers)
        sending = self.begin(*borrowers)
        await until(lambda: self.server.message_count > 20, LISTENS)
        for _ in range(5):
            before = self.server.connection_count
            former, process = process, await self.start("--takeover")
            await self.check_ended(former)
            await until(lambda before=before: self.server.connection_count > before, LISTENS)
        self.assertEqual(os.listdir(self.folder), ["keeper"])
        await self.check_flow(sending, *borrowers)
        process.kill(signal.SIGTERM)
        await self.check_ended(process)
        self.assertEqual(os.listdir(self.folder), [])

    async def test_without_takeover(self) -> None:
        """A keeper that lives is left alone, and who comes says why and how."""
        process = await self.start()
        other = self.launch()
        await other.ended
        self.assertEqual(other.status, 1)
        self.assertIn(b"another keeper listens there; --takeover", other.output)
        self.assertNotIn(b"Traceback", other.output)
        self.assertEqual(listener(self.socket), process.pid)

    async def test_nobody_to_take_over_from(self) -> None:
        """One that was killed has left its socket behind."""
        for _ in range(2):
            process = await self.start("--takeover")
            process.kill(signal.SIGKILL)
            await process.ended
            self.assertEqual(os.listdir(self.folder), ["keeper"])


class SupervisedTests(FlowCase):
    """Under systemd, as far as the keeper can tell."""

    timeout = 120

    async def test_socket_activation(self) -> None:
        """The socket is there all the time: who connects between two keepers waits for the second."""
        self.serve(faults=[Fault("after_dot", "slow", times=1_000_000)], slow_delay=0.02)
        with socket.socket(socket.AF_UNIX) as held:
            held.bind(self.socket)
            os.chmod(self.socket, 0o640)
            held.listen(100)
            process = await self.start(listen="systemd", passed=held.fileno())
            borrowers = [self.borrower() for _ in range(3)]
            await self.started(*borrowers)
            sending = self.begin(*borrowers)
            await until(lambda: self.server.message_count > 20, LISTENS)
            for _ in range(3):
                process.kill(signal.SIGTERM)
                await self.check_ended(process)
                before = self.server.connection_count
                process = self.launch(listen="systemd:domain=UNIX:name=mailcache.socket", passed=held.fileno())
                await until(lambda before=before: self.server.connection_count > before, LISTENS)
            await self.check_flow(sending, *borrowers)
            process.kill(signal.SIGTERM)
            await self.check_ended(process)
            self.assertEqual(os.stat(self.socket).st_mode & 0o777, 0o640)

    async def test_nothing_was_passed(self) -> None:
        process = self.launch(listen="systemd")
        await process.ended
        self.assertEqual(process.status, 1)
        self.assertIn(b"systemd has passed no socket", process.output)
        self.assertNotIn(b"Traceback", process.output)

    async def test_notifications(self) -> None:
        """Ready, reloading and ready again, the watchdog's beats, stopping; over an abstract socket."""
        configuration = Path(self.folder, "keeper.toml")
        configuration.write_text("[limits]\nsessions = 5\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as heard:
            name = f"mailcache-{os.getpid()}-{id(self):x}"
            heard.bind("\0" + name)
            words: list[str] = []

            def told(word: str, times: int = 1) -> bool:
                try:
                    while True:
                        words.append(heard.recv(4096).decode().split("\n")[0])
                except BlockingIOError:
                    return words.count(word) >= times

            process = self.launch("--config", str(configuration), NOTIFY_SOCKET=f"@{name}", WATCHDOG_USEC="200000")
            await until(lambda: told("READY=1"), LISTENS, lambda: process.output.decode())
            self.assertEqual(listener(self.socket), process.pid, "it listens when it says so")
            await until(lambda: told("WATCHDOG=1", 3), LISTENS)
            process.kill(signal.SIGHUP)
            await until(lambda: told("READY=1", 2), LISTENS)
            process.kill(signal.SIGTERM)
            await self.check_ended(process)
            self.assertTrue(told("STOPPING=1"))
        states = [word for word in words if word != "WATCHDOG=1"]
        self.assertEqual(states, ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"])
