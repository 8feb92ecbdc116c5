"""The borrower's link with its keeper: how it is made, when it is tried again, and how it follows a restart.

A keeper that retires says so. Its wire is a former one then, for the leases that are out, and whatever is wanted
comes over a new one from whoever listens now.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from mailcache.interfaces import IPairs
from mailcache.remote import codec, commands
from mailcache.remote.calling import PING_PATIENCE, Wire

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds until a keeper that was not there is looked for again: doubled each time, up to the second, and spread."""

FOLLOW_PATIENCE = 10.0
"""Seconds for the first answer of whoever listens where a keeper has retired: a supervisor that holds the socket starts
the next keeper meanwhile."""

MAX_FOLLOWED = 3
"""How many keepers are followed in a row that retire as soon as they are asked."""


class Link:
    """The link, made when it is wanted and again after it was lost.

    :param made: called when it stands.
    :param lost: called when it is gone, with its wire, or could not be made, with ``None``; also for a former wire.
    :param retiring: called when the keeper lends no more, with its wire: a former one from here on.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: str,
        pairs: IPairs,
        now: Callable[[], float],
        made: Callable[[], None],
        lost: Callable[[Wire | None], None],
        retiring: Callable[[Wire], None],
    ) -> None:
        self._reactor = reactor
        self._endpoint = clientFromString(reactor, endpoint)
        self._pairs = pairs
        self._now = now
        self._made = made
        self._lost = lost
        self._retiring = retiring
        self._wire: Wire | None = None
        self._former: set[Wire] = set()
        self._connecting: Deferred[Any] | None = None
        self._pause = FIRST_PAUSE
        self._spread: Callable[[], float] = lambda: random.uniform(0.8, 1.2)  # noqa: S311  (no secret depends on it)
        self._not_before = float("-inf")
        self._follow_until = float("-inf")
        self._followed = 0
        self._stood_at = 0.0

    @property
    def wire(self) -> Wire | None:
        """That with the keeper which lends, while the link stands."""
        return self._wire

    @property
    def up(self) -> bool:
        """Whether it stands."""
        return self._wire is not None

    @property
    def down(self) -> bool:
        """Whether there is none and none is being made; former wires apart."""
        return self._wire is None and self._connecting is None

    @property
    def leaving(self) -> bool:
        """Whether there are former wires."""
        return bool(self._former)

    @property
    def pinging(self) -> bool:
        """Whether an answer that shows a keeper alive is awaited."""
        return any(wire.pinging for wire in self._wires())

    def _wires(self) -> list[Wire]:
        return [*self._former, self._wire] if self._wire is not None else list(self._former)

    # -- making it ---------------------------------------------------------------------------------------------

    def want(self) -> bool:
        """See that it is made, unless it is too early to try again: then there will be none."""
        if not self.down:
            return True
        if self._now() < self._not_before:
            return False
        wire = Wire(self._pairs, self._gone, self._retires)
        connecting = connectProtocol(self._endpoint, wire)
        self._connecting = connecting
        connecting.addCallback(lambda _: wire.callRemote(commands.Hello, version=codec.VERSION))
        connecting.addCallback(_of_our_version)
        connecting.addTimeout(max(PING_PATIENCE, self._follow_until - self._now()), self._reactor)
        connecting.addCallbacks(self._stands, self._failed, (wire,), {}, (wire,))
        connecting.addErrback(lambda failure: self._log.failure("a defect in mailcache", failure))
        return True

    def _stands(self, _answer: object, wire: Wire) -> None:
        self._connecting = None
        self._wire = wire
        self._pause = FIRST_PAUSE
        self._follow_until = float("-inf")
        self._stood_at = self._now()
        wire.stands(self._now())
        self._made()

    def _failed(self, failure: Failure, wire: Wire) -> None:
        self._connecting = None
        wire.abort()
        if failure.check(commands.KeeperRetiring) and self._followed < MAX_FOLLOWED:
            # It was reached in its last moment: there may be another by now.
            self._followed += 1
            self._follow_until = self._now() + FOLLOW_PATIENCE
            self.want()
            return
        self._log.warn("no keeper: {why}", why=failure.getErrorMessage())
        self._back_off()
        self._lost(None)

    def _gone(self, wire: Wire) -> None:
        if wire in self._former:
            self._former.discard(wire)
        elif wire is self._wire:
            self._wire = None
            if not wire.closing:
                self._log.warn("the link with the keeper was lost")
            self._back_off()
        else:
            return
        self._lost(wire)

    def _retires(self, wire: Wire) -> None:
        if wire is not self._wire:
            return
        self._wire = None
        self._former.add(wire)
        self._log.info("the keeper retires")
        now = self._now()
        self._follow_until = now + FOLLOW_PATIENCE
        self._followed = self._followed + 1 if now - self._stood_at < FIRST_PAUSE else 0
        if self._followed > MAX_FOLLOWED:
            self._back_off()
        self._retiring(wire)

    def _back_off(self) -> None:
        self._follow_until = float("-inf")
        self._followed = 0
        self._not_before = self._now() + self._pause * self._spread()
        self._pause = min(LONGEST_PAUSE, self._pause * 2)

    # -- using it ----------------------------------------------------------------------------------------------

    def call(self, command: type[amp.Command], **arguments: Any) -> Deferred[dict[str, Any]]:
        """Call ``command``; only while it stands."""
        assert self._wire is not None
        return self._wire.call(command, **arguments)

    def tell(self, command: type[amp.Command], **arguments: Any) -> None:
        """Send a ``command`` that has no answer, if it stands."""
        if self._wire is not None:
            self._wire.tell(command, **arguments)

    def lent(self) -> None:
        """A session was had: those who were followed have lent, however soon they have retired."""
        self._followed = 0

    def tick(self, now: float, busy: bool) -> None:
        """Time has passed; ``busy`` says whether anybody depends on the keeper's being alive. Somebody depends on the
        former ones always: they are there for his lease."""
        for wire in list(self._former):
            wire.tick(now, True)
        if self._wire is not None:
            self._wire.tick(now, busy)

    def abort(self) -> None:
        """End it at once."""
        if self._wire is not None:
            self._wire.abort()

    def close(self) -> None:
        """End it behind what was sent; whoever calls this goes on calling `tick`."""
        if self._wire is not None:
            self._wire.close(self._now())

    def leave(self, wire: Wire) -> None:
        """Nobody has a lease over this former wire any more: it ends behind what was sent."""
        if wire in self._former:
            wire.close(self._now())


def _of_our_version(answer: dict[str, Any]) -> dict[str, Any]:
    """A keeper that takes us for one of another version must not be guessed at: better none."""
    if answer["version"] != codec.VERSION:
        raise commands.KeeperFault(f"it speaks version {answer['version']}, and this borrower version {codec.VERSION}")
    return answer
