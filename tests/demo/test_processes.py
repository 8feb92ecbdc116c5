"""Processes that are not what they should be."""

from __future__ import annotations

import os
import sys
import time

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mailcache.demo import processes, server
from mailcache.demo.measuring import DemoFailed
from tests.demo.test_running import lives

START = 'print(\'{"port": 1, "certificate_authority": ""}\', flush=True)'


class ServerProcessTests(SynchronousTestCase):
    """Servers that are no servers."""

    def check(self, program: str, expected: str) -> None:
        self.patch(server, "COMMAND", (sys.executable, "-c", program))
        with self.assertRaisesRegex(DemoFailed, expected), server.Server() as started:
            pid = started.process.pid
            started.wait_ready()
            started.counts()
        self.assertFalse(lives(pid))

    def test_does_not_start(self) -> None:
        self.check("raise SystemExit('one\\nno port')", "the server did not start: no port$")

    def test_hangs(self) -> None:
        self.patch(processes, "LIMIT", 0.1)
        self.check("input()", "the server did not start$")

    def test_does_not_end(self) -> None:
        self.patch(processes, "LIMIT", 4.0)
        self.check(f"import time; {START}; time.sleep(60)", "the server did not end within 4 s")

    def test_breaks_down(self) -> None:
        self.check(f"{START}; input()", "the server broke down: EOFError")

    def test_says_nothing(self) -> None:
        self.check(f"{START}; import sys; sys.stdin.read()", "the server broke down$")


class CpuTests(SynchronousTestCase):
    def test_own(self) -> None:
        """It is told of another as this process would tell it of itself."""
        before = time.process_time()
        told = processes.cpu_seconds_of(os.getpid())
        self.assertTrue(before <= told <= time.process_time())

    def test_nobody(self) -> None:
        self.assertRaises(OSError, processes.cpu_seconds_of, 2**22 + 1)  # no Linux has a process of that number


class CheckTests(SynchronousTestCase):
    """What the server has seen must be what was sent."""

    right = server.Counts(connections=4, handshakes=4, messages=1000, violations=[])

    def test_right(self) -> None:
        server.check("kept", self.right, 1000)

    def test_wrong(self) -> None:
        for wrong, expected in (
            ({"messages": 999}, "kept: the server got 999 of 1,000 messages"),
            ({"messages": 1001}, "kept: the server got 1,001 of 1,000 messages"),
            ({"handshakes": 3}, "kept: 4 connections, but 3 TLS handshakes"),
            ({"violations": ["connection 1: bare LF"]}, "kept: the server complains: connection 1: bare LF"),
        ):
            error = self.assertRaises(DemoFailed, server.check, "kept", attrs.evolve(self.right, **wrong), 1000)
            self.assertEqual(str(error), expected)
