"""
What the real servers of these tests have in common, and the simplest of them, aiosmtpd. Each runs as processes of
its own on a loopback address of its own, stores what it is sent, and tells from its own log what its clients did.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from mailcache.testing.certificates import Authority, Issued
from tests.integration.corpus import as_stored
from tests.integration.debian import Installation, Software, cache_folder, installation

#: Every address in this domain is taken, and all their mail goes to one mailbox.
DOMAIN = "store.test"

#: How often a log or a mailbox is looked at, in seconds.
_GLANCE = 0.02

#: A server left behind by a test run that was killed ends after so many seconds.
LIFETIME = 3600


class ServerError(Exception):
    """A server did not do what was waited for; the message has the end of its log."""


class StoringServer(ABC):
    """
    A server that keeps the messages. Its ``certificate``, which the file ``ca_file`` vouches for, is for its
    ``address`` and for ``localhost``.

    Counts come from the log, which is complete once ``wait_closed`` has fired.
    """

    name: ClassVar[str]
    certificate: Issued

    def __init__(self, reactor: PosixReactorBase, log: Path) -> None:
        """:param log: where the log is moved to when the server stops."""
        self.address = f"127.7.{1 + secrets.randbelow(254)}.{1 + secrets.randbelow(254)}"
        self.port = 0
        self._reactor = reactor
        self._kept_log = log
        self._folder: Path | None = None
        self._process: _Process | None = None

    # Life

    async def start(self) -> None:
        """Return when connections are accepted."""
        place = await self._prepare()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=place))
        self._folder.chmod(0o755)
        self._write_certificate()
        await self._launch()
        await self._until(self._is_ready, 30, lambda: "not ready")

    async def stop(self) -> None:
        """End what this server has started, and nothing else. Its log is kept, its messages are not."""
        if self._process is not None:
            self._ask_to_end(self._process)
            try:
                await self._until(lambda: not self.pids(), 10, lambda: "still running", needed=False)
            except ServerError:
                for pid in self.pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await self._until(lambda: not self.pids(), 10, lambda: "still running", needed=False)
            self._process = None
        if self._folder is not None:
            self._kept_log.parent.mkdir(parents=True, exist_ok=True)
            self._kept_log.write_text(self.log_text())
            shutil.rmtree(self._folder)
            self._folder = None

    def is_alive(self) -> bool:
        return self._process is not None and self._process.transport is not None

    # What came of it

    @abstractmethod
    def messages(self) -> list[bytes]:
        """The stored messages as they were sent, but with the line ends of UNIX, in no order."""

    def as_stored(self, message: bytes) -> bytes:
        """What ``messages`` should have of this one."""
        return as_stored(message)

    @abstractmethod
    def stored(self) -> int:
        """How many messages are stored."""

    @abstractmethod
    def connections(self) -> int:
        """How many connections were accepted."""

    @abstractmethod
    def closed(self) -> int:
        """How many of them have ended."""

    def log_text(self) -> str:
        if self._folder is None:
            return self._kept_log.read_text()
        return "".join(path.read_text(errors="replace") for path in self._logs() if path.exists())

    def wait_for(self, count: int, seconds: float) -> Deferred[None]:
        """Wait until so many messages are stored."""
        return self._until(
            lambda: self.stored() >= count, seconds, lambda: f"{self.stored()} of {count} messages stored"
        )

    async def wait_closed(self, seconds: float) -> None:
        """Wait until all that clients have done so far is in the log and every connection has ended."""
        await self._flush_log(seconds)
        await self._until(
            lambda: self.closed() == self.connections(),
            seconds,
            lambda: f"{self.closed()} of {self.connections()} connections closed",
        )

    # For the kinds of server

    async def _prepare(self) -> Path | None:
        """
        Get what the server needs.

        :returns: the folder to put its own folder in, if not any for temporary files.
        """
        return None

    @abstractmethod
    async def _launch(self) -> None:
        """Configure the server and start its process."""

    @abstractmethod
    def _is_ready(self) -> bool: ...

    @abstractmethod
    def _ask_to_end(self, process: _Process) -> None: ...

    @abstractmethod
    def _logs(self) -> tuple[Path, ...]:
        """The files of ``log_text``."""

    async def _flush_log(self, seconds: float) -> None:
        """Wait until everything known to the server so far is in the log."""
        return

    def pids(self) -> set[int]:
        """The processes of this server."""
        transport = self._process and self._process.transport
        return {transport.pid} if transport else set()

    @property
    def folder(self) -> Path:
        if self._folder is None:
            raise ServerError(f"{self.name} is not running")
        return self._folder

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def _certificate(self) -> Path:
        """Key and chain."""
        return self.folder / "certificate.pem"

    @property
    def _output(self) -> Path:
        """What the process prints."""
        return self.folder / "output"

    def _write_certificate(self) -> None:
        authority = Authority(f"{self.name} test authority")
        self.certificate = authority.issue(names=("localhost",), addresses=(self.address,))
        self.ca_file.write_bytes(authority.certificate_pem)
        self._certificate.touch(mode=0o600)
        self._certificate.write_bytes(self.certificate.private_pem)

    def _spawn(
        self, *command: str, environment: Mapping[str, str], keep_input: bool = False, user: str | None = None
    ) -> None:
        """
        :param keep_input: give it a standard input that stays open.
        :param user: who the process runs as.
        """
        owner = pwd.getpwnam(user) if user is not None else None
        process = _Process()
        with open(os.devnull) as nothing, self._output.open("a") as output:
            self._reactor.spawnProcess(
                process,
                command[0],
                command,
                env=dict(environment),
                uid=owner and owner.pw_uid,
                gid=owner and owner.pw_gid,
                childFDs={0: "w" if keep_input else nothing.fileno(), 1: output.fileno(), 2: output.fileno()},
            )
        self._process = process

    def _until(
        self, condition: Callable[[], bool], seconds: float, state: Callable[[], str], *, needed: bool = True
    ) -> Deferred[None]:
        """
        Look again and again until the condition holds.

        :param state: how things stand, for the error when time is over.
        :param needed: whether the server has to be alive meanwhile.
        """
        end = self._reactor.seconds() + seconds

        def look() -> None:
            if condition():
                loop.stop()
            elif needed and not self.is_alive():
                raise ServerError(f"{self.name} has ended\n{self._end_of_log()}")
            elif self._reactor.seconds() > end:
                raise ServerError(f"{self.name}: {state()} after {seconds} s\n{self._end_of_log()}")

        loop = LoopingCall(look)
        loop.clock = self._reactor
        return loop.start(_GLANCE).addCallback(lambda _: None)

    def _end_of_log(self) -> str:
        return "\n".join(self.log_text().splitlines()[-30:])


class _Process(ProcessProtocol):
    """A process that may be asked whether it still runs: it has a transport as long."""

    transport: IProcessTransport | None

    def processEnded(self, reason: Failure) -> None:
        self.transport = None


class StoringSMTPServer(StoringServer):
    """One with STARTTLS, at ``address`` and ``port``, which tells more of what its clients did."""

    #: The commands that it takes and does not tell of.
    silent_on: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def handshakes(self) -> int:
        """How many TLS handshakes were completed."""

    @abstractmethod
    def command_counts(self) -> Counter[str]:
        """How often each command came, refused ones too, over all sessions that have ended."""


class DebianServer(StoringServer):
    """One from Debian's packages, whose processes are a group of their own."""

    software: ClassVar[Software]
    installation: Installation
    _group = 0  # the process group, once there is one

    async def _prepare(self) -> Path:
        pool = self._reactor.getThreadPool()
        self.installation = await deferToThreadPool(self._reactor, pool, installation, self.software)
        return cache_folder()

    def _spawn_group(self, *command: str, user: str | None = None, **environment: str) -> None:
        """
        :param command: begins with a program that makes a process group and leads it.
        """
        path = {"LD_LIBRARY_PATH": self.installation.library_path, "LC_ALL": "C"}
        self._spawn(*command, environment={**path, **environment}, user=user)
        (self._group,) = super().pids()

    def _ask_to_end(self, process: _Process) -> None:
        if process.transport is not None:
            process.transport.signalProcess("TERM")  # the leader passes it on to its process group

    def pids(self) -> set[int]:
        return super().pids() | (_process_group(self._group) if self._group else set())

    def _find_port(self) -> None:
        """A port of the address that nobody else has: the address is this server's own."""
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            self.port = probe.getsockname()[1]


