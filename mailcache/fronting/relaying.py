"""One client's transactions on their way to the server, each on a leased session, silently on a second one if need be.

It is `mailcache.delivery` for a client that gives a message piece by piece. What the server has answered stays true:
on a second session MAIL and the recipients that were accepted are said again, and where it answers otherwise there,
the message is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import attrs

from mailcache.contents import Content
from mailcache.delivery import MAX_ATTEMPTS
from mailcache.destination import Credentials, Destination, Endpoint
from mailcache.envelope import Needs
from mailcache.fronting.replies import doubt, own, refusal
from mailcache.fronting.stepwise import Stepwise
from mailcache.result import DeliveryError, UncertainDelivery
from mailcache.trust.policy import TLSPolicy
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply


@attrs.frozen
class MailCommand:
    """What a client has said with MAIL: the command up to the path, and what else it told."""

    start: bytes
    needs: Needs
    size: int | None
    seven_bit: bool

    def line(self, capabilities: Capabilities) -> bytes:
        """The command for a server with ``capabilities``."""
        line = self.start
        if self.size is not None and capabilities.size is not None:
            line += b" SIZE=%d" % self.size
        # What is not said to be 7-bit may have 8-bit bytes, as a file may.
        if not self.seven_bit and capabilities.eightbitmime:
            line += b" BODY=8BITMIME"
        return line + b"\r\n"


class _Refused(Exception):  # noqa: N818  (never seen outside)
    """The server's answers on the second session are not those on the first."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class Relay:
    """What a front has behind it.

    :ivar destination: where the mail goes, with the credentials once they are known.
    :ivar failed: why no session could be had, until the client is told.
    :ivar verdict: what the first MAIL is answered with, whatever it says; ``None`` asks the server.
    :ivar doubt: what the client is to hear of a message of which nobody can know whether it was delivered; ``None`` if
        there is none, or it has heard.
    """

    def __init__(self, cache: Any, destination: Destination) -> None:
        self._cache = cache
        self.destination = destination
        self.failed: DeliveryError | None = None
        self.verdict: Reply | None = None
        self.doubt: Reply | None = None
        self._lease: Any = None
        self._step: Stepwise | None = None
        self._forget()

    def _forget(self) -> None:
        self._mail: MailCommand | None = None
        self._needs = Needs()
        self._recipients: list[bytes] = []
        self._refusal: Reply | None = None
        self._attempts = 0
        self._avoid: frozenset[Endpoint] = frozenset()

    @property
    def capabilities(self) -> Capabilities | None:
        """Those of the server, where a session is at hand."""
        return None if self._lease is None else self._lease.capabilities

    @property
    def in_transaction(self) -> bool:
        """Whether MAIL was accepted, and what it began is not over."""
        return self._mail is not None

    async def prepare(self, needs: Needs | None = None) -> None:
        """Have a session at hand that meets ``needs``; raises the cache's `DeliveryError` where there is none."""
        if self._lease is not None and (needs is None or needs.unmet_by(self._lease.capabilities) is None):
            return
        self.end()
        self._lease = await self._cache.acquire(self.destination, needs=needs or Needs())

    async def log_in(self, credentials: Credentials) -> Reply:
        """The credentials of the client: those of the session, or they must be equal to them."""
        known = self.destination.credentials
        if known is None:
            self.end()
            self.failed = None
            self.destination = with_credentials(self.destination, credentials)
        elif not same_login(known, credentials):
            return own(535, "5.7.8 not the credentials of this destination")
        if self.failed is None and self.verdict is None:
            try:
                await self.prepare()
            except DeliveryError as error:
                self.failed = error
        if self.failed is not None and self.failed.phase == "auth":
            reply = refusal(self.failed)
            # A 4yz is the answer to MAIL, where every client takes it for what it is.
            if reply.permanent:
                return reply
        return own(235, "2.7.0 Authentication succeeded")

    async def mail(self, command: MailCommand) -> Reply:
        """The answer to MAIL."""
        if self.verdict is not None:
            verdict, self.verdict = self.verdict, None
            return verdict
        if self.failed is not None:
            failed, self.failed = self.failed, None
            return refusal(failed)
        try:
            await self.prepare(command.needs)
        except DeliveryError as error:
            return refusal(error)
        self._needs = command.needs
        reply = await self._answer(lambda step: step.mail(command.line(self._lease.capabilities)))
        if reply.positive:
            self._mail = command
        else:
            self.end()
        return reply

    @property
    def smtputf8(self) -> bool:
        """Whether MAIL has asked for SMTPUTF8."""
        return self._needs.smtputf8

    async def rcpt(self, line: bytes) -> Reply:
        """The answer to RCPT, a whole command."""
        if self._refusal is not None:
            return self._refusal
        reply = await self._answer(lambda step: step.rcpt(line))
        if reply.positive:
            self._recipients.append(line)
        return reply

    def refuses_content(self) -> Reply | None:
        """Why no content is wanted, or ``None`` if it is."""
        if self._refusal is not None:
            return self._refusal
        return None if self._recipients else own(554, "5.5.1 No valid recipients")

    async def content(self, source: Content) -> Reply:
        """The answer to the content, after which the transaction is over, and the session back in the cache."""

        async def send(step: Stepwise) -> Reply:
            if not source.rewind():
                raise _Refused(own(451, "4.6.0 the content can't be read again"))
            return await step.content(source)

        try:
            return await self._answer(send)
        except UncertainDelivery as error:
            self.doubt = doubt(error)
            return self.doubt
        finally:
            self.end()

    def end(self) -> None:
        """Whatever there was is over: the session goes back if it stands at a clean place."""
        clean = self._step is None or self._step.finish()
        lease, self._lease, self._step = self._lease, None, None
        self._forget()
        if lease is None:
            return
        if clean:
            lease.release()
        else:
            lease.discard()

    # -- sessions ----------------------------------------------------------------------------------------------

    async def _answer(self, ask: Callable[[Stepwise], Awaitable[Reply]]) -> Reply:
        """What the server says, on a second session where the first is of no use; and if there is none, why."""
        try:
            while True:
                try:
                    return await ask(await self._stand())
                except DeliveryError as error:
                    await self._begin_again(error)
        except DeliveryError as error:
            self._refusal = refusal(error)
        except _Refused as refused:
            self._refusal = refused.reply
        return self._refusal

    async def _stand(self) -> Stepwise:
        """The session, where the client thinks that it stands."""
        if self._step is None:
            self._attempts += 1
            self._step = step = Stepwise(self._lease)
            if self._mail is not None:
                reply = await step.mail(self._mail.line(self._lease.capabilities))
                if reply.negative:
                    raise _Refused(reply)
            for line in self._recipients:
                reply = await step.rcpt(line)
                if reply.negative:
                    raise _Refused(own(451, f"4.4.2 connection lost; a recipient accepted before was refused: {reply}"))
        return self._step

    async def _begin_again(self, error: DeliveryError) -> None:
        """Have a second session, or raise ``error``."""
        if not error.retriable or self._attempts >= MAX_ATTEMPTS:
            raise error
        lease, step = self._lease, self._step
        assert step is not None
        if not step.reused:
            self._avoid |= {lease.endpoint}
        # The request for a fresh session queues before the place of the dead one is given away.
        leasing = self._cache.acquire(self.destination, needs=self._needs, fresh=True, avoid=self._avoid)
        step.finish()
        self._lease = self._step = None
        lease.discard()
        try:
            self._lease = await leasing
        except DeliveryError as second:
            raise (error if second.phase == "routing" else second) from None


def same_login(known: Credentials, sent: Credentials) -> bool:
    """Whether a client has sent a name and password that are ``known``, whatever else is said of these."""
    return (known.username, known.password) == (sent.username, sent.password)


@lru_cache(maxsize=64)
def with_credentials(destination: Destination, credentials: Credentials) -> Destination:
    """``destination`` for who logs in with ``credentials``; with "verify" where its level says nothing of TLS."""
    settings = {name: getattr(destination, name) for name in _SETTINGS}
    tls = None if destination.tls == TLSPolicy("may") else destination.tls
    return Destination(**{**settings, "credentials": credentials, "tls": tls})


_SETTINGS = tuple(signature(Destination).parameters)
