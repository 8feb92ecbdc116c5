"""What keeping sessions has saved, by destination: hits, misses by reason, handshakes, and what would have been more.

A transaction on a session that has carried one before saves a connection with all that opening it took. It is counted
when the lease ends in which it was sent, since a borrower sends several in one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

from mailcache.destination import Destination

MAX_ACCOUNTS = 10_000
"""Destinations that have an account, the one longest unused closed first: some 500 bytes each. Totals keep its sums."""


class Account:
    """The counts of one destination, or of all.

    :ivar hits: leases of kept sessions.
    :ivar misses: requests that no kept session served, by reason.
    :ivar handshakes: sessions opened with TLS.
    :ivar sessions: sessions opened.
    :ivar transactions: messages begun.
    :ivar saved_handshakes: transactions that needed no handshake of their own.
    :ivar saved_seconds: what opening a session for each would have taken, by what it took to open theirs.
    :ivar closed: nothing more is to be counted here.
    """

    __slots__ = (
        "closed",
        "handshakes",
        "hits",
        "misses",
        "saved_handshakes",
        "saved_seconds",
        "sessions",
        "transactions",
    )

    def __init__(self) -> None:
        self.hits = 0
        self.misses: Counter[str] = Counter()
        self.handshakes = 0
        self.sessions = 0
        self.transactions = 0
        self.saved_handshakes = 0
        self.saved_seconds = 0.0
        self.closed = False

    def add(self, other: Account) -> None:
        """Count what ``other`` has counted, too."""
        self.hits += other.hits
        self.misses.update(other.misses)
        self.handshakes += other.handshakes
        self.sessions += other.sessions
        self.transactions += other.transactions
        self.saved_handshakes += other.saved_handshakes
        self.saved_seconds += other.saved_seconds

    def opened(self, tls: bool) -> None:
        """A session was opened."""
        self.sessions += 1
        self.handshakes += tls

    def used(self, before: int, after: int, tls: bool, setup_seconds: float) -> None:
        """A lease has ended whose session had so many uses ``before``, and has so many ``after``."""
        uses = after - before
        if uses <= 0:
            return
        saved = uses if before else uses - 1
        self.transactions += uses
        self.saved_seconds += saved * setup_seconds
        if tls:
            self.saved_handshakes += saved

    def facts(self) -> dict[str, Any]:
        """The counts by their names."""
        return {
            "hits": self.hits,
            "misses": dict(self.misses),
            "sessions": self.sessions,
            "handshakes": self.handshakes,
            "transactions": self.transactions,
            "saved_handshakes": self.saved_handshakes,
            "saved_seconds": self.saved_seconds,
        }


MAX_NAMESPACE = 100
"""Characters of a namespace by which accounts are kept: a borrower may choose one of some kilobytes."""

Whose = tuple[str, str, int | None]
"""A destination as text, the beginning of its namespace, and its user in a keeper: whose account it is."""


class Accounts:
    """Those of the destinations. Several of one name, for different users of a server say, have one together."""

    def __init__(self) -> None:
        self._open: OrderedDict[Whose, Account] = OrderedDict()
        self._closed = Account()

    def of(self, destination: Destination) -> Account:
        """The account of ``destination``."""
        whose = (str(destination), destination.namespace[:MAX_NAMESPACE], destination.identity.uid)
        account = self._open.get(whose)
        if account is None:
            account = self._open[whose] = Account()
            if len(self._open) > MAX_ACCOUNTS:
                _, oldest = self._open.popitem(last=False)
                oldest.closed = True
                self._closed.add(oldest)
        else:
            self._open.move_to_end(whose)
        return account

    def total(self) -> Account:
        """All together, those that were closed meanwhile too."""
        total = Account()
        total.add(self._closed)
        for account in self._open.values():
            total.add(account)
        return total

    def rows(self) -> list[tuple[Whose, Account]]:
        """Those that are open, by name."""
        return sorted(self._open.items(), key=lambda row: (row[0][0], row[0][1], row[0][2] or 0))
