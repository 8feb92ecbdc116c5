"""What has become of a message, by nothing but the bytes on each connection and their order.

A reply belongs to the command that has its number. A recipient of a message is *taken* if the commands for it were
answered as they must be, the content was written to its end, and then, not before, the reply to that began to come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from mailcache.connection import Connection
from mailcache.remote.borrowed import BorrowedConnection

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])[^\n]*)?\r?\n")
_RCPT = re.compile(rb"RCPT TO:<([^>]*)>")

TAKEN, REFUSED, OPEN = "taken", "refused", "open"


class Tapped(Connection):
    """A connection that notes what it has read and written, and in which order.

    :cvar greeted: the first reply is a greeting.
    """

    greeted = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.noted: list[tuple[bool, bytes]] = []

    def dataReceived(self, data: bytes) -> None:
        self.noted.append((True, data))
        super().dataReceived(data)

    def _send(self, data: bytes) -> None:
        self.noted.append((False, data))
        super()._send(data)


class TappedPair(Tapped, BorrowedConnection):
    """The same over a pair: the session on it is open already."""

    greeted = False


@attrs.frozen
class Said:
    """A reply, and where in the stream of the server it stands."""

    code: int
    start: int
    data: bytes


def replies_in(stream: bytes) -> Iterator[Said]:
    """The replies of a server, up to what is none."""
    start = at = 0
    while (line := _LINE.match(stream, at)) is not None:
        at = line.end()
        if line[2] != b"-":
            yield Said(int(line[1]), start, stream[start:at])
            start = at


@attrs.frozen
class Ended:
    """A content that was written to its end, for these recipients, and what came of it."""

    outcome: str
    recipients: frozenset[str]
    said: Said | None


def contents_ended(connection: Tapped, content: bytes) -> list[Ended]:
    """Each time that ``content`` was written to its end on a connection."""
    heard = b"".join(data for read, data in connection.noted if read)
    replies = list(replies_in(heard))
    # Each thing that is said has the next reply.
    ended = []
    number = int(connection.greeted)
    wanted: int | None = None
    recipients: dict[str, int] = {}
    mail = 0
    for item, heard_before in _items(connection.noted, content):
        said = replies[number] if number < len(replies) else None
        code = said.code if said is not None else 0
        number += 1
        if item == content:
            taken = frozenset(name for name, answer in recipients.items() if answer in (250, 251, 252))
            good = wanted == 354 and taken and said is not None and said.start >= heard_before
            outcome = OPEN if said is None or not good else TAKEN if code < 300 else REFUSED if code >= 400 else OPEN
            ended.append(Ended(outcome, taken, said))
        elif item[:4] == b"MAIL":
            recipients, mail = {}, code
        elif (found := _RCPT.match(item)) is not None:
            recipients[found[1].decode()] = code if mail == 250 else 0
        wanted = code if item == b"DATA\r\n" else None
    return ended


def _items(noted: Iterable[tuple[bool, bytes]], content: bytes) -> Iterator[tuple[bytes, int]]:
    """Each command or content that was said, and how many bytes the server had been heard to say before its end."""
    said, heard = b"", 0
    for read, data in noted:
        if read:
            heard += len(data)
            continue
        said += data
        while said:
            if said.startswith(CONTENT):
                end = said.find(b"\r\n.\r\n") + 5
                if end < 5:
                    break
            else:
                end = said.find(b"\n") + 1
                if not end:
                    break
            item, said = said[:end], said[end:]
            yield item, heard


CONTENT = b"Subject: "
"""What the contents begin with, and no command does."""
