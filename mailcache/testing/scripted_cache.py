"""A session cache without sessions: it keeps what it is given to send, and says of it what a script wants.

For tests of code that is handed an `ISessionCache`, where how mail goes out is not the matter:

    cache = ScriptedSessionCache(reactor)
    ...
    assert [message.envelope.recipients for message in cache.sent] == [("b@example.com",)]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.contents import ContentFailed, MessageContent, Sendable, content_of
from mailcache.destination import Destination, Endpoint, SessionKey
from mailcache.envelope import NO_NEEDS, Envelope, Needs
from mailcache.interfaces import ISession, ISessionCache
from mailcache.lease import Lease
from mailcache.limits import patience
from mailcache.result import DeliveryError, DeliveryResult, SessionFacts
from mailcache.testing.server import CAPABILITIES
from mailcache.trust.evidence import CLEAR, Evidence
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.one_flight import unstuffed
from mailcache.wire.replies import Reply

#: What a script may say of a message: None, it is taken; a reply of the server, such as C{b"550 5.1.1 nobody"}, for all
#: recipients, or one for each of some; an exception, such as C{UncertainDelivery("cut")}, that the delivery fails with.
Answer = None | bytes | Mapping[str, bytes] | Exception

_TAKEN = b"250 2.0.0 ok"


@attrs.define(eq=False)
class Sent:
    """
    A message that a L{ScriptedSessionCache} was given.

    @ivar destination: where it was to go.
    @ivar envelope: from whom, to whom.
    @ivar content: its octets as a server would have got them, lines ended by CRLF, and no dots added.
    @ivar outcome: what its sender was told, a C{DeliveryResult} or an exception; None as long as it waits.
    """

    destination: Destination
    envelope: Envelope
    content: bytes = attrs.field(repr=lambda content: f"{len(content)} octets")
    outcome: DeliveryResult | BaseException | None = None


#: What came of a message, as a test says: called with it, gives an L{Answer}, now or in a Deferred.
Script = Callable[[Sent], Answer | Deferred[Answer]]


@attrs.define(eq=False)
class _ScriptedSession:
    """What a lease of this cache is of: no connection, and a count of its uses."""

    cache: ScriptedSessionCache
    destination: Destination
    id: str
    capabilities: Capabilities
    key: SessionKey
    evidence: Evidence = CLEAR
    max_uses: None = None
    uses: int = 0
    spoiled: bool = False
    waiting: tuple[Sent, Deferred[DeliveryResult]] | None = None
    holder: object = None

    @property
    def peer(self) -> str:
        return str(self.key.endpoint)

    @property
    def reused(self) -> bool:
        return self.uses > 0

    @property
    def reusable(self) -> bool:
        return self.waiting is None and not self.spoiled

    def hold(self, lease: object) -> None:
        self.holder = None if self.waiting is None else lease

    def send(self, envelope: Envelope, content: Sendable, *, one_flight: bool = False) -> Deferred[DeliveryResult]:
        if self.waiting is not None:
            raise RuntimeError("a session carries one message at a time: wait for the result of the one before")
        source = content_of(content, envelope)
        if type(source) is MessageContent:
            envelope = source.demanded(envelope)
            source = source.for_server(self.capabilities)
        lacking = envelope.needs(source).unmet_by(self.capabilities)
        if lacking is not None:
            return fail(DeliveryError(lacking, phase="needs", retriable=False, endpoint=self.peer))
        try:
            encoded = b"".join(source.chunks())
        except ContentFailed as error:
            self.spoiled = True
            return fail(DeliveryError(str(error), phase="content", retriable=False, endpoint=self.peer))
        message = Sent(self.destination, envelope, unstuffed(encoded))
        self.uses += 1
        self.cache.sent.append(message)
        result: Deferred[DeliveryResult] = Deferred(lambda _: self._end(message, Failure(CancelledError())))
        self.waiting = message, result
        script: Callable[[Sent], Any] = self.cache.script
        answered: Deferred[Answer] = maybeDeferred(script, message)
        answered.addCallback(self._told, message).addBoth(lambda outcome: self._end(message, outcome))
        return result

    def abandon(self) -> None:
        """The lease has ended in the middle of a transaction, if there is one."""
        if self.waiting is not None:
            error = DeliveryError("the lease ended before the transaction", phase="mail", endpoint=self.peer)
            self._end(self.waiting[0], Failure(error))

    def _told(self, answer: Answer, message: Sent) -> DeliveryResult:
        if isinstance(answer, Exception):
            raise answer
        recipients = message.envelope.recipients
        replies = answer if isinstance(answer, Mapping) else dict.fromkeys(recipients, answer or _TAKEN)
        unknown = replies.keys() - set(recipients)
        if unknown:
            raise ValueError(f"the script has replies for {sorted(unknown)}, who are no recipients of this message")
        verdicts = {each: _reply(replies.get(each, _TAKEN)) for each in recipients}
        accepted = tuple(each for each in recipients if verdicts[each].positive)
        rejected = {each: verdict for each, verdict in verdicts.items() if not verdict.positive}
        last = verdicts[accepted[-1] if accepted else recipients[-1]]
        facts = SessionFacts(self.id, self.peer, self.uses > 1, self.uses, None, 0.0)
        return DeliveryResult(accepted, rejected, last, facts)

    def _end(self, message: Sent, outcome: DeliveryResult | Failure) -> None:
        if self.waiting is None or self.waiting[0] is not message:
            return  # its sender has been told already: it was cancelled, and the script's own answer comes late
        result = self.waiting[1]
        self.waiting = self.holder = None
        message.outcome = outcome.value if isinstance(outcome, Failure) else outcome
        if isinstance(outcome, DeliveryResult):
            result.callback(outcome)
            return
        self.spoiled = True
        if isinstance(message.outcome, DeliveryError) and message.outcome.retriable:
            self.cache.nowhere_else[self.destination] = message.outcome
        result.errback(outcome)


def _reply(line: bytes) -> Reply:
    code, _, text = line.decode("utf-8").strip().partition(" ")
    if not (code.isascii() and code.isdecimal()) or int(code) // 100 not in {2, 4, 5}:
        raise ValueError(f"a script answers with a reply of the server such as b'550 5.1.1 nobody', not {line!r}")
    return Reply.make(int(code), text)


@implementer(ISessionCache)
class ScriptedSessionCache:
    """
    A double for code that takes an C{ISessionCache}: leases are real, what stands behind them is a script.

    A session is kept for each destination, and handed out again, as a cache does. C{deliver} tries nothing twice: what
    the script says of a message is what its sender is told.

    @ivar script: what comes of each message, see L{Script}; may be set at any time.
    @ivar unavailable: what C{acquire} fails with from now on, for example a C{DeliveryError} of phase "connect".
    @ivar sent: the messages, in order.
    @ivar leased: leases that have not ended. When a test is over, this is to be 0.
    """

    def __init__(
        self,
        clock: Any,
        script: Script = lambda message: None,
        *,
        capabilities: tuple[str, ...] = CAPABILITIES,
    ) -> None:
        """
        @param clock: an C{IReactorTime}: deadlines of deliveries run on it.
        @param capabilities: what the server offers.
        """
        self.clock = clock
        self.script = script
        self.unavailable: Exception | None = None
        self.sent: list[Sent] = []
        self.leased = 0
        self.nowhere_else: dict[Destination, DeliveryError] = {}
        words = [word.split(" ") for word in capabilities]
        self._capabilities = Capabilities({first.upper(): tuple(rest) for first, *rest in words})
        self._idle: list[_ScriptedSession] = []
        self._numbers = count(1)
        self._hits = 0
        self._closing = False
        self._closed: list[Deferred[None]] = []

    def acquire(
        self,
        destination: Destination,
        *,
        needs: Needs = NO_NEEDS,
        fresh: bool = False,
        avoid: frozenset[Endpoint] = frozenset(),
        timeout: float | None = None,
    ) -> Deferred[ISession]:
        if not isinstance(destination, Destination):
            raise ValueError(f"destination: a Destination is wanted, not {type(destination).__name__}")
        patience(timeout, 0)
        first = self.nowhere_else.pop(destination, None)
        lacking = needs.unmet_by(self._capabilities)
        if self._closing:
            return fail(DeliveryError("the cache is closed", phase="waiting"))
        if self.unavailable is not None:
            return fail(self.unavailable)
        if fresh and first is not None:
            return fail(first)
        if lacking is not None:
            return fail(DeliveryError(lacking, phase="needs", retriable=False))
        session = None if fresh else next((each for each in self._idle if each.destination == destination), None)
        if session is not None:
            self._idle.remove(session)
            self._hits += 1
        else:
            session = self._new_session(destination)
        self.leased += 1
        return succeed(Lease(self, session, session))  # type: ignore[arg-type]

    def _new_session(self, destination: Destination) -> _ScriptedSession:
        hop = destination.hop
        key = SessionKey(Endpoint(destination.protocol, hop.name, hop.port), destination.identity, None)
        return _ScriptedSession(self, destination, f"scripted-{next(self._numbers)}", self._capabilities, key)

    def released(self, place: _ScriptedSession, session: Any) -> None:
        """A lease has ended; its session is kept if it may be."""
        if place.reusable and not self._closing:
            self._idle.append(place)
        self._ended(place)

    def discarded(self, place: _ScriptedSession, session: Any) -> None:
        """A lease has ended, and its session with it."""
        self._ended(place)

    def _ended(self, session: _ScriptedSession) -> None:
        session.abandon()
        self.leased -= 1
        if self._closing and not self.leased:
            closed, self._closed = self._closed, []
            for each in closed:
                each.callback(None)

    def statistics(self) -> Deferred[dict[str, Any]]:
        zero = dict.fromkeys(("opening", "waiting", "handshakes", "fallbacks", "saved_handshakes", "saved_seconds"), 0)
        now = {"leased": self.leased, "idle": len(self._idle), "transactions": len(self.sent)}
        return succeed({**zero, "hits": self._hits, **now, "misses": {}, "evictions": {}})

    def close(self) -> Deferred[None]:
        self._closing = True
        self._idle.clear()
        closed: Deferred[None] = Deferred()
        if self.leased:
            self._closed.append(closed)
        else:
            closed.callback(None)
        return closed
