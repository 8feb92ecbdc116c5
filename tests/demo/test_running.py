"""The demonstration as people run it: what it shows is true, and whatever ends it, it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mailcache
from mailcache.demo import running
from mailcache.demo.senders import PROCESSES
from tests.helpers import Bed, verdict_of

ROOT = Path(mailcache.__file__).parent.parent
COMMAND = (sys.executable, "-m", "mailcache.cli", "demo")
KEEPER = list(running.WAYS)[-1]
LIMIT = 60.0

PROGRAM = f"""
import sys
from mailcache import cli
from mailcache.demo import running
running.WAYS = {{{KEEPER!r}: running.SharedKeeper}}
sys.exit(cli.main())
"""
KEEPER_ALONE = (sys.executable, "-c", PROGRAM, "demo")
"""The command without the rows before the keeper's."""


def cells(output: str) -> dict[str, list[str]]:
    """The numbers in each row of the table, by the row's name."""
    rows = {}
    for name in running.WAYS:
        (found,) = re.findall(rf"(?m)^{re.escape(name)} +(.*)$", output)
        rows[name] = found.split()
    return rows


def descendants(pid: int) -> list[int]:
    """The processes that it has started, and theirs."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [each for child in children for each in descendants(child)]


def running_command(pids: list[int], words: str) -> int:
    """The one of these processes whose command line has ``words`` in it."""
    (found,) = [pid for pid in pids if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")]
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not waited for is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


class CommandTests(SynchronousTestCase):
    """The whole of it; what it makes is made in a folder of its own."""

    def setUp(self) -> None:
        # Not trial's own: the path of a socket can't be that long.
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT)}

    def run_it(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run it, from a folder that has nothing to do with it."""
        done = subprocess.run(
            command, cwd=self.mktemp_folder(), env=self.environment(), capture_output=True, text=True, timeout=LIMIT
        )
        self.assertEqual(list(self.folder.iterdir()), [])
        return done

    def mktemp_folder(self) -> Path:
        folder = Path(self.mktemp())
        folder.mkdir()
        return folder

    def test_table(self) -> None:
        """Each message has its connection, or all share a few; no bar where there is no terminal."""
        done = self.run_it(*COMMAND, "--messages", "40", "--senders", "3")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        rows = cells(done.stdout)
        self.assertEqual(len(rows), 3)
        self.assertEqual(rows["a connection for each"][:2], ["40", "40"])
        for name in ("kept sessions", KEEPER):
            connections, handshakes, *rest = rows[name]
            self.assertEqual(connections, handshakes)
            self.assertIn(int(connections), range(1, 4))
            self.assertEqual([float(number.replace(",", "")) > 0 for number in rest], [True] * 3)

    def test_keeper_does_not_start(self) -> None:
        """What it has said last is told, and nothing is sent."""
        self.folder = self.folder / ("x" * 100)
        self.folder.mkdir()
        done = self.run_it(*COMMAND, "--messages", "5")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(
            done.stderr, r"\Amailcache demo: the keeper did not start: mailcache: 'unix:.*at most \d+ bytes\n\Z"
        )
        self.assertNotIn("messages/s", done.stdout)

    @contextmanager
    def on_terminal(self, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int], int]]:
        """A demonstration that goes on for long, its processes, and its terminal, once the bar has moved."""
        terminal, theirs = pty.openpty()
        process = subprocess.Popen(
            [*command, "--messages", "100000"],
            cwd=self.mktemp_folder(),
            env=self.environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            # As a terminal starts it: a shell has what runs in its background ignore Ctrl-C, and tests may run there.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
        )
        os.close(theirs)
        try:
            self.read_until(terminal, rb"\[[#.]+\] [1-9][\d,]*/100,000")
            yield process, descendants(process.pid), terminal
        finally:
            process.kill()
            process.wait()
            os.close(terminal)

    def read_until(self, terminal: int, pattern: bytes) -> bytes:
        seen = b""
        end = time.monotonic() + LIMIT
        while not re.search(pattern, seen):
            readable, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
            self.assertTrue(readable, seen)
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # EIO: all of the other end is closed
                self.fail(seen)
        return seen

    def check_gone(self, processes: list[int]) -> None:
        end = time.monotonic() + LIMIT
        while any(map(lives, processes)):
            self.assertLess(time.monotonic(), end, "a process has been left behind")
            time.sleep(0.02)

    def check_interrupt(self, *command: str, processes: int) -> None:
        with self.on_terminal(*command) as (process, started, terminal):
            self.assertEqual(len(started), processes)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(LIMIT), 130)
            self.assertEqual([pid for pid in started if lives(pid)], [])
            self.assertEqual(list(self.folder.iterdir()), [])
            rest = self.read_until(terminal, rb"\r\x1b\[K")
            self.assertNotIn(b"Traceback", rest)
            self.assertTrue(rest.endswith(b"\r\x1b[K"), rest)

    def test_interrupt(self) -> None:
        """Ctrl-C ends it with the usual status, quietly, and all that it has started, and takes away what it made."""
        self.check_interrupt(*COMMAND, processes=len(running.WAYS) + PROCESSES + 2)

    def test_interrupt_with_keeper(self) -> None:
        """No less while the keeper and its senders are at work."""
        self.check_interrupt(*KEEPER_ALONE, processes=1 + PROCESSES + 2)

    def test_killed(self) -> None:
        """Even when it can't do anything about it, its processes end, and the keeper's socket and folder are gone."""
        with self.on_terminal(*KEEPER_ALONE) as (process, started, _):
            (socket,) = self.folder.glob("*/keeper.sock")
            self.assertEqual(socket.parent.stat().st_mode & 0o777, 0o700)
            process.kill()
            process.wait(LIMIT)
            self.check_gone(started)
            self.assertFalse(socket.parent.exists())

    def check_loss(self, words: str, pattern: bytes) -> None:
        with self.on_terminal(*KEEPER_ALONE) as (process, started, terminal):
            os.kill(running_command(started, words), signal.SIGKILL)
            said = self.read_until(terminal, pattern)
            self.assertEqual(process.wait(LIMIT), 1)
            self.assertNotIn(b"Traceback", said)
            self.check_gone(started)
            self.assertEqual(list(self.folder.iterdir()), [])

    def test_server_killed(self) -> None:
        """Without its server it fails, and says at which message."""
        self.check_loss("mailcache.testing", rb"mailcache demo: message [\d,]+: .*\r\n")

    def test_keeper_killed(self) -> None:
        """Without the keeper it fails, and says that it was the keeper."""
        self.check_loss("-m twisted", rb"mailcache demo: the keeper broke down.*\r\n")

    def test_keepers_parent_killed(self) -> None:
        """What was left to its parent is done all the same."""
        with self.on_terminal(*KEEPER_ALONE) as (process, started, _):
            os.kill(running_command(started, "mailcache.demo.keeper_process"), signal.SIGKILL)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(LIMIT), 130)
            self.check_gone(started)
            self.assertEqual(list(self.folder.iterdir()), [])


class ExplanationTests(SynchronousTestCase):
    def test_round_trips(self) -> None:
        """The numbers of round trips that the explanation names."""
        taken = []
        for limits in (running.Limits(max_uses=1), running.Limits()):
            bed = Bed(latency=0.05, limits=limits)
            bed.deliver()
            bed.reactor.run_for(1)
            began = bed.reactor.seconds()
            self.assertEqual(verdict_of(bed.deliver()), "SENT")
            taken.append(round((bed.reactor.seconds() - began) / 0.1, 3))
            bed.close()
        self.assertEqual(taken, [8, 2])
        self.assertIn("waits for 8 round trips, on a kept session for 2", running.EXPLANATION.replace("\n", " "))


class ReactorTests(SynchronousTestCase):
    def test_failure_at_once(self) -> None:
        """Work that fails before it has waited for anything ends the reactor too."""
        program = (
            "from mailcache.demo import DemoFailed, running\n"
            "async def work(reactor): raise DemoFailed('at once')\n"
            "try: running.in_reactor(work)\n"
            "except DemoFailed as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        self.assertEqual((done.stdout, done.stderr), ("at once\n", ""))
