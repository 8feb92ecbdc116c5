"""One message over a session that stands at a clean place: what to write, and what each reply means.

Theory of operation. A transaction is a row of commands, each of which is owed one reply, in order: RSET if one is
due, MAIL, a RCPT for each recipient, DATA; then the content, and after it one reply (LMTP: one for each recipient
accepted). With PIPELINING (RFC 2920) the commands go out in one flight and the replies are matched to them one by
one; without it each goes out when the one before is answered. Nothing is ever pipelined behind the content.

`Transaction` does no I/O. Its owner writes `flight()`, hands in what comes with `replies()`, and when all that was
read has been parsed looks at `step`, which says what is to be done next:

==========  ====================================================================================================
WAITING     more replies are due
COMMANDS    write `flight()`: the next command, where there is no PIPELINING
CONTENT     the server waits for the content, and at least one recipient is accepted: write it
EMPTY       the server waits for content that nobody would get: write the lone dot of RFC 2920 3.1
DONE        the verdict is complete, and the session is at a clean place if `keeps` says so
CUT         the session is of no use and `problem` says why; see `decided` for whether there is a verdict
==========  ====================================================================================================

Codes are checked for each state (a 2xx for DATA, a 354 for MAIL or a code shift of any kind ends the session), so
a reply that is missing or too many is noticed at the latest at DATA, before any content is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mailcache.wire.capabilities import Capabilities
from mailcache.wire.commands import RSET as RSET_COMMAND
from mailcache.wire.replies import Reply

RSET, MAIL, RCPT, DATA, DOT, LONE_DOT, LAST = range(7)
"""The kinds of expectation, in the order in which they come; the last is that of `mailcache.wire.one_flight`."""

PHASES = ("rset", "mail", "rcpt", "data", "content", "data", "content")
"""The phase's name for errors, by kind."""

WAITING, COMMANDS, CONTENT, EMPTY, DONE, CUT = (
    "waiting",
    "commands",
    "content",
    "empty",
    "done",
    "cut",
)

_RCPT_TAKEN = frozenset((250, 251, 252))

_TOO_MANY_RECIPIENTS = (None, (4, 5, 3))
"""The enhanced status of a 452 to RCPT that is about their number (RFC 5321 4.5.3.1.10, RFC 3463); other ones are about
a full mailbox or disk."""


CONTRADICTION = "the server has refused MAIL, and accepted a recipient"
"""One of these replies was not meant for us: it was one too many, and all behind it are out of step."""


