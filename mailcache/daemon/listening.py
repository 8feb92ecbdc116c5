"""Where a keeper listens: a path that is taken, or taken over from another keeper, or a socket that systemd passes.

Twisted's own port for UNIX sockets does not serve here. It unlinks its path when it stops, whoever's that is by then.
A socket that was passed it gives mode 666, and shuts down in the end for all who have it, systemd too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import attrs
from twisted.internet import unix
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols import amp

from mailcache.remote import codec

MAX_PATH = 102
"""Bytes of the path: what sockaddr_un holds with its final NUL on Linux (unix(7)), less those of ".new"."""

BACKLOG = 1_000
"""Borrowers that may wait to be accepted: all of a host, when they follow a keeper to the next."""

ANSWER_LIMIT = 2.0
"""Seconds that a keeper which is to be taken over from has to answer."""

LOCK_LIMIT = 5.0
"""Seconds that another keeper's start may take which has come first."""

_UNIX = re.compile(
    r"unix:(?:mode=[0-7]{3}:)?(?:address=)?(?P<path>(?:[^:\\=]|\\.)+)(?::(?:mode=[0-7]{3}|lockfile=[01]))*"
)
_MODE = re.compile(r":mode=([0-7]{3})")
_SYSTEMD = re.compile(r"systemd(?::domain=UNIX)?(?::index=(?P<index>\d+)|:name=(?P<name>[^:=\\]+))?")
_CREDENTIALS = struct.Struct("i2I")


class CannotListen(Exception):  # noqa: N818  (reads as the event it reports)
    """The listening path can't be taken. The text says why, and what would help."""


@attrs.frozen
class Place:
    """What an endpoint description says.

    :ivar path: of the socket; ``None`` for one that systemd passes.
    :ivar mode: of the socket at ``path``.
    :ivar name: which of those that systemd passes: by its number, or by its FileDescriptorName.
    """

    path: str | None = None
    mode: int = 0o600
    name: int | str = 0

    @classmethod
    def parse(cls, endpoint: str) -> Place:
        """The place in "unix:/run/mailcache/mailcache.sock:mode=600", "systemd" or "systemd:domain=UNIX:index=0".

        :raises CannotListen: for any other kind: descriptors are lent, and only UNIX sockets carry them.
        """
        found = _SYSTEMD.fullmatch(endpoint)
        if found is not None:
            return cls(name=found["name"] if found["name"] is not None else int(found["index"] or 0))
        found = _UNIX.fullmatch(endpoint)
        path = re.sub(r"\\(.)", r"\1", found["path"]) if found is not None else ""
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_PATH:
            raise CannotListen(
                f"{endpoint!r}: a keeper listens on systemd, for the socket that systemd passes, or on "
                f"unix:PATH:mode=600, with an absolute path of at most {MAX_PATH} bytes"
            )
        mode = _MODE.search(endpoint)
        return cls(path, int(mode[1], 8) if mode is not None else 0o600)

    def __str__(self) -> str:
        return self.path if self.path is not None else "the socket that systemd has passed"


def make_folder(path: str) -> None:
    """See that there is a folder for ``path``; a new one is this user's only.

    :raises CannotListen: if it can't be made.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise CannotListen(f"{folder}: can't be made: {error.strerror}") from error


def check_path(path: str, *, takeover: bool = False) -> int | None:
    """See whether ``path`` can be listened on.

    :param takeover: whether a keeper of this user may be there.
    :return: the process of that keeper, if there is one.
    :raises CannotListen: if somebody else listens there, or it is anything but a socket.
    """
    if not _is_socket(path):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return None
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise CannotListen(f"{path}: {error.strerror}") from error
    if not takeover:
        raise CannotListen(f"{path}: another keeper listens there; --takeover lets this one take its place")
    return _keeper_at(path)


def _is_socket(path: str) -> bool:
    """Whether there is one; if not, there is nothing."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CannotListen(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{path}: is there, and is no socket: move it away, or listen elsewhere")
    return True


def _keeper_at(path: str) -> int:
    """The process of the keeper that listens at ``path``: it is asked, since it will be sent a signal."""
    question = amp.Box({amp.ASK: b"1", amp.COMMAND: b"Hello", b"version": b"%d" % codec.VERSION}).serialize()
    answer = b""
    end = time.monotonic() + ANSWER_LIMIT
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(ANSWER_LIMIT)
        try:
            link.connect(path)
            peer = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _ = _CREDENTIALS.unpack(peer)
            if uid != os.geteuid():
                raise CannotListen(f"{path}: the keeper that listens there is user {uid}'s")
            if pid in (0, 1, os.getpid()):
                raise CannotListen(f"{path}: process {pid} listens there: nothing to take over from")
            link.sendall(question)
            while not answer.endswith(b"\0\0"):
                link.settimeout(max(0.001, end - time.monotonic()))
                data = link.recv(65_536)
                if not data or len(answer) > 65_536:
                    break
                answer += data
        except OSError as error:
            raise CannotListen(f"{path}: whoever listens there does not answer as a keeper: {error}") from error
    # A keeper of another version gives an error, and is one all the same.
    if not (answer.endswith(b"\0\0") and (b"\0\7_answer\0\x011" in answer or b"\0\6_error\0\x011" in answer)):
        raise CannotListen(f"{path}: whoever listens there does not answer as a keeper")
    return pid


