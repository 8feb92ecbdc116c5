"""What callers have in hands: calls that fire once, messages and what was told of them, leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred

from mailcache import DeliveryError, DeliveryResult, Destination, UncertainDelivery


def nothing(_: object) -> None:
    """For who does not care what has come of it."""


class Call:
    """Something that was asked for and that fires once.

    :param until: when it must have fired.
    :param take: has what it fires.
    """

    def __init__(self, world: Any, what: str, deferred: Deferred[Any], until: float, take: Callable[[Any], object]):
        self.what = what
        self.until = until
        self.deferred = deferred
        self.fired = 0
        self.then: Callable[[], object] | None = None
        self._world = world
        self._take = take
        world.calls.append(self)
        deferred.addBoth(self._fire)

    def _fire(self, value: Any) -> None:
        world = self._world
        self.fired += 1
        if self.fired > 1:
            world.complain(f"{self.what} has fired {self.fired} times")
            return
        world.calls.remove(self)
        world.check_in_time(self)
        # Nothing of it may keep a lease alive that its holder drops.
        take, self._take = self._take, nothing
        then, self.then = self.then, None
        take(value)
        del take, value
        if then is not None:
            then()


@attrs.define(eq=False)
class Message:
    """A message, and what its sender was told of it."""

    label: str
    stream: str
    recipients: tuple[str, ...]
    content: bytes
    told: Any = None

    def expected(self, recipient: str, taken: int) -> str | None:
        """What is wrong with ``recipient`` having got it so often."""
        told = self.told
        if taken > 1:
            return f"was taken {taken} times"
        if isinstance(told, DeliveryResult):
            if (recipient in told.accepted) == (recipient in told.rejected):
                return f"is both accepted and rejected, or neither, in {told}"
            if taken != (recipient in told.accepted):
                return f"was taken {taken} times, and told {told}"
        elif isinstance(told, UncertainDelivery):
            if recipient in told.accepted and not taken:
                return "was told taken and was not"
            if taken and recipient in told.rejected:
                return "was told refused and was taken"
        elif isinstance(told, (DeliveryError, CancelledError)):
            if taken:
                return f"was taken, and told {told!r}"
        elif told is not None:
            return f"has come to {told!r}"
        return None


@attrs.define(eq=False)
class Holding:
    """A lease in a caller's hands."""

    lease: Any
    destination: Destination
    stream: str
    sending: Call | None = None