class AiosmtpdServer(StoringSMTPServer):
    """aiosmtpd: no pipelining, one reply at a time, and OpenSSL through asyncio."""

    name = "aiosmtpd"

    def messages(self) -> list[bytes]:
        return [_unix_lines(path.read_bytes()) for path in self._mail()]

    def stored(self) -> int:
        return sum(1 for _ in self._mail())

    def connections(self) -> int:
        return len(self._events("connect"))

    def closed(self) -> int:
        return len(self._events("disconnect"))

    def handshakes(self) -> int:
        return len(self._events("handshake"))

    def command_counts(self) -> Counter[str]:
        ended = {event["session"] for event in self._events("disconnect")}
        return Counter(event["name"] for event in self._events("command") if event["session"] in ended)

    def _events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "events"
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [event for line in lines if line.endswith("\n") and (event := json.loads(line))["event"] == kind]

    def _mail(self) -> Iterator[Path]:
        return (self.folder / "messages").glob("*.eml")

    def _logs(self) -> tuple[Path, ...]:
        return self.folder / "events", self._output

    async def _launch(self) -> None:
        script = Path(__file__).with_name("aiosmtpd_process.py")
        arguments = (str(self.folder), self.address, str(self._certificate))
        self._spawn(sys.executable, str(script), *arguments, environment=os.environ, keep_input=True)

    def _is_ready(self) -> bool:
        for event in self._events("ready"):
            self.port = event["port"]
        return bool(self.port)

    def _ask_to_end(self, process: _Process) -> None:
        if process.transport is not None:
            process.transport.closeStdin()


def _unix_lines(message: bytes) -> bytes:
    if message.count(b"\n") != message.count(b"\r\n"):
        raise ServerError(f"stored with a bare line feed: {message[:1000]!r}")
    return message.replace(b"\r\n", b"\n")


def _process_group(group: int) -> set[int]:
    """
    The live processes of a group. ``killpg`` knows them too, but also counts the dead that nobody has reaped,
    as in a container without an init.
    """
    members = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            members.add(int(entry.name))
    return members
