"""One connection with a keeper: what is called on it, how the keeper is known to live, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure

from mailcache.interfaces import IPairs
from mailcache.remote import commands
from mailcache.remote.guarded import BoundedAMP

PING_EVERY, PING_PATIENCE = 0.3, 1.0
"""Seconds between calls that show the keeper alive, and for their answer."""

LOOKS = 8
"""How often that answer is looked for at least: who was stopped himself must not call the keeper dead for it."""

MAX_UNCLAIMED = 64
"""Descriptors that have come and no answer has claimed: each comes with the first byte of its answer."""


class Wire(BoundedAMP):
    """AMP, which tells of its end first of all, and leaves no descriptor behind. What no keeper says ends it.

    :param on_lost: called at its end.
    :param on_retiring: called when the keeper has said that it lends no more.
    :ivar retiring: it has.
    :ivar pinging: an answer that shows the keeper alive is awaited.
    """

    def __init__(self, pairs: IPairs, on_lost: Callable[[Wire], None], on_retiring: Callable[[Wire], None]) -> None:
        super().__init__()
        self._pairs = pairs
        self._on_lost = on_lost
        self._on_retiring = on_retiring
        self.retiring = False
        self.pinging = False
        self._ping_sent = 0.0
        self._looks = 0
        self._closing_since: float | None = None

    @property
    def closing(self) -> bool:
        """Whether it was this side that has ended it in order."""
        return self._closing_since is not None

    def stands(self, now: float) -> None:
        """The keeper has answered for the first time."""
        self._ping_sent = now

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_lost(self)
        super().connectionLost(reason)
        for descriptor in self._descriptors.values():
            self._pairs.close(descriptor)
        self._descriptors.clear()

    def dataReceived(self, data: bytes) -> None:
        try:
            super().dataReceived(data)
        except Exception as error:  # noqa: BLE001  (what AMP makes of a wrong box can be any)
            self.drop(f"it is not understood: {error!r}")

    def unhandledError(self, failure: Failure) -> None:
        """An answer that is none."""
        self.drop(f"it is not understood: {failure.getErrorMessage()}")

    def fileDescriptorReceived(self, descriptor: int) -> None:
        super().fileDescriptorReceived(descriptor)
        try:
            self._pairs.received(descriptor)
        except OSError as error:
            self.drop(f"a descriptor that can't be kept: {error.strerror}")
        if len(self._descriptors) > MAX_UNCLAIMED:
            self.drop(f"{MAX_UNCLAIMED} descriptors that belong to nothing")

    def box_received(self, box: amp.AmpBox) -> None:
        answered = box.get(amp.ANSWER, box.get(amp.ERROR))
        if answered is None:
            understood = amp.ASK not in box and box.get(amp.COMMAND) == commands.Retiring.commandName
        else:
            understood = amp.COMMAND not in box and answered in self._outstandingRequests
        if understood:
            super().box_received(box)
        else:
            self.drop("a box that is neither an answer nor what a keeper says")

    @commands.Retiring.responder
    def retire(self) -> dict[str, Any]:
        """The keeper says that it lends no more."""
        if not self.retiring:
            self.retiring = True
            self._on_retiring(self)
        return {}

    def call(self, command: type[amp.Command], **arguments: Any) -> Deferred[dict[str, Any]]:
        """Call ``command``."""
        answer: Deferred[dict[str, Any]] = self.callRemote(command, **arguments)
        return answer

    def tell(self, command: type[amp.Command], **arguments: Any) -> None:
        """Send a ``command`` that has no answer."""
        self.callRemote(command, **arguments)

    def tick(self, now: float, busy: bool) -> None:
        """Time has passed; ``busy`` says whether anybody depends on the keeper's being alive."""
        if self.pinging:
            self._looks += 1
            if now - self._ping_sent >= PING_PATIENCE and self._looks >= LOOKS:
                self._log.warn("the keeper does not answer")
                self.abort()
        elif busy and not self.closing and now - self._ping_sent >= PING_EVERY:
            self.pinging = True
            self._looks = 0
            self._ping_sent = now
            self.callRemote(commands.Ping).addBoth(self._ponged)
        if self._closing_since is not None and now - self._closing_since >= PING_PATIENCE:
            self.abort()

    def _ponged(self, _outcome: object) -> None:
        self.pinging = False

    def abort(self) -> None:
        """End it at once."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def close(self, now: float) -> None:
        """End it behind what was sent; whoever calls this goes on calling `tick`."""
        if self._closing_since is None:
            self._closing_since = now
            transport: Any = self.transport
            transport.loseConnection()
