"""What is borrowed: a session of the keeper's, its pair, and the lease of it while one is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mailcache.connection import Connection, Cut
from mailcache.destination import Destination, SessionKey
from mailcache.limits import Timeouts
from mailcache.remote.calling import Wire
from mailcache.remote.codec import Facts
from mailcache.remote.packed import Granted, Released
from mailcache.session import Session
from mailcache.trust.judge import Verdict

LINGER, LINGER_UNUSED = 0.05, 0.01
"""Seconds that a freed lease stays with its borrower: in all, and without use. They bound what others wait for it."""


class BorrowedConnection(Connection):
    """A connection over a pair: it counts its bytes, as the keeper does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent = 0
        self.received = 0

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        super().dataReceived(data)

    def _send(self, data: bytes) -> None:
        self.sent += len(data)
        super()._send(data)


class Borrowed:
    """A session of the keeper as its borrower knows it.

    :ivar wire: over which it is leased and released; its number means nothing on another.
    :ivar destination: for whom it was granted the last time.
    :ivar max_uses: how many transactions it may carry in all, or ``None`` for no limit.
    :ivar linger_until: when it goes back, if nobody wants it until then.
    """

    __slots__ = (
        "connection",
        "destination",
        "granted_at",
        "lease_number",
        "linger_until",
        "max_uses",
        "number",
        "session",
        "wire",
    )

    def __init__(
        self,
        wire: Wire,
        number: int,
        facts: Facts,
        destination: Destination,
        timeouts: Timeouts,
        now: Callable[[], float],
        on_cut: Callable[[Borrowed], None],
        on_gone: Callable[[Borrowed], None],
    ) -> None:
        self.wire = wire
        self.number = number
        self.destination = destination
        self.lease_number = 0
        self.granted_at = 0.0
        self.linger_until = 0.0
        self.max_uses: int | None = None
        self.connection = BorrowedConnection(None, now, lambda _: on_gone(self))
        self.session = Session(
            self.connection,
            identifier=facts.identifier,
            key=SessionKey(facts.endpoint, destination.identity, destination.tls_class),
            host=facts.host,
            capabilities=facts.capabilities,
            evidence=facts.evidence,
            verdict=Verdict(True, facts.verdict),
            timeouts=timeouts,
            setup_seconds=facts.setup_seconds,
        )

        def cut(_: Cut) -> None:
            on_cut(self)

        self.session.on_cut = cut
        self.session.forget_last_reply()

    def granted(self, grant: Granted, destination: Destination, now: float) -> None:
        """A lease of it begins."""
        session = self.session
        self.destination = destination
        self.lease_number = grant.lease
        self.granted_at = now
        if session.uses != grant.uses:
            session.forget_last_reply()
        session.uses = grant.uses
        session.rset_due = grant.rset_due
        self.max_uses = None if grant.uses_left is None else grant.uses + grant.uses_left
        self.connection.sent = self.connection.received = 0

    def may_stay(self, now: float, linger: float) -> bool:
        """Whether it may be handed on here rather than go back to the keeper."""
        used_up = self.max_uses is not None and self.session.uses >= self.max_uses
        return now - self.granted_at < linger and not used_up

    def linger(self, now: float, linger: float) -> None:
        """Nobody here wants it now."""
        self.linger_until = min(self.granted_at + linger, now + LINGER_UNUSED)

    def release(self, discard: bool) -> Released:
        """What the keeper is told at the end of the lease."""
        connection = self.connection
        return Released(
            self.lease_number, self.number, connection.sent, connection.received, discard or connection.ended
        )
