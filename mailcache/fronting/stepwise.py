"""A transaction command by command over a leased session, for a client that wants each answer before it goes on.

Its rules are those of `mailcache.wire.transaction`: codes are checked for each command, a reply counts when all that
was read is parsed, content is written only behind a 354 for somebody who was accepted, and after its last byte
only the server's reply can say what became of it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mailcache.connection import Cut
from mailcache.contents import Content
from mailcache.result import DeliveryError, UncertainDelivery
from mailcache.wire import commands
from mailcache.wire.replies import Reply
from mailcache.wire.transaction import DATA, DOT, MAIL, PHASES, RCPT, RSET

_POSITIVE = {
    RSET: frozenset((250,)),
    MAIL: frozenset((250,)),
    RCPT: frozenset((250, 251, 252)),
    DATA: frozenset((354,)),
    DOT: frozenset(range(200, 300)),
}
"""The codes that say yes to each command; 4yz and 5yz say no, and all others end the session."""


class Stepwise:
    """One transaction on the session of ``lease``, which is at a clean place.

    All its Deferreds fire the server's reply, positive or negative. They fail with `DeliveryError` where the session
    is of no use any more and the message is certainly not delivered, with `UncertainDelivery` where nobody can know.
    Cancelling one cuts the session. One is waited for at a time.

    :ivar reused: the session has carried a message before.
    """

    def __init__(self, lease: Any) -> None:
        session = lease.session
        self._session = session
        self._endpoint = str(lease.endpoint)
        self._connection = session.connection
        self._timeouts = session.hand_over(self)
        self._limits = {
            RSET: self._timeouts.rset,
            MAIL: self._timeouts.mail,
            RCPT: self._timeouts.rcpt,
            DATA: self._timeouts.data,
        }
        self.reused = session.reused
        self._first = True
        self._uses = 0
        self._rset_due: bool = session.rset_due
        self._clean = True
        self._written = False
        self._kind = MAIL
        self._reply: Reply | None = None
        self._cut: Cut | None = None
        self._waiting: Deferred[Reply] | None = None

    # -- the commands ------------------------------------------------------------------------------------------

    async def mail(self, command: bytes) -> Reply:
        """MAIL, with RSET before it where one is due. ``command`` has its CRLF, here and below."""
        if self._rset_due:
            await self._ask(RSET, commands.RSET)
            self._rset_due = False
        return await self._ask(MAIL, command)

    def rcpt(self, command: bytes) -> Deferred[Reply]:
        """RCPT."""
        return self._ask(RCPT, command)

    async def content(self, source: Content) -> Reply:
        """DATA, and if the server says 354 the content; the reply is a refusal of DATA, or that to the content."""
        reply = await self._ask(DATA, commands.DATA)
        if reply.negative:
            return reply
        waiting = self._wait_for(DOT)
        limits = (self._timeouts.dot,)
        whole = source.whole()
        if whole is not None:
            self._connection.write_content(whole, limits)
        else:
            self._connection.stream_content(source.chunks(), self._timeouts.content, limits)
        return await waiting

    def finish(self) -> bool:
        """Give the conversation back; whether the lease can be released, and need not be discarded."""
        session, connection = self._session, self._connection
        connection.receiver = session
        session.returned(self._uses, self._rset_due)
        if not self._clean:
            # Without QUIT: it has closed the session, or is out of step.
            connection.leave(self._timeouts.quit)
        return self._clean and connection.quiet

    # -- one command -------------------------------------------------------------------------------------------

    def _ask(self, kind: int, command: bytes) -> Deferred[Reply]:
        waiting = self._wait_for(kind)
        if self._cut is None and not self._connection.quiet:
            self._cut = Cut("closed", "the session has ended")
        if self._cut is not None:
            self._fail(self._cut)
            return waiting
        limit = self._limits[kind]
        if self.reused and self._first:
            limit = min(limit, self._timeouts.first_reply)
        self._first = False
        if kind == MAIL:
            self._uses = 1
            self._rset_due = True
        self._connection.write(command, (limit,))
        return waiting

    def _wait_for(self, kind: int) -> Deferred[Reply]:
        self._kind = kind
        self._reply = None
        waiting: Deferred[Reply] = Deferred(self._cancelled)
        self._waiting = waiting
        return waiting

    def _answered(self, reply: Reply) -> None:
        kind, code = self._kind, reply.code
        if kind == DOT:
            self._connection.forget_content()
        if code in _POSITIVE[kind]:
            if kind == RSET and reply.flaw is not None:
                self._out_of_place(reply)
                return
            if kind == DOT:
                self._rset_due = False
                # Only 250 is defined here: any other is success from a server that is not to be trusted further.
                self._clean = code == 250
        elif code < 400 or kind == RSET or (kind == MAIL and code == 503 and self.reused):
            self._out_of_place(reply)
            return
        elif code == 421:
            if kind != DOT:
                self._out_of_place(reply)
                return
            self._clean = False
        self._fire(reply)

    def _out_of_place(self, reply: Reply) -> None:
        self._reply = None
        what = "the content" if self._kind == DOT else PHASES[self._kind].upper()
        self._connection.cut("reply", f"the reply to {what} was {reply}", reply)

    def _fire(self, reply: Reply) -> None:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        waiting.callback(reply)

    def _fail(self, cut: Cut) -> None:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        error: Exception
        if self._written:
            error = UncertainDelivery(f"the end of content was written, then {cut}", endpoint=self._endpoint)
        else:
            error = DeliveryError(
                str(cut),
                phase=PHASES[self._kind],
                retriable=cut.reason != "content",
                endpoint=self._endpoint,
                reply=cut.reply,
            )
        error.__cause__ = cut
        waiting.errback(Failure(error))

    def _cancelled(self, waiting: Deferred[Reply]) -> None:
        if not self._written:
            self._waiting = None
            waiting.errback(Failure(CancelledError()))
        self._connection.cut("aborted", "the delivery was cancelled")

    # -- what the connection tells -----------------------------------------------------------------------------

    def tls_established(self) -> None:
        raise AssertionError("TLS is set up before there is a session")

    def replies_received(self, replies: list[Reply]) -> None:
        (self._reply,) = replies

    def early_reply(self, reply: Reply) -> None:
        self._reply = reply

    def read_finished(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            self._answered(reply)

    def content_written(self) -> None:
        self._written = True

    def connection_cut(self, cut: Cut) -> None:
        self._cut = cut
        self._clean = False
        reply, self._reply = self._reply, None
        if self._waiting is None:
            return
        if reply is not None and self._counts(reply, cut):
            self._fire(reply)
        else:
            self._fail(cut)

    def _counts(self, reply: Reply, cut: Cut) -> bool:
        """Whether a reply that came with the end of the connection is the server's verdict all the same."""
        if self._kind == DOT:
            # Before the end of content was written only a refusal can be meant; behind it, whatever can be read.
            return reply.negative or (self._written and reply.positive)
        # A reply too many says that this one may have been meant for another command.
        refused = reply.negative and reply.code != 421 and self._kind != RSET
        return refused and cut.reason != "unsolicited"
