"""From an endpoint to a session that is ready: connect, greeting, EHLO, STARTTLS, the judge, EHLO again, AUTH."""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectBindError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from mailcache.authentication import Authentication, Logins, Secrets
from mailcache.connection import Connection, Cut
from mailcache.destination import Destination, SessionKey
from mailcache.limits import Timeouts
from mailcache.result import DeliveryError
from mailcache.routing.route import Hop
from mailcache.session import Session
from mailcache.tls import Contexts
from mailcache.trust.evidence import CLEAR, Evidence
from mailcache.trust.judge import Verdict, judge
from mailcache.trust.opportunism import Opportunism
from mailcache.trust.policy import Requirement
from mailcache.wire import commands
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply

Proxy = Callable[[str, int], IStreamClientEndpoint]
"""Gives the endpoint that connects to this host, a name or an address, and port by way of the proxy."""

_identifiers = itertools.count(1)


class Dialogue:
    """The receiver while a session is being opened: one command, one reply."""

    def __init__(self) -> None:
        self._waiting: Deferred[Reply | None] | None = None
        self._reply: Reply | None = None
        self._established = False
        self._cut: Cut | None = None

    def next_event(self) -> Deferred[Reply | None]:
        """Fires the next reply, or ``None`` for an established handshake, when all of its read was parsed.

        Fails with `Cut` if the connection ends first.
        """
        event: Deferred[Reply | None] = Deferred()
        if self._cut is not None:
            event.errback(Failure(self._cut))
        else:
            self._waiting = event
        return event

    def tls_established(self) -> None:
        self._established = True

    def replies_received(self, replies: list[Reply]) -> None:
        (self._reply,) = replies

    def early_reply(self, reply: Reply) -> None:
        raise AssertionError("no content is written while a session is opened")

    def content_written(self) -> None:
        raise AssertionError("no content is written while a session is opened")

    def read_finished(self) -> None:
        if self._reply is None and not self._established:
            return
        reply, self._reply, self._established = self._reply, None, False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(reply)

    def connection_cut(self, cut: Cut) -> None:
        self._cut = cut
        reply, self._reply = self._reply, None
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.called:
            return
        if reply is not None and reply.negative and cut.reason == "closed":
            # A refusal in one read with TLS's close_notify: it says why, and whether to come again.
            waiting.callback(reply)
        else:
            waiting.errback(Failure(cut))


@attrs.define(eq=False)
class Opener:
    """Opens sessions; what it needs is the same for all of a cache.

    :ivar gone: called with each `Connection` that was made when its transport is closed.
    :ivar wall: gives seconds since 1970, for the validity of certificates.
    :ivar proxies: by their names.
    """

    reactor: Any
    timeouts: Timeouts
    now: Callable[[], float]
    wall: Callable[[], float]
    gone: Callable[[Connection], None]
    proxies: Mapping[str, Proxy] = attrs.Factory(dict)
    opportunism: Opportunism = attrs.Factory(Opportunism)
    contexts: Contexts = attrs.Factory(Contexts)
    logins: Logins = attrs.Factory(lambda self: Logins(self.now), takes_self=True)

    def open(
        self,
        destination: Destination,
        hop: Hop,
        key: SessionKey,
        requirement: Requirement,
        connected: Callable[[Connection], None],
    ) -> Deferred[Session]:
        """Open a session with ``hop`` that meets ``requirement``.

        :param connected: called with the connection once it is made, so that its deadline is looked after.
        :return: fires the session, fails with `DeliveryError`. Can be cancelled.
        """
        attempt = _Attempt(self, destination, hop, key, requirement, connected)
        return Deferred.fromCoroutine(attempt.run())


