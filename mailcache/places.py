"""The places of a pool: who is in them, in which state, and how that counts against the limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

from mailcache.destination import Destination, Endpoint, SessionKey
from mailcache.limits import Limits
from mailcache.members import CLOSING, IDLE, LEASED, NEVER, OPENING, Member


class Places:
    """The members, from the decision to open one until its socket is gone.

    :ivar idle: the idle ones by their key, the longest unused first.
    :ivar unused: all idle ones, the longest unused first.
    :ivar closing: those that are being closed.
    :ivar openings: how many are being opened.
    :ivar most: the most destinations, endpoints and members that there were at one time.
    """

    def __init__(self, limits: Limits) -> None:
        self.members: set[Member] = set()
        self.idle: dict[SessionKey, list[Member]] = {}
        self.unused: dict[Member, None] = {}
        self.closing: dict[Member, None] = {}
        self.openings = 0
        self.most = (0, 0, 0)
        self._first_end = NEVER
        self._limits = limits
        self._limits_of: Callable[[Destination], Limits] | None = None
        self._at_destination: Counter[Destination] = Counter()
        self._at_endpoint: Counter[Endpoint] = Counter()
        self._openings_by: Counter[Hashable] = Counter()

    def reconfigure(self, limits: Limits, limits_of: Callable[[Destination], Limits] | None) -> None:
        """Have other limits from now on; see `Pool.reconfigure`."""
        self._limits = limits
        self._limits_of = limits_of

    # -- counts ------------------------------------------------------------------------------------------------

    def count(self, state: str) -> int:
        """How many are in ``state``."""
        return sum(member.state == state for member in self.members)

    def sizes(self) -> tuple[int, int, int]:
        """How many destinations, endpoints and members there are."""
        return len(self._at_destination), len(self._at_endpoint), len(self.members)

    def room(self) -> bool:
        """Whether there may be one more."""
        return len(self.members) < self._limits.sessions

    def room_for(self, destination: Destination) -> bool:
        """Whether ``destination`` may have one more."""
        limits = self._limits if self._limits_of is None else self._limits_of(destination)
        return self._at_destination[destination] < limits.sessions_per_destination

    def room_at(self, endpoint: Endpoint) -> bool:
        """Whether ``endpoint`` may have one more."""
        return self._at_endpoint[endpoint] < self._limits.sessions_per_endpoint

    def openings_by(self, subject: Hashable) -> int:
        """How many are being opened by this way, or for this subject, of a candidate."""
        return self._openings_by[subject]

    def crowded(self, member: Member) -> bool:
        """Whether a limit is reached that ``member`` counts against."""
        return not (self.room() and self.room_for(member.destination) and self.room_at(member.candidate.endpoint))

    def leaving(self, within: Callable[[Member], bool]) -> Member | None:
        """Whose place somebody may wait for ``within`` a limit: one that is being closed and that nobody waits for,
        else the idle one longest unused."""
        for member in self.closing:
            if member.request is None and within(member):
                return member
        for member in self.unused:
            if within(member):
                return member
        return None

    def overdue(self, now: float) -> list[Member]:
        """The idle ones that were not used for too long or are too old; whoever calls this ends them all.

        They are not looked at one by one before the first can be.
        """
        if now < self._first_end:
            return []
        overdue = [member for member in self.unused if member.idle_until <= now or member.expires_at <= now]
        remaining = (min(member.idle_until, member.expires_at) for member in self.unused)
        self._first_end = min((end for end in remaining if end > now), default=NEVER)
        return overdue

    # -- changes -----------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """``member`` is to be opened."""
        candidate = member.candidate
        self.members.add(member)
        self._at_destination[member.destination] += 1
        self._at_endpoint[candidate.endpoint] += 1
        self._openings_by[candidate.way] += 1
        self._openings_by[candidate.subject] += 1
        self.openings += 1
        now = self.sizes()
        self.most = (max(self.most[0], now[0]), max(self.most[1], now[1]), max(self.most[2], now[2]))

    def lease(self, member: Member, destination: Destination) -> None:
        """``member`` goes to a borrower of ``destination``."""
        self._leave(member)
        member.state = LEASED
        if member.destination is not destination:
            if member.destination != destination:
                _decrease(self._at_destination, member.destination)
                self._at_destination[destination] += 1
            member.destination = destination

    def park(self, member: Member, now: float) -> None:
        """``member`` is idle from now on, for as long as the limits allow."""
        if member.state == OPENING:
            self._leave(member)
        limits = self._limits if self._limits_of is None else self._limits_of(member.destination)
        by_domain = member.destination.hop.kind == "domain"
        member.idle_until = now + (limits.idle_timeout_mx if by_domain else limits.idle_timeout)
        member.state = IDLE
        self.unused[member] = None
        if member.idle_until < self._first_end:
            self._first_end = member.idle_until
        if member.expires_at < self._first_end:
            self._first_end = member.expires_at
        key = member.candidate.key
        idle = self.idle.get(key)
        if idle is None:
            self.idle[key] = [member]
        else:
            idle.append(member)

    def close(self, member: Member) -> None:
        """``member`` is being closed; it keeps its place until it is removed."""
        self._leave(member)
        member.state = CLOSING
        if member in self.members:
            self.closing[member] = None

    def remove(self, member: Member) -> None:
        """``member``'s socket is gone, and its place is free. May be said again."""
        if member not in self.members:
            return
        self._leave(member)
        member.state = CLOSING
        self.members.remove(member)
        _decrease(self._at_destination, member.destination)
        _decrease(self._at_endpoint, member.candidate.endpoint)
        key = member.candidate.key
        if not self.idle.get(key):
            # Not before: while a session comes and goes its list stays.
            self.idle.pop(key, None)

    def _leave(self, member: Member) -> None:
        """``member`` will be in another state."""
        if member.state == IDLE:
            self.idle[member.candidate.key].remove(member)
            del self.unused[member]
        elif member.state == OPENING:
            _decrease(self._openings_by, member.candidate.way)
            _decrease(self._openings_by, member.candidate.subject)
            self.openings -= 1
        elif member.state == CLOSING:
            self.closing.pop(member, None)


def _decrease(counter: Counter[Any], what: Hashable) -> None:
    """One less: nothing stays behind for what is not there any more."""
    left = counter[what] - 1
    if left:
        counter[what] = left
    else:
        del counter[what]
