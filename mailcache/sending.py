"""``mailcache send``: one message from a file or from standard input, over a session of its own or of a keeper."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, TextIO

import attrs
from twisted.internet.defer import Deferred

from mailcache.delivery import deliver
from mailcache.destination import Destination
from mailcache.envelope import Envelope
from mailcache.memory import MemorySessionCache
from mailcache.remote.client import RemoteSessionCache
from mailcache.result import DeliveryError, DeliveryResult, UncertainDelivery
from mailcache.trust.policy import TLSPolicy

IN_MEMORY = 1024 * 1024
"""Bytes of a pipe that are kept in memory; what is longer goes through a temporary file."""


@attrs.frozen
class Order:
    """What is to be sent, where, and how."""

    where: Destination
    envelope: Envelope
    file: str
    keeper: str | None


def order(
    to_host: str,
    sender: str,
    recipients: Sequence[str],
    *,
    level: str,
    ca_file: str | None,
    file: str,
    keeper: str | None,
    notify: str | Iterable[str] | None = None,
    ret: str | None = None,
    envid: str | None = None,
) -> Order:
    """What the arguments ask for.

    :param file: the message's path, or "-" for standard input.
    :param keeper: the path of a keeper's socket, or ``None``.
    :param notify: this and the following are as for `Envelope`.
    :raises ValueError: that names the one that was wrong, and what would be right.
    """
    where = Destination(to_host, tls=TLSPolicy(level, ca_file=ca_file))
    if keeper is not None and len(os.fsencode(keeper)) > 107:
        raise ValueError(f"--cache: {keeper!r} is longer than the 107 bytes of a socket's path")
    return Order(where, Envelope(sender, recipients, notify=notify, ret=ret, envid=envid), file, keeper)


def run(wanted: Order, out: TextIO, err: TextIO) -> int:
    """Send it; gives an exit status of sysexits.h.

    EX_OK: all recipients were accepted. EX_TEMPFAIL: try again. EX_UNAVAILABLE: refused for good. EX_NOPERM: the
    credentials were. EX_NOINPUT: the message can't be read. EX_PROTOCOL: nobody knows, so nothing should try again.
    """
    from twisted.internet.task import react

    try:
        content = _opened(wanted.file)
    except OSError as error:
        err.write(f"mailcache send: {wanted.file}: {error.strerror}\n")
        return os.EX_NOINPUT
    status = os.EX_SOFTWARE

    async def send(reactor: Any) -> None:
        nonlocal status
        cache: Any = MemorySessionCache(reactor)
        if wanted.keeper is not None:
            cache = RemoteSessionCache(reactor, f"unix:{wanted.keeper}", fallback=cache)
        try:
            status = _told(await deliver(cache, wanted.where, wanted.envelope, content), out, err)
        except (DeliveryError, UncertainDelivery) as error:
            err.write(f"mailcache send: {error}\n")
            status = _failed(error)
        await cache.close()

    with content:
        try:
            react(lambda reactor: Deferred.fromCoroutine(send(reactor)))
        except SystemExit as end:
            if end.code:
                raise
    return status


def _opened(file: str) -> BinaryIO:
    source = open(sys.stdin.fileno(), "rb", closefd=False) if file == "-" else open(file, "rb")  # noqa: SIM115
    if stat.S_ISREG(os.fstat(source.fileno()).st_mode):
        return source
    # Taken up before the loop runs, which a slow writer at the other end of a pipe would hold up.
    spool = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  (the caller closes it)
    with source:
        shutil.copyfileobj(source, spool)
    spool.seek(0)
    return spool  # type: ignore[return-value]


def _told(result: DeliveryResult, out: TextIO, err: TextIO) -> int:
    for recipient in result.accepted:
        out.write(f"{recipient}: {result.reply}\n")
    for recipient, reply in result.rejected.items():
        err.write(f"{recipient}: {reply}\n")
    if not result.rejected:
        return os.EX_OK
    permanent = any(reply.permanent for reply in result.rejected.values())
    return os.EX_UNAVAILABLE if permanent else os.EX_TEMPFAIL


def _failed(error: DeliveryError | UncertainDelivery) -> int:
    if isinstance(error, UncertainDelivery):
        return os.EX_PROTOCOL
    if error.retriable:
        return os.EX_TEMPFAIL
    return os.EX_NOPERM if error.phase == "auth" else os.EX_UNAVAILABLE
