"""Books kept beside a cache: who asks it for what and who has which session, compared with what it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mailcache import MemorySessionCache, RemoteSessionCache
from mailcache.destination import Destination, Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.members import IDLE, Member
from mailcache.pool import AGE_SPREAD
from mailcache.session import Session
from mailcache.trust.evidence import CLEAR


@attrs.frozen(eq=False)
class Birth:
    """What holds for a session from the moment in which it was opened."""

    at: float
    max_age: float
    max_uses: int | None


@attrs.define(eq=False)
class Asked:
    """Somebody who has asked a cache for a session.

    :ivar astray: he was served without the keeper for a while, and has his place in no queue any more.
    """

    destination: Destination
    needs: Needs
    fresh: bool
    avoid: frozenset[Endpoint]
    since: float
    astray: bool = False


class Book:
    """The requests and the leases of one cache.

    :param clock: the time of all.
    :param wall: gives seconds since 1970.
    :param births: of the sessions of all caches, by their names.
    :param complain: told in words of what must not be.
    :ivar pending: who has had no answer, in the order in which they came.
    :ivar held: who has which session.
    :ivar outdated: sessions that must not be handed out any more.
    :ivar new: the session that is opened in this moment.
    """

    def __init__(
        self,
        name: str,
        clock: Any,
        wall: Callable[[], float],
        births: dict[str, Birth],
        complain: Callable[[str], None],
    ) -> None:
        self.name = name
        self.pending: list[Asked] = []
        self.held: dict[str, Asked] = {}
        self.outdated: set[str] = set()
        self.new: Session | None = None
        self.births = births
        self._clock = clock
        self._wall = wall
        self._complain = complain

    def wrong(self, what: str) -> None:
        self._complain(f"{self.name}: {what}")

    def asks(self, destination: Destination, needs: Needs, fresh: bool, avoid: frozenset[Endpoint]) -> Asked:
        asked = Asked(destination, needs, fresh, avoid, self._clock.seconds())
        self.pending.append(asked)
        return asked

    def refused(self, failure: Failure, asked: Asked) -> Failure:
        self.pending.remove(asked)
        return failure

    def granted(self, lease: Any, asked: Asked) -> None:
        session = lease.session
        if session.id in self.held:
            self.wrong(f"session {session.id} has two borrowers")
        self._check_fit(session, asked)
        self._check_turn(session, asked)
        self.pending.remove(asked)
        self.held[session.id] = asked

    def ended(self, session: Session) -> None:
        self.held.pop(session.id, None)

    # -- what is promised to who gets a session ------------------------------------------------------------------

    def suits(self, session: Session, asked: Asked) -> bool:
        """Whether ``session`` is of any use for who has ``asked``, its age apart."""
        return session.key.endpoint not in asked.avoid and asked.needs.unmet_by(session.capabilities) is None

    def _check_fit(self, session: Session, asked: Asked) -> None:
        where, evidence, level = asked.destination, session.evidence, asked.destination.tls.level
        if where.key(session.key.endpoint) != session.key:
            self.wrong(f"{where} got a session with another key, {session.key}")
        if not self.suits(session, asked):
            self.wrong(f"{where} got a session with an endpoint to avoid, or without what the message needs")
        if (evidence is CLEAR or evidence.version is None) != (level == "none") and level != "may":
            self.wrong(f"{where} at level {level} got a session with {evidence}")
        if level == "verify" and not evidence.not_before <= self._wall() < evidence.not_after:
            self.wrong(f"{where} got a session whose certificate is not valid now")
        if session.id in self.outdated:
            self.wrong(f"session {session.id} was handed out after the configuration that it was made for")
        birth = self.births.get(session.id)
        if birth is None:
            self.wrong(f"session {session.id} was never opened")
            return
        age = self._clock.seconds() - birth.at
        if age > birth.max_age * (1 + AGE_SPREAD):
            self.wrong(f"session {session.id} is {age:g} s old and was handed out")
        if birth.max_uses is not None and session.uses >= birth.max_uses:
            self.wrong(f"session {session.id} was handed out after {session.uses} uses")
        if asked.fresh and (birth.at < asked.since or session.uses):
            self.wrong(f"who asked for a fresh session at {asked.since:g} got one of {birth.at:g}")

    # -- turns ---------------------------------------------------------------------------------------------------

    def _check_turn(self, session: Session, asked: Asked) -> None:
        """Whom of the same destination this session would have served before must have one in this moment, too."""
        before = self.pending[: self.pending.index(asked)]
        ahead = [other for other in before if other.fresh == asked.fresh]
        if not asked.fresh and session is self.new:
            ahead += [other for other in self.pending if other.fresh]
        passed = [
            other
            for other in ahead
            if other.destination == asked.destination and not other.astray and self.suits(session, other)
        ]
        if passed and not asked.astray:
            self._clock.callLater(0, self._check_passed, passed, asked)

    def _check_passed(self, passed: list[Asked], by: Asked) -> None:
        for other in passed:
            if other in self.pending and not other.astray:
                self.wrong(f"{other} was passed over for {by}")


class Watched:
    """A cache with a book."""

    book: Book

    def acquire(
        self,
        destination: Destination,
        *,
        needs: Needs = NO_NEEDS,
        fresh: bool = False,
        avoid: frozenset[Endpoint] = frozenset(),
        timeout: float | None = None,
    ) -> Deferred[Any]:
        asked = self.book.asks(destination, needs, fresh, avoid)
        leasing: Deferred[Any] = super().acquire(  # type: ignore[misc]
            destination, needs=needs, fresh=fresh, avoid=avoid, timeout=timeout
        )
        return leasing.addCallbacks(self._granted_to, self.book.refused, (asked,), {}, (asked,))

    def _granted_to(self, lease: Any, asked: Asked) -> Any:
        if lease._owner is self:
            self.book.granted(lease, asked)
        else:
            # It is the fallback's, which has a book of its own.
            self.book.pending.remove(asked)
        return lease

    def released(self, place: Any, session: Session) -> None:
        self.book.ended(session)
        super().released(place, session)  # type: ignore[misc]

    def discarded(self, place: Any, session: Session) -> None:
        self.book.ended(session)
        super().discarded(place, session)  # type: ignore[misc]


class WatchedMemory(Watched, MemorySessionCache):
    """A cache in memory with a book."""

    def _opened(self, member: Member, session: Session) -> None:
        limits = self._pool._limits_of(member.destination)
        allowed = [most for most in (limits.max_uses, session.capabilities.mail_max) if most is not None]
        self.book.births[session.id] = Birth(self._now(), limits.max_age, min(allowed, default=None))
        self.book.new = session
        super()._opened(member, session)
        self.book.new = None

    def retire(self, outdated: Callable[[Destination], bool], reason: str) -> None:
        for member in self._pool._places.members:
            session: Any = member.session
            known = session is not None and (member.state == IDLE or session.id in self.book.held)
            if known and outdated(member.destination):
                self.book.outdated.add(session.id)
        super().retire(outdated, reason)


class WatchedRemote(Watched, RemoteSessionCache):
    """A borrower's cache with a book."""

    def _fall_back(self, waiter: Any) -> None:
        for asked in self.book.pending:
            asked.astray = True
        super()._fall_back(waiter)
