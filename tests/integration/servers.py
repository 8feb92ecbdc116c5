"""
Real SMTP servers for the tests: Postfix, and aiosmtpd as a second opinion. Each runs as processes of its own
on a loopback address of its own, stores what it is sent, and tells from its own log what its clients did.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
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

from mailcache.testing.certificates import Authority
from tests.integration.debian_postfix import (
    MAIL_OWNER,
    SETGID_GROUP,
    Installation,
    cache_folder,
    installation,
)

#: Every address in this domain is taken, and all their mail goes to one mailbox.
DOMAIN = "store.test"

#: How often a log or a mailbox is looked at, in seconds.
_GLANCE = 0.02

#: A Postfix left behind by a test run that was killed ends after so many seconds.
_LIFETIME = 3600


class ServerError(Exception):
    """A server did not do what was waited for; the message has the end of its log."""


class StoringServer(ABC):
    """
    A server with STARTTLS. After ``start``, ``address``, ``port`` and the file ``ca_file`` are all that a
    client needs; its certificate is for the address and for ``localhost``.

    Counts come from the log, which is complete once ``wait_closed`` has fired.
    """

    name: ClassVar[str]

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

    @abstractmethod
    def stored(self) -> int:
        """How many messages are stored."""

    @abstractmethod
    def connections(self) -> int:
        """How many connections were accepted."""

    @abstractmethod
    def closed(self) -> int:
        """How many of them have ended."""

    @abstractmethod
    def handshakes(self) -> int:
        """How many TLS handshakes were completed."""

    @abstractmethod
    def command_counts(self) -> Counter[str]:
        """How often each command came, refused ones too, over all sessions that have ended."""

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
        issued = authority.issue(names=("localhost",), addresses=(self.address,))
        self.ca_file.write_bytes(authority.certificate_pem)
        self._certificate.touch(mode=0o600)
        self._certificate.write_bytes(issued.key_pem + issued.certificate_pem)

    def _spawn(self, *command: str, environment: Mapping[str, str], keep_input: bool = False) -> None:
        process = _Process()
        with open(os.devnull) as nothing, self._output.open("a") as output:
            self._reactor.spawnProcess(
                process,
                command[0],
                command,
                env=dict(environment),
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


class PostfixServer(StoringServer):
    """
    Postfix, storing the mail in a maildir. It is configured to change nothing of a message: to add headers,
    rewrite addresses and take Bcc away is for the mail of a server's own users.
    """

    name = "postfix"

    def __init__(self, reactor: PosixReactorBase, log: Path, *, parameters: Mapping[str, str] | None = None) -> None:
        """:param parameters: additions to main.cf."""
        super().__init__(reactor, log)
        self._parameters = dict(parameters or {})
        self._group = 0  # the process group that the master leads, once there is one

    def messages(self) -> list[bytes]:
        return [_without_trace(path.read_bytes()) for path in self._mail()]

    def stored(self) -> int:
        return sum(1 for _ in self._mail())

    def connections(self) -> int:
        return len(re.findall(r"smtpd\[\d+\]: connect from ", self.log_text()))

    def closed(self) -> int:
        return len(self._disconnections())

    def handshakes(self) -> int:
        return len(re.findall(r"smtpd\[\d+\]: \w+ TLS connection established from ", self.log_text()))

    def command_counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for line in self._disconnections():
            # ehlo=2 mail=1/3 commands=3/5: where some were refused, the accepted ones come first
            for command, accepted, total in re.findall(r"(\w+)=(\d+)(?:/(\d+))?", line):
                counts[command] += int(total or accepted)
        del counts["commands"]
        return counts

    def _disconnections(self) -> list[str]:
        return re.findall(r"smtpd\[\d+\]: disconnect from \S+\](.*)", self.log_text())

    def _mail(self) -> Iterator[Path]:
        return (self.folder / "mail/all/new").glob("*")

    def _logs(self) -> tuple[Path, ...]:
        return self.folder / "maillog", self._output

    async def _prepare(self) -> Path:
        self._postfix = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), installation)
        return cache_folder()

    async def _launch(self) -> None:
        postfix = self._postfix
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            self.port = probe.getsockname()[1]
        self._make_folders()
        main = {**self._main_cf(postfix), **self._parameters}
        (self.folder / "conf/main.cf").write_text("".join(f"{key} = {value}\n" for key, value in main.items()))
        (self.folder / "conf/master.cf").write_text(_MASTER_CF.format(address=self.address, port=self.port))
        # Postfix waits until a configuration file is two seconds old before it believes that it is complete.
        for file in (self.folder / "conf").iterdir():
            os.utime(file, (0, 0))
        # The master signals its process group to end it: that must not be ours.
        options = ("-d", "-e", str(_LIFETIME), "-c", str(self.folder / "conf"))
        environment = {
            "LD_LIBRARY_PATH": postfix.library_path,
            "LC_ALL": "C",
            # else what goes wrong before the log's own process runs is told to syslog alone
            "POSTLOG_SERVICE": f"{self.folder}/queue/public/postlog",
            "POSTLOG_HOSTNAME": "mx",
        }
        self._spawn("/usr/bin/setsid", str(postfix.programs / "master"), *options, environment=environment)
        (self._group,) = super().pids()

    def _is_ready(self) -> bool:
        # The master logs this after it has opened its sockets; a connection to try them would be counted.
        return "daemon started" in self.log_text()

    def _ask_to_end(self, process: _Process) -> None:
        if process.transport is not None:
            process.transport.signalProcess("TERM")  # the master passes it on to its process group

    def pids(self) -> set[int]:
        return super().pids() | (_process_group(self._group) if self._group else set())

    async def _flush_log(self, seconds: float) -> None:
        # All log lines pass through this socket in their order: when ours has arrived, all before it have.
        mark = f"mark {secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.sendto(mark.encode(), str(self.folder / "queue/public/postlog"))
        await self._until(lambda: mark in self.log_text(), seconds, lambda: "log not written")

    def _make_folders(self) -> None:
        owner, group = pwd.getpwnam(MAIL_OWNER).pw_uid, grp.getgrnam(SETGID_GROUP).gr_gid
        (self.folder / "conf").mkdir()
        queue = self.folder / "queue"
        for name in (*_QUEUES.split(), "private"):
            _mkdir(queue / name, 0o700, owner)
        _mkdir(queue / "maildrop", 0o730, owner, group)
        _mkdir(queue / "public", 0o710, owner, group)
        _mkdir(queue / "pid", 0o755)
        _mkdir(self.folder / "data", 0o700, owner)
        _mkdir(self.folder / "mail", 0o700, pwd.getpwnam("nobody").pw_uid)

    def _main_cf(self, postfix: Installation) -> dict[str, str]:
        nobody = pwd.getpwnam("nobody")
        return {
            "compatibility_level": "3.6",
            # its places
            "config_directory": f"{self.folder}/conf",
            "queue_directory": f"{self.folder}/queue",
            "data_directory": f"{self.folder}/data",
            "command_directory": f"{postfix.root}/usr/sbin",
            "daemon_directory": f"{postfix.programs}",
            "shlib_directory": f"{postfix.own_libraries}",
            "meta_directory": f"{postfix.root}/etc/postfix",
            "mail_owner": MAIL_OWNER,
            "setgid_group": SETGID_GROUP,
            "import_environment": f"MAIL_CONFIG MAIL_LOGTAG LD_LIBRARY_PATH={postfix.library_path} LC_ALL=C",
            "maillog_file_prefixes": f"{self.folder}",
            "maillog_file": f"{self.folder}/maillog",
            # whom it knows
            "inet_protocols": "ipv4",
            "inet_interfaces": "127.0.0.1",
            "myhostname": f"mx.{DOMAIN}",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "smtpd_peername_lookup": "no",
            "smtpd_relay_restrictions": "reject_unauth_destination",
            "alias_maps": "",
            "alias_database": "",
            # where mail goes: into the maildir, and nothing leaves the machine
            "virtual_mailbox_domains": DOMAIN,
            "virtual_mailbox_base": f"{self.folder}/mail",
            "virtual_mailbox_maps": "static:all/",
            "virtual_uid_maps": f"static:{nobody.pw_uid}",
            "virtual_gid_maps": f"static:{nobody.pw_gid}",
            "virtual_mailbox_limit": "0",
            "local_transport": "error:5.1.1 nobody lives here",
            "default_transport": "discard:",
            "relay_transport": "discard:",
            "soft_bounce": "yes",
            # as it came
            "local_header_rewrite_clients": "",
            "remote_header_rewrite_domain": "",
            "always_add_missing_headers": "no",
            "message_drop_headers": "",
            "disable_mime_input_processing": "yes",
            "disable_mime_output_conversion": "yes",
            "receive_override_options": "no_address_mappings,no_header_body_checks",
            "message_size_limit": "0",
            "header_size_limit": "10240000",
            "hopcount_limit": "1000",
            # as fast as it comes, from as many as come
            "in_flow_delay": "0",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_error_sleep_time": "0",
            # TLS
            "smtpd_tls_security_level": "may",
            "smtpd_tls_chain_files": f"{self._certificate}",
            "smtpd_tls_loglevel": "1",
            "smtpd_tls_received_header": "yes",
            "tls_random_source": "dev:/dev/urandom",
        }


class AiosmtpdServer(StoringServer):
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


#: What Postfix's virtual(8), smtpd(8) and the queue put in front of a message, and no more than that.
_TRACE = re.compile(
    rb"Return-Path: <[^\n]*>\n"
    rb"X-Original-To: [^\n]*\n"
    rb"Delivered-To: [^\n]*\n"
    rb"Received: from [^\n]*\n"
    rb"(?:\t[^\n]*\n)*?"
    rb"\t[^\n]*; \w\w\w, [^\n]* [+-]\d\d\d\d \(\w+\)\n"
)


def _without_trace(message: bytes) -> bytes:
    found = _TRACE.match(message)
    if found is None:
        raise ServerError(f"stored without the headers that Postfix adds: {message[:1000]!r}")
    return message[found.end() :]


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


def _mkdir(path: Path, mode: int, owner: int = -1, group: int = -1) -> None:
    path.mkdir(parents=True)
    path.chmod(mode)
    os.chown(path, owner, group)


_QUEUES = "active bounce corrupt defer deferred flush hold incoming saved trace"

_MASTER_CF = """\
{address}:{port} inet n - n - 200 smtpd
cleanup    unix n - n - 0 cleanup
qmgr       unix n - n 300 1 qmgr
tlsmgr     unix - - n 1000? 1 tlsmgr
rewrite    unix - - n - - trivial-rewrite
bounce     unix - - n - 0 bounce
defer      unix - - n - 0 bounce
trace      unix - - n - 0 bounce
verify     unix - - n - 1 verify
flush      unix n - n 1000? 0 flush
proxymap   unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
showq      unix n - n - - showq
error      unix - - n - - error
retry      unix - - n - - error
discard    unix - - n - - discard
virtual    unix - n n - - virtual
anvil      unix - - n - 1 anvil
postlog    unix-dgram n - n - 1 postlogd
"""
