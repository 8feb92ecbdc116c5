"""The lease: what a borrower holds of a session, and what ends exactly once."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from zope.interface import implementer

from mailcache.contents import Sendable
from mailcache.destination import Endpoint
from mailcache.envelope import Envelope
from mailcache.interfaces import ISession
from mailcache.result import DeliveryResult
from mailcache.session import Session
from mailcache.trust.evidence import Evidence
from mailcache.wire.capabilities import Capabilities

_log = Logger()


class Owner(Protocol):
    """The cache that a lease goes back to; ``place`` is what it knows the session by, with its ``max_uses``."""

    clock: Any

    def released(self, place: Any, session: Session) -> None:
        """The lease has ended; the session may be kept."""

    def discarded(self, place: Any, session: Session) -> None:
        """The lease has ended, and the session is not to be kept."""


@implementer(ISession)
class Lease:
    """The lease of ``session``; see `ISession`."""

    __slots__ = ("__weakref__", "_ended", "_owner", "_place", "session")

    def __init__(self, owner: Owner, place: Any, session: Session) -> None:
        self._owner = owner
        self._place = place
        self._ended = False
        self.session = session

    def __repr__(self) -> str:
        return f"<Lease of {self.session!r}{', ended' if self._ended else ''}>"

    @property
    def capabilities(self) -> Capabilities:
        return self.session.capabilities

    @property
    def evidence(self) -> Evidence:
        return self.session.evidence

    @property
    def endpoint(self) -> Endpoint:
        return self.session.key.endpoint

    @property
    def peer(self) -> str:
        return self.session.peer

    @property
    def uses(self) -> int:
        return self.session.uses

    @property
    def reused(self) -> bool:
        return self.session.reused

    @property
    def reusable(self) -> bool:
        limit = self._place.max_uses
        return self.session.reusable and (limit is None or self.session.uses < limit)

    @property
    def max_uses(self) -> int | None:
        """How many transactions the session may carry in all, or ``None`` for no limit."""
        limit: int | None = self._place.max_uses
        return limit

    def send(self, envelope: Envelope, content: Sendable, *, one_flight: bool = False) -> Deferred[DeliveryResult]:
        if self._ended:
            raise RuntimeError("the lease of this session has ended")
        result = self.session.send(envelope, content, one_flight=one_flight)
        # While a message is under way its lease is in use, even where the caller keeps only the result.
        self.session.hold(self)
        return result

    def release(self) -> None:
        if not self._ended:
            self._ended = True
            self._owner.released(self._place, self.session)

    def discard(self) -> None:
        if not self._ended:
            self._ended = True
            self._owner.discarded(self._place, self.session)

    def __del__(self) -> None:
        if not self._ended:
            self._ended = True
            # This may be any thread.
            clock = self._owner.clock
            if IReactorFromThreads.providedBy(clock):
                clock.callFromThread(_reclaim, self._owner, self._place, self.session)
            else:
                clock.callLater(0, _reclaim, self._owner, self._place, self.session)


def _reclaim(owner: Owner, place: Any, session: Session) -> None:
    _log.error(
        "a lease of session {session} was dropped without release() or discard(): reclaimed",
        session=session.id,
    )
    owner.discarded(place, session)
