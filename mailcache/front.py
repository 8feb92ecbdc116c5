"""The front: the server's side of SMTP for a client in the same process, with a kept session behind it.

A client that knows nothing of mailcache, such as the stock senders of `twisted.mail.smtp`, talks to it as to a server.
It answers the greeting, EHLO and AUTH itself. MAIL, each RCPT and the content are said to the real server as they come,
and the server's replies are handed back as they are; so results and errors are those that the server has given.

Which reply a client gets:

* What keeps a message from being sent is told in answer to MAIL, RCPT, DATA or the content, never by closing the
  connection, which would say nothing of why.
* Where nobody can know whether a message was delivered, the answer to the content is "554 5.4.0 delivered or not,
  nobody can know ...": a 5yz is no reason to send it again.
* QUIT ends the client's connection, and not the session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailcache.destination import Credentials
from mailcache.envelope import Needs
from mailcache.fronting.authenticating import MECHANISMS, Authentication
from mailcache.fronting.incoming import IncomingContent
from mailcache.fronting.relaying import MailCommand, Relay
from mailcache.fronting.replies import encoded, own
from mailcache.fronting.transport import FrontTransport
from mailcache.wire import commands
from mailcache.wire.commands import Command, CommandError
from mailcache.wire.replies import Reply

IDLE_LIMIT = 300.0
"""Seconds that a client may keep a session without a command (RFC 5321 4.5.3.2.7)."""

_OK = own(250, "2.0.0 Ok")
_BAD_SEQUENCE = own(503, "5.5.1 Bad sequence of commands")
_UNKNOWN = own(502, "5.5.1 Command not implemented")

# An address that our own encoder would not write: what it is worth is for the server to say.
_PLAIN = re.compile(rb"(?:MAIL FROM|RCPT TO):<[!-;=?-~]*>", re.IGNORECASE)


class Front:
    """The server's side of one client's connection.

    :param transport: the client's.
    :param relay: what is behind it.
    :param name: what it calls itself.
    :param clock: provides `IReactorTime`.
    """

    _log = Logger()

    def __init__(self, transport: FrontTransport, relay: Relay, name: str, clock: Any) -> None:
        self._transport = transport
        self._relay = relay
        self._name = name
        self._clock = clock
        self._buffer = b""
        self._skipping = False  # the rest of a line that is too long
        self._greeted = False
        self._authenticated = False
        self._authentication: Authentication | None = None
        self._incoming: IncomingContent | None = None
        self._in_file = False
        self._working: Deferred[Reply] | None = None
        self._idle: Any = None
        self._gone = False

    def greet(self) -> None:
        """Begin."""
        self._say(own(220, f"{self._name} ESMTP"))

    # -- from the client ---------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        if self._gone:
            return
        if self._incoming is not None and self._idle is not None:
            self._idle.reset(IDLE_LIMIT)
        if self._in_file and self._incoming is not None:
            self._incoming.add(data)
            return
        self._buffer += data
        self._proceed()

    def file_begins(self) -> None:
        self._in_file = self._incoming is not None

    def file_ends(self) -> None:
        self._in_file = False

    def file_failed(self) -> None:
        self._in_file = False
        self._drop_content()
        self._relay.end()
        self._say(own(554, "5.6.0 the content could not be read"))

    def client_gone(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._stop_waiting()
        if self._working is not None:
            self._working.cancel()
        self._drop_content()
        self._relay.end()

    def _proceed(self) -> None:
        """Do what has come, up to what must be waited for."""
        while self._working is None and not self._gone:
            if self._incoming is not None:
                data, self._buffer = self._buffer, b""
                behind = self._incoming.feed(data)
                if behind is None:
                    return
                self._buffer = behind
                self._content_received(self._incoming)
                continue
            line, end, rest = self._buffer.partition(b"\r\n")
            too_long = len(line.removesuffix(b"" if end else b"\r")) > commands.MAX_AUTH
            if too_long and not self._skipping:
                self._say(own(500, "5.5.2 Line too long"))
            if not end:
                if too_long or self._skipping:
                    # The rest of it is no command; the last byte may be half of its end.
                    self._skipping = True
                    self._buffer = line[-1:]
                return
            self._buffer = rest
            if too_long or self._skipping:
                self._skipping = False
                continue
            self._stop_waiting()
            if self._authentication is not None:
                self._take_authentication(self._authentication.respond(line))
            else:
                self._obey(line)

    # -- replies -----------------------------------------------------------------------------------------------

    def _say(self, reply: Reply) -> None:
        self._transport.deliver(encoded(reply))
        self._stop_waiting()
        if not self._gone:
            self._idle = self._clock.callLater(IDLE_LIMIT, self._idle_too_long)

    def _stop_waiting(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None and idle.active():
            idle.cancel()

    def _idle_too_long(self) -> None:
        self.client_gone()
        self._transport.deliver(encoded(own(421, "4.4.2 Idle for too long")))
        self._transport.hang_up()

    def _answer(self, answering: Coroutine[Any, Any, Reply]) -> None:
        """Say what comes of ``answering``, and nothing before it."""
        working = self._working = Deferred.fromCoroutine(answering)
        working.addCallbacks(self._answered, self._failed)

    def _answered(self, reply: Reply) -> None:
        self._working = None
        if not self._gone:
            self._say(reply)
            self._proceed()

    def _failed(self, failure: Failure) -> None:
        if self._gone and failure.check(CancelledError):
            self._working = None
            return
        self._log.failure("a defect in mailcache", failure)
        self._relay.end()
        self._answered(own(451, "4.3.0 a defect in mailcache"))

    # -- commands ----------------------------------------------------------------------------------------------

    def _obey(self, line: bytes) -> None:
        # Who speaks again has heard what was said before.
        self._relay.doubt = None
        try:
            command = commands.parse(line)
        except CommandError as error:
            if _PLAIN.fullmatch(line) is None:
                self._say(own(error.code, f"{error.enhanced} {error.text}"))
                return
            command = Command(line[:4].decode().upper())
        handler = self._HANDLERS.get(command.verb)
        if handler is None:
            self._say(_UNKNOWN)
        elif command.verb in ("AUTH", "MAIL", "RCPT", "DATA") and not self._greeted:
            self._say(_BAD_SEQUENCE)
        else:
            handler(self, command, line)

    def _helo(self, command: Command, line: bytes) -> None:
        self._greet(own(250, self._name))

    def _ehlo(self, command: Command, line: bytes) -> None:
        offered = [self._name, "AUTH " + b" ".join(MECHANISMS).decode()]
        known = self._relay.capabilities
        if known is not None:
            offered += [word for word in ("8BITMIME", "SMTPUTF8") if word in known.keywords]
            if known.size is not None:
                offered.append(f"SIZE {known.size}" if known.size else "SIZE")
        self._greet(Reply.make(250, *offered, "ENHANCEDSTATUSCODES"))

    def _greet(self, reply: Reply) -> None:
        if self._relay.in_transaction:
            self._relay.end()
        self._greeted = True
        self._say(reply)

    def _auth(self, command: Command, line: bytes) -> None:
        mechanism, _, initial = command.argument.partition(b" ")
        if self._authenticated or self._relay.in_transaction:
            self._say(_BAD_SEQUENCE)
        elif mechanism.upper() not in MECHANISMS:
            self._say(own(504, "5.5.4 Unrecognized authentication type"))
        else:
            self._authentication = Authentication(mechanism.upper())
            self._take_authentication(self._authentication.begin(initial))

    def _take_authentication(self, step: Reply | Credentials) -> None:
        if isinstance(step, Reply):
            if step.code != 334:
                self._authentication = None
            self._say(step)
        else:
            self._authentication = None
            self._answer(self._log_in(step))

    async def _log_in(self, credentials: Credentials) -> Reply:
        reply = await self._relay.log_in(credentials)
        self._authenticated = reply.positive
        return reply

    def _mail(self, command: Command, line: bytes) -> None:
        if self._relay.in_transaction:
            self._say(_BAD_SEQUENCE)
            return
        try:
            mail = _mail_command(command, line)
        except CommandError as error:
            self._say(own(error.code, f"{error.enhanced} {error.text}"))
            return
        self._answer(self._relay.mail(mail))

    def _rcpt(self, command: Command, line: bytes) -> None:
        if not self._relay.in_transaction:
            self._say(_BAD_SEQUENCE)
        elif command.parameters:
            self._say(own(555, "5.5.4 Unsupported parameter"))
        elif not line.isascii() and not self._relay.smtputf8:
            self._say(own(553, "5.6.7 SMTPUTF8 is needed for this address"))
        elif command.path is None:
            self._answer(self._relay.rcpt(line + b"\r\n"))
        else:
            # As we write it: a source route, which may have any characters, goes no further.
            self._answer(self._relay.rcpt(commands.rcpt(command.path, smtputf8=self._relay.smtputf8)))

    def _data(self, command: Command, line: bytes) -> None:
        if not self._relay.in_transaction:
            self._say(_BAD_SEQUENCE)
            return
        refusal = self._relay.refuses_content()
        if refusal is not None:
            self._say(refusal)
            return
        # The server is asked when all of it is there: nothing that befalls the client can cut it short then.
        self._incoming = IncomingContent()
        self._say(own(354, "End data with <CR><LF>.<CR><LF>"))

    def _content_received(self, incoming: IncomingContent) -> None:
        self._stop_waiting()
        self._incoming = None
        self._answer(self._send(incoming))

    async def _send(self, incoming: IncomingContent) -> Reply:
        try:
            if incoming.failed is not None:
                self._relay.end()
                return own(452, f"4.3.1 {incoming.failed}")
            return await self._relay.content(incoming.source())
        finally:
            incoming.close()

    def _drop_content(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.close()

    def _rset(self, command: Command, line: bytes) -> None:
        if self._relay.in_transaction:
            self._relay.end()
        self._say(_OK)

    def _noop(self, command: Command, line: bytes) -> None:
        self._say(_OK)

    def _vrfy(self, command: Command, line: bytes) -> None:
        self._say(own(252, "2.0.0 Cannot VRFY user, but will try to deliver"))

    def _quit(self, command: Command, line: bytes) -> None:
        self.client_gone()
        self._transport.deliver(encoded(own(221, "2.0.0 Bye")))
        self._transport.hang_up()

    _HANDLERS: dict[str, Callable[[Front, Command, bytes], None]] = {
        "EHLO": _ehlo,
        "HELO": _helo,
        "AUTH": _auth,
        "MAIL": _mail,
        "RCPT": _rcpt,
        "DATA": _data,
        "RSET": _rset,
        "NOOP": _noop,
        "VRFY": _vrfy,
        "QUIT": _quit,
    }


def _mail_command(command: Command, line: bytes) -> MailCommand:
    """What a client has said with MAIL.

    :raises CommandError: for parameters that are not offered, and addresses that need one that is not given.
    """
    size: int | None = None
    body: str | None = None
    smtputf8 = False
    for keyword, value in command.parameters.items():
        if keyword == "SIZE" and value is not None and value.isascii() and value.isdigit() and len(value) <= 20:
            size = int(value)
        elif keyword == "BODY" and value is not None and value.upper() in ("7BIT", "8BITMIME"):
            body = value.upper()
        elif keyword == "SMTPUTF8" and value is None:
            smtputf8 = True
        else:
            raise CommandError(555, "5.5.4", f"Unsupported parameter {keyword[:40]}")
    needs = Needs(smtputf8=smtputf8, eightbitmime=body == "8BITMIME", size=size)
    if command.path is None:
        return MailCommand(line, needs, size, False)
    if not command.path.isascii() and not smtputf8:
        raise CommandError(553, "5.6.7", "SMTPUTF8 is needed for this address")
    start = commands.mail(command.path, smtputf8=smtputf8)[:-2]
    return MailCommand(start, needs, size, body == "7BIT")
