"""Processes that work for the demonstration and end with it, whatever ends it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from mailcache.demo.measuring import DemoFailed

LIMIT = 30.0
"""Seconds for a process to start, or to end, on a machine that is busy."""


class Helper:
    """A process that says a line of JSON once it is ready, and ends when its standard input does.

    It is started by a ``with`` statement, whose end is its end. As it reads a pipe of ours, it does not outlive this
    process, however that ends.

    :param name: what it is called where it fails.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._command = command
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C is for us alone, and our end is its end.
        self.process = subprocess.Popen(  # noqa: S603  (the command is a constant)
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self._complaints.close()

    def wait_ready(self) -> dict[str, Any]:
        """Wait until it is ready; gives what its first line says.

        :raises DemoFailed: with what it has complained of last, if it does not start.
        """
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], LIMIT)
        line = self.process.stdout.readline() if readable else b""
        if not line:
            if readable:
                self.has_ended(within=LIMIT)  # what it has complained of is there once it has ended
            raise DemoFailed(f"{self.name} did not start{self.complaint()}")
        return dict(json.loads(line))

    def has_ended(self, within: float) -> bool:
        """Whether it ends in so many seconds."""
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> bytes:
        """End it in order; gives what it has said since its first line.

        :raises DemoFailed: with what it has complained of last, if it does not end, or not in order.
        """
        try:
            said, _ = self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not end within {LIMIT:g} s") from None
        if self.process.returncode:
            raise self.broke_down()
        return said

    def broke_down(self) -> DemoFailed:
        """An exception that says so, with what it has complained of last."""
        return DemoFailed(f"{self.name} broke down{self.complaint()}")

    def complaint(self) -> str:
        """The last line of what it has written to its standard error, if there is any, behind a colon."""
        self._complaints.seek(0)
        lines = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def kill(self) -> None:
        """End it and what it has started, at once."""
        ended = self.process.poll()
        if ended is None or ended < 0:
            # Its session has a process group of the same number; who was killed may have left others behind in it.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def cpu_seconds_of(pid: int) -> float:
    """The CPU that another process has used so far, as `time.process_time` tells it of this one.

    :raises OSError: if there is no such process.
    """
    # The number that clock_getcpuclockid(3) gives, on every Linux.
    return time.clock_gettime((~pid << 3) | 2)
