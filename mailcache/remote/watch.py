"""Where a conversation stands that somebody else has: what a keeper must know of a session that it has lent.

A borrower says how it leaves a session, and it may be wrong, or lie, or be dead. So its keeper follows the commands
and the replies as they pass, as far as it takes to answer three questions: does the session stand at a clean place,
is RSET due, and whose turn is it? It reads nothing else in them, and changes nothing.

It also holds up rule R3 where the borrower can't: what a borrower has written may still be on its way to the server,
so that a reply which comes before its end of content has passed here would look to it like the reply to that.
"""

from __future__ import annotations

from collections import deque

from mailcache.wire.replies import Reply, ReplyParser

MAX_COMMAND = 65_536
"""Bytes of a command line; ours have some hundred, and what is longer is followed no further."""

_END = b"\r\n.\r\n"

_MAIL, _RCPT, _DATA, _RSET, _DOT, _LAST, _OTHER = range(7)
_KINDS = {b"MAIL": _MAIL, b"RCPT": _RCPT, b"DATA": _DATA, b"RSET": _RSET, b"NOOP": _OTHER, b"VRFY": _OTHER}

PASS, HOLD, CUT, LAST_WORD = "pass", "hold", "cut", "last word"
"""What is to be done with bytes of the server: hand them on; keep them back; end the session instead; or hand them on
and end the session behind them."""


class Watch:
    """Follows one session, lease by lease.

    :param lmtp: the end of content has a reply for each recipient that was accepted.
    :ivar transactions: how many were begun in this lease.
    :ivar rset_due: RSET must precede the next MAIL.
    :ivar spoiled: why the session can't be kept, or ``None``.
    """

    def __init__(self, lmtp: bool) -> None:
        self._lmtp = lmtp
        self._parser = ReplyParser()
        self.begin(False)

    def begin(self, rset_due: bool) -> None:
        """A lease begins, at a clean place."""
        self.transactions = 0
        self.rset_due = rset_due
        self.spoiled: str | None = None
        self._owed: deque[int] = deque()
        self._data_owed = False
        self._line = b""
        self._in_content = False
        self._tail = b""
        self._chunk = 0
        self._accepted = 0
        self._refused = False

    @property
    def settled(self) -> bool:
        """Whether the session stands at a clean place: all is answered, nothing is half said, nothing was wrong."""
        parser = self._parser
        half_said = self._line or self._in_content or self._chunk or parser.pending
        return self.spoiled is None and parser.flaw is None and not self._owed and not half_said

    @property
    def server_owes(self) -> bool:
        """Whether it is the server's turn."""
        return bool(self._owed)

    # -- from the borrower -------------------------------------------------------------------------------------

    def sent(self, data: bytes) -> None:
        """The borrower has sent ``data``."""
        at = 0
        while at < len(data) and self.spoiled is None:
            if self._chunk:
                taken = min(self._chunk, len(data) - at)
                self._chunk -= taken
                at += taken
            elif self._in_content:
                at = self._content(data, at)
            else:
                at = self._command(data, at)

    def _content(self, data: bytes, start: int) -> int:
        """Follow the content in ``data`` from ``start``; gives where to go on."""
        window = self._tail + data[start:]
        end = window.find(_END) + len(_END)
        if end < len(_END):
            self._tail = window[1 - len(_END) :]
            return len(data)
        self._in_content = False
        if self._parser.pending:
            self._spoil("bytes of a reply came before the end of content")
        self._parser.lenient = True
        self._owed.extend([_DOT] * (max(1, self._accepted) if self._lmtp else 1))
        return start + end - len(self._tail)

    def _command(self, data: bytes, start: int) -> int:
        """Follow one command in ``data`` from ``start``; gives where to go on."""
        end = data.find(b"\n", start) + 1
        line = self._line + data[start : end or len(data)]
        if len(line) > MAX_COMMAND:
            self._spoil("a command without an end")
            return len(data)
        if not end:
            self._line = line
            return len(data)
        self._line = b""
        if self._data_owed:
            self._spoil("bytes behind DATA")
        verb = line[:4].upper()
        kind = _KINDS.get(verb)
        if kind is not None:
            self._owed.append(kind)
            if kind == _MAIL:
                self.transactions += 1
            self._data_owed = kind == _DATA
        elif verb == b"BDAT":
            self.rset_due = True
            size, last = _chunk(line)
            if size is None:
                self._spoil("a BDAT without a size")
            else:
                self._owed.append(_LAST if last else _OTHER)
                self._chunk = size
        else:
            # EHLO, AUTH, STARTTLS and the like make another session of it.
            self._spoil("a command that has no place in a transaction")
        return end

    # -- from the server ---------------------------------------------------------------------------------------

    def received(self, data: bytes) -> str:
        """The server has sent ``data``: gives what is to be done with it."""
        if self.spoiled is not None:
            return PASS
        replies = self._parser.feed(data)
        if self._in_content:
            return self._early(replies)
        for number, reply in enumerate(replies):
            if not self._owed:
                self._spoil("a reply that was not asked for")
                break
            if self._chunk and self._owed[0] == _LAST:
                return self._early(replies[number:])
            self._answered(self._owed.popleft(), reply)
        if self._parser.error is not None:
            self._spoil("what came is no reply")
        elif self._parser.pending and not self._owed:
            self._spoil("bytes that were not asked for")
        elif self._parser.pending and self._chunk and self._owed[0] == _LAST:
            return HOLD
        return PASS

    def _early(self, replies: list[Reply]) -> str:
        """Refusals may come before the end of content, which the server must not see then; anything else would be
        taken for the reply to that."""
        if self._parser.error is None and not replies:
            return HOLD
        self._spoil("a reply came before the end of content")
        return LAST_WORD if replies and all(reply.negative for reply in replies) else CUT

    def _answered(self, kind: int, reply: Reply) -> None:
        code = reply.code
        if code == 421 or (300 <= code < 400 and not (kind == _DATA and code == 354)):
            self._spoil(f"a reply out of place: {code}")
        elif kind == _MAIL:
            self.rset_due = True
            self._accepted = 0
            self._refused = False
        elif kind == _RCPT:
            self._accepted += code < 300
        elif kind == _DATA:
            self._data_owed = False
            self._in_content = code == 354
            self._tail = b"\r\n"
            if code < 300:
                self._spoil(f"a reply out of place: {code}")
        elif kind == _DOT:
            self._refused = self._refused or code != 250
            if _DOT not in self._owed:
                self._parser.lenient = False
                self.rset_due = self._refused
        elif kind == _LAST:
            self.rset_due = code != 250 or not self._accepted
        elif kind == _RSET and code == 250:
            self.rset_due = False

    def _spoil(self, why: str) -> None:
        self.spoiled = self.spoiled or why


def _chunk(line: bytes) -> tuple[int | None, bool]:
    """The size in a BDAT command, if there is one, and whether it is the last (RFC 3030)."""
    _, *words = line.split()
    if not words or not words[0].isdigit() or len(words[0]) >= 20:
        return None, False
    return int(words[0]), words[1:] == [b"LAST"]