class Transaction:
    """The state of one message's transaction; see the module's text.

    :param mail: the MAIL command without SIZE, BODY and CRLF.
    :param recipients: the recipients, each once.
    :param others: the RCPT commands for them, in the same order, and DATA.
    :param size: bytes for SIZE, where the server offers it (RFC 1870).
    :param eight_bit: whether the content is declared as 8BITMIME; only where the server offers it.
    :param rset_due: RSET goes first, since the last transaction on this session did not end cleanly.
    :param reused: the session carried a message before: a 503 to MAIL then means that it is out of step, and any other
        refusal of MAIL counts when that of RCPT confirms it.
    :param lmtp: one reply for each accepted recipient after the content (RFC 2033 4.2).
    """

    _mail_refused: Reply | None = None
    _contradicted = False
    _refused_at_end = False
    _taken = False
    _answered = 0
    _position = 0
    _recipient = 0
    accepted: list[str]
    _taken_at_rcpt: list[str]
    clean = True
    content_begun = False
    content_written = False
    culprit: Reply | None = None
    final: Reply | None = None
    problem = ""
    step = COMMANDS

    def __init__(
        self,
        mail: bytes,
        recipients: tuple[str, ...],
        others: bytes,
        capabilities: Capabilities,
        *,
        size: int | None,
        eight_bit: bool,
        rset_due: bool,
        reused: bool,
        lmtp: bool = False,
    ) -> None:
        if size is not None and capabilities.size is not None:
            mail += b" SIZE=%d" % size
        if eight_bit and capabilities.eightbitmime:
            mail += b" BODY=8BITMIME"
        self._commands = mail + b"\r\n" + others
        self._kinds = [MAIL, *[RCPT] * len(recipients), DATA]
        if rset_due:
            self._commands = RSET_COMMAND + self._commands
            self._kinds.insert(0, RSET)
        self._owed = self._kinds
        self._pipelining = capabilities.pipelining
        self._reused = reused
        self._lmtp = lmtp
        self._recipients = recipients
        self._undecided: list[str] = []
        self.accepted = self._taken_at_rcpt = []
        self.rejected: dict[str, Reply] = {}
        self.excess: list[str] = []

    # -- what to write -------------------------------------------------------------------------------------

    def flight(self) -> tuple[bytes, list[int]]:
        """The bytes to write next, and the kinds of the replies they are owed."""
        if self._pipelining:
            return self._commands, self._owe(self._kinds)
        end = self._commands.index(b"\n") + 1
        command, self._commands = self._commands[:end], self._commands[end:]
        kind = self._kinds[self._position]
        self._position += 1
        return command, self._owe([kind])

    def content_kinds(self) -> list[int]:
        """The kinds of the replies that the content will be owed. To be called when it begins to be written."""
        self.content_begun = True
        self._undecided = self.accepted
        self.accepted = []
        return self._owe([DOT] * len(self._undecided) if self._lmtp else [DOT])

    def lone_dot_kinds(self) -> list[int]:
        """The kinds of the replies that the lone dot is owed."""
        return self._owe([LONE_DOT])

    def _owe(self, kinds: list[int]) -> list[int]:
        self.step = WAITING
        self._owed = kinds
        self._answered = 0
        return kinds

    # -- what has come of it ---------------------------------------------------------------------------------

    @property
    def decided(self) -> bool:
        """Whether the server's verdict on every recipient is known."""
        return self.final is not None and len(self.accepted) + len(self.rejected) == len(self._recipients)

    @property
    def doubtful(self) -> bool:
        """Whether nobody could know, if it were cut now, if the message was taken."""
        return self.content_written

    @property
    def phase(self) -> str:
        """The name of where it stands: of the reply that cut it, else of the one that is owed next."""
        if self.content_begun:
            return "content"
        position = self._answered - 1 if self.step == CUT else self._answered
        return PHASES[self._owed[min(position, len(self._owed) - 1)]]

    @property
    def undecided(self) -> tuple[str, ...]:
        """The recipients whose fate hangs on replies to the content that have not come."""
        return tuple(self._undecided)

    def surplus(self) -> None:
        """There was a reply too many: a refusal before the content may have been meant for another command."""
        if not self.content_begun:
            self.final = None

    @property
    def keeps(self) -> bool:
        """Whether the session stands at a clean place and may carry the next transaction."""
        return self.step == DONE and self.clean

    @property
    def rset_due(self) -> bool:
        """Whether RSET must precede the next MAIL: unless the content was taken, the server may hold state."""
        return not self._taken

    # -- replies -----------------------------------------------------------------------------------------------

    def replies(self, replies: list[Reply]) -> None:
        """Take the replies that are owed next, no more than are owed; those behind a cut are not looked at."""
        owed = self._owed
        handlers = self._handlers
        answered = self._answered
        for reply in replies:
            kind = owed[answered]
            answered += 1
            self._answered = answered
            handlers[kind](self, reply)
            if self.step == CUT:
                break

    def _cut(self, problem: str, reply: Reply) -> None:
        self.step = CUT
        self.problem = problem
        self.culprit = reply

    def _unexpected(self, command: str, reply: Reply) -> None:
        if reply.code < 400:
            self.surplus()
        self._cut(f"the reply to {command} was {reply}", reply)

    def _rset(self, reply: Reply) -> None:
        if reply.code != 250 or reply.flaw is not None:
            # Content must not follow: the server may still hold the last message's recipients.
            self._unexpected("RSET", reply)
        elif not self._pipelining:
            self.step = COMMANDS

    def _mail(self, reply: Reply) -> None:
        code = reply.code
        if code == 250:
            if not self._pipelining:
                self.step = COMMANDS
        elif code == 421 or code < 400 or (code == 503 and self._reused):
            self._unexpected("MAIL", reply)
        else:
            self._mail_refused = reply
            if not (self._reused and self._pipelining):
                self._refuse_all(self._recipients, reply)
            # Else it may have been said into an idle session, a moment before MAIL came: the reply to RCPT shows it.
            if not self._pipelining:
                self.step = DONE

    def _rcpt(self, reply: Reply) -> None:
        code = reply.code
        recipient = self._recipients[self._recipient]
        self._recipient += 1
        if code in _RCPT_TAKEN:
            if self._mail_refused is None:
                self._taken_at_rcpt.append(recipient)
            else:
                self._contradicted = True
                if self._reused:
                    self.surplus()
        elif code == 421 or code < 400:
            self._unexpected("RCPT", reply)
            return
        elif self._mail_refused is not None:
            if not self._contradicted:
                self._refuse_all(self._recipients, self._mail_refused)
        else:
            self.rejected[recipient] = reply
            if code == 452 and self._taken_at_rcpt and reply.enhanced in _TOO_MANY_RECIPIENTS:
                self.excess.append(recipient)
            if len(self.rejected) == len(self._recipients):
                self.final = reply
        if not self._pipelining:
            self.step = COMMANDS
            if self._kinds[self._position] == DATA and not self.accepted:
                self.step = DONE

    def _data(self, reply: Reply) -> None:
        code = reply.code
        if self._contradicted and (code == 354 or self._reused):
            # Whatever this is the reply to: the server must see no end of content.
            self._cut(CONTRADICTION, reply)
        elif code == 354:
            self.step = CONTENT if self.accepted else EMPTY
        elif code == 421 or code < 400:
            self._unexpected("DATA", reply)
        else:
            if self.final is None:
                self._refuse_all(self.accepted, reply)
            self.accepted.clear()
            self.step = DONE

    def _dot(self, reply: Reply) -> None:
        code = reply.code
        if 300 <= code < 400:
            self._unexpected("the content", reply)
            return
        concerned = self._undecided[:1] if self._lmtp else self._undecided
        self._undecided = self._undecided[len(concerned) :]
        if code < 300:
            self.accepted += concerned
            # Only 250 is defined here: any other 2xx is success from a server that is not to be trusted further.
            self.clean = self.clean and code == 250
        else:
            self.rejected.update(dict.fromkeys(concerned, reply))
            self._refused_at_end = True
        self.final = reply
        if code == 421:
            self._cut("the server closes the session", reply)
        elif not self._undecided:
            self.step = DONE
            self._taken = not self._refused_at_end

    def early(self, reply: Reply) -> None:
        """Take a reply that came while the content was still being written: no dot may follow it."""
        if reply.negative:
            self._refuse_all(self._undecided, reply)
            self._undecided = []
        self._unexpected("content that was still being written", reply)

    def _lone_dot(self, reply: Reply) -> None:
        if reply.code == 421 or 300 <= reply.code < 400:
            self._unexpected("the lone dot", reply)
        else:
            self.step = DONE

    def _refuse_all(self, recipients: tuple[str, ...] | list[str], reply: Reply) -> None:
        self.rejected.update(dict.fromkeys(recipients, reply))
        self.final = reply

    _handlers: tuple[Callable[[Any, Reply], None], ...] = (_rset, _mail, _rcpt, _data, _dot, _lone_dot)
    """By kind."""
