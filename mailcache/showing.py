"""``mailcache show``: what a running keeper has kept and saved, as a table or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.protocols import amp

from mailcache.remote import codec, commands

LIMIT = 10.0
"""Seconds for the keeper's answers: one that takes longer stands still."""

_COUNTS = (
    ("leased", "sessions in use"),
    ("idle", "sessions idle"),
    ("opening", "sessions being opened"),
    ("waiting", "requests that wait"),
    ("hits", "leases of kept sessions"),
    ("handshakes", "TLS handshakes"),
    ("transactions", "messages begun"),
    ("saved_handshakes", "TLS handshakes saved"),
    ("saved_seconds", "seconds of opening saved"),
)

_HEADS = ("destination", "namespace", "user", "messages", "sessions", "hits", "misses", "saved", "saved s")


async def ask(reactor: Any, path: str) -> dict[str, Any]:
    """The counts of the keeper that listens at ``path``, and its accounts under "destinations".

    :raises Exception: of Twisted's, if it can't be reached or does not answer within `LIMIT` seconds.
    """
    link: Any = await connectProtocol(UNIXClientEndpoint(reactor, path, LIMIT), amp.AMP())
    try:
        await link.callRemote(commands.Hello, version=codec.VERSION).addTimeout(LIMIT, reactor)
        answer = await link.callRemote(commands.Statistics).addTimeout(LIMIT, reactor)
        counts: dict[str, Any] = json.loads(answer["counts"])
        rows: list[dict[str, Any]] = []
        more = True
        while more:
            answer = await link.callRemote(commands.Accounts, start=len(rows)).addTimeout(LIMIT, reactor)
            found = json.loads(answer["rows"])
            rows += found
            more = answer["more"] and bool(found)
    finally:
        link.transport.abortConnection()
    counts["destinations"] = sorted(rows, key=lambda row: -row["transactions"])
    return counts


def table(counts: dict[str, Any]) -> str:
    """``counts`` for a reader, every line ended."""
    lines = [f"{counts.get(name, 0):>12,.{name == 'saved_seconds':d}f}  {words}\n" for name, words in _COUNTS]
    for name, words in (("misses", "no kept session served"), ("evictions", "sessions ended")):
        for reason, times in sorted(counts.get(name, {}).items(), key=lambda item: -item[1]):
            lines.append(f"{times:>12,}  {words}: {reason}\n")
    rows: list[Sequence[str]] = [_HEADS]
    for row in counts["destinations"]:
        rows.append(
            (
                row["destination"],
                row["namespace"],
                "" if row["user"] is None else str(row["user"]),
                f"{row['transactions']:,}",
                f"{row['sessions']:,}",
                f"{row['hits']:,}",
                f"{sum(row['misses'].values()):,}",
                f"{row['saved_handshakes']:,}",
                f"{row['saved_seconds']:,.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = "".join(lines)
    if len(rows) > 1:
        text += "\n"
        for cells in rows:
            left = "  ".join(cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
            text += left + "".join(f"  {cell.rjust(width)}" for cell, width in zip(cells[2:], widths[2:], strict=True))
            text += "\n"
    return text


def run(path: str, as_json: bool, out: TextIO, err: TextIO) -> int:
    """The command; gives its exit status, EX_UNAVAILABLE where no keeper answers."""
    from twisted.internet.task import react

    status = os.EX_UNAVAILABLE

    async def show(reactor: Any) -> None:
        nonlocal status
        try:
            counts = await ask(reactor, path)
        except Exception as error:  # noqa: BLE001  (whatever it is, the answer is that there is none)
            err.write(f"mailcache show: no keeper answers at {path}: {str(error) or type(error).__name__}\n")
            return
        out.write(json.dumps(counts, indent=2, sort_keys=True) + "\n" if as_json else table(counts))
        status = os.EX_OK

    try:
        react(lambda reactor: Deferred.fromCoroutine(show(reactor)))
    except SystemExit as end:
        if end.code:
            raise
    return status
