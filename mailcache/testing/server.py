"""A scripted SMTP server: strict, with a memory of all it has seen, and with faults on demand.

    server = SMTPServer(reactor, certificate=Authority().issue(("mx.test",)),
                        faults=[Fault("after_dot", "rst", connection=1, transaction=2)])
    server.listen(25, "192.0.2.1")
    ...
    assert server.violations == [] and server.handshake_count == 1

It works on any reactor: on L{mailcache.testing.MemoryReactor} or with real sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from mailcache.testing.authentication import MECHANISMS
from mailcache.testing.certificates import Issued
from mailcache.testing.chaos import Chaos
from mailcache.testing.conversation import Conversation
from mailcache.testing.faults import NEEDS_TLS, TLS_POINTS, Fault
from mailcache.testing.records import Connection, Message

#: What a server offers if nothing else is said; STARTTLS and AUTH come by themselves.
CAPABILITIES = (
    "PIPELINING",
    "SIZE 52428800",
    "8BITMIME",
    "SMTPUTF8",
    "ENHANCEDSTATUSCODES",
    "CHUNKING",
    "DSN",
)

#: Called with the point, its argument and the connection; gives a reply in place of the right one, or None.
#: A 2xx or 3xx makes the server do what was asked. The argument is the address at "mail" and "rcpt", the
#: sender (LMTP: the recipient) at "dot", the whole line at "ehlo" and "ehlo2", the user at "auth", else empty.
#: An empty reply is none: the server does what was asked, and says nothing.
Verdict = Callable[[str, str, Connection], bytes | None]

#: Called with the mechanism and the octets of each challenge of AUTH; gives a reply in place of the right 334, or None.
Challenge = Callable[[str, bytes], bytes | None]


@attrs.define(eq=False)
class _Armed:
    fault: Fault
    left: int


@attrs.define(eq=False)
class _Forgotten:
    """How many there were of what there are no records of any more."""

    connections: int = 0
    handshakes: int = 0
    messages: int = 0


class _Accepting(Factory):
    noisy = False

    def __init__(self, server: SMTPServer) -> None:
        self._server = server

    def buildProtocol(self, addr: IAddress | None) -> Conversation | None:
        assert addr is not None
        return self._server.accept(addr)


class SMTPServer:
    """
    The server.

    @ivar factory: to listen with by other means than L{listen} and L{listen_on}.
    @ivar connections: all that there have been, in the order of accepting.
    @ivar messages: all whose content came to its end, taken or not.
    @ivar violations: what clients did against the protocol, with the number of the connection.
    @ivar fired: the faults that have struck, with the number of the connection.
    @ivar log: (seconds, connection, text) for everything.
    @ivar verdict: see L{Verdict}; may be set at any time.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        certificate: Issued | None = None,
        implicit_tls: bool = False,
        lmtp: bool = False,
        capabilities: Iterable[str] = CAPABILITIES,
        users: Mapping[str, str] | None = None,
        mechanisms: Iterable[str] = MECHANISMS,
        auth_in_clear: bool = False,
        faults: Iterable[Fault] = (),
        chaos: Chaos | None = None,
        hostname: str = "mx.test",
        verdict: Verdict | None = None,
        challenge: Challenge | None = None,
        slow_delay: float = 5.0,
        drip_interval: float = 10.0,
        restart_seconds: float = 0.0,
        keep_content: bool = True,
    ) -> None:
        """
        @param certificate: offer STARTTLS with it, or, with C{implicit_tls}, TLS from the first octet.
        @param lmtp: speak LMTP: LHLO, and a reply for each recipient.
        @param users: passwords or tokens by name; offers AUTH, under TLS only. None: no AUTH.
        @param mechanisms: those that AUTH offers, of L{mailcache.testing.authentication.ALL_MECHANISMS}; with EXTERNAL,
            clients are asked for a certificate, whose common name must be the user, or what C{users} has for it.
        @param auth_in_clear: offer AUTH without TLS too.
        @param faults: see L{arm}.
        @param chaos: more faults, by chance.
        @param challenge: see L{Challenge}.
        @param slow_delay: seconds that ``slow`` is late.
        @param drip_interval: seconds between two octets of ``drip``.
        @param restart_seconds: how long new connections are refused after ``restart``.
        @param keep_content: hold the content of messages; else that of DATA is counted only, however large.
        """
        if implicit_tls and certificate is None:
            raise ValueError("TLS from the first octet needs a certificate")
        self.reactor = reactor
        self.certificate = certificate
        self.implicit_tls = implicit_tls
        self.lmtp = lmtp
        self.capabilities = tuple(capabilities)
        self.keywords = {word.upper(): rest for word, _, rest in (each.partition(" ") for each in self.capabilities)}
        self.users = users
        self.mechanisms = tuple(mechanisms)
        self.auth_in_clear = auth_in_clear
        self.challenge = challenge
        self.chaos = chaos
        self.hostname = hostname
        self.verdict = verdict
        self.slow_delay = slow_delay
        self.drip_interval = drip_interval
        self.restart_seconds = restart_seconds
        self.keep_content = keep_content
        self.factory: Factory = _Accepting(self)
        self.connections: list[Connection] = []
        self.messages: list[Message] = []
        self.violations: list[str] = []
        self.fired: list[tuple[Fault, int]] = []
        self.log: list[tuple[float, int, str]] = []
        self._armed: list[_Armed] = []
        self._live: list[Conversation] = []
        self._ports: list[IListeningPort] = []
        self._places: list[IAddress] = []  # where it will listen again
        self._senders: list[str] = []
        self._forgotten = _Forgotten()
        self._down: IDelayedCall | None = None
        self._emptied: list[Deferred[None]] = []
        for fault in faults:
            self.arm(fault)

    # Listening

    def listen(self, port: int = 0, interface: str = "127.0.0.1") -> IListeningPort:
        """Listen on TCP; port 0: any that is free."""
        listening: IListeningPort = self.reactor.listenTCP(port, self.factory, interface=interface)
        self._ports.append(listening)
        return listening

    def listen_unix(self, path: str) -> IListeningPort:
        """Listen at a path."""
        listening: IListeningPort = self.reactor.listenUNIX(path, self.factory)
        self._ports.append(listening)
        return listening

    def listen_on(self, endpoint: IStreamServerEndpoint) -> Deferred[IListeningPort]:
        """Listen on an endpoint."""

        def listening(port: IListeningPort) -> IListeningPort:
            self._ports.append(port)
            return port

        return endpoint.listen(self.factory).addCallback(listening)

    @property
    def address(self) -> IAddress:
        """Where it listens (the first place, if there are more)."""
        return [*self._places, *(port.getHost() for port in self._ports)][0]

    @property
    def port(self) -> int:
        """The port it listens at."""
        number = getattr(self.address, "port", None)
        if not isinstance(number, int):
            raise ValueError(f"{self.address} has no port")
        return number

    def stop_listening(self) -> Deferred[None]:
        """Refuse new connections from now on."""
        if self._down is not None and self._down.active():
            self._down.cancel()
        self._places = []
        ports, self._ports = self._ports, []
        return gatherResults([maybeDeferred(port.stopListening) for port in ports]).addCallback(lambda _: None)

    def close(self) -> Deferred[None]:
        """Stop listening, reset all connections; fires when they are gone."""
        stopped = self.stop_listening()
        self.abort_connections()
        gone: Deferred[None] = Deferred()
        self._emptied.append(gone)
        self._note_if_empty()
        return gatherResults([stopped, gone]).addCallback(lambda _: None)

    def abort_connections(self) -> None:
        """Reset all connections."""
        for conversation in list(self._live):
            conversation.abort()

    def restart(self) -> None:
        """Reset all connections, and refuse new ones for C{restart_seconds}."""
        self.log.append((self.reactor.seconds(), 0, "restart"))
        self.abort_connections()
        if self.restart_seconds and self._down is None:
            ports, self._ports = self._ports, []
            self._places = [port.getHost() for port in ports]  # a port that was stopped can't tell any more
            for port in ports:
                port.stopListening()
            self._down = self.reactor.callLater(self.restart_seconds, self.restart_over)

    def restart_over(self) -> None:
        """Accept connections again, at the same places."""
        down, self._down = self._down, None
        if down is None:
            return
        if down.active():
            down.cancel()
        places, self._places = self._places, []
        address: Any
        for address in places:
            if hasattr(address, "port"):
                self.listen(address.port, address.host)
            else:
                self.listen_unix(address.name)

    # Faults

    def arm(self, fault: Fault) -> None:
        """One more fault."""
        if self.certificate is None and (fault.kind in NEEDS_TLS or fault.point in TLS_POINTS):
            raise ValueError(f"{fault.kind!r} at {fault.point!r} needs a certificate")
        if self.users is None and fault.point == "auth":
            raise ValueError("a fault at 'auth' needs users")
        self._armed.append(_Armed(fault, fault.times))

    def disarm(self) -> None:
        """No more faults."""
        self._armed.clear()

    def take(self, point: str, record: Connection, only: str | None = None) -> str | None:
        """The kind of fault that strikes here and now, if one does: it has struck then."""
        for armed in self._armed:
            if self._strikes(armed, point, record) and only in {None, armed.fault.kind}:
                armed.left -= 1
                self._fire(armed.fault, record)
                return armed.fault.kind
        kind = None if self.chaos is None else self.chaos.choose(point, record, only)
        if kind is not None:
            self._fire(Fault(point, kind), record)
        return kind

    def strike_idle(self) -> int:
        """Let the faults of point ``idle`` strike all parked connections, and chaos some; gives how many it has hit."""
        hit = 0
        for armed in list(self._armed):
            parked = [each for each in self._live if each.parked and self._strikes(armed, "idle", each.record)]
            if parked:
                armed.left -= 1
            for conversation in parked:
                self._fire(armed.fault, conversation.record)
                hit += 1
                if armed.fault.kind != "restart" or conversation is parked[-1]:
                    conversation.strike_idle(armed.fault.kind)
        if self.chaos is not None:
            for conversation in list(self._live):
                kind = self.chaos.choose("idle", conversation.record) if conversation.parked else None
                if kind is not None:
                    self._fire(Fault("idle", kind), conversation.record)
                    hit += 1
                    conversation.strike_idle(kind)
        return hit

    @staticmethod
    def _strikes(armed: _Armed, point: str, record: Connection) -> bool:
        fault = armed.fault
        return (
            armed.left > 0
            and fault.point == point
            and fault.connection in {None, record.number}
            and fault.transaction in {None, record.transactions}
            and (fault.kind not in NEEDS_TLS or record.tls or point == "handshake")
        )

    def _fire(self, fault: Fault, record: Connection) -> None:
        self.fired.append((fault, record.number))
        self.note(record, f"fault: {fault.kind} at {fault.point}")

    # Called by the conversations

    def accept(self, peer: IAddress) -> Conversation:
        """A connection has come."""
        record = Connection(self.connection_count + 1, peer)
        self.connections.append(record)
        conversation = Conversation(self, record)
        self._live.append(conversation)
        self.note(record, f"connection from {peer}")
        return conversation

    def ended(self, conversation: Any, reason: Failure) -> None:
        """A connection has gone."""
        self.note(conversation.record, f"closed: {conversation.record.closed} ({reason.value})")
        if conversation in self._live:
            self._live.remove(conversation)
        self._note_if_empty()

    def note(self, record: Connection, text: str) -> None:
        """Write something into the log."""
        self.log.append((self.reactor.seconds(), record.number, text))

    def violated(self, record: Connection, what: str) -> None:
        """The client of this connection has broken the protocol."""
        self.violations.append(f"connection {record.number}: {what}")
        self.note(record, f"violation: {what}")

    def mail_seen(self, sender: str) -> None:
        """MAIL with this sender has come."""
        self._senders.append(sender)

    def _note_if_empty(self) -> None:
        if not self._live:
            emptied, self._emptied = self._emptied, []
            for gone in emptied:
                gone.callback(None)

    # Counting

    def forget(self) -> None:
        """
        Drop the records of what is over, so that a long run does not fill the memory: messages, the connections that
        have ended, the log, the faults that have struck, the senders. Counts and violations stay.
        """
        forgotten = self._forgotten
        over = [record for record in self.connections if record.closed is not None]
        forgotten.connections += len(over)
        forgotten.handshakes += sum(record.handshakes for record in over)
        forgotten.messages += sum(message.committed for message in self.messages)
        self.connections = [record for record in self.connections if record.closed is None]
        for record in self.connections:
            record.messages.clear()
            record.commands.clear()
        self.messages.clear()
        self.fired.clear()
        self.log.clear()
        self._senders.clear()

    @property
    def open_count(self) -> int:
        """Connections that live."""
        return len(self._live)

    @property
    def connection_count(self) -> int:
        """Connections there have been."""
        return self._forgotten.connections + len(self.connections)

    @property
    def handshake_count(self) -> int:
        """TLS handshakes completed."""
        return self._forgotten.handshakes + sum(record.handshakes for record in self.connections)

    @property
    def message_count(self) -> int:
        """Messages taken."""
        return self._forgotten.messages + sum(message.committed for message in self.messages)

    def transactions_seen(self, mail_from: str) -> int:
        """How many MAIL commands had this sender, refused or not."""
        return self._senders.count(mail_from)
