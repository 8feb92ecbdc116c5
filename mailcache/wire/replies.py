"""
SMTP replies: from the bytes a server sends to `Reply` values, one for each command.

The grammar is that of RFC 5321 section 4.2, read strictly: a client that guesses what a broken reply
meant can credit it to the wrong command, and then reports mail as delivered that was not. So bytes that
are no reply end the parser for good (`ReplyParser.error`), and a reply that can be read but is not well
formed carries a `flaw`: its verdict counts, but the session that sent it must not be kept.

The reply to the end of content is the exception. Once the content is written, not to know its verdict costs
more than anything a strange reply could do, so there the owner sets `ReplyParser.lenient`.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

# Bytes of one line with its CRLF. RFC 5321 4.5.3.1.5 allows 512; this is Postfix's line_length_limit.
MAX_LINE: Final = 2048
# Lines of one reply. No standard has a number; the longest usual one, to EHLO, has under 30.
MAX_LINES: Final = 100
# Bytes of one reply, and so all that a parser ever holds.
MAX_REPLY: Final = 65536
# Characters of `Reply.text`: fits a syslog record (RFC 3164: 1024 bytes) beside what else it says.
MAX_TEXT: Final = 512
# Bytes of the offending line that an error quotes: enough to recognise HTTP, SSH or a TLS record.
MAX_QUOTED: Final = 40

# 1yz replies do not exist in SMTP (RFC 5321 4.2.1), and no class above 5 does.
_CODES = range(200, 600)
_LAST = {b"%d " % code: code for code in _CODES}
_CONTINUED = {b"%d-" % code: code for code in _CODES}
_BARE = {b"%d" % code: code for code in _CODES}

_WELL_FORMED = re.compile(rb"[^\r\n\0]{4,%d}\r\n" % (MAX_LINE - 2)).fullmatch
_ENHANCED = re.compile(rb"([245])\.(\d{1,3})\.(\d{1,3})(?![^ \t\r\n])")

_set = object.__setattr__


class Reply:
    """
    One reply of a server: immutable, hashable, equal to another with the same code and lines.

    `code` is the reply code, 200 to 599.

    `flaw` is None, or says why a session that sent this must not be kept: "bare LF", "bare CR", "NUL" or
    "line too long" (the first one found).
    """

    __slots__ = ("_raw", "code", "flaw")

    _raw: bytes
    code: int
    flaw: str | None

    def __init__(self, code: int, raw: bytes, flaw: str | None = None) -> None:
        """
        Made by `ReplyParser`; others use `Reply.make`.

        :param code: what every line of C{raw} begins with
        :param raw: the whole reply as received, with its line ends
        :param flaw: see the class
        """
        _set(self, "code", code)
        _set(self, "_raw", raw)
        _set(self, "flaw", flaw)

    @classmethod
    def make(cls, code: int, *texts: str) -> Reply:
        """
        A reply that no server sent, for tests and for verdicts of our own.

        :param code: 200 to 599
        :param texts: the text of each line; none at all is one empty line
        :raises ValueError: for another code, or a text with CR, LF or NUL, which would be another line
        """
        if code not in _CODES:
            raise ValueError(f"reply code must be 200 to 599, not {code!r}")
        lines = [text.encode("utf-8") for text in texts] or [b""]
        for line in lines:
            if b"\r" in line or b"\n" in line or b"\0" in line:
                raise ValueError(f"the text of a reply line cannot have CR, LF or NUL: {line[:MAX_QUOTED]!r}")
        heads = [b"%d-" % code] * (len(lines) - 1) + [b"%d " % code]
        return cls(code, b"".join([head + line + b"\r\n" for head, line in zip(heads, lines, strict=True)]))

    @property
    def lines(self) -> tuple[bytes, ...]:
        """
        The text of each line, after "250 " or "250-", without its end.

        A flawed reply's may hold CR or NUL: who passes a text on to somebody else takes `text`.
        """
        return tuple([line[4:].removesuffix(b"\r") for line in self._raw.split(b"\n")[:-1]])

    @property
    def text(self) -> str:
        """
        The lines as one printable line of at most 512 characters, for logs and errors: joined by "; ", read
        as UTF-8, with escapes (``\\x1b``) for all that is not printable. A cut is shown by "..." at the end.
        """
        # No character has more than four bytes, so what this slice may cut in two is beyond the last we show.
        text = b"; ".join(self.lines)[: 4 * MAX_TEXT + 4].decode("utf-8", "backslashreplace")
        if not text.isprintable():
            text = "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."

    @property
    def enhanced(self) -> tuple[int, int, int] | None:
        """
        The enhanced status code at the head of the first line (RFC 2034): class, subject, detail (RFC 3463).

        None if there is none, or if its class contradicts the reply code's first digit.
        """
        match = _ENHANCED.match(self._raw, 4)
        if match is None or int(match[1]) != self.code // 100:
            return None
        return int(match[1]), int(match[2]), int(match[3])

    @property
    def statuses(self) -> tuple[tuple[int, int, int], ...]:
        """
        The enhanced status codes of all lines that have one, as `enhanced` gives that of the first.

        All lines should have the same (RFC 2034 section 4), and there are servers that write it to one of them only.
        """
        found = [_ENHANCED.match(line) for line in self.lines]
        return tuple(
            [
                (int(match[1]), int(match[2]), int(match[3]))
                for match in found
                if match is not None and int(match[1]) == self.code // 100
            ]
        )

    @property
    def positive(self) -> bool:
        """2yz: it is done."""
        return self.code < 300

    @property
    def intermediate(self) -> bool:
        """3yz: go on (DATA, AUTH)."""
        return 300 <= self.code < 400

    @property
    def transient(self) -> bool:
        """4yz: refused for now."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5yz: refused."""
        return self.code >= 500

    @property
    def negative(self) -> bool:
        """4yz or 5yz."""
        return self.code >= 400

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reply):
            return NotImplemented
        return self._raw == other._raw or (self.code == other.code and self.lines == other.lines)

    def __hash__(self) -> int:
        return hash((self.code, self.lines))

    def __str__(self) -> str:
        return f"{self.code} {self.text}"

    def __repr__(self) -> str:
        flaw = "" if self.flaw is None else f", flaw={self.flaw!r}"
        return f"Reply({self.code}, {self.text!r}{flaw})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Reply cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Reply cannot be changed: {name}")

    def __reduce__(self) -> tuple[type[Reply], tuple[int, bytes, str | None]]:
        return Reply, (self.code, self._raw, self.flaw)


