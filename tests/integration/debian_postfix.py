"""Debian's Postfix, storing what it is sent."""

from __future__ import annotations

import grp
import os
import pwd
import re
import secrets
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from twisted.internet.posixbase import PosixReactorBase

from tests.integration.debian import Software
from tests.integration.servers import DOMAIN, LIFETIME, DebianServer, ServerError, StoringSMTPServer

MAIL_OWNER = "postfix"
SETGID_GROUP = "postdrop"

_LIBRARIES = "usr/lib/postfix"
_PROGRAMS = "usr/lib/postfix/sbin"

POSTFIX = Software(
    "postfix",
    packages=("postfix",),
    programs=tuple(f"{_PROGRAMS}/{name}" for name in ("master", "smtpd", "cleanup", "virtual", "tlsmgr")),
    libraries=(_LIBRARIES,),
    users=(MAIL_OWNER,),
    groups=(SETGID_GROUP,),
)


class PostfixServer(DebianServer, StoringSMTPServer):
    """
    Postfix, storing the mail in a maildir. It is configured to change nothing of a message: to add headers,
    rewrite addresses and take Bcc away is for the mail of a server's own users.
    """

    name = "postfix"
    software = POSTFIX

    def __init__(self, reactor: PosixReactorBase, log: Path, *, parameters: Mapping[str, str] | None = None) -> None:
        """:param parameters: additions to main.cf."""
        super().__init__(reactor, log)
        self._parameters = dict(parameters or {})

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

    async def _launch(self) -> None:
        self._find_port()
        self._make_folders()
        main = {**self._main_cf(), **self._parameters}
        (self.folder / "conf/main.cf").write_text("".join(f"{key} = {value}\n" for key, value in main.items()))
        (self.folder / "conf/master.cf").write_text(_MASTER_CF.format(address=self.address, port=self.port))
        # Postfix waits until a configuration file is two seconds old before it believes that it is complete.
        for file in (self.folder / "conf").iterdir():
            os.utime(file, (0, 0))
        # The master signals its process group to end it: that must not be ours.
        options = ("-d", "-e", str(LIFETIME), "-c", str(self.folder / "conf"))
        self._spawn_group(
            "/usr/bin/setsid",
            f"{self.installation.root}/{_PROGRAMS}/master",
            *options,
            # else what goes wrong before the log's own process runs is told to syslog alone
            POSTLOG_SERVICE=f"{self.folder}/queue/public/postlog",
            POSTLOG_HOSTNAME="mx",
        )

    def _is_ready(self) -> bool:
        # The master logs this after it has opened its sockets; a connection to try them would be counted.
        return "daemon started" in self.log_text()

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

    def _main_cf(self) -> dict[str, str]:
        nobody = pwd.getpwnam("nobody")
        root = self.installation.root
        return {
            "compatibility_level": "3.6",
            # its places
            "config_directory": f"{self.folder}/conf",
            "queue_directory": f"{self.folder}/queue",
            "data_directory": f"{self.folder}/data",
            "command_directory": f"{root}/usr/sbin",
            "daemon_directory": f"{root}/{_PROGRAMS}",
            "shlib_directory": f"{root}/{_LIBRARIES}",
            "meta_directory": f"{root}/etc/postfix",
            "mail_owner": MAIL_OWNER,
            "setgid_group": SETGID_GROUP,
            "import_environment": f"MAIL_CONFIG MAIL_LOGTAG LD_LIBRARY_PATH={self.installation.library_path} LC_ALL=C",
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
