"""The server's side of SMTP and LMTP, strict: what a client gets wrong is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mailcache.testing.authentication import Authentication
from mailcache.testing.envelopes import Path, Transaction, not_offered, parse_path, too_big
from mailcache.testing.receiving import BAD_SEQUENCE, GO_AHEAD, OK, SYNTAX, Receiving
from mailcache.testing.records import Connection

if TYPE_CHECKING:
    from mailcache.testing.server import SMTPServer

#: Octets of a command line without an end before it is refused (Postfix: line_length_limit).
MAX_COMMAND_LINE = 2048

#: Commands that must be the last of what is sent together (RFC 2920 3.1, RFC 3207 4, RFC 4954 4).
_LAST_IN_GROUP = frozenset({"EHLO", "LHLO", "HELO", "DATA", "STARTTLS", "AUTH", "QUIT", "NOOP", "VRFY"})


class Conversation(Receiving):
    """One connection of the scripted server."""

    def __init__(self, server: SMTPServer, record: Connection) -> None:
        super().__init__(server, record)
        self._greeting_refused = False
        self._hello = False
        self._first_hello_over = False  # EHLO after STARTTLS is expected or done
        self._authentication: Authentication | None = None

    # Beginning

    def greet(self) -> None:
        reply = self.verdict("banner", "", b"220 " + self.server.hostname.encode() + b" ESMTP ready\r\n")
        self._greeting_refused = reply[:1] != b"2"
        self.answer("banner", reply, self._hello_reply(True))
        self.flush()

    def tls_begun(self) -> None:
        if self.server.implicit_tls:
            self.greet()

    # Reading

    def consume(self) -> bool:
        if self.content is not None:
            return self.receive(self.content)
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
        if "PIPELINING" not in self.server.keywords and self.content is None:
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
        refused_data, self.data_refused = self.data_refused, False
        self.pipelined = not self.fresh_segment
        if self.pipelined and "PIPELINING" not in self.server.keywords:
            self.violation("pipelining without the capability")
        self.fresh_segment = False
        if verb in _LAST_IN_GROUP and self.buffer:
            self.violation(f"octets behind {verb}")
        handler = self._commands().get(verb)
        if handler is None:
            self.violation("content for a refused transaction" if refused_data else f"unknown command {verb!r}")
            self.queue(b"500 5.5.2 unknown command\r\n")
        elif self._greeting_refused and verb != "QUIT":
            self.queue(BAD_SEQUENCE)
        else:
            handler(text, rest)

    def _commands(self) -> dict[str, Callable[[str, str], None]]:
        commands: dict[str, Callable[[str, str], None]] = {
            "HELO": self._helo,
            "EHLO": self._ehlo,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self.data,
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
            commands["BDAT"] = self.bdat
        return commands

    # Session commands

    def _hello_reply(self, extended: bool) -> bytes:
        if not extended:
            return b"250 " + self.server.hostname.encode() + b"\r\n"
        lines = [self.server.hostname, *self.server.capabilities]
        if self.server.certificate is not None and not self.record.tls:
            lines.append("STARTTLS")
        if self.server.users is not None and (self.record.tls or self.server.auth_in_clear):
            lines.append(" ".join(("AUTH", *self.server.mechanisms)))
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
            self.transaction = None
            self.record.helo_name = name

        if self.record.tls:
            following = b"235 2.7.0 welcome\r\n" if self.server.users is not None else OK
        else:
            following = b"220 2.0.0 go ahead\r\n" if self.server.certificate is not None else OK
        self.answer(point, self.verdict(point, text, self._hello_reply(extended)), following, accepted)

    def _starttls(self, text: str, rest: str) -> None:
        if self.record.tls or self.transaction is not None:
            self.violation("second STARTTLS" if self.record.tls else "STARTTLS in a transaction")
            self.queue(BAD_SEQUENCE)
            return
        self.buffer.clear()
        reply = self.verdict("starttls", "", b"220 2.0.0 go ahead\r\n")

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
        if not (self.record.tls or self.server.auth_in_clear):
            self.violation("AUTH in clear")
            self.queue(b"538 5.7.11 encryption required\r\n")
        elif self.record.user is not None or self.transaction is not None or not self._hello:
            self.violation("second AUTH" if self.record.user is not None else "AUTH out of place")
            self.queue(BAD_SEQUENCE)
        else:
            mechanism, _, initial = rest.partition(" ")
            self._authentication = Authentication(
                self.queue,
                self._authenticated,
                self.server.users or {},
                self.server.mechanisms,
                self.record.client_name,
                self.violation,
                self.server.challenge,
            )
            self._authentication.begin(mechanism.upper(), initial.encode() if initial else None)

    def _authenticated(self, user: str | None, right: bool, refusal: bytes) -> None:
        self._authentication = None
        reply = b"235 2.7.0 welcome\r\n" if right else refusal
        self.answer(
            "auth",
            self.verdict("auth", user or "", reply),
            OK,
            lambda: setattr(self.record, "user", user),
        )

    def _rset(self, text: str, rest: str) -> None:
        self.answer("rset", self.verdict("rset", "", OK), OK, lambda: setattr(self, "transaction", None))

    def _quit(self, text: str, rest: str) -> None:
        self.record.quit_seen = True
        leaving = False

        def accepted() -> None:
            nonlocal leaving
            leaving = True

        def sent(octets: bytes, readable: bool) -> None:
            if leaving and not self.muted:
                self.close()

        self.answer("quit", self.verdict("quit", "", b"221 2.0.0 bye\r\n"), OK, accepted, sent)
        self.flush()

    # Transactions

    def _mail(self, text: str, rest: str) -> None:
        if self.transaction is not None or not self._hello:
            self.violation("MAIL in a transaction" if self._hello else "MAIL before EHLO")
            self.queue(BAD_SEQUENCE)
            return
        self.record.transactions += 1
        path = parse_path(text)
        reply = self._path_reply(text, path, b"250 2.1.0 ok\r\n")
        path = path or Path("", ())
        self.server.mail_seen(path.address)

        def accepted() -> None:
            self.transaction = Transaction(path.address, path.parameters)

        self.answer("mail", self.verdict("mail", path.address, reply), b"250 2.1.5 ok\r\n", accepted)

    def _rcpt(self, text: str, rest: str) -> None:
        transaction = self.transaction
        path = parse_path(text)
        reply = self._path_reply(text, path, b"250 2.1.5 ok\r\n")
        path = path or Path("", ())
        if transaction is None:
            if not (self.pending or self.pipelined):
                self.violation("RCPT without a transaction")
            reply = BAD_SEQUENCE

        def accepted() -> None:
            if transaction is not None:
                transaction.recipients.append(path.address)
                transaction.recipient_parameters[path.address] = path.parameters

        self.answer("rcpt", self.verdict("rcpt", path.address, reply), GO_AHEAD, accepted)

    def _path_reply(self, text: str, path: Path | None, right: bytes) -> bytes:
        if path is None:
            self.violation(f"syntax of {text!r}")
            return SYNTAX
        offered = dict(self.server.keywords)
        if self.server.users is not None:
            offered["AUTH"] = ""
        wrong = not_offered(path, self.transaction, offered)
        if wrong is not None:
            self.violation(wrong[0])
            return wrong[1]
        return b"552 5.3.4 message too big\r\n" if too_big(path, offered) else right

    # At rest

    @property
    def parked(self) -> bool:
        """Between transactions: nothing is open, and nothing is under way."""
        return (
            self._hello
            and self.record.closed is None
            and not (self.busy or self.muted or self.buffer or self.pending)
            and self.transaction is None
            and self.content is None
            and self._authentication is None
        )

    def strike_idle(self, kind: str) -> None:
        """Do this now, unasked."""
        if kind != "silence":
            self.strike("idle", kind, OK)
            self.flush(flights=0)
