"""``mailcache check`` and ``mailcache reload``: a configuration file, and the keeper that is to read it again."""

from __future__ import annotations

import os
import signal
import socket
import struct
from typing import TextIO

from twisted.protocols.amp import AmpBox, parseString

from mailcache.daemon.config import ConfigurationError, load, summary
from mailcache.remote import codec, commands

SOCKET = "/run/mailcache/mailcache.sock"
"""Where a keeper listens unless it is told otherwise."""

PATIENCE = 5.0
"""Seconds that a keeper may take to answer."""

_PEER = struct.Struct("i2I")


class NoKeeper(OSError):  # noqa: N818  (reads as what it reports)
    """There is no keeper that could be told anything. The text says why."""


def check(file: str, out: TextIO, err: TextIO) -> int:
    """Tell what is wrong with a configuration file, or what is in it; gives an exit status of sysexits.h."""
    try:
        found = load(file)
    except ConfigurationError as error:
        err.write("".join(f"{line}\n" for line in error.lines))
        return os.EX_CONFIG
    out.write(f"{file}: fine\n{summary(found)}")
    return os.EX_OK


def reload(path: str, out: TextIO) -> int:
    """Have the keeper that listens at ``path`` read its configuration again; gives the exit status.

    :raises NoKeeper: if none answers there, or it can't be told.
    """
    process = keeper_process(path)
    try:
        os.kill(process, signal.SIGHUP)
    except OSError as error:
        raise NoKeeper(f"process {process}, which listens at {path}, can't be told: {error.strerror}") from error
    out.write(f"process {process} reads its configuration again; its log says what came of it\n")
    return os.EX_OK


def keeper_process(path: str) -> int:
    """The process of the keeper that listens at ``path``.

    :raises NoKeeper: if nobody listens there, or it is no keeper: a signal would end many another program.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(PATIENCE)
            link.connect(path)
            process, _, _ = _PEER.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if not _answers(link):
                raise NoKeeper(f"{path}: what listens there is no keeper, or lets this user not connect")
    except NoKeeper:
        raise
    except OSError as error:
        raise NoKeeper(f"{path}: no keeper answers there: {error.strerror or error}") from error
    if process <= 1 or process == os.getpid():
        raise NoKeeper(f"{path} was opened by process {process} for its keeper: have that reload it")
    return int(process)


def _answers(link: socket.socket) -> bool:
    """Whether a keeper is at the other end: it answers to Hello, if only that it retires."""
    hello = AmpBox({b"_command": commands.Hello.commandName, b"_ask": b"1", b"version": b"%d" % codec.VERSION})
    link.sendall(hello.serialize())
    data = b""
    while not data.endswith(b"\0\0"):
        more = link.recv(4096)
        data += more
        if not more or len(data) > 4096:
            return False
    try:
        boxes = parseString(data)
    except (ValueError, EOFError):
        return False
    return any(box.get(b"_answer", box.get(b"_error")) == b"1" for box in boxes)
