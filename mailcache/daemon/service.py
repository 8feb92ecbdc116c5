"""The keeper as a service: it takes the listening path, lends, and ends in order."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from mailcache.daemon.config import Configuration
from mailcache.memory import MemorySessionCache
from mailcache.remote.keeper import Keeper

MAX_PATH = 102
"""Bytes of the path: what sockaddr_un holds with its final NUL on Linux (unix(7)), less those of ".lock"."""

_UNIX = re.compile(
    r"unix:(?:mode=[0-7]{3}:)?(?:address=)?(?P<path>(?:[^:\\=]|\\.)+)(?::(?:mode=[0-7]{3}|lockfile=[01]))*"
)


class CannotListen(Exception):  # noqa: N818  (reads as the event it reports)
    """The listening path can't be taken. The text says why, and what would help."""


def take_path(path: str) -> None:
    """Make ``path`` free to be listened on: its folder is made, a stale socket is removed.

    :raises CannotListen: if somebody listens there, or it is anything but a socket.
    """
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise CannotListen(f"{folder}: can't be made: {error.strerror}") from error
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotListen(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{path}: is there, and is no socket: move it away, or listen elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise CannotListen(f"{path}: {error.strerror}") from error
    raise CannotListen(f"{path}: another keeper listens there")


def listening_path(endpoint: str) -> str:
    """The socket's path in an endpoint description such as "unix:/run/mailcache/mailcache.sock:mode=600".

    :raises CannotListen: for any other kind: descriptors are lent, and only UNIX sockets carry them.
    """
    found = _UNIX.fullmatch(endpoint)
    path = re.sub(r"\\(.)", r"\1", found["path"]) if found is not None else ""
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_PATH:
        raise CannotListen(
            f"{endpoint!r}: a keeper listens on unix:PATH:mode=600, with an absolute path of at most {MAX_PATH} bytes"
        )
    return path


class KeeperService(Service):
    """A keeper that listens while it is running.

    :param endpoint: a server endpoint description; its mode is 600 unless it says otherwise.
    :raises CannotListen: for an endpoint of another kind; when started, for a path that can't be taken.
    """

    _log = Logger()

    def __init__(self, reactor: Any, endpoint: str, configuration: Configuration) -> None:
        self._reactor = reactor
        self._path = listening_path(endpoint)
        self._endpoint = endpoint if ":mode=" in endpoint else f"{endpoint}:mode=600"
        self._configuration = configuration
        self._keeper: Keeper | None = None
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        super().startService()
        take_path(self._path)
        cache = MemorySessionCache(self._reactor, self._configuration.limits, self._configuration.timeouts)
        self._keeper = Keeper(self._reactor, cache)
        # Made for nobody else even for the moment before its mode is set.
        mask = os.umask(0o177)
        try:
            listening = serverFromString(self._reactor, self._endpoint).listen(self._keeper)
        finally:
            os.umask(mask)
        listening.addCallbacks(self._listening, self._not_listening)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        self._log.info("lending sessions on {path}", path=self._path)

    def _not_listening(self, failure: Any) -> None:
        self._log.critical("can't listen on {path}: {why}", path=self._path, why=failure.getErrorMessage())
        self._reactor.stop()

    @inlineCallbacks
    def stopService(self) -> Any:
        yield super().stopService()
        port, self._port = self._port, None
        if port is not None:
            yield port.stopListening()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            yield keeper.close()
