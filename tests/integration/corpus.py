"""The mail that is sent in these tests, and what of it should lie in the mailbox afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LABEL = b"X-Mailcache-Test"

#: Header fields and their continuations up to a blank line or the message's end.
_HEAD = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n|\Z)(?:[ \t][^\n]*(?:\n|\Z))*)*+(?:\r?\n|\Z)")

_LINE_END = re.compile(rb"\r\n|\r|\n")

#: What the stored mail lacks, made by hand.
MADE: dict[str, bytes] = {
    "dots": b"Subject: dots\n\n.\n..\n.hidden\n...\n\n.\n",
    "eight-bit": b"Subject: 8 bit\nContent-Transfer-Encoding: 8bit\n\n" + bytes(range(128, 256)) + b"\n",
    "long-line": b"Subject: long\n\n" + b"0123456789" * 1000 + b"\nend\n",
    "long-header": b"Subject: " + b"a word or two " * 200 + b"\n\nbody\n",
    "no-body": b"Subject: a head alone\n",
    "blank-lines": b"Subject: blank lines\n\n\n\n  \n\n\n",
    "line-ends": b"Subject: line ends\n\nnone\nCR LF\r\nCR\rLF\nCR CR LF\r\r\nlast",
    "control": b"Subject: control characters\n\n" + bytes(set(range(32)) - {10, 13}) + b"\x7f\n",
    "own-trace": b"Return-Path: <me@here.test>\nDelivered-To: you@there.test\n"
    b"X-Original-To: you@there.test\n"
    b"Received: from here by there; Thu, 1 Jan 1970 00:00:00 +0000 (UTC)\nBcc: hidden@there.test\n"
    b"Content-Length: 3\nStatus: RO\nSubject: headers a mail server adds or takes away\n\nbody\n",
}


def stored_mail() -> Iterator[tuple[str, bytes]]:
    """Name and content of the collected messages, in the order of their names."""
    for path in sorted(Path(__file__).with_name("corpus").glob("msg_*.txt")):
        yield path.stem, path.read_bytes()


def labelled(label: str, message: bytes) -> bytes:
    """
    The message with one header line in front which tells it from every other, as none of them has a
    Message-ID that is sure to be unique.

    A blank line follows where the message has no proper head (text among its headers, or a "From " line): it
    is the body then. Mail servers put a blank line of their own in front of the first line that can't be a
    header.
    """
    separator = b"" if _HEAD.match(message) else b"\n"
    return b"%s: %s\n%s%s" % (LABEL, label.encode("ascii"), separator, message)


def label_of(message: bytes) -> str:
    """The label of a message that has arrived."""
    name, value = _LINE_END.split(message, maxsplit=1)[0].split(b": ", 1)
    if name != LABEL:
        raise ValueError(f"the first line of the message is not its label: {name!r}")
    return value.decode("ascii")


def everything(times: int = 1) -> dict[str, bytes]:
    """All messages, stored and made, so many times over: labelled, and by their labels."""
    messages = [*stored_mail(), *MADE.items()]
    labels = ((f"{name}-{n}", message) for n in range(times) for name, message in messages)
    return {label: labelled(label, message) for label, message in labels}


def as_sent(message: bytes) -> bytes:
    """The message with the line ends of SMTP, before dots are doubled."""
    return _end_lines(message, b"\r\n")


def as_stored(message: bytes) -> bytes:
    """What a UNIX mailbox should contain once this message was delivered."""
    return _end_lines(message, b"\n")


def _end_lines(message: bytes, end: bytes) -> bytes:
    ended = _LINE_END.sub(end, message)
    return ended if ended.endswith(end) else ended + end
