"""Receiving a message on the server's side: DATA and BDAT, the content, and the answer to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailcache.testing.contents import ChunkContent, DataContent
from mailcache.testing.envelopes import Transaction, parse_chunk
from mailcache.testing.faults import REFUSING
from mailcache.testing.records import Connection, Message
from mailcache.testing.streams import FaultyStream, Sent, does_it

if TYPE_CHECKING:
    from mailcache.testing.server import SMTPServer

OK = b"250 2.0.0 ok\r\n"
TAKEN = b"250 2.0.0 ok: queued\r\n"
GO_AHEAD = b"354 go ahead\r\n"
BAD_SEQUENCE = b"503 5.5.1 bad sequence of commands\r\n"
SYNTAX = b"501 5.5.4 syntax error\r\n"
_NO_RECIPIENTS = b"554 5.5.1 no valid recipients\r\n"

#: What it is called when a client sends content that can't be for anybody.
REFUSED_CONTENT = "content for a refused transaction"


class Receiving(FaultyStream):
    """
    The half of the conversation that is about messages.

    @ivar transaction: what the last MAIL has begun, if it is still open.
    @ivar content: what is being received.
    @ivar data_refused: the last command was a DATA that was refused.
    @ivar pipelined: the command has come in one segment with another before it, whose reply nobody had when it was
        sent, however late that reply was.
    """

    def __init__(self, server: SMTPServer, record: Connection) -> None:
        super().__init__(server, record)
        self.transaction: Transaction | None = None
        self.content: DataContent | ChunkContent | None = None
        self.data_refused = False
        self.pipelined = False

    def verdict(self, point: str, argument: str, reply: bytes) -> bytes:
        """The reply, or what the test wants in its place."""
        chosen = self.server.verdict(point, argument, self.record) if self.server.verdict else None
        if chosen is None:
            return reply
        return chosen if not chosen or chosen.endswith(b"\r\n") else chosen + b"\r\n"

    def data(self, text: str, rest: str) -> None:
        """DATA."""
        transaction = self.transaction
        if transaction is None or transaction.chunks:
            if not (self.pending or self.pipelined):
                self.violation("DATA without a transaction" if transaction is None else "DATA after BDAT")
            reply = BAD_SEQUENCE
        else:
            reply = GO_AHEAD if transaction.recipients else _NO_RECIPIENTS
        reply = self.verdict("data", "", reply)
        going_ahead = False

        def accepted() -> None:
            nonlocal going_ahead
            going_ahead = True
            self.content = DataContent(self.server.keep_content)

        def sent(octets: bytes, readable: bool) -> None:
            if going_ahead and self.server.take("content", self.record, only="silence"):
                self.stop_reading()

        self.answer("data", reply, TAKEN, accepted, sent)
        self.data_refused = not going_ahead

    def bdat(self, text: str, rest: str) -> None:
        """BDAT, its octets to follow."""
        chunk = parse_chunk(text)
        if chunk is None:
            self.violation(f"syntax of {text!r}")
            self.queue(SYNTAX)
            return
        self.content = ChunkContent(*chunk)
        refused = self.transaction is None or not self.transaction.recipients
        if refused and not (self.pending or self.pipelined):
            self.violation(REFUSED_CONTENT)
        self.receive(self.content)  # it may be empty

    def receive(self, content: DataContent | ChunkContent) -> bool:
        """Take what is there of the content; False: there is no more to take."""
        data = bytes(self.buffer)
        self.buffer.clear()
        behind = content.feed(data)
        if behind is None:
            if content.received:
                self._strike_content()
            return False
        self.content = None
        self.buffer += behind
        if isinstance(content, DataContent):
            misplaced = content.misplaced()
            if misplaced is not None:
                self.violation(misplaced)
            self._end_of_content(content.content(), content.received)
            return True
        transaction = self.transaction
        if transaction is None or not transaction.recipients:
            self.queue(BAD_SEQUENCE if transaction is None else _NO_RECIPIENTS)
            if content.last:
                self.transaction = None
            return True
        transaction.chunks += content.content()
        if content.last:
            self._end_of_content(bytes(transaction.chunks), len(transaction.chunks))
        else:
            self.queue(b"250 2.0.0 %d octets\r\n" % content.received)
        return True

    def _strike_content(self) -> None:
        kind = self.server.take("content", self.record)
        if kind is None:
            return
        if kind == "silence":
            self.stop_reading()
            return
        self.strike("content", kind, TAKEN, OK)
        self.flush()
        self.muted = True

    def _end_of_content(self, content: bytes, octets: int) -> None:
        if self.buffer:
            self.violation("octets behind the end of content")
        transaction, self.transaction = self.transaction, None
        if transaction is None or not transaction.recipients:
            if octets:
                self.violation(REFUSED_CONTENT)
            self.queue(_NO_RECIPIENTS)
            return
        message = Message(
            self.record,
            self.record.transactions,
            transaction.sender,
            tuple(transaction.recipients),
            transaction.parameters,
            transaction.recipient_parameters,
            content,
            octets,
        )
        self.record.messages.append(message)
        self.server.messages.append(message)
        groups = [(each,) for each in message.recipients] if self.server.lmtp else [message.recipients]
        point = "dot"
        kind = self.server.take("dot", self.record)
        if kind in {"early", "dup", "unsolicited"} or kind in REFUSING:
            point = "after_dot"  # the same in effect: the reply decides, with the extra
        elif kind is not None:
            self.strike("dot", kind, TAKEN, OK, self._told(message, ()))
            return
        for group in groups[:-1]:
            self._decide(message, group, None)
        self._decide(message, groups[-1], kind or self.server.take("after_dot", self.record), point)

    def _decide(
        self, message: Message, recipients: tuple[str, ...], kind: str | None, point: str = "after_dot"
    ) -> None:
        """Take the message for these recipients, or don't, and answer for them."""
        argument = recipients[0] if self.server.lmtp else message.sender
        reply = self.verdict("dot", argument, TAKEN)
        if reply[:1] == b"2" and does_it("after_dot", kind):
            message.accepted.extend(recipients)
            self.server.note(self.record, f"took the message for {', '.join(recipients)}")
        told = self._told(message, recipients)
        if kind is None:
            self.queue(reply, told)
        else:
            self.strike("after_dot", kind, reply, OK, told)

    @staticmethod
    def _told(message: Message, recipients: tuple[str, ...]) -> Sent:
        def sent(octets: bytes, readable: bool) -> None:
            message.reply += octets
            if readable:
                message.answered.extend(recipients)

        return sent
