"""AUTH, while a session is opened: which mechanism, the exchange, and that no secret comes back out of it.

One mechanism is chosen, the best that both sides have, and tried once. Whatever comes of it, no weaker one is tried
after it, on no connection: that would hand a password to whoever makes the better ones fail.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Protocol

import attrs
from twisted.logger import Logger

from mailcache.credentials import EXTERNAL, PASSWORD, Credentials
from mailcache.result import DeliveryError
from mailcache.wire import commands, sasl
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply

MAX_CHALLENGES = 10
"""Challenges of one AUTH exchange: SCRAM takes two, and a server that asks for ever is none."""

ENOUGH_OF_A_SECRET = 8
"""Bytes of a password, or of what was said to log in, by which it is recognised in a reply that was cut short."""

REMEMBERED = 3600.0
"""Seconds for which it is remembered how well somebody could log in at a server."""

MAX_REMEMBERED = 10_000
"""Logins that are remembered, the oldest forgotten first."""


class Secrets:
    """What was said to log in, so that replies that repeat it are not passed on."""

    def __init__(self) -> None:
        self._beginnings: list[bytes] = []

    def keep(self, text: bytes) -> None:
        """``text`` is one."""
        if text:
            beginning = text[:ENOUGH_OF_A_SECRET]
            # In a reply, and as an error quotes what is none.
            self._beginnings += [beginning, repr(beginning)[2:-1].encode()]

    def told_by(self, text: bytes) -> bool:
        """Whether ``text`` has one."""
        return any(secret in text for secret in self._beginnings)

    def without(self, reply: Reply) -> Reply:
        """``reply`` for errors and logs: servers that do not know a command like to repeat it."""
        if not any(map(self.told_by, reply.lines)):
            return reply
        return Reply.make(reply.code, "(the server repeats a secret)")


class Logins:
    """The mechanisms by which logging in has succeeded: who takes one away may be somebody in between."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: OrderedDict[Hashable, tuple[str, float]] = OrderedDict()

    def succeeded(self, login: Hashable, mechanism: str) -> None:
        """``login``, an account at an endpoint, was by ``mechanism``."""
        self._known[login] = mechanism, self._now() + REMEMBERED
        self._known.move_to_end(login)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def last(self, login: Hashable) -> str | None:
        """The mechanism of the last time, if that is not too long ago."""
        mechanism, until = self._known.get(login, (None, 0.0))
        return mechanism if until > self._now() else None


class Error(Protocol):
    """Makes the error of this opening."""

    def __call__(self, message: str, *, reply: Reply | None = None, retriable: bool = True) -> DeliveryError: ...


@attrs.define(eq=False)
class Authentication:
    """One AUTH exchange.

    :ivar login: the account and the endpoint.
    :ivar in_clear: there is no TLS.
    :ivar proven: TLS has proved which server it is.
    :ivar ask: sends a line, fires its reply.
    :ivar check: raises unless a reply has this code, with these words.
    """

    credentials: Credentials
    capabilities: Capabilities
    logins: Logins
    login: Hashable
    in_clear: bool
    proven: bool
    secrets: Secrets
    ask: Callable[[bytes], Awaitable[Reply]]
    check: Callable[[Reply, int, str], None]
    error: Error

    _log = Logger()

    async def run(self) -> None:
        """Log in; raises `DeliveryError`, not retriable where the server refuses the credentials."""
        mechanism = self._choose()
        self.secrets.keep(self.credentials.secret.encode())
        reply = await self._begin(mechanism)
        for _ in range(MAX_CHALLENGES):
            if reply.code != 334:
                break
            reply = await self.ask(self._line(self._response(mechanism, reply)))
        problem = "" if mechanism.problem is None else f" ({self._shown(mechanism.problem)})"
        if reply.permanent:
            raise self.error(f"the server refuses the credentials{problem}", reply=reply, retriable=False)
        self.check(reply, 235, f"the server does not let us log in{problem}")
        self._finish(mechanism)
        self.logins.succeeded(self.login, mechanism.name)

    def _choose(self) -> sasl.Mechanism:
        credentials, offered = self.credentials, self.capabilities.auth
        if self.in_clear and credentials.kind != PASSWORD:
            raise self.error(f"a {credentials.kind} login is not sent in clear text", retriable=False)
        names = credentials.names(in_clear=self.in_clear)
        mechanism = sasl.choose(offered, names, credentials.makers())
        if mechanism is None:
            shown = ", ".join(sorted(offered)) or "none"
            raise self.error(f"no common mechanism to log in with; the server offers {shown}")
        last = self.logins.last(self.login)
        if last in names and names.index(last) < names.index(mechanism.name):
            words = f"the server does not offer {last} any more, by which we have logged in before"
            if not self.proven:
                raise self.error(f"{words}, and nothing proves that it is the server who says so")
            self._log.warn("{words}: {name} is next", words=words, name=mechanism.name)
        return mechanism

    async def _begin(self, mechanism: sasl.Mechanism) -> Reply:
        initial = mechanism.initial()
        command = commands.auth(mechanism.name, initial)
        if initial is None:
            return await self.ask(command)
        self._keep(base64.b64encode(initial))
        if len(command) <= commands.MAX_COMMAND:
            return await self.ask(command)
        # RFC 4954 section 4: what makes the command too long a line goes after it, where more is allowed.
        reply = await self.ask(commands.auth(mechanism.name, None))
        if reply.code != 334:
            return reply
        if reply.lines[-1].strip():
            raise self.error(f"{mechanism.name}: a challenge where none can be")
        return await self.ask(self._line(initial))

    def _response(self, mechanism: sasl.Mechanism, reply: Reply) -> bytes:
        try:
            return mechanism.respond(sasl.decode_challenge(reply.lines[-1]))
        except sasl.SaslError as error:
            raise self._broken(mechanism, error) from error

    def _finish(self, mechanism: sasl.Mechanism) -> None:
        try:
            mechanism.finish()
        except sasl.SaslError as error:
            raise self._broken(mechanism, error) from error

    def _broken(self, mechanism: sasl.Mechanism, error: sasl.SaslError) -> DeliveryError:
        # Who can't prove to be the server is not to hear from us at the next address either, by a weaker mechanism.
        final = isinstance(error, sasl.ServerNotProvenError)
        return self.error(f"{mechanism.name}: {self._shown(str(error))}", retriable=not final)

    def _shown(self, words: str) -> str:
        return "(the server repeats a secret)" if self.secrets.told_by(words.encode()) else words

    def _line(self, response: bytes) -> bytes:
        encoded = base64.b64encode(response)
        self._keep(encoded)
        return encoded + b"\r\n"

    def _keep(self, encoded: bytes) -> None:
        # A name is no secret, nor is what only says that a refusal was heard.
        if self.credentials.kind != EXTERNAL and encoded != b"AQ==":
            self.secrets.keep(encoded)