class ReplyParser:
    """
    Replies from a stream of bytes, however it is cut.

    `lenient` is set by the owner while the reply to the end of content is awaited: then NUL and lines over
    `MAX_LINE` become flaws where they would be errors, so long as the code can be read and `MAX_REPLY` holds.

    `error` is None until the bytes are no SMTP reply, then says why in one printable line. From there on
    nothing is parsed and nothing is held: there is no way back into step with such a server.

    `flaw` is the first flaw of any reply so far, or None.

    `pending` tells whether bytes of an incomplete reply are held.
    """

    __slots__ = (
        "_code",
        "_flaw",
        "_known",
        "_known_replies",
        "_lines",
        "_partial",
        "_size",
        "error",
        "flaw",
        "lenient",
        "pending",
    )

    def __init__(self) -> None:
        self.lenient = False
        self.error: str | None = None
        self.flaw: str | None = None
        self.pending = False
        # The incomplete reply: its complete lines, their bytes in all, their code and first flaw, and then
        # the bytes after the last LF, which therefore need no second search.
        self._lines: list[bytes] = []
        self._size = 0
        self._code = 0
        self._flaw: str | None = None
        self._partial = bytearray()
        # The last read of several usual replies: a server says the same to the same flight, message for message.
        self._known = b""
        self._known_replies: list[Reply] = []

    def feed(self, data: bytes) -> list[Reply]:
        """
        Take what was received.

        :return: the replies completed by it, in order; those before an error, too
        """
        if self.error is not None:
            return []
        if not self.pending:
            if data == self._known:
                return self._known_replies[:]
            code = _usual(data)
            if code is not None:
                return [Reply(code, data)]
        replies: list[Reply] = []
        self._feed(data, replies)
        self.pending = bool(self._partial or self._lines)
        return replies

    def _feed(self, data: bytes, replies: list[Reply]) -> None:
        start, length = 0, len(data)
        if self._partial:
            start = data.find(b"\n") + 1
            if start == 0:
                self._keep(data)
                return
            # Put together only if it is within the limits.
            if self._room(len(self._partial) + start, self._partial, data):
                line = bytes(self._partial + data[:start])
                self._partial.clear()
                self._take(line, replies)
        usual = start == 0
        while start < length and self.error is None:
            end = data.find(b"\n", start) + 1
            if end == 0:
                self._keep(data[start:])
                return
            line = data[start:end]
            start = end
            code = None if self._lines else _usual(line)
            if code is not None:
                replies.append(Reply(code, line))
            else:
                usual = False
                if self._room(len(line), line):
                    self._take(line, replies)
        if usual and len(replies) > 1:
            self._known, self._known_replies = data, replies[:]

    def _keep(self, data: bytes) -> None:
        """Hold the beginning of a line, or more of it, if with its LF it can still be within the limits."""
        if self._room(len(self._partial) + len(data) + 1, self._partial, data):
            self._partial += data

    def _room(self, length: int, *line: bytes | bytearray) -> bool:
        """
        Is a line within the limits?

        :param length: what it has at least, with its LF
        :param line: its bytes so far, in pieces, for the error
        """
        limit = MAX_REPLY - self._size
        problem = f"reply longer than {MAX_REPLY} bytes"
        if limit >= MAX_LINE and not self.lenient:
            limit = MAX_LINE
            problem = f"reply line longer than {MAX_LINE} bytes"
        if length <= limit:
            return True
        # What is quoted must not depend on how the line was cut: no more than had to be read to know.
        self._fail(problem, b"".join([piece[:limit] for piece in line])[:limit])
        return False

    def _take(self, line: bytes, replies: list[Reply]) -> None:
        """One complete line, its LF included, of a permitted length."""
        head = line[:4]
        last = True
        code = _LAST.get(head)
        if code is None:
            code = _CONTINUED.get(head)
            if code is not None:
                last = False
            elif line in (head[:3] + b"\r\n", head[:3] + b"\n"):
                code = _BARE.get(head[:3])
        if code is None:
            self._fail("not an SMTP reply", line)
            return
        if self._lines and code != self._code:
            self._fail(f"reply code changes from {self._code} within a reply", line)
            return
        if not self.lenient and b"\0" in line:
            self._fail("NUL in a reply", line)
            return
        if self._flaw is None:
            self._flaw = _flaw(line)
        if last:
            reply = Reply(code, b"".join([*self._lines, line]), self._flaw)
            self.flaw = self.flaw or self._flaw
            self._reset()
            replies.append(reply)
            return
        self._lines.append(line)
        self._size += len(line)
        self._code = code
        if len(self._lines) >= MAX_LINES:
            self._fail(f"reply of more than {MAX_LINES} lines", line)

    def _reset(self) -> None:
        """Between two replies."""
        self._lines = []
        self._size = 0
        self._flaw = None

    def _fail(self, problem: str, line: bytes) -> None:
        """The bytes are no SMTP reply: let go of everything."""
        self.error = f"{problem}: {line[:MAX_QUOTED]!r}"
        self._reset()
        self._partial = bytearray()


def _usual(line: bytes) -> int | None:
    """The code of ``line`` if it is the usual reply: one well-formed line, and nothing behind it."""
    code = _LAST.get(line[:4])
    return code if code is not None and _WELL_FORMED(line) else None


def _flaw(line: bytes) -> str | None:
    """What is wrong with a line that has a readable code."""
    if len(line) > MAX_LINE:
        return "line too long"
    if b"\0" in line:
        return "NUL"
    ending = len(line) - 2
    carriage_return = line.find(b"\r")
    if 0 <= carriage_return < ending:
        return "bare CR"
    return None if carriage_return == ending else "bare LF"