class _Attempt:
    """One attempt to open a session."""

    def __init__(
        self,
        opener: Opener,
        destination: Destination,
        hop: Hop,
        key: SessionKey,
        requirement: Requirement,
        connected: Callable[[Connection], None],
    ) -> None:
        self._opener = opener
        self._connected = connected
        self._timeouts = opener.timeouts
        self._destination = destination
        self._hop = hop
        self._key = key
        self._requirement = requirement
        self._dialogue = Dialogue()
        self._connection = Connection(self._dialogue, opener.now, opener.gone)
        self._phase = "connect"
        self._verdict = Verdict(False, "not judged")
        self._instead_of_tls = False
        self._secrets = Secrets()

    async def run(self) -> Session:
        started = self._opener.now()
        await self._connect()
        try:
            return await self._open(started)
        except Cut as cut:
            if self._phase == "tls" and cut.reason != "aborted":
                self._opener.opportunism.failed(self._hop.endpoint, self._opener.now())
            if self._secrets.told_by(str(cut).encode()):
                raise self._error(f"{cut.reason}: the server repeats a secret") from None
            raise self._error(str(cut), reply=cut.reply) from cut
        except DeliveryError as error:
            if error.reply is not None and error.reply.code != 421:
                self._connection.quit(self._timeouts.quit)
            else:
                self._connection.leave(self._timeouts.quit)
            raise
        except BaseException:
            self._connection.cut("aborted", "the opening was given up")
            raise

    def _error(self, message: str, *, reply: Reply | None = None, retriable: bool = True) -> DeliveryError:
        return DeliveryError(
            message,
            phase=self._phase,
            retriable=retriable,
            endpoint=str(self._hop.endpoint),
            reply=reply if reply is None else self._secrets.without(reply),
        )

    async def _open(self, started: float) -> Session:
        connection = self._connection
        evidence = CLEAR
        if self._destination.protocol == "smtps":
            evidence, greeting = await self._handshake(self._timeouts.greeting)
            self._phase = "greeting"
            if greeting is None:
                greeting = await self._dialogue.next_event()
            assert greeting is not None
        else:
            self._phase = "greeting"
            greeting = await self._reply(b"", self._timeouts.greeting)
        self._check(greeting, 220, "the server does not serve")
        capabilities = await self._hello(evidence)
        if evidence is CLEAR and self._requirement.wants_tls and not self._tls_is_given_up():
            evidence = await self._starttls(capabilities)
            if evidence is not CLEAR:
                # What was offered in clear is forgotten (RFC 3207 4.2).
                capabilities = await self._hello(evidence)
        if evidence is CLEAR:
            self._judge(evidence)
            capabilities = capabilities.without("REQUIRETLS")  # it means nothing in clear text (RFC 8689 2)
        if self._destination.credentials is not None:
            await self._authenticate(capabilities, evidence)
        return Session(
            connection,
            identifier=f"{next(_identifiers):x}",
            key=self._key,
            host=self._hop.host,
            capabilities=capabilities,
            evidence=evidence,
            verdict=self._verdict,
            timeouts=self._timeouts,
            setup_seconds=self._opener.now() - started,
            instead_of_tls=self._instead_of_tls,
        )

    async def _connect(self) -> None:
        factory = Factory.forProtocol(lambda: self._connection)
        factory.noisy = False
        endpoint = self._client_endpoint()
        connecting = endpoint.connect(factory)
        if self._destination.proxy is not None:
            # Other endpoints have their own limit, which says more.
            connecting.addTimeout(self._timeouts.connect, self._opener.reactor)
        try:
            await connecting
        except CancelledError:
            raise
        except Exception as error:
            if isinstance(error, ConnectBindError):
                self._phase = "bind"
            raise self._error(f"no connection: {error}") from error
        connection = self._connection
        if self._destination.proxy is None:
            wire: Any = connection.transport
            # Without the endpoint's wrapper between: what is read comes straight to the connection.
            wire.protocol = connection
        self._connected(connection)

    def _client_endpoint(self) -> IStreamClientEndpoint:
        reactor = self._opener.reactor
        endpoint = self._hop.endpoint
        limit = self._timeouts.connect
        proxy = self._destination.proxy
        if proxy is not None:
            connect = self._opener.proxies.get(proxy)
            if connect is None:
                known = ", ".join(self._opener.proxies) or "none"
                raise self._error(f"the proxy {proxy!r} is not known to this cache; it has {known}", retriable=False)
            assert endpoint.port is not None
            return connect(endpoint.address, endpoint.port)
        if endpoint.port is None:
            return UNIXClientEndpoint(reactor, endpoint.address, limit)
        bound = self._destination.bind_address
        bind_address = None if bound is None else (bound, 0)
        version = 6 if ":" in endpoint.address else 4
        if bound is not None and ipaddress.ip_address(bound).version != version:
            self._phase = "bind"
            raise self._error(f"the bind address {bound} can't reach an IPv{version} address")
        kind = TCP6ClientEndpoint if version == 6 else TCP4ClientEndpoint
        return kind(reactor, endpoint.address, endpoint.port, limit, bind_address)

    async def _reply(self, command: bytes, limit: float) -> Reply:
        event = self._dialogue.next_event()
        self._connection.write(command, (limit,))
        reply = await event
        assert reply is not None
        return reply

    def _check(self, reply: Reply, code: int, problem: str) -> None:
        if reply.negative:
            raise self._error(problem, reply=reply)
        if reply.code != code:
            self._connection.cut("reply", "a reply out of place", reply)
            raise self._error(f"a reply out of place, {code} is due", reply=reply)

    async def _hello(self, evidence: Evidence) -> Capabilities:
        self._phase = "ehlo"
        name = self._destination.helo_name or self._own_name()
        limit = self._timeouts.ehlo
        if self._destination.protocol == "lmtp":
            reply = await self._reply(commands.lhlo(name), limit)
        else:
            reply = await self._reply(commands.ehlo(name), limit)
            bare = not self._requirement.demands_tls and self._destination.credentials is None
            if reply.permanent and bare and evidence is CLEAR:
                self._check(await self._reply(commands.helo(name), limit), 250, "the server refuses HELO")
                return Capabilities.none()
        self._check(reply, 250, "the server refuses EHLO")
        return Capabilities.parse(reply)

    def _own_name(self) -> str:
        name = socket.gethostname()
        if "." in name:
            try:
                commands.ehlo(name)
            except ValueError:
                pass
            else:
                return name
        wire: Any = self._connection.transport
        address = wire.getHost()
        if isinstance(address, IPv4Address):
            return f"[{address.host}]"
        if isinstance(address, IPv6Address):
            return f"[IPv6:{address.host.partition('%')[0]}]"
        return "localhost"

    def _tls_is_given_up(self) -> bool:
        """Whether TLS has failed here for so long that clear text will do; not for credentials."""
        if self._requirement.demands_tls or self._destination.credentials is not None:
            return False
        self._instead_of_tls = self._opener.opportunism.clear(self._hop.endpoint, self._opener.now())
        return self._instead_of_tls

    async def _starttls(self, capabilities: Capabilities) -> Evidence:
        """The evidence of TLS, or `CLEAR` where there is none and clear text will do."""
        self._phase = "starttls"
        if not capabilities.starttls:
            if self._requirement.demands_tls:
                raise self._error("TLS is demanded, and the server does not offer STARTTLS")
            return CLEAR
        reply = await self._reply(commands.STARTTLS, self._timeouts.starttls)
        if reply.negative and reply.code != 421 and not self._requirement.demands_tls:
            self._instead_of_tls = True
            return CLEAR
        self._check(reply, 220, "TLS is demanded, and the server refuses STARTTLS")
        if reply.flaw is not None:
            self._connection.cut("malformed", "a malformed reply to STARTTLS", reply)
            raise self._error("a malformed reply to STARTTLS", reply=reply)
        evidence, _ = await self._handshake()
        return evidence

    async def _handshake(self, greeting: float | None = None) -> tuple[Evidence, Reply | None]:
        """The evidence, judged already; and where a ``greeting`` is owed, that, if it came in the same read."""
        self._phase = "tls"
        destination = self._destination
        assert destination.tls_class is not None
        context = self._opener.contexts.get(destination.tls_class, destination.trust_anchors, destination.client_pem)
        event = self._dialogue.next_event()
        self._connection.start_tls(context, self._requirement.servername, self._timeouts.starttls, greeting)
        reply = await event
        self._opener.opportunism.worked(self._hop.endpoint)
        evidence = self._connection.evidence()
        self._judge(evidence)
        return evidence, reply

    def _judge(self, evidence: Evidence) -> None:
        self._verdict = judge(self._requirement, evidence, self._opener.wall())
        if not self._verdict.ok:
            self._phase = "trust"
            raise self._error(self._verdict.reason)

    async def _authenticate(self, capabilities: Capabilities, evidence: Evidence) -> None:
        self._phase = "auth"
        credentials = self._destination.credentials
        assert credentials is not None
        if evidence is CLEAR and self._destination.tls.level != "none":
            raise self._error("credentials are not sent in clear text, and the session has no TLS")
        login = (self._key.endpoint, self._key.identity.namespace, self._key.identity.uid, credentials.account())
        await Authentication(
            credentials,
            capabilities,
            self._opener.logins,
            login,
            evidence is CLEAR,
            evidence is not CLEAR and self._requirement.level not in ("none", "may", "encrypt"),
            self._secrets,
            lambda line: self._reply(line, self._timeouts.auth),
            self._check,
            self._error,
        ).run()
