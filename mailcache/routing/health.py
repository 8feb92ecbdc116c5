"""What is known to be dead: back-off for whatever failed to open, shared by all deliveries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from mailcache.result import DeliveryError

FREE_FAILURES = 2
"""Failures in a row that cost nothing: a hiccup must not make a delivery fail that would go through uncached."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 60.0
"""Seconds: the pause after the third failure, doubled with each that follows (1 s after the fifth), and its bound."""

UNPROVEN = 5
"""Attempts at one time where none has succeeded since the last failure, or at all."""

MAX_REMEMBERED = 10_000
"""Subjects remembered, the one longest untried forgotten first: a host is some 300 bytes."""


def as_remembered(error: DeliveryError) -> DeliveryError:
    """The same without its traceback, and without what caused it.

    Frames hold what they work on: the dead connection with its TLS, and with whoever was told, his messages.
    """
    return DeliveryError(
        error.args[0], phase=error.phase, retriable=error.retriable, endpoint=error.endpoint, reply=error.reply
    )


class _Record:
    __slots__ = ("blocked_until", "error", "failed_at", "failures", "proven")

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = 0.0
        self.blocked_until = 0.0
        self.proven = False
        self.error: DeliveryError | None = None


class Health:
    """How the attempts to open sessions went, by subject: a way to an endpoint, or what was asked of it there."""

    def __init__(self) -> None:
        self._records: OrderedDict[Hashable, _Record] = OrderedDict()

    def failed(self, subject: Hashable, error: DeliveryError, now: float, *, began: float) -> None:
        """An attempt that ``began`` then has failed at ``now`` (seconds)."""
        record = self._record(subject)
        # Attempts that were under way when another failed tell of the same trouble: twenty connections refused while
        # a server restarts are no reason to leave it alone for a minute, so together they count as the fifth failure.
        if record.failures < UNPROVEN or began > record.failed_at:
            record.failures += 1
        record.failed_at = now
        record.proven = False
        record.error = error
        extra = record.failures - FREE_FAILURES
        if extra > 0:
            # 2 ** 16 quarters of a second are hours: the exponent is bounded so that the float is.
            record.blocked_until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(extra - 1, 16))

    def worked(self, subject: Hashable) -> None:
        """An attempt has succeeded: the past is forgotten."""
        record = self._record(subject)
        record.failures = 0
        record.blocked_until = 0.0
        record.error = None
        record.proven = True

    def blocked(self, subject: Hashable, now: float) -> float:
        """For how many more seconds it is to be left alone; 0 if it is not."""
        record = self._records.get(subject)
        return 0.0 if record is None else max(0.0, record.blocked_until - now)

    def last_error(self, subject: Hashable) -> DeliveryError | None:
        """Why the last attempt failed, if it did."""
        record = self._records.get(subject)
        return None if record is None else record.error

    def attempts_allowed(self, subject: Hashable) -> int | None:
        """How many attempts may be under way at one time; ``None`` for no such limit."""
        record = self._records.get(subject)
        if record is None:
            return UNPROVEN
        return None if record.proven else 1

    def _record(self, subject: Hashable) -> _Record:
        record = self._records.get(subject)
        if record is None:
            record = self._records[subject] = _Record()
            if len(self._records) > MAX_REMEMBERED:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(subject)
        return record
