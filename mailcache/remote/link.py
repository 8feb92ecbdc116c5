"""The borrower's end of the link with its keeper: how it is made, how it is known to live, when to try again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from mailcache.interfaces import IPairs
from mailcache.remote import codec, commands

PING_EVERY, PING_PATIENCE = 0.3, 1.0
"""Seconds between calls that show the keeper alive, and for their answer."""

LOOKS = 8
"""How often that answer is looked for at least: who was stopped himself must not call the keeper dead for it."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds until a keeper that was not there is looked for again: doubled each time, up to the second, and spread."""


class _Wire(amp.AMP):
    """AMP, which tells of its end first of all, and leaves no descriptor behind."""

    def __init__(self, pairs: IPairs, on_lost: Callable[[_Wire], None]) -> None:
        super().__init__()
        self._pairs = pairs
        self._on_lost = on_lost

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_lost(self)
        super().connectionLost(reason)
        for descriptor in self._descriptors.values():
            self._pairs.close(descriptor)
        self._descriptors.clear()


class Link:
    """The link, made when it is wanted and again after it was lost.

    :param made: called when it stands.
    :param lost: called when it is gone, or could not be made.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: str,
        pairs: IPairs,
        now: Callable[[], float],
        made: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._endpoint = clientFromString(reactor, endpoint)
        self._pairs = pairs
        self._now = now
        self._made = made
        self._lost = lost
        self._wire: _Wire | None = None
        self._connecting: Deferred[Any] | None = None
        self._pause = FIRST_PAUSE
        self._spread: Callable[[], float] = lambda: random.uniform(0.8, 1.2)  # noqa: S311  (no secret depends on it)
        self._not_before = float("-inf")
        self._ping_sent = 0.0
        self._pinging = False
        self._looks = 0
        self._closing_since: float | None = None

    @property
    def up(self) -> bool:
        """Whether it stands."""
        return self._wire is not None

    @property
    def down(self) -> bool:
        """Whether there is none and none is being made."""
        return self._wire is None and self._connecting is None

    @property
    def pinging(self) -> bool:
        """Whether an answer that shows the keeper alive is awaited."""
        return self._pinging

    # -- making it ---------------------------------------------------------------------------------------------

    def want(self) -> bool:
        """See that it is made, unless it is too early to try again: then there will be none."""
        if not self.down:
            return True
        if self._now() < self._not_before:
            return False
        wire = _Wire(self._pairs, self._gone)
        connecting = connectProtocol(self._endpoint, wire)
        self._connecting = connecting
        connecting.addCallback(lambda _: wire.callRemote(commands.Hello, version=codec.VERSION))
        connecting.addTimeout(PING_PATIENCE, self._reactor)
        connecting.addCallbacks(self._stands, self._failed, (wire,), {}, (wire,))
        connecting.addErrback(lambda failure: self._log.failure("a defect in mailcache", failure))
        return True

    def _stands(self, _answer: object, wire: _Wire) -> None:
        self._connecting = None
        self._wire = wire
        self._pause = FIRST_PAUSE
        self._ping_sent = self._now()
        self._pinging = False
        self._made()

    def _failed(self, failure: Failure, wire: _Wire) -> None:
        self._connecting = None
        self._log.warn("no keeper: {why}", why=failure.getErrorMessage())
        if wire.transport is not None:
            transport: Any = wire.transport
            transport.abortConnection()
        self._back_off()
        self._lost()

    def _gone(self, wire: _Wire) -> None:
        if wire is self._wire:
            self._wire = None
            if self._closing_since is None:
                self._log.warn("the link with the keeper was lost")
            self._back_off()
            self._lost()

    def _back_off(self) -> None:
        self._not_before = self._now() + self._pause * self._spread()
        self._pause = min(LONGEST_PAUSE, self._pause * 2)

    # -- using it ----------------------------------------------------------------------------------------------

    def call(self, command: type[amp.Command], **arguments: Any) -> Deferred[dict[str, Any]]:
        """Call ``command``; only while it stands."""
        assert self._wire is not None
        answer: Deferred[dict[str, Any]] = self._wire.callRemote(command, **arguments)
        return answer

    def tell(self, command: type[amp.Command], **arguments: Any) -> None:
        """Send a ``command`` that has no answer, if it stands."""
        if self._wire is not None:
            self._wire.callRemote(command, **arguments)

    def tick(self, now: float, busy: bool) -> None:
        """Time has passed; ``busy`` says whether anybody depends on the keeper's being alive."""
        if self._wire is None:
            return
        if self._pinging:
            self._looks += 1
            if now - self._ping_sent >= PING_PATIENCE and self._looks >= LOOKS:
                self._log.warn("the keeper does not answer")
                self.abort()
        elif busy and now - self._ping_sent >= PING_EVERY:
            self._pinging = True
            self._looks = 0
            self._ping_sent = now
            self._wire.callRemote(commands.Ping).addBoth(self._ponged)
        if self._closing_since is not None and now - self._closing_since >= PING_PATIENCE:
            self.abort()

    def _ponged(self, _outcome: object) -> None:
        self._pinging = False

    def abort(self) -> None:
        """End it at once."""
        if self._wire is not None:
            transport: Any = self._wire.transport
            transport.abortConnection()

    def close(self) -> None:
        """End it behind what was sent; whoever calls this goes on calling `tick`."""
        if self._wire is not None and self._closing_since is None:
            self._closing_since = self._now()
            transport: Any = self._wire.transport
            transport.loseConnection()
