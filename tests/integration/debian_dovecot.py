"""Debian 12's Dovecot, storing what it is sent over LMTP, and checking passwords for Postfix."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.internet.posixbase import PosixReactorBase

from tests.integration.debian import Software, UnavailableError
from tests.integration.servers import DOMAIN, LIFETIME, DebianServer, ServerError

_LIBRARIES = "usr/lib/dovecot"
_MODULES = "usr/lib/dovecot/modules"

#: Where the library that all have in common looks for the part that does TLS, which LMTP always loads: the one
#: path that no setting changes.
_COMPILED_IN = b"\0/usr/lib/dovecot/modules\0"

#: As long: "modules" in the folder that Dovecot's processes are in, which is that of their sockets.
_INSTEAD = b"\0/proc/self/cwd/./modules\0"


def _look_for_modules_elsewhere(root: Path) -> None:
    library = (root / _LIBRARIES / "libdovecot.so.0").resolve()
    content = library.read_bytes()
    if content.count(_COMPILED_IN) != 1:
        raise UnavailableError("this Dovecot is not Debian 12's: it looks for its modules in another way")
    library.write_bytes(content.replace(_COMPILED_IN, _INSTEAD))


DOVECOT = Software(
    "dovecot",
    packages=("dovecot-core", "dovecot-lmtpd"),
    programs=(
        "usr/bin/doveconf",
        "usr/sbin/dovecot",
        *(f"{_LIBRARIES}/{name}" for name in ("auth", "lmtp", "log")),
        *(f"{_MODULES}/{name}.so" for name in ("lib10_quota_plugin", "libssl_iostream_openssl")),
    ),
    libraries=(_LIBRARIES, f"{_MODULES}/old-stats"),
    prepare=_look_for_modules_elsewhere,
)


class DovecotServer(DebianServer):
    """
    Dovecot at two UNIX sockets: LMTP at ``lmtp_path``, which stores the mail in a maildir for each user, and at
    ``auth_path`` the service that Postfix's smtpd asks about passwords. Only its users are known.
    """

    name = "dovecot"
    software = DOVECOT

    def __init__(
        self,
        reactor: PosixReactorBase,
        log: Path,
        *,
        users: Mapping[str, str],
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN"),
        full: Sequence[str] = (),
        shut: Sequence[str] = (),
    ) -> None:
        """
        :param users: their passwords.
        :param mechanisms: how they may log in.
        :param full: the users whose quota no message fits, as is found when it has come.
        :param shut: the users whose mailbox they can't write to themselves.
        """
        super().__init__(reactor, log)
        self._users = dict(users)
        self._mechanisms = mechanisms
        self._full = full
        self._shut = shut

    @property
    def lmtp_path(self) -> Path:
        return self.folder / "lmtp"

    @property
    def auth_path(self) -> Path:
        return self.folder / "auth"

    def messages(self) -> list[bytes]:
        return [message for user in self._users for message in self.mailbox(user)]

    def mailbox(self, user: str) -> list[bytes]:
        """The messages of one user."""
        return [_without_trace(path.read_bytes()) for path in (self.folder / "mail" / user / "new").glob("*")]

    def stored(self) -> int:
        return sum(1 for _ in (self.folder / "mail").glob("*/new/*"))

    def connections(self) -> int:
        return len(re.findall(r"lmtp\(\d+\): Info: Connect from ", self.log_text()))

    def closed(self) -> int:
        return len(re.findall(r"lmtp\(\d+\): Info: Disconnect from ", self.log_text()))

    def _logs(self) -> tuple[Path, ...]:
        return self.folder / "log", self._output

    async def _launch(self) -> None:
        root = self.installation.root
        nobody = pwd.getpwnam("nobody")
        (self.folder / "mail").mkdir()
        os.chown(self.folder / "mail", nobody.pw_uid, nobody.pw_gid)
        for user in self._shut:
            (self.folder / "mail" / user).mkdir(mode=0o700)
        (self.folder / "sockets").mkdir()
        (self.folder / "sockets/modules").symlink_to(root / _MODULES)
        (self.folder / "users").write_text("".join(map(self._entry, self._users)))
        configuration = self.folder / "dovecot.conf"
        configuration.write_text(self._configuration())
        # Left alone, the master runs the doveconf that would be installed, to be run by it in turn. timeout(1) leads
        # a process group, and ends what a killed test run leaves behind.
        self._spawn_group(
            "/usr/bin/timeout",
            str(LIFETIME),
            f"{root}/usr/bin/doveconf",
            *("-c", str(configuration), "-f", "service=master", "-m", "master"),
            *("-e", f"{root}/usr/sbin/dovecot", "-F", "-c", str(configuration)),
        )

    def _is_ready(self) -> bool:
        # The master logs this when it has opened its sockets.
        return "starting up for lmtp" in self.log_text()

    async def _flush_log(self, seconds: float) -> None:
        # All of a session goes the same way into the log: when this is there, so is its beginning.
        await self._until(
            lambda: self.log_text().count(": saved mail to INBOX") >= self.stored(), seconds, lambda: "log not written"
        )

    def _entry(self, user: str) -> str:
        quota = "userdb_quota_rule=*:bytes=1" if user in self._full else ""
        return f"{user}:{{PLAIN}}{self._users[user]}::::::{quota}\n"

    def _configuration(self) -> str:
        root = self.installation.root
        values = {
            "@DOMAIN@": DOMAIN,
            "@FOLDER@": str(self.folder),
            "@LIBRARIES@": f"{root}/{_LIBRARIES}",
            "@LIBRARY_PATH@": self.installation.library_path,
            "@MECHANISMS@": " ".join(self._mechanisms).lower(),
            "@MODULES@": f"{root}/{_MODULES}",
        }
        text = _CONFIGURATION
        for name, value in values.items():
            text = text.replace(name, value)
        return text


#: What Dovecot puts in front of a message that has come over LMTP; whom it was for, if that was one recipient.
_TRACE = re.compile(
    rb"Return-Path: <[^\n]*>\n"
    rb"(?:Delivered-To: [^\n]*\n)?"
    rb"Received: from [^\n]*\n"
    rb"(?:\t[^\n]*\n)*?"
    rb"\t[^\n]*; \w\w\w, [^\n]* [+-]\d\d\d\d\n"
)


def _without_trace(message: bytes) -> bytes:
    found = _TRACE.match(message)
    if found is None:
        raise ServerError(f"stored without the headers that Dovecot adds: {message[:1000]!r}")
    return message[found.end() :]


_CONFIGURATION = """\
# its places
base_dir = @FOLDER@/sockets
state_dir = @FOLDER@
libexec_dir = @LIBRARIES@
mail_plugin_dir = @MODULES@
import_environment = LD_LIBRARY_PATH=@LIBRARY_PATH@ LC_ALL=C
log_path = @FOLDER@/log
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = daemon

# what it does
protocols = lmtp
ssl = no
service lmtp {
  unix_listener @FOLDER@/lmtp {
    mode = 0600
  }
}
service auth {
  unix_listener @FOLDER@/auth {
    mode = 0666
  }
}

# whom it knows
hostname = mx.@DOMAIN@
auth_mechanisms = @MECHANISMS@
auth_failure_delay = 0
auth_username_format = %Ln
passdb {
  driver = passwd-file
  args = @FOLDER@/users
}
userdb {
  driver = passwd-file
  args = @FOLDER@/users
  default_fields = uid=nobody gid=nogroup home=@FOLDER@/mail/%n
}

# where mail goes
mail_location = maildir:@FOLDER@/mail/%n
mail_plugins = quota
plugin {
  quota = count:User quota
  quota_rule = *:storage=0
  quota_vsizes = yes
}
"""
