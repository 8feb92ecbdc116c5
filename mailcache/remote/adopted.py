"""The pairs that a borrower has, each with the session at its other end."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from mailcache.destination import Destination
from mailcache.interfaces import IPairs
from mailcache.limits import Timeouts
from mailcache.remote import codec
from mailcache.remote.borrowed import Borrowed
from mailcache.remote.calling import Wire
from mailcache.remote.codec import MalformedError


class Adopted:
    """What was borrowed and is still open, and by which number the keeper that lends now calls it.

    :param timeouts: how long servers may take within a transaction.
    :param now: gives monotonic seconds.
    :param on_cut: called with one whose session has ended while no transaction was under way.
    :param on_gone: called with one whose pair is closed.
    """

    _log = Logger()

    def __init__(
        self,
        pairs: IPairs,
        timeouts: Timeouts,
        now: Callable[[], float],
        on_cut: Callable[[Borrowed], None],
        on_gone: Callable[[Borrowed], None],
    ) -> None:
        self._pairs = pairs
        self._timeouts = timeouts
        self._now = now
        self._on_cut = on_cut
        self._on_gone = on_gone
        self._numbered: dict[int, Borrowed] = {}
        self._open: set[Borrowed] = set()

    def __bool__(self) -> bool:
        return bool(self._open)

    def numbered(self, number: int) -> Borrowed | None:
        """That which the keeper calls by this number."""
        return self._numbered.get(number)

    def over(self, wire: Wire) -> list[Borrowed]:
        """All that are open and were lent over ``wire``."""
        return [borrowed for borrowed in self._open if borrowed.wire is wire]

    def meet(
        self, wire: Wire, number: int, descriptor: int, facts: bytes | None, destination: Destination
    ) -> Borrowed | None:
        """A session that was not borrowed before; ``None`` if its pair can't be used. The descriptor is taken.

        :raises MalformedError: if ``facts`` are not understood.
        """
        try:
            known = codec.decode_facts(facts if facts is not None else b"")
        except MalformedError:
            self._pairs.close(descriptor)
            raise
        borrowed = Borrowed(wire, number, known, destination, self._timeouts, self._now, self._on_cut, self._gone)
        try:
            self._pairs.adopt(descriptor, borrowed.connection)
        except OSError as error:
            self._log.warn("a pair can't be used: {error}", error=str(error))
            return None
        self._numbered[number] = borrowed
        self._open.add(borrowed)
        return borrowed

    def forget_numbers(self) -> None:
        """The keeper that gave them lends no more; the next one has numbers of its own."""
        self._numbered = {}

    def _gone(self, borrowed: Borrowed) -> None:
        self._open.discard(borrowed)
        if self._numbered.get(borrowed.number) is borrowed:
            del self._numbered[borrowed.number]
        self._on_gone(borrowed)
