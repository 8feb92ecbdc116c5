"""What systemd is told, and when; with a real datagram socket, and the time of a clock."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mailcache.daemon.supervising import Supervisor


class SupervisorTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.clock = Clock()
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.heard.close)
        self.heard.setblocking(False)
        self.path = os.path.join(folder, "notify")

    def supervisor(self, address: str | None = None, **environ: str) -> Supervisor:
        """One that tells its words to ``heard``."""
        self.heard.bind((address or self.path).replace("@", "\0"))
        self.environ = {"NOTIFY_SOCKET": address or self.path, **environ}
        return Supervisor(self.clock, self.environ)

    def words(self) -> list[list[str]]:
        """What was told since the last look."""
        found = []
        while True:
            try:
                found.append(self.heard.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return found

    def test_life(self) -> None:
        supervisor = self.supervisor()
        supervisor.ready("lending sessions on /run/x")
        began = time.monotonic_ns() // 1_000
        supervisor.reloading()
        supervisor.ready("as before")
        supervisor.stopping("ending: SIGTERM", 36.5)
        supervisor.stopped()
        ready, reloading, again, stopping = self.words()
        self.assertEqual(ready, ["READY=1", "STATUS=lending sessions on /run/x"])
        self.assertEqual(reloading[0], "RELOADING=1")
        self.assertRegex(reloading[1], r"^MONOTONIC_USEC=\d+$")
        self.assertLess(int(reloading[1].partition("=")[2]) - began, 5_000_000)
        self.assertEqual(again, ["READY=1", "STATUS=as before"])
        self.assertEqual(stopping, ["STOPPING=1", "STATUS=ending: SIGTERM", "EXTEND_TIMEOUT_USEC=36500000"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_abstract(self) -> None:
        supervisor = self.supervisor(f"@mailcache-{os.getpid()}-{id(self)}")
        supervisor.ready("x")
        self.assertEqual(self.words(), [["READY=1", "STATUS=x"]])

    def test_watchdog(self) -> None:
        """Every half of the time, from when it is ready to when it has stopped."""
        for pid in ({}, {"WATCHDOG_PID": str(os.getpid())}):
            self.heard.close()
            self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            if os.path.exists(self.path):
                os.unlink(self.path)
            supervisor = self.supervisor(WATCHDOG_USEC="3000000", **pid)
            self.clock.advance(10)
            self.assertEqual(self.words(), [])
            supervisor.ready("x")
            self.words()
            self.clock.pump([0.5] * 9)
            self.assertEqual(self.words(), [["WATCHDOG=1"]] * 3)
            supervisor.ready("again")
            supervisor.stopping("x", 1)
            self.words()
            self.clock.pump([0.5] * 3)
            self.assertEqual(self.words(), [["WATCHDOG=1"]])
            supervisor.stopped()
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.heard.close()

    def test_watchdog_of_another(self) -> None:
        for said in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}):
            supervisor = Supervisor(self.clock, {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": "3000000", **said})
            supervisor.ready("x")
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_environment_is_not_for_others(self) -> None:
        self.supervisor(WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()), PATH="/bin")
        self.assertEqual(self.environ, {"PATH": "/bin"})

    def test_nobody_wants_to_hear(self) -> None:
        supervisor = Supervisor(self.clock, {"WATCHDOG_USEC": "3000000"})
        supervisor.ready("x")
        supervisor.stopping("x", 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_hears(self) -> None:
        """That is no reason to fail."""
        supervisor = self.supervisor(WATCHDOG_USEC="3000000")
        self.heard.close()
        supervisor.ready("x")
        os.unlink(self.path)
        self.clock.advance(1.5)
        supervisor.stopping("x", 1)
        supervisor.stopped()
