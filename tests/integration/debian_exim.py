"""Debian's Exim, storing what it is sent."""

from __future__ import annotations

import os
import pwd
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from twisted.internet.posixbase import PosixReactorBase

from tests.integration.debian import Software
from tests.integration.servers import DOMAIN, LIFETIME, DebianServer, ServerError, StoringSMTPServer

#: The user that is compiled in: it has to exist. All of this Exim runs as this user.
OWNER = "Debian-exim"

_PROGRAM = "usr/sbin/exim4"

EXIM = Software("exim", packages=("exim4-daemon-light",), programs=(_PROGRAM,), users=(OWNER,))


class EximServer(DebianServer, StoringSMTPServer):
    """
    Exim, storing the mail in a maildir, one delivery process for each message. It is configured to change nothing
    of a message.
    """

    name = "exim"
    software = EXIM
    silent_on = frozenset({"noop", "rset"})  # nothing can be configured to happen for them

    def __init__(
        self,
        reactor: PosixReactorBase,
        log: Path,
        *,
        users: Mapping[str, str] | None = None,
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN"),
    ) -> None:
        """
        :param users: who may log in, over TLS, with which password; nobody need.
        :param mechanisms: how.
        """
        super().__init__(reactor, log)
        self._users = dict(users or {})
        self._mechanisms = mechanisms

    def messages(self) -> list[bytes]:
        return [_without_trace(path.read_bytes()) for path in self._mail()]

    def as_stored(self, message: bytes) -> bytes:
        # A blank line ends every head, one with no body behind it too.
        stored = super().as_stored(message)
        return stored if b"\n\n" in stored else stored + b"\n"

    def stored(self) -> int:
        return sum(1 for _ in self._mail())

    def connections(self) -> int:
        return len(re.findall(r"SMTP connection from \S+ \(TCP/IP connection count", self.log_text()))

    def closed(self) -> int:
        return len(self._ended())

    def handshakes(self) -> int:
        return len(re.findall(r"seen: handshake", self.log_text()))

    def command_counts(self) -> Counter[str]:
        ended = set(self._ended())
        log = self.log_text()
        # What is refused before its access control list is asked, for its place or its form, is told otherwise.
        seen = re.findall(r"\[(\d+)\] (?:seen: (?!handshake)|SMTP (?:protocol|syntax) error in \")(\w+)", log)
        return Counter(command.lower() for session, command in seen if session in ended)

    def _ended(self) -> list[str]:
        """The process of each session that has ended."""
        return re.findall(r"\[(\d+)\] SMTP connection from (?!.*\(TCP/IP connection count)", self.log_text())

    def _mail(self) -> Iterator[Path]:
        return (self.folder / "mail/new").glob("*")

    def _logs(self) -> tuple[Path, ...]:
        return self.folder / "logs/main", self.folder / "logs/panic", self._output

    async def _launch(self) -> None:
        owner = pwd.getpwnam(OWNER)
        self._find_port()
        for name in ("spool", "logs", "mail"):
            (self.folder / name).mkdir()
            os.chown(self.folder / name, owner.pw_uid, owner.pw_gid)
        os.chown(self._certificate, owner.pw_uid, owner.pw_gid)
        (self.folder / "users").write_text("".join(f"{user}: {password}\n" for user, password in self._users.items()))
        configuration = self.folder / "exim.conf"
        configuration.write_text(self._configuration())
        # timeout(1) leads a process group, and ends what a killed test run leaves behind. No part of it is ever root.
        self._spawn_group(
            "/usr/bin/timeout",
            str(LIFETIME),
            f"{self.installation.root}/{_PROGRAM}",
            "-C",
            str(configuration),
            "-bdf",
            user=OWNER,
        )

    def _is_ready(self) -> bool:
        # It listens by then; a connection to try it would be counted.
        return "daemon started" in self.log_text()

    def _configuration(self) -> str:
        authenticators = [_AUTHENTICATORS[name] for name in self._mechanisms] if self._users else []
        values = {
            "@ADDRESS@": self.address,
            "@AUTHENTICATORS@": "".join(authenticators),
            "@CERTIFICATE@": str(self._certificate),
            "@DOMAIN@": DOMAIN,
            "@FOLDER@": str(self.folder),
            "@OWNER@": OWNER,
            "@PORT@": str(self.port),
            "@PROGRAM@": f"{self.installation.root}/{_PROGRAM}",
        }
        # What is put in names what is to be put in: the authenticators name the folder.
        text = _CONFIGURATION
        for name in ("@AUTHENTICATORS@", *values):
            text = text.replace(name, values[name])
        return text


#: The Received field that Exim puts in front of a message.
_TRACE = re.compile(rb"Received: from [^\n]*\n(?:\t[^\n]*\n)*?\t\w\w\w, [^\n]* [+-]\d\d\d\d\n")


def _without_trace(message: bytes) -> bytes:
    found = _TRACE.match(message)
    if found is None:
        raise ServerError(f"stored without the header that Exim adds: {message[:1000]!r}")
    return message[found.end() :]


_CONFIGURATION = """\
# its places
exim_path = @PROGRAM@
exim_user = @OWNER@
exim_group = @OWNER@
keep_environment = LD_LIBRARY_PATH
spool_directory = @FOLDER@/spool
log_file_path = @FOLDER@/logs/%s
pid_file_path = @FOLDER@/spool/pid
notifier_socket =
check_spool_space = 0
check_spool_inodes = 0
deliver_drop_privilege

# whom it knows
disable_ipv6
local_interfaces = <; @ADDRESS@
daemon_smtp_ports = @PORT@
primary_hostname = mx.@DOMAIN@
host_lookup =
bounce_return_message = false

# as fast as it comes, from as many as come
smtp_accept_max = 0
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0

# as it came
message_size_limit = 0
header_maxsize = 10M
received_headers_max = 1000
return_path_remove = false
envelope_to_remove = false
delivery_date_remove = false

# TLS, and who may log in over it
tls_advertise_hosts = *
tls_certificate = @CERTIFICATE@
auth_advertise_hosts = ${if def:tls_in_cipher {*}}

# what is told of it
log_selector = +pid +smtp_connection +smtp_protocol_error +smtp_syntax_error
acl_smtp_helo = hello
acl_smtp_starttls = accept logwrite = seen: starttls
acl_smtp_auth = accept logwrite = seen: auth
acl_smtp_mail = accept logwrite = seen: mail
acl_smtp_rcpt = recipient
acl_smtp_predata = accept logwrite = seen: data
acl_smtp_quit = accept logwrite = seen: quit

begin acl

hello:
  # the first EHLO over TLS is what shows that the handshake was completed
  warn
    condition = ${if and {{def:tls_in_cipher}{!def:acl_c_tls}}}
    set acl_c_tls = yes
    logwrite = seen: handshake
  accept
    logwrite = seen: ehlo

recipient:
  accept
    logwrite = seen: rcpt
    domains = @DOMAIN@
  deny
    message = nobody here knows that domain

begin routers

everybody:
  driver = accept
  transport = store

begin transports

store:
  driver = appendfile
  directory = @FOLDER@/mail
  maildir_format
  user = @OWNER@

begin authenticators

@AUTHENTICATORS@
"""

_AUTHENTICATORS = {
    "PLAIN": """
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if eq {$auth3}{${lookup {$auth2} lsearch {@FOLDER@/users} {$value} fail}}}
  server_set_id = $auth2
""",
    "LOGIN": """
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if eq {$auth2}{${lookup {$auth1} lsearch {@FOLDER@/users} {$value} fail}}}
  server_set_id = $auth1
""",
}
