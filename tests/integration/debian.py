"""
Servers from Debian's packages, unpacked and not installed: an installed one would start, listen on the ports of
mail and replace the machine's own mail server.

Everything comes through ``apt-get``, once, into the folder ``$MAILCACHE_SERVERS``
(``/var/tmp/mailcache-servers``). Libraries that the machine lacks are fetched and unpacked beside the server:
apt-get itself is asked which those are.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path


class UnavailableError(Exception):
    """A server cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Software:
    """
    A server as Debian packages it.

    :ivar name: its folder among those of others.
    :ivar packages: what is unpacked, besides the libraries that the machine lacks.
    :ivar programs: paths of programs that are run, for their libraries to be looked for.
    :ivar libraries: paths of the folders that its own libraries are in.
    :ivar users: system users that it insists on, each with a group of the same name.
    :ivar groups: more groups that it insists on.
    :ivar prepare: called with the folder once it is unpacked.
    """

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Installation:
    """An unpacked server."""

    root: Path
    software: Software

    @property
    def library_path(self) -> str:
        """What ``LD_LIBRARY_PATH`` must be for its programs to run."""
        own = (self.root / path for path in self.software.libraries)
        fetched = (*self.root.glob("usr/lib/*-linux-*"), *self.root.glob("lib/*-linux-*"))
        return ":".join(map(str, (*own, *fetched)))

    def missing_libraries(self) -> set[str]:
        programs = [str(self.root / path) for path in self.software.programs]
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


def installation(software: Software) -> Installation:
    """
    Fetch and unpack a server unless that has been done, and make the users and groups it wants. Blocks: for a
    second where the packages are there, for as long as ``apt-get`` takes where they are not.
    """
    if os.geteuid() != 0:
        raise UnavailableError(f"{software.name} has to be started by root: run the integration tests as root")
    cache = cache_folder()
    with _lock(cache / "lock"):
        _add_users_and_groups(software)
        found = Installation(cache / software.name, software)
        if not found.root.exists() or found.missing_libraries():
            _unpack_packages(found)
        if missing := found.missing_libraries():
            raise UnavailableError(f"apt-get brought no package with {', '.join(sorted(missing))}")
    return found


def _unpack_packages(wanted: Installation) -> None:
    archives = wanted.root.with_name("archives")
    unpacked = wanted.root.with_name("unpacking")
    for folder in (archives, unpacked, wanted.root):
        shutil.rmtree(folder, ignore_errors=True)
    archives.mkdir()
    unpacked.mkdir(mode=0o755)
    packages = wanted.software.packages
    _update()
    plan = _run(["apt-get", "install", "--simulate", "--no-install-recommends", *packages])
    libraries = re.findall(r"^Inst (lib\S+)", plan, re.MULTILINE)
    _run(["apt-get", "download", "--quiet", *packages, *libraries], folder=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg", "-x", str(archive), str(unpacked)])
    for path in unpacked.rglob("*"):
        # Nobody should get root's rights from a program that lies about.
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            path.chmod(mode & 0o777)
    if wanted.software.prepare is not None:
        wanted.software.prepare(unpacked)
    unpacked.chmod(0o755)
    unpacked.rename(wanted.root)


@once
def _update() -> None:
    """Once in a run is enough."""
    _run(["apt-get", "update", "--quiet"])


def _add_users_and_groups(software: Software) -> None:
    for user in software.users:
        try:
            pwd.getpwnam(user)
        except KeyError:
            nowhere = ["--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
            _run(["useradd", "--system", "--user-group", *nowhere, user])
    for group in software.groups:
        try:
            grp.getgrnam(group)
        except KeyError:
            _run(["groupadd", "--system", group])


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
