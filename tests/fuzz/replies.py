"""Replies of a server: `mailcache.wire.replies` against a parser of a few lines that has the whole stream at hand."""

from __future__ import annotations

import pickle
import re

from mailcache.wire.replies import MAX_LINE, MAX_LINES, MAX_REPLY, MAX_TEXT, Reply, ReplyParser
from tests.fuzz.choices import Choices, cut, expanded, one_by_one
from tests.fuzz.target import Target

Read = tuple[list[tuple[int, tuple[bytes, ...], str | None]], bool, bool]
"""The replies with their flaws; whether it ended in an error; whether something is pending."""

ENOUGH_BY_ONE = 800
"""Bytes of the streams that are tried byte by byte, too."""

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?\r?\n", re.DOTALL)


def expected(data: bytes, lenient: bool) -> Read:
    """What RFC 5321 and the limits say of ``data``."""
    replies: list[tuple[int, tuple[bytes, ...], str | None]] = []
    code, size, flaw = b"", 0, None
    texts: list[bytes] = []
    for line in re.findall(rb"[^\n]*\n|[^\n]+", data):
        left = MAX_REPLY - size
        longest = left if lenient or left < MAX_LINE else MAX_LINE
        complete = line.endswith(b"\n")
        if len(line) + (not complete) > longest:
            return replies, True, False
        if not complete:
            return replies, False, True
        found = _LINE.fullmatch(line)
        if found is None or (texts and found[1] != code) or (b"\0" in line and not lenient):
            return replies, True, False
        code = found[1]
        texts.append((found[3] or b"").removesuffix(b"\r"))
        size += len(line)
        flaw = flaw or flaw_of(line)
        if found[2] != b"-":
            replies.append((int(code), tuple(texts), flaw))
            texts, size, flaw = [], 0, None
        elif len(texts) >= MAX_LINES:
            return replies, True, False
    return replies, False, bool(texts)


def flaw_of(line: bytes) -> str | None:
    """The first thing that is wrong with a line that can be read."""
    if len(line) > MAX_LINE:
        return "line too long"
    if b"\0" in line:
        return "NUL"
    if b"\r" in line.removesuffix(b"\r\n").removesuffix(b"\n"):
        return "bare CR"
    return None if line.endswith(b"\r\n") else "bare LF"


def read(pieces: list[bytes], lenient: bool) -> tuple[Read, list[Reply], str | None]:
    """What the parser makes of it, and the replies and the error themselves."""
    parser = ReplyParser()
    parser.lenient = lenient
    replies: list[Reply] = []
    for piece in pieces:
        replies += parser.feed(piece)
        held = parser._size + len(parser._partial)
        assert held <= MAX_REPLY, f"{held} bytes are held"
        assert parser.pending == bool(held), "pending, and nothing is held"
    flaws = [reply.flaw for reply in replies if reply.flaw is not None]
    assert parser.flaw == (flaws[0] if flaws else None)
    found = [(reply.code, reply.lines, reply.flaw) for reply in replies]
    return (found, parser.error is not None, parser.pending), replies, parser.error


def check(data: bytes) -> None:
    """Any cut of a stream gives the replies that are expected, and nothing more than a reply is ever held."""
    choices = Choices(data)
    lenient = choices.flag()
    places = bytes([choices.byte(), choices.byte(), choices.byte()])
    stream = expanded(choices.rest())
    whole, replies, error = read([stream], lenient)
    assert whole == expected(stream, lenient), (whole, expected(stream, lenient))
    ways = [cut(stream, places)]
    if len(stream) <= ENOUGH_BY_ONE:
        ways.append(one_by_one(stream))
    for pieces in ways:
        again, _, other_error = read(pieces, lenient)
        assert again == whole, (again, whole)
        assert other_error == error, (other_error, error)
    if error is not None:
        assert error.isascii() and error.isprintable() and len(error) < 300, error
    for reply in replies[:20]:
        check_reply(reply)


def check_reply(reply: Reply) -> None:
    """What is shown of a reply is one printable line, and a copy of it is equal."""
    text = reply.text
    assert text.isprintable() and len(text) <= MAX_TEXT
    assert str(reply).isprintable() and repr(reply).isprintable()
    kinds = (reply.positive, reply.intermediate, reply.transient, reply.permanent)
    assert kinds.index(True) == reply.code // 100 - 2 and sum(kinds) == 1
    assert reply.negative == (reply.code >= 400)
    enhanced = reply.enhanced
    assert enhanced is None or (enhanced[0] == reply.code // 100 and max(enhanced[1:]) < 1000)
    copy = pickle.loads(pickle.dumps(reply))
    assert (copy, copy.flaw, hash(copy)) == (reply, reply.flaw, hash(reply))


_CUTS = b"\0\x40\x80\xc0"
_LENIENT = b"\1\x40\x80\xc0"

TARGET = Target(
    "replies",
    check,
    tuple(
        mode + stream
        for mode in (_CUTS, _LENIENT)
        for stream in (
            b"220 mx.test ESMTP\r\n",
            b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250 8BITMIME\r\n",
            b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n",
            b"250 2.1.0 ok\r\n550-5.1.1 no\r\n550 5.1.1 such user\r\n250 ok\r\n25",
            b"250\r\n250 \r\n250-\r\n250\r\n",
            b"250 ok\n354 go\n",
            b"250 a\rb\r\n250 c\r\r\n",
            b"250 a\0b\r\n",
            b"250-a\r\n251 b\r\n",
            b"250-a\r\n\xfe\x63250 b\r\n",
            b"250-a\r\n\xfe\x62250 b\r\n",
            b"250 a\xfd\x1fbc\r\n",
            b"250-" + b"a\xfd\x1f" + b"\r\n\xfe\x1f250 b\r\n",
            b"250-" + b"a\xfd\x1f" + b"\r\n\xfe\x21250 b\r\n",
            *(b"250-" + b"x" * 58 + b"\xfd\x1f\r\n\xfe\x1e250 " + b"x" * n + b"\xfd\x1f\r\n" for n in (57, 58, 59)),
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x15\x03\x03\0\x02\x02\x28",
        )
    ),
    (b"250 ", b"250-", b"\r\n", b"\n", b"\r", b"\0", b"354 ", b"421 ", b"550-", b"2.1.0 ", b"\xfe\x63", b"\xfd\x20"),
)
