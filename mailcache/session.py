"""A session: a live SMTP conversation under one identity, one transaction at a time over a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mailcache.connection import Connection, Cut, Receiver
from mailcache.contents import Content, MessageContent, Sendable, content_of, seven_bit
from mailcache.destination import Endpoint, SessionKey
from mailcache.envelope import NO_NEEDS, Envelope
from mailcache.limits import Timeouts
from mailcache.result import DeliveryError, DeliveryResult, SessionFacts, UncertainDelivery
from mailcache.trust.evidence import Evidence
from mailcache.trust.judge import Verdict
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.one_flight import MAX_CONTENT, OneFlight, allows, unstuffed
from mailcache.wire.replies import Reply
from mailcache.wire.transaction import CONTENT, CUT, DONE, EMPTY, WAITING, Transaction

LONE_DOT = b".\r\n"


class Session:
    """A session that is ready for MAIL FROM.

    :ivar uses: transactions begun on it.
    :ivar reused: it may be dead by now: it has carried a message, or waited for somebody without a use.
    :ivar rset_due: the last transaction did not end cleanly, so that RSET precedes the next MAIL.
    :ivar on_cut: called with the `Cut` when the connection ends while no transaction is under way.
    :ivar verdict: why it was trusted when it was opened; each later borrower has a verdict of its own.
    :ivar setup_seconds: what it took to open.
    :ivar instead_of_tls: it is in clear text since TLS, which was offered, was refused or has failed.
    :ivar log_facts: what every event about it says.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        identifier: str,
        key: SessionKey,
        host: str,
        capabilities: Capabilities,
        evidence: Evidence,
        verdict: Verdict,
        timeouts: Timeouts,
        setup_seconds: float,
        instead_of_tls: bool = False,
    ) -> None:
        self.connection = connection
        self.id = identifier
        self.key = key
        self.host = host
        self.peer = _peer(host, key.endpoint)
        self.capabilities = capabilities
        self.evidence = evidence
        self.verdict = verdict
        self.setup_seconds = setup_seconds
        self.instead_of_tls = instead_of_tls
        self.log_facts: dict[str, Any] = {
            "session": identifier,
            "host": host,
            "address": key.endpoint.address,
            "version": evidence.version or "clear text",
            "cipher": evidence.cipher or "",
        }
        self.uses = 0
        self.reused = False
        self.rset_due = False
        self._holder: object = None
        self.on_cut: Callable[[Cut], None] = _nobody_listens
        self._lmtp = key.endpoint.protocol == "lmtp"
        self._tls_summary = evidence.summary
        self._timeouts = timeouts
        self._limits = (
            timeouts.rset,
            timeouts.mail,
            timeouts.rcpt,
            timeouts.data,
            timeouts.dot,
            timeouts.dot,
            timeouts.dot,
        )
        self._last_reply: Reply | None = None
        self._last_reply_at = connection.now()
        self._spoiled = False
        self._seven_bit_only = False
        self._transaction: Transaction | None = None
        self._content: Content | None = None
        self._result: Deferred[DeliveryResult] | None = None
        connection.receiver = self

    def __repr__(self) -> str:
        return f"<Session {self.id} to {self.peer}, {self._tls_summary or 'in clear'}, {self.uses} uses>"

    @property
    def reusable(self) -> bool:
        """Whether it stands at a clean place and nothing was ever wrong with it (rule R5)."""
        connection = self.connection
        return self._transaction is None and not self._spoiled and connection.quiet and connection.flawed is None

    @property
    def busy(self) -> bool:
        """Whether a transaction is under way."""
        return self._transaction is not None

    @property
    def facts(self) -> SessionFacts:
        """What results say of it."""
        uses = self.uses
        return SessionFacts(self.id, self.peer, uses > 1, uses, self._tls_summary, self.setup_seconds)

    # -- one transaction -----------------------------------------------------------------------------------------

    def send(self, envelope: Envelope, content: Sendable, *, one_flight: bool = False) -> Deferred[DeliveryResult]:
        """Send one message; see `mailcache.interfaces.ISession.send`."""
        if self._transaction is not None:
            raise RuntimeError("a session carries one message at a time: wait for the result of the one before")
        source = content_of(content, envelope)
        if type(source) is MessageContent:
            envelope = source.demanded(envelope)
            source = source.for_server(self.capabilities)
        needs = envelope.needs(source)
        if not self.connection.quiet:
            return self._refused("the session has ended", phase="mail")
        lacking = None if needs is NO_NEEDS else needs.unmet_by(self.capabilities)
        if lacking is not None:
            return self._refused(lacking, phase="needs", retriable=False)
        undeclared = source.eight_bit is None and envelope.body is None
        declared_7bit = source.eight_bit is None and envelope.body == "7BIT"
        self._seven_bit_only = declared_7bit or (undeclared and not self.capabilities.eightbitmime)
        commands = envelope.commands
        if envelope.dsn_commands is not None and self.capabilities.dsn:
            commands = envelope.dsn_commands
        reused, self.reused = self.reused, True
        self.uses += 1
        self._content = source
        result: Deferred[DeliveryResult] = Deferred(self._cancelled)
        self._result = result
        if one_flight and self._write_one_flight(
            commands, envelope.recipients, source, needs.eightbitmime or undeclared, reused
        ):
            return result
        ours = self._transaction = Transaction(
            commands[0],
            envelope.recipients,
            commands[1],
            self.capabilities,
            size=source.size,
            eight_bit=needs.eightbitmime or undeclared,
            rset_due=self.rset_due,
            reused=reused,
            lmtp=self._lmtp,
        )
        self._write_commands(ours, reused)
        return result

    def hold(self, lease: object) -> None:
        """Keep ``lease`` alive as long as the transaction that is under way, if one is."""
        if self._transaction is not None:
            self._holder = lease

    def _refused(self, message: str, *, phase: str, retriable: bool = True) -> Deferred[DeliveryResult]:
        result: Deferred[DeliveryResult] = Deferred()
        result.errback(
            Failure(DeliveryError(message, phase=phase, retriable=retriable, endpoint=str(self.key.endpoint)))
        )
        return result

    def _write_commands(self, ours: Transaction, reused: bool = False) -> None:
        data, kinds = ours.flight()
        self.connection.write(data, self._limits_for(kinds, reused))

    def _limits_for(self, kinds: list[int], reused: bool) -> list[float]:
        limits = [self._limits[kind] for kind in kinds]
        if reused and limits[0] > self._timeouts.first_reply:
            limits[0] = self._timeouts.first_reply
        return limits

    def _write_one_flight(
        self, commands: tuple[bytes, bytes], recipients: tuple[str, ...], source: Content, eight_bit: bool, reused: bool
    ) -> bool:
        """Write the whole message, if it may go so; gives whether it did."""
        age = self.connection.now() - self._last_reply_at
        if self._lmtp or self.rset_due or not allows(self.capabilities, self._last_reply, age):
            return False
        whole = source.whole()
        if whole is None:
            return False
        content = unstuffed(whole)
        if len(content) > MAX_CONTENT:
            return False
        ours = self._transaction = OneFlight(
            commands[0],
            recipients,
            commands[1],
            self.capabilities,
            content,
            size=source.size,
            eight_bit=eight_bit,
            reused=reused,
        )
        data, kinds = ours.flight()
        self.connection.write_content(data, self._limits_for(kinds, reused))
        return True

    def _write_content(self, ours: Transaction) -> None:
        source = self._content
        assert source is not None
        limits = [self._timeouts.dot] * len(ours.content_kinds())
        whole = source.whole()
        if whole is not None:
            self.connection.write_content(whole, limits)
        else:
            chunks = seven_bit(source.chunks()) if self._seven_bit_only else source.chunks()
            self.connection.stream_content(chunks, self._timeouts.content, limits)

    def _write_lone_dot(self, ours: Transaction) -> None:
        self.connection.write(LONE_DOT, [self._limits[kind] for kind in ours.lone_dot_kinds()])

    # -- lending -----------------------------------------------------------------------------------------------

    def hand_over(self, receiver: Receiver) -> Timeouts:
        """Let ``receiver`` have the conversation, at a clean place; gives the time limits for it.

        It ends when `returned` is called and the connection has this session for its receiver again.
        """
        assert self._transaction is None
        self.connection.receiver = receiver
        return self._timeouts

    def returned(self, uses: int, rset_due: bool) -> None:
        """Somebody else has had the conversation meanwhile, with so many uses."""
        self.uses += uses
        self.reused = self.uses > 0 or self.reused
        self.rset_due = rset_due
        self.forget_last_reply()

    def forget_last_reply(self) -> None:
        """Who knows what the server has said last, and when."""
        self._last_reply_at = float("-inf")

    # -- its end -----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Close it: with QUIT where it stands at a clean place."""
        if self.reusable:
            self.connection.quit(self._timeouts.quit)
        else:
            self.connection.leave(self._timeouts.quit)

    def abandon(self) -> None:
        """Break off the transaction that is under way; its result says how sure its failure is."""
        self.connection.cut("aborted", "the lease ended before the transaction")

    # -- what the connection tells ---------------------------------------------------------------------------------

    def tls_established(self) -> None:
        raise AssertionError("TLS is set up before there is a session")

    def replies_received(self, replies: list[Reply]) -> None:
        ours = self._transaction
        assert ours is not None
        ours.replies(replies)
        if ours.step == CUT:
            self.connection.cut("reply", ours.problem, ours.culprit)

    def early_reply(self, reply: Reply) -> None:
        assert self._transaction is not None
        self._transaction.early(reply)

    def content_written(self) -> None:
        assert self._transaction is not None
        self._transaction.content_written = True

    def read_finished(self) -> None:
        ours = self._transaction
        if ours is None:
            return
        step = ours.step
        if step == WAITING:
            return
        if step == CONTENT:
            self._write_content(ours)
        elif step == EMPTY:
            self._write_lone_dot(ours)
        elif step == DONE:
            self._finish(ours)
        else:
            self._write_commands(ours)

    def connection_cut(self, cut: Cut) -> None:
        ours = self._transaction
        self._spoiled = True
        if ours is None:
            self.on_cut(cut)
        else:
            self._fail(ours, cut)

    # -- what comes of it --------------------------------------------------------------------------------------------

    def _finish(self, ours: Transaction) -> None:
        if ours.content_written:
            self.connection.forget_content()
        self.rset_due = ours.rset_due
        self._last_reply = ours.final
        self._last_reply_at = self.connection.now()
        self._spoiled = self._spoiled or not ours.clean
        self._end(ours, self._verdict(ours))

    def _fail(self, ours: Transaction, cut: Cut) -> None:
        endpoint = str(self.key.endpoint)
        outcome: DeliveryResult | Exception
        if cut.reason == "unsolicited":
            ours.surplus()
        if ours.decided:
            outcome = self._verdict(ours)
        elif ours.doubtful:
            outcome = UncertainDelivery(
                f"the end of content was written, then {cut}",
                endpoint=endpoint,
                session=self.facts,
                accepted=tuple(ours.accepted),
                rejected=ours.rejected,
                undecided=ours.undecided,
            )
        else:
            outcome = DeliveryError(
                str(cut),
                phase=ours.phase,
                retriable=cut.reason != "content",
                endpoint=endpoint,
                reply=cut.reply,
            )
        if isinstance(outcome, Exception):
            outcome.__cause__ = cut
        self._end(ours, outcome)

    def _verdict(self, ours: Transaction) -> DeliveryResult:
        assert ours.final is not None
        return DeliveryResult(tuple(ours.accepted), ours.rejected, ours.final, self.facts, tuple(ours.excess))

    def _end(self, ours: Transaction, outcome: DeliveryResult | Exception) -> None:
        result = self._result
        self._transaction = None
        self._content = None
        self._result = None
        self._holder = None
        assert result is not None
        if isinstance(outcome, Exception):
            result.errback(Failure(outcome))
        else:
            result.callback(outcome)

    def _cancelled(self, _result: Deferred[DeliveryResult]) -> None:
        ours = self._transaction
        if ours is None:
            return
        if ours.doubtful:
            self.connection.cut("aborted", "the delivery was cancelled")
            return
        self._transaction = None
        self._holder = None
        result, self._result = self._result, None
        self.connection.cut("aborted", "the delivery was cancelled")
        if result is not None:
            result.errback(Failure(CancelledError()))


def _peer(host: str, endpoint: Endpoint) -> str:
    if endpoint.port is None:
        return str(endpoint)
    if host == endpoint.address:
        return f"[{endpoint.address}]:{endpoint.port}"
    return f"{host}[{endpoint.address}]:{endpoint.port}"


def _nobody_listens(_cut: Cut) -> None:
    pass