class _Busy(Exception):  # noqa: N818
    """Another keeper is being started there."""


@contextmanager
def _locked(folder: str, limit: float) -> Iterator[None]:
    """No other keeper's start in ``folder`` meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        # A folder that may be used and not be read: as well as can be, then.
        yield
        return
    try:
        end = time.monotonic() + limit
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise _Busy from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _bound(path: str, mode: int) -> socket.socket:
    """A socket that listens at ``path``, in place of what is there, with no moment between.

    It comes there by a new name, when it listens and its mode is set: nobody else can connect before that.
    """
    new = path + ".new"
    if _is_socket(new):
        os.unlink(new)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        bound.setblocking(False)
        bound.bind(new)
        os.chmod(new, mode)
        bound.listen(BACKLOG)
        os.rename(new, path)
    except OSError as error:
        bound.close()
        with suppress(OSError):
            os.unlink(new)
        raise CannotListen(f"{path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    return bound


class _Port(unix.Port):
    """A port over a socket that listens already.

    Twisted gets a name for it that is in no folder, for its log: so it leaves the socket's path alone.
    """

    def __init__(self, bound: socket.socket, name: str, factory: Factory, reactor: Any) -> None:
        super().__init__(b"\0" + os.fsencode(name), factory, backlog=BACKLOG, reactor=reactor)
        self._preexistingSocket = bound
        self._shouldShutdown = False

    def accept_all(self) -> None:
        """Accept those that wait already."""
        self.numberAccepts = BACKLOG
        self.doRead()


class Listener:
    """The socket that borrowers connect to, from `open` to `close`.

    :param takeover: take the place of a keeper that listens there.
    """

    _log = Logger()

    def __init__(self, reactor: Any, place: Place, *, takeover: bool = False) -> None:
        self._reactor = reactor
        self._place = place
        self._takeover = takeover
        self._port: _Port | None = None
        self._file: tuple[int, int] | None = None

    def check(self) -> None:
        """See whether it can be opened.

        :raises CannotListen: if it can't.
        """
        if self._place.path is None:
            passed_descriptor(self._reactor, self._place.name)
        else:
            make_folder(self._place.path)
            check_path(self._place.path, takeover=self._takeover)

    def open(self, factory: Factory) -> None:
        """Listen for ``factory``. A keeper whose place this takes is told to retire when the reactor runs.

        :raises CannotListen: if that can't be.
        """
        former: int | None = None
        path = self._place.path
        if path is None:
            bound = adopted(passed_descriptor(self._reactor, self._place.name))
        else:
            folder = os.path.dirname(path)
            make_folder(path)
            try:
                with _locked(folder, LOCK_LIMIT):
                    former = check_path(path, takeover=self._takeover)
                    bound = _bound(path, self._place.mode)
                    self._file = _file_at(path)
            except _Busy:
                raise CannotListen(f"{folder}: it is locked, as by a keeper that is just being started") from None
        self._port = _Port(bound, str(self._place), factory, self._reactor)
        self._port.startListening()
        if former is not None:
            self._reactor.callWhenRunning(self._retire, former)

    def _retire(self, former: int) -> None:
        self._log.info("taking over from process {pid}", pid=former)
        with suppress(ProcessLookupError):
            os.kill(former, signal.SIGTERM)

    def close(self) -> Deferred[None]:
        """Listen no more. Nobody who has connected at this keeper's path is left without an answer; who connects to a
        socket that systemd holds waits there for the next keeper."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        if self._place.path is not None:
            self._remove(self._place.path)
            port.accept_all()
        stopped: Deferred[None] = maybeDeferred(port.stopListening)
        return stopped

    def _remove(self, path: str) -> None:
        """Remove the path, unless it is another keeper's by now, or is just being taken over."""
        with suppress(_Busy, OSError), _locked(os.path.dirname(path), 0.0):
            if _file_at(path) == self._file:
                os.unlink(path)


def _file_at(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def passed_descriptor(reactor: Any, name: int | str) -> int:
    """The descriptor that systemd has passed, of this number, counted from 0, or of this name.

    :raises CannotListen: if there is none.
    """
    which = f"name={name}" if isinstance(name, str) else f"index={name}"
    try:
        # Twisted has taken what systemd says out of the environment, when it was loaded.
        endpoint: Any = serverFromString(reactor, f"systemd:domain=UNIX:{which}")
    except LookupError:
        raise CannotListen(f"systemd has passed no socket ({which}): see systemd.socket(5)") from None
    descriptor: int = endpoint.fileno
    return descriptor


def adopted(descriptor: int) -> socket.socket:
    """The listening UNIX socket that was passed as ``descriptor``.

    :raises CannotListen: if it is none.
    """
    try:
        found = socket.socket(fileno=descriptor)
        listens = found.type == socket.SOCK_STREAM and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise CannotListen(f"what systemd has passed is no socket: {error.strerror}") from error
    if found.family != socket.AF_UNIX or not listens:
        found.close()
        raise CannotListen("the socket that systemd has passed is no listening UNIX stream socket (ListenStream=/PATH)")
    found.setblocking(False)
    found.set_inheritable(False)
    return found
