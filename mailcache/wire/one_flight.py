"""A message in one flight: MAIL, all RCPTs and the content behind BDAT LAST, written at once (RFC 3030, RFC 2920).

It saves a round trip, and no 354 guards it: when the first reply is read the whole message is on its way. So whatever
breaks off leaves doubt, with these exceptions: 421 to MAIL or RCPT, after which a server reads no more; a refusal of
all recipients; and 503 to MAIL on a session that has carried a message, or to RCPT, where server and client are out of
step, when all recipients are refused as well. The replies that are still owed are read then: if the content is refused
too the message was not taken, and if it is accepted nobody can know what was.

A reply too many shifts all that come behind it, to recipients that they were not for. It shows in three ways, each of
which leaves doubt about everybody: by the reply that is left over in the end, by one to an address where that to the
content is due, and by a recipient accepted behind a MAIL refused. So a refusal of MAIL on a session that was kept
counts only when a recipient is refused behind it.
"""

from __future__ import annotations

from mailcache.wire.capabilities import Capabilities
from mailcache.wire.commands import DATA as DATA_COMMAND
from mailcache.wire.commands import bdat
from mailcache.wire.content import TERMINATOR
from mailcache.wire.replies import Reply
from mailcache.wire.transaction import CONTRADICTION, DONE, LAST, Transaction

MAX_CONTENT = 65_536
"""Bytes of content: what fits a server's socket buffer, so that no reply waits for it to be read."""

FRESH = 1.0
"""Seconds since the server has last said something: it lives, as like as not."""

ADDRESS_STATUS = 1
"""The subject of enhanced status codes about addresses (X.1.X, RFC 3463 3.2): the replies to MAIL and RCPT have it."""


def unstuffed(encoded: bytes) -> bytes:
    """The content of `mailcache.wire.content.encode`'s result as BDAT sends it: no dot doubled, and no lone dot."""
    content = encoded[: -len(TERMINATOR)]
    if content.startswith(b".."):
        content = content[1:]
    return content.replace(b"\r\n..", b"\r\n.")


def allows(capabilities: Capabilities, last_reply: Reply | None, age: float) -> bool:
    """Whether a message may go in one flight to a server that has said ``last_reply`` so many seconds ago.

    A reply of MAIL's or RCPT's kind where that to a content is due tells that one was counted for another.
    """
    if not (capabilities.chunking and capabilities.pipelining and capabilities.enhancedstatuscodes and age < FRESH):
        return False
    return last_reply is None or not _to_an_address(last_reply)


def _to_an_address(reply: Reply) -> bool:
    return any(subject == ADDRESS_STATUS for _, subject, _ in reply.statuses)


class OneFlight(Transaction):
    """The state of one message's transaction in one flight; see `Transaction`, and the module's text.

    :param content: all of it, as it is.
    """

    _out_of_step: Reply | None = None
    _closing = False
    _content_answered = False
    _content_refused = False

    def __init__(
        self,
        mail: bytes,
        recipients: tuple[str, ...],
        others: bytes,
        capabilities: Capabilities,
        content: bytes,
        *,
        size: int | None,
        eight_bit: bool,
        reused: bool,
    ) -> None:
        super().__init__(
            mail,
            recipients,
            others.removesuffix(DATA_COMMAND),
            capabilities,
            size=size,
            eight_bit=eight_bit,
            rset_due=False,
            reused=reused,
        )
        self._commands += bdat(len(content)) + content
        self._kinds[-1] = LAST
        # Who is accepted at RCPT has the content by the reply to that, or has not.
        self._taken_at_rcpt = self._undecided

    # -- what has come of it -----------------------------------------------------------------------------------

    @property
    def decided(self) -> bool:
        return self._out_of_step is None and super().decided

    @property
    def doubtful(self) -> bool:
        if not self.content_written or self._closing or self._content_refused:
            return False
        return self._out_of_step is None or len(self.rejected) < len(self._recipients)

    @property
    def undecided(self) -> tuple[str, ...]:
        if self._content_answered:
            return ()
        return tuple([recipient for recipient in self._recipients if recipient not in self.rejected])

    def surplus(self) -> None:
        self.final = None
        self.accepted = []
        self.rejected.clear()
        self._content_answered = self._content_refused = False
        self._contradicted = True

    # -- replies -----------------------------------------------------------------------------------------------

    def _mail(self, reply: Reply) -> None:
        if reply.code == 503 and self._reused:
            self._out_of_step = self._mail_refused = reply
        else:
            self._closing = reply.code == 421
            super()._mail(reply)

    def _rcpt(self, reply: Reply) -> None:
        self._closing = reply.code == 421
        if reply.code == 503 and self._mail_refused is None:
            self._out_of_step = reply
        super()._rcpt(reply)
        if self._contradicted:
            self.surplus()

    def _last(self, reply: Reply) -> None:
        code = reply.code
        if _to_an_address(reply) and (code < 300 or self._undecided or self._contradicted):
            self.surplus()
            self._cut("the reply to the content is one to an address", reply)
        elif code < 300 and self._undecided and not self._contradicted:
            self._out_of_step = None
            self._content_taken(reply)
        elif self._contradicted and (code < 300 or (self._reused and self._out_of_step is None)):
            # It was refused and accepted. Who has it nobody knows.
            self._cut(CONTRADICTION, reply)
        elif 300 <= code < 400:
            self._unexpected("the content", reply)
        elif self._out_of_step is not None:
            self._content_refused = True
            self._cut(f"out of step: the server said {self._out_of_step}", self._out_of_step)
        elif code < 300:
            # Everybody was refused: there is nobody to whom it could go, whatever this server says.
            self.clean = False
            self.step = DONE
        else:
            self._content_turned_down(reply)

    def _content_taken(self, reply: Reply) -> None:
        self._content_answered = True
        self.accepted, self._undecided = self._undecided, []
        self.final = reply
        self.clean = reply.code == 250
        self._taken = True
        self.step = DONE

    def _content_turned_down(self, reply: Reply) -> None:
        self._content_refused = self._content_answered = True
        if self._contradicted and self._mail_refused is not None:
            self._refuse_all(self._recipients, self._mail_refused)
        elif self._undecided:
            self._refuse_all(self._undecided, reply)
            self._undecided = []
        if reply.code == 421:
            self._cut("the server closes the session", reply)
        else:
            self.step = DONE

    _handlers = (
        Transaction._rset,
        _mail,
        _rcpt,
        Transaction._data,
        Transaction._dot,
        Transaction._lone_dot,
        _last,
    )
