"""The server's side of SMTP and LMTP, strict: what a client gets wrong is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mailcache.testing.authentication import Authentication
from mailcache.testing.contents import ChunkContent, DataContent
from mailcache.testing.envelopes import Path, Transaction, not_offered, parse_chunk, parse_path, too_big
from mailcache.testing.faults import REFUSING
from mailcache.testing.records import Connection, Message
from mailcache.testing.streams import FaultyStream, Sent, does_it

if TYPE_CHECKING:
    from mailcache.testing.server import SMTPServer

#: Octets of a command line without an end before it is refused (Postfix: line_length_limit).
MAX_COMMAND_LINE = 2048

OK = b"250 2.0.0 ok\r\n"
TAKEN = b"250 2.0.0 ok: queued\r\n"
GO_AHEAD = b"354 go ahead\r\n"
_BAD_SEQUENCE = b"503 5.5.1 bad sequence of commands\r\n"
_SYNTAX = b"501 5.5.4 syntax error\r\n"
_REFUSED_CONTENT = "content for a refused transaction"
_NO_RECIPIENTS = b"554 5.5.1 no valid recipients\r\n"

#: Commands that must be the last of what is sent together (RFC 2920 3.1, RFC 3207 4, RFC 4954 4).
_LAST_IN_GROUP = frozenset({"EHLO", "LHLO", "HELO", "DATA", "STARTTLS", "AUTH", "QUIT", "NOOP", "VRFY"})


class Conversation(FaultyStream):
    """One connection of the scripted server."""

    def __init__(self, server: SMTPServer, record: Connection) -> None:
        super().__init__(server, record)
        self._greeting_refused = False
        self._hello = False
        self._first_hello_over = False  # EHLO after STARTTLS is expected or done
        self._transaction: Transaction | None = None
        self._content: DataContent | ChunkContent | None = None
        self._authentication: Authentication | None = None
        self._data_refused = False

    # Beginning

    def greet(self) -> None:
        reply = self._verdict("banner", "", b"220 " + self.server.hostname.encode() + b" ESMTP ready\r\n")
        self._greeting_refused = reply[:1] != b"2"
        self.answer("banner", reply, self._hello_reply(True))
        self.flush()

    def tls_begun(self) -> None:
        if self.server.implicit_tls:
            self.greet()

    # Reading

    def consume(self) -> bool:
        if self._content is not None:
            return self._consume_content(self._content)
        end = self.buffer.find(b"\n")
        if end < 0:
            if len(self.buffer) > MAX_COMMAND_LINE:
                self.violation("command line too long")
                self.buffer.clear()
                self.queue(b"500 5.5.6 line too long\r\n")
            return False
        line = bytes(self.buffer[: end + 1])
        del self.buffer[: end + 1]
        if not line.endswith(b"\r\n"):
            self.violation("bare LF in a command")
        elif b"\r" in line[:-2]:
            self.violation("bare CR in a command")
        self._line(line.rstrip(b"\r\n"))
        return True

    def arrived_while_busy(self) -> None:
        if "PIPELINING" not in self.server.keywords and self._content is None:
            self.violation("pipelining without the capability")

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        if self._authentication is not None:
            self._authentication.line(line)
            return
        verb, _, rest = text.partition(" ")
        verb = verb.upper()
        self.record.commands.append(f"AUTH {rest.split(' ')[0]}".rstrip() if verb == "AUTH" else text)
        self.server.note(self.record, self.record.commands[-1])
        refused_data, self._data_refused = self._data_refused, False
        if not self.fresh_segment and "PIPELINING" not in self.server.keywords:
            self.violation("pipelining without the capability")
        self.fresh_segment = False
        if verb in _LAST_IN_GROUP and self.buffer:
            self.violation(f"octets behind {verb}")
        handler = self._commands().get(verb)
        if handler is None:
            self.violation("content for a refused transaction" if refused_data else f"unknown command {verb!r}")
            self.queue(b"500 5.5.2 unknown command\r\n")
        elif self._greeting_refused and verb != "QUIT":
            self.queue(_BAD_SEQUENCE)
        else:
            handler(text, rest)

    def _commands(self) -> dict[str, Callable[[str, str], None]]:
        commands: dict[str, Callable[[str, str], None]] = {
            "HELO": self._helo,
            "EHLO": self._ehlo,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": lambda text, rest: self.queue(OK),
            "VRFY": lambda text, rest: self.queue(b"252 2.0.0 try it\r\n"),
            "QUIT": self._quit,
        }
        if self.server.lmtp:
            del commands["HELO"], commands["EHLO"]
            commands["LHLO"] = self._ehlo
        if self.server.certificate is not None:
            commands["STARTTLS"] = self._starttls
        if self.server.users is not None:
            commands["AUTH"] = self._auth
        if "CHUNKING" in self.server.keywords:
            commands["BDAT"] = self._bdat
        return commands

    # Session commands

    def _hello_reply(self, extended: bool) -> bytes:
        if not extended:
            return b"250 " + self.server.hostname.encode() + b"\r\n"
        lines = [self.server.hostname, *self.server.capabilities]
        if self.server.certificate is not None and not self.record.tls:
            lines.append("STARTTLS")
        if self.server.users is not None and self.record.tls:
            lines.append("AUTH PLAIN LOGIN")
        return b"".join(b"250-" + line.encode() + b"\r\n" for line in lines[:-1]) + (
            b"250 " + lines[-1].encode() + b"\r\n"
        )

    def _helo(self, text: str, rest: str) -> None:
        self._greeted_by(text, rest, False)

    def _ehlo(self, text: str, rest: str) -> None:
        self._greeted_by(text, rest, True)

    def _greeted_by(self, text: str, name: str, extended: bool) -> None:
        if not name:
            self.violation(f"no name in {text!r}")
        point = "ehlo2" if self._first_hello_over else "ehlo"

        def accepted() -> None:
            self._hello = True
            self._transaction = None
            self.record.helo_name = name

        if self.record.tls:
            following = b"235 2.7.0 welcome\r\n" if self.server.users is not None else OK
        else:
            following = b"220 2.0.0 go ahead\r\n" if self.server.certificate is not None else OK
        self.answer(point, self._verdict(point, text, self._hello_reply(extended)), following, accepted)

    def _starttls(self, text: str, rest: str) -> None:
        if self.record.tls or self._transaction is not None:
            self.violation("second STARTTLS" if self.record.tls else "STARTTLS in a transaction")
            self.queue(_BAD_SEQUENCE)
            return
        self.buffer.clear()
        reply = self._verdict("starttls", "", b"220 2.0.0 go ahead\r\n")

        going_ahead = False

        def accepted() -> None:
            nonlocal going_ahead
            going_ahead = True
            self._hello, self._first_hello_over = False, True

        def sent(octets: bytes, readable: bool) -> None:
            if going_ahead:
                self._expect_handshake()

        self.answer("starttls", reply, self._hello_reply(True), accepted, sent)
        self.flush()

    def _auth(self, text: str, rest: str) -> None:
        if not self.record.tls:
            self.violation("AUTH in clear")
            self.queue(b"538 5.7.11 encryption required\r\n")
        elif self.record.user is not None or self._transaction is not None or not self._hello:
            self.violation("second AUTH" if self.record.user is not None else "AUTH out of place")
            self.queue(_BAD_SEQUENCE)
        else:
            mechanism, _, initial = rest.partition(" ")
            self._authentication = Authentication(self.queue, self._authenticated)
            self._authentication.begin(mechanism.upper(), initial.encode() if initial else None)

    def _authenticated(self, user: str | None, password: str, refusal: bytes) -> None:
        self._authentication = None
        users = self.server.users or {}
        right = user is not None and users.get(user) == password
        reply = b"235 2.7.0 welcome\r\n" if right else refusal
        self.answer(
            "auth",
            self._verdict("auth", user or "", reply),
            OK,
            lambda: setattr(self.record, "user", user),
        )

    def _rset(self, text: str, rest: str) -> None:
        self.answer("rset", self._verdict("rset", "", OK), OK, lambda: setattr(self, "_transaction", None))

    def _quit(self, text: str, rest: str) -> None:
        self.record.quit_seen = True
        leaving = False

        def accepted() -> None:
            nonlocal leaving
            leaving = True

        def sent(octets: bytes, readable: bool) -> None:
            if leaving and not self.muted:
                self.close()

        self.answer("quit", self._verdict("quit", "", b"221 2.0.0 bye\r\n"), OK, accepted, sent)
        self.flush()

    # Transactions

    def _mail(self, text: str, rest: str) -> None:
        if self._transaction is not None or not self._hello:
            self.violation("MAIL in a transaction" if self._hello else "MAIL before EHLO")
            self.queue(_BAD_SEQUENCE)
            return
        self.record.transactions += 1
        path = parse_path(text)
        reply = self._path_reply(text, path, b"250 2.1.0 ok\r\n")
        path = path or Path("", ())
        self.server.mail_seen(path.address)

        def accepted() -> None:
            self._transaction = Transaction(path.address, path.parameters)

        self.answer("mail", self._verdict("mail", path.address, reply), b"250 2.1.5 ok\r\n", accepted)

    def _rcpt(self, text: str, rest: str) -> None:
        transaction = self._transaction
        path = parse_path(text)
        reply = self._path_reply(text, path, b"250 2.1.5 ok\r\n")
        path = path or Path("", ())
        if transaction is None:
            if not self.pending:
                self.violation("RCPT without a transaction")
            reply = _BAD_SEQUENCE

        def accepted() -> None:
            if transaction is not None:
                transaction.recipients.append(path.address)
                transaction.recipient_parameters[path.address] = path.parameters

        self.answer("rcpt", self._verdict("rcpt", path.address, reply), GO_AHEAD, accepted)

    def _path_reply(self, text: str, path: Path | None, right: bytes) -> bytes:
        if path is None:
            self.violation(f"syntax of {text!r}")
            return _SYNTAX
        offered = dict(self.server.keywords)
        if self.server.users is not None:
            offered["AUTH"] = ""
        wrong = not_offered(path, self._transaction, offered)
        if wrong is not None:
            self.violation(wrong[0])
            return wrong[1]
        return b"552 5.3.4 message too big\r\n" if too_big(path, offered) else right

    def _data(self, text: str, rest: str) -> None:
        transaction = self._transaction
        if transaction is None or transaction.chunks:
            if not self.pending:
                self.violation("DATA without a transaction" if transaction is None else "DATA after BDAT")
            reply = _BAD_SEQUENCE
        else:
            reply = GO_AHEAD if transaction.recipients else _NO_RECIPIENTS
        reply = self._verdict("data", "", reply)
        going_ahead = False

        def accepted() -> None:
            nonlocal going_ahead
            going_ahead = True
            self._content = DataContent()

        def sent(octets: bytes, readable: bool) -> None:
            if going_ahead and self.server.take("content", self.record, only="silence"):
                self.stop_reading()

        self.answer("data", reply, TAKEN, accepted, sent)
        self._data_refused = not going_ahead

    def _bdat(self, text: str, rest: str) -> None:
        chunk = parse_chunk(text)
        if chunk is None:
            self.violation(f"syntax of {text!r}")
            self.queue(_SYNTAX)
            return
        self._content = ChunkContent(*chunk)
        if (self._transaction is None or not self._transaction.recipients) and not self.pending:
            self.violation(_REFUSED_CONTENT)
        self._consume_content(self._content)  # it may be empty

    # Content

    def _consume_content(self, content: DataContent | ChunkContent) -> bool:
        data = bytes(self.buffer)
        self.buffer.clear()
        behind = content.feed(data)
        if behind is None:
            if content.received:
                self._strike_content()
            return False
        self._content = None
        self.buffer += behind
        if isinstance(content, DataContent):
            misplaced = content.misplaced()
            if misplaced is not None:
                self.violation(misplaced)
            self._end_of_content(content.content())
            return True
        transaction = self._transaction
        if transaction is None or not transaction.recipients:
            self.queue(_BAD_SEQUENCE if transaction is None else _NO_RECIPIENTS)
            if content.last:
                self._transaction = None
            return True
        transaction.chunks += content.content()
        if content.last:
            self._end_of_content(bytes(transaction.chunks))
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

    def _end_of_content(self, content: bytes) -> None:
        if self.buffer:
            self.violation("octets behind the end of content")
        transaction, self._transaction = self._transaction, None
        if transaction is None or not transaction.recipients:
            if content:
                self.violation(_REFUSED_CONTENT)
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
        reply = self._verdict("dot", argument, TAKEN)
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

    # At rest

    @property
    def parked(self) -> bool:
        """Between transactions: nothing is open, and nothing is under way."""
        return (
            self._hello
            and self.record.closed is None
            and not (self.busy or self.muted or self.buffer or self.pending)
            and self._transaction is None
            and self._content is None
            and self._authentication is None
        )

    def strike_idle(self, kind: str) -> None:
        """Do this now, unasked."""
        if kind != "silence":
            self.strike("idle", kind, OK)
            self.flush(flights=0)

    def _verdict(self, point: str, argument: str, reply: bytes) -> bytes:
        """The reply, or what the test wants in its place."""
        chosen = self.server.verdict(point, argument, self.record) if self.server.verdict else None
        if chosen is None:
            return reply
        return chosen if chosen.endswith(b"\r\n") else chosen + b"\r\n"
