"""Real processes for tests: keepers as ``twist mailcache`` runs them, and borrowers."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mailcache.remote import codec, commands
from mailcache.testing import SMTPServer
from tests.helpers import authority, ca_file

ROOT = Path(__file__).parent.parent.parent
REACTORS = {"SelectReactor": "select", "PollReactor": "poll", "AsyncioSelectorReactor": "asyncio"}
"""What the reactors are called that the processes have as this one has; any other is the default."""

WITH_REACTOR = """
import runpy, sys
from twisted.application.reactors import installReactor
installReactor(sys.argv.pop(1))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
GLANCE = 0.02
"""Seconds between looks at what can only be looked at."""


class Ended(Exception):  # noqa: N818
    """A process has ended before it said what was waited for."""


class Process(ProcessProtocol):
    """A process that tells what it has to tell in lines of JSON, of which each is awaited or kept.

    :ivar open_at_start: how many descriptors it had when it was noted.
    :ivar status: what it has ended with: its exit status, or the signal as a negative number.
    """

    transport: IProcessTransport
    open_at_start: int

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()
        self.running = True
        self.status: int | None = None
        self.heard: list[dict[str, Any]] = []
        self.output = b""
        self._rest = b""
        self._awaited: list[tuple[Callable[[dict[str, Any]], Any], Deferred[dict[str, Any]]]] = []

    @property
    def pid(self) -> int:
        pid: int = self.transport.pid  # type: ignore[attr-defined]
        return pid

    def outReceived(self, data: bytes) -> None:
        self.output += data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self._hear(json.loads(line))

    def errReceived(self, data: bytes) -> None:
        self.output += data

    def _hear(self, facts: dict[str, Any]) -> None:
        self.heard.append(facts)
        for waiting in list(self._awaited):
            wanted, deferred = waiting
            if wanted(facts):
                self._awaited.remove(waiting)
                deferred.callback(facts)

    def hears(self, wanted: Callable[[dict[str, Any]], Any]) -> Deferred[dict[str, Any]]:
        """Fires the next line that is ``wanted``."""
        heard: Deferred[dict[str, Any]] = Deferred()
        if self.running:
            self._awaited.append((wanted, heard))
        else:
            heard.errback(Failure(Ended(self.output.decode(errors="replace"))))
        return heard

    def does(self, do: str, answer: str | None, **arguments: Any) -> Deferred[dict[str, Any]]:
        """Give it a line; fires the next it gives that has ``answer``."""
        self.transport.write(json.dumps({"do": do, **arguments}).encode() + b"\n")  # type: ignore[call-arg, arg-type]
        return self.hears(lambda facts: answer in facts or "failed" in facts)

    def processEnded(self, reason: Failure) -> None:
        self.running = False
        ended: Any = reason.value
        self.status = ended.exitCode if ended.exitCode is not None else -ended.signal
        self.ended.callback(None)
        for _, deferred in self._awaited:
            deferred.errback(Failure(Ended(self.output.decode(errors="replace"))))

    def kill(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def end(self) -> Deferred[None]:
        """For addCleanup: whatever state it is in, it ends."""
        self.kill(signal.SIGKILL)
        return self.ended


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def until(condition: Callable[[], Any], seconds: float, state: Callable[[], object] = lambda: "") -> Deferred[None]:
    """Look again and again until ``condition`` holds."""
    end = reactor.seconds() + seconds  # type: ignore[attr-defined]

    def look() -> None:
        if condition():
            loop.stop()
        elif reactor.seconds() > end:  # type: ignore[attr-defined]
            raise AssertionError(f"not within {seconds} s: {state()}")

    loop = LoopingCall(look)
    return loop.start(GLANCE).addCallback(lambda _: None)


class ProcessCase(TestCase):
    """A scripted server in this process; keepers and borrowers in others. All that was started is ended."""

    timeout = 60
    server: SMTPServer
    configuration: Path

    make_server: type[SMTPServer] = SMTPServer

    def serve(self, **settings: Any) -> SMTPServer:
        certificate = authority().issue(names=("localhost",), addresses=("127.0.0.1",))
        self.server = self.make_server(reactor, certificate=certificate, **settings)
        self.server.listen()
        self.addCleanup(self.server.close)
        return self.server

    @property
    def reactor_name(self) -> str:
        """The name of the reactor that this process runs."""
        return REACTORS.get(type(reactor).__name__, "default")

    def _spawn(self, *command: str, passed: int | None = None, **environment: str) -> Process:
        """A process of Python's; the descriptor ``passed`` is its number 3, in the way of systemd."""
        process = Process()
        program = [sys.executable, *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        files: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        if passed is not None:
            files[3] = passed
            environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "mailcache.socket"}
            program = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *program]
        reactor.spawnProcess(process, program[0], program, env=environment, childFDs=files)  # type: ignore[attr-defined]
        self.addCleanup(process.end)
        return process

    async def keeper(self, path: str | None = None, mode: str = "600", tables: str = "", **limits: object) -> Process:
        """A keeper that listens; ``tables`` are more of its configuration."""
        folder = Path(self.mktemp())
        folder.mkdir()
        self.socket = path or f"/tmp/mailcache-{os.getpid()}-{id(self):x}.sock"
        configuration = self.configuration = folder / "keeper.toml"
        given = "".join(f"{name} = {value}\n" for name, value in limits.items())
        configuration.write_text(f"[limits]\n{given}{tables}")
        process = self._spawn(
            "-m", "twisted", f"--reactor={self.reactor_name}", "--log-level=warn", "mailcache",
            "--listen", f"unix:{self.socket}:mode={mode}", "--config", str(configuration),
        )  # fmt: skip
        await until(lambda: os.path.exists(self.socket) or not process.running, 20)
        self.assertTrue(process.running, process.output.decode())
        self.addCleanup(lambda: [os.unlink(name) for name in _left(self.socket)])
        _, process.open_at_start = await self.ask_keeper(process)
        await until(lambda: descriptors(process.pid) == process.open_at_start, 10)
        return process

    borrower_script = Path(__file__).with_name("borrower_process.py")

    def borrower(
        self, next_hop: str | None = None, ca: str | None = None, domain: str = "y.test", uid: int | None = None
    ) -> Process:
        """A borrower; ``uid`` is whom it becomes before it connects."""
        where = next_hop if next_hop is not None else f"[127.0.0.1]:{self.server.port}"
        script = str(self.borrower_script)
        user = () if uid is None else (str(uid),)
        what = (script, self.socket, where, ca if ca is not None else ca_file(), domain, *user)
        return self._spawn("-c", WITH_REACTOR, self.reactor_name, *what)

    async def started(self, *borrowers: Process) -> None:
        """Wait until these run, and note what they have open."""
        for borrower in borrowers:
            await borrower.does("statistics", "statistics")
            borrower.open_at_start = descriptors(borrower.pid)

    async def ask_keeper(self, keeper: Process) -> tuple[dict[str, Any], int]:
        """The keeper's own counts, and how many descriptors it has, but that of this question."""
        link: Any = await connectProtocol(UNIXClientEndpoint(reactor, self.socket), amp.AMP())
        try:
            await link.callRemote(commands.Hello, version=codec.VERSION).addTimeout(10, reactor)
            answer = await link.callRemote(commands.Statistics).addTimeout(10, reactor)
            return json.loads(answer["counts"]), descriptors(keeper.pid) - 1
        finally:
            link.transport.abortConnection()

    async def check_closed(self, *borrowers: Process) -> None:
        """Each of these closes its cache, and has open what it had when it was `started`."""

        async def check(pid: int, then: int) -> None:
            await until(lambda: descriptors(pid) == then, 10, lambda: (then, descriptors(pid)))

        for borrower in borrowers:
            await borrower.does("close", "closed")
            await check(borrower.pid, borrower.open_at_start)

    async def check_back(self, keeper: Process, *living: Process) -> None:
        """All is back where it was: nobody has a lease or waits for one, and what is open is what is kept.

        :param living: the borrowers that live, of those that were `started`: this ends them.
        """
        await self.check_closed(*living)
        found: dict[str, Any] = {}
        for _ in range(200):
            counts, now = await self.ask_keeper(keeper)
            found = {name: counts[name] for name in ("leased", "waiting", "opening")}
            found["more open"] = now - keeper.open_at_start - counts["idle"]
            if not any(found.values()):
                break
            await deferLater(reactor, GLANCE)  # type: ignore[arg-type]
        self.assertFalse(any(found.values()), found)

    def committed(self) -> dict[str, int]:
        """How often the server has taken each message, by Message-ID."""
        counts: dict[str, int] = {}
        for message in self.server.messages:
            if message.committed:
                label = message.content.split(b"<", 1)[1].split(b">", 1)[0].decode()
                self.assertEqual(message.content.count(b"Message-ID:"), 1, "two messages in one")
                counts[label] = counts.get(label, 0) + 1
        return counts

    def check_outcomes(self, borrowers: Iterable[Process], expected: int, errors: int = 0) -> dict[str, str]:
        """Each message has one outcome, and the server has it as often as that allows."""
        outcomes: dict[str, str] = {}
        details = []
        for borrower in borrowers:
            for facts in borrower.heard:
                if "outcome" in facts:
                    self.assertNotIn(facts["label"], outcomes)
                    outcomes[facts["label"]] = facts["outcome"]
                    if facts["outcome"] != "sent":
                        details.append(facts)
        counts = self.committed()
        self.assertEqual(len(outcomes), expected)
        allowed = {"sent": (1,), "uncertain": (0, 1), "error": (0,), "refused": (0,)}
        for label, outcome in outcomes.items():
            self.assertIn(counts.get(label, 0), allowed[outcome], (label, outcome))
        wrong = [facts for facts in details if facts["outcome"] in ("error", "refused")]
        self.assertLessEqual(len(wrong), errors, wrong)
        self.assertEqual(self.server.violations, [])
        return outcomes


def _left(path: str) -> list[str]:
    return [name for name in (path, path + ".lock") if os.path.lexists(name)]
