"""Faults by chance: at every point of every conversation, of every kind that can strike there.

    server = SMTPServer(reactor, chaos=Chaos(0.02))

Who gives no seed is told, on standard error, the one that makes the same choices again.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

from mailcache.testing.faults import APPLICABLE, KINDS, NEEDS_TLS
from mailcache.testing.records import Connection

#: How many seeds there are: few enough digits to be typed again.
SEEDS = 10**9


class Chaos:
    """
    Chooses faults, by the points that conversations reach.

    @ivar seed: what makes it choose the same again, where all else is the same.
    @ivar struck: how often each (point, kind) was chosen.
    """

    def __init__(
        self,
        rate: float | Mapping[str, float],
        *,
        seed: int | None = None,
        kinds: Iterable[str] | None = None,
    ) -> None:
        """
        @param rate: how probable a fault is at each point that is reached, from 0 to 1; or that by point, where
            points that are not named have none. ``content`` is reached once by a message, if it comes in several
            segments, and ``idle`` by each parked connection when C{strike_idle()} is called.
        @param seed: None: one is chosen, and printed on standard error.
        @param kinds: the kinds that are chosen from, of L{KINDS}; None: all.
        @raise ValueError: for a rate that is no probability, or a point or a kind that there is not.
        """
        rates = dict(rate) if isinstance(rate, Mapping) else dict.fromkeys(APPLICABLE, rate)
        wanted = frozenset(KINDS if kinds is None else kinds)
        for point, probability in rates.items():
            if point not in APPLICABLE:
                raise ValueError(f"no point {point!r}; there are {', '.join(APPLICABLE)}")
            if isinstance(probability, bool) or not 0 <= probability <= 1:
                raise ValueError(f"rate: {probability!r} is no probability, which is from 0 to 1")
        for kind in sorted(wanted - KINDS.keys()):
            raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
        if seed is None:
            seed = random.SystemRandom().randrange(SEEDS)
            sys.stderr.write(f"mailcache.testing: chaos with seed={seed}\n")
        self.seed = seed
        self.struck: dict[tuple[str, str], int] = {}
        self._random = random.Random(seed)  # noqa: S311  (what is wanted is that it can be repeated)
        self._rates = rates
        self._kinds = {point: tuple(sorted(kinds & wanted)) for point, kinds in APPLICABLE.items()}
        self._kinds_in_clear = {
            point: tuple(k for k in kinds if k not in NEEDS_TLS) for point, kinds in self._kinds.items()
        }
        self._content: WeakKeyDictionary[Connection, tuple[int, str | None]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Chaos seed={self.seed}, {sum(self.struck.values())} faults so far>"

    def choose(self, point: str, record: Connection, only: str | None = None) -> str | None:
        """The kind of fault that strikes here and now, if one does.

        @param only: no other kind can strike now; what is chosen for ``content`` may still come later.
        """
        kind = self._chosen_for_content(record) if point == "content" else self._draw(point, record)
        if kind is None or only not in {None, kind}:
            return None
        if point == "content":
            self._content[record] = (record.transactions, None)
        self.struck[point, kind] = self.struck.get((point, kind), 0) + 1
        return kind

    def _draw(self, point: str, record: Connection) -> str | None:
        if self._random.random() >= self._rates.get(point, 0):
            return None
        kinds = (self._kinds if record.tls or point == "handshake" else self._kinds_in_clear)[point]
        return self._random.choice(kinds) if kinds else None

    def _chosen_for_content(self, record: Connection) -> str | None:
        """One choice for each message, however many segments it has."""
        transaction, kind = self._content.get(record, (-1, None))
        if transaction != record.transactions:
            kind = self._draw("content", record)
            self._content[record] = (record.transactions, kind)
        return kind
