"""When a keeper has lived long enough: by its age, or by the memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall

from mailcache.memory import CLOSE_LIMIT
from mailcache.ticker import Ticker

LOOK_EVERY = 1.0
"""Seconds between looks at the memory."""


def _number(kind: Any, what: str) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value < float("inf"):
            raise ValueError(f"{attribute.name}: {value!r} is not {what} of at least 0")

    return check


@attrs.frozen(slots=True, kw_only=True)
class Life:
    """When a keeper retires, and how long that may take.

    ``retire_after`` seconds from its start, or when its resident memory is more than ``max_memory`` bytes, it ends in
    order, for its supervisor to start the next; 0 is never. ``drain_limit`` is how many seconds deliveries under way
    have then.
    """

    retire_after: float = attrs.field(default=0, validator=_number((int, float), "a number of seconds"))
    max_memory: int = attrs.field(default=0, validator=_number(int, "a whole number of bytes"))
    drain_limit: float = attrs.field(default=CLOSE_LIMIT, validator=_number((int, float), "a number of seconds"))


def resident_memory() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


class Retirement:
    """Calls ``retire`` with the reason when it is time, once.

    :param memory: gives the bytes that this process has in memory.
    """

    def __init__(
        self, reactor: Any, life: Life, retire: Callable[[str], None], memory: Callable[[], int] = resident_memory
    ) -> None:
        self._reactor = reactor
        self._life = life
        self._retire = retire
        self._memory = memory
        self._ticker = Ticker(reactor, LOOK_EVERY, self._look)
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Its life begins."""
        if self._life.retire_after:
            self._call = self._reactor.callLater(self._life.retire_after, self._old)
        if self._life.max_memory:
            self._ticker.start()

    def stop(self) -> None:
        """It is retired already, or ends otherwise."""
        self._ticker.stop()
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _old(self) -> None:
        self.stop()
        self._retire(f"it is {self._life.retire_after:g} s old")

    def _look(self) -> bool:
        taken = self._memory()
        if taken <= self._life.max_memory:
            return True
        self.stop()
        self._retire(f"it takes {taken} bytes of memory, which is more than {self._life.max_memory}")
        return False
