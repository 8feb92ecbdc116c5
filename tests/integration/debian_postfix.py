"""
Debian's Postfix, unpacked and not installed: an installed one would start, listen on port 25 and replace the
machine's own mail server.

Everything comes through ``apt-get``, once, into the folder ``$MAILCACHE_SERVERS``
(``/var/tmp/mailcache-servers``). Libraries that the machine lacks are fetched and unpacked beside Postfix:
apt-get itself is asked which those are.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAIL_OWNER = "postfix"
SETGID_GROUP = "postdrop"


class UnavailableError(Exception):
    """A server cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Installation:
    """An unpacked Postfix."""

    root: Path

    @property
    def programs(self) -> Path:
        return self.root / "usr/lib/postfix/sbin"

    @property
    def own_libraries(self) -> Path:
        return self.root / "usr/lib/postfix"

    @property
    def library_path(self) -> str:
        """What ``LD_LIBRARY_PATH`` must be for its programs to run."""
        fetched = (*self.root.glob("usr/lib/*-linux-*"), *self.root.glob("lib/*-linux-*"))
        return ":".join(map(str, (self.own_libraries, *fetched)))

    def missing_libraries(self) -> set[str]:
        programs = [str(self.programs / name) for name in ("master", "smtpd", "cleanup", "virtual", "tlsmgr")]
        listing = _run(["ldd", *programs], LD_LIBRARY_PATH=self.library_path)
        return set(re.findall(r"(\S+) => not found", listing))


def cache_folder() -> Path:
    """
    Where fetched packages and running servers live. The servers give up root, so everybody must be able to
    reach it.
    """
    folder = Path(os.environ.get("MAILCACHE_SERVERS") or "/var/tmp/mailcache-servers").absolute()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    for part in (folder, *folder.parents):
        if not part.stat().st_mode & 0o001:
            raise UnavailableError(f"{part} is closed to other users: set MAILCACHE_SERVERS to a folder open to all")
    return folder


def installation() -> Installation:
    """
    Fetch and unpack Postfix unless that has been done, and make the user and group it wants. Blocks: for a
    second where the packages are there, for as long as ``apt-get`` takes where they are not.
    """
    if os.geteuid() != 0:
        raise UnavailableError("Postfix has to be started by root: run the integration tests as root")
    cache = cache_folder()
    with _lock(cache / "lock"):
        _add_user_and_group()
        found = Installation(cache / "postfix")
        if not found.root.exists() or found.missing_libraries():
            _unpack_packages(found.root)
        if missing := found.missing_libraries():
            raise UnavailableError(f"apt-get brought no package with {', '.join(sorted(missing))}")
    return found


def _unpack_packages(root: Path) -> None:
    archives = root.with_name("archives")
    unpacked = root.with_name("unpacking")
    for folder in (archives, unpacked, root):
        shutil.rmtree(folder, ignore_errors=True)
    archives.mkdir()
    unpacked.mkdir(mode=0o755)
    _run(["apt-get", "update", "--quiet"])
    plan = _run(["apt-get", "install", "--simulate", "--no-install-recommends", "postfix"])
    libraries = re.findall(r"^Inst (lib\S+)", plan, re.MULTILINE)
    _run(["apt-get", "download", "--quiet", "postfix", *libraries], folder=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg", "-x", str(archive), str(unpacked)])
    unpacked.chmod(0o755)
    unpacked.rename(root)


def _add_user_and_group() -> None:
    try:
        pwd.getpwnam(MAIL_OWNER)
    except KeyError:
        nowhere = ["--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
        _run(["useradd", "--system", "--user-group", *nowhere, MAIL_OWNER])
    try:
        grp.getgrnam(SETGID_GROUP)
    except KeyError:
        _run(["groupadd", "--system", SETGID_GROUP])


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], *, folder: Path | None = None, **environment: str) -> str:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **environment}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is not there: the real servers come from Debian's packages") from error
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"{' '.join(command)}: {error.stderr or error.stdout}") from error
    return done.stdout
