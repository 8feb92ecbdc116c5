"""AMP for a peer that is not trusted: bounded, paced, with no exception let out and no descriptor left open. The
calling end has `BoundedAMP`, since a keeper may be none.

AMP itself bounds neither the size of a box nor what waits to be written, closes the link for any exception that a
command does not declare, answers StartTLS, and forgets descriptors that no command has asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.interfaces import IPairs
from mailcache.remote.codec import MalformedError
from mailcache.remote.relay import Pausing
from mailcache.writing import Writer

MAX_BOX = 131_072
"""Bytes of one box: a destination and a request of 32 KiB each, with room."""

MAX_KEYS = 64
"""Keys of one box; ours have six at most. Each costs much more memory than it has bytes."""


@implementer(IPullProducer)
class _WhenSent:
    """A producer of nothing: when it is asked for more, all that was written has left, descriptors too."""

    def __init__(self, sent: Callable[[], None]) -> None:
        self._registered = False
        self._sent = sent

    def resumeProducing(self) -> None:
        # The first time is when it is registered.
        if self._registered:
            self._sent()
        self._registered = True

    def stopProducing(self) -> None:
        """The transport is gone; who owns this hears of it."""


class BoundedAMP(amp.AMP):
    """Either end of a link: what is held of a box is bounded, and nothing is read behind the end."""

    _log = Logger()
    _unboxed = 0
    _dropped = False

    def drop(self, why: str) -> None:
        """End the link."""
        if not self._dropped:
            self._dropped = True
            self._log.warn("the link with {link} is dropped: {why}", link=self, why=why)
            transport: Any = self.transport
            transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._dropped:
            return
        self._unboxed += len(data)
        if self._unboxed > MAX_BOX + len(data):
            self.drop(f"a box of more than {MAX_BOX} bytes")
            return
        super().dataReceived(data)
        if self._currentBox is not None and len(self._currentBox) > MAX_KEYS:
            self._too_many_keys()

    def lengthLimitExceeded(self, length: int) -> None:
        self.drop(f"a key of {length} bytes")

    def ampBoxReceived(self, box: amp.AmpBox) -> None:
        self._unboxed = 0
        if len(box) > MAX_KEYS:
            self._too_many_keys()
        elif not self._dropped:
            self.box_received(box)

    def _too_many_keys(self) -> None:
        self.drop(f"a box of more than {MAX_KEYS} keys")

    def box_received(self, box: amp.AmpBox) -> None:
        """A whole box has come."""
        super().ampBoxReceived(box)


class GuardedAMP(BoundedAMP):
    """The serving end of a link. While answers wait to be read, no more commands are.

    :cvar COMMANDS: those that are answered; no other is known, AMP's own neither.
    :cvar TOLD: those that are not, and the methods that take them.
    """

    COMMANDS: ClassVar[tuple[type[amp.Command], ...]] = ()
    TOLD: ClassVar[dict[type[amp.Command], str]] = {}
    _writer: Writer

    def __init__(self, pairs: IPairs) -> None:
        super().__init__()
        self._pairs = pairs
        self._by_name: dict[bytes, type[amp.Command]] = {command.commandName: command for command in self.COMMANDS}
        self._told = {command.commandName: (command, getattr(self, name)) for command, name in self.TOLD.items()}
        self._reading = False
        self._answers: list[bytes] = []
        self._leaving: list[int] = []

    def knows(self, name: bytes) -> bool:
        """Whether the command ``name`` may be called now."""
        raise NotImplementedError

    # -- the link ----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        super().connectionMade()
        self._writer = Writer(self.transport)
        self._pace()

    def _pace(self) -> None:
        transport: Any = self.transport
        transport.registerProducer(Pausing(transport.pauseProducing, transport.resumeProducing), True)

    def sendBox(self, box: amp.AmpBox) -> None:
        """Send ``box``: together with others, if it answers one of several that were read together."""
        self._answers.append(box.serialize())
        if not self._reading:
            self._send_answers()

    def _send_answers(self) -> None:
        answers, self._answers = self._answers, []
        if not answers or self._dropped:
            return
        writer = self._writer
        was_behind = writer.behind
        writer.write(b"".join(answers))
        if writer.behind and not was_behind:
            self._wait_until_sent()

    def _wait_until_sent(self) -> None:
        """Read no more until all that was written has left."""
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.pauseProducing()
        transport.registerProducer(_WhenSent(self._all_sent), False)

    def close_when_sent(self, descriptor: int) -> None:
        """Close ``descriptor``, which the answer that is being made carries, when it has left."""
        self._leaving.append(descriptor)
        if len(self._leaving) == 1:
            # It leaves with what is written by way of the transport, and not past it.
            self._writer.behind = True
            self._wait_until_sent()

    def _all_sent(self) -> None:
        transport: Any = self.transport
        self._close_descriptors()
        self._writer.behind = False
        transport.unregisterProducer()
        self._pace()
        transport.resumeProducing()

    def _close_descriptors(self) -> None:
        leaving, self._leaving = self._leaving, []
        for descriptor in leaving:
            self._pairs.close(descriptor)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._dropped = True
        self._close_descriptors()
        super().connectionLost(reason)

    def finish(self) -> None:
        """End the link behind what was written."""
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    # -- what comes in -----------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        self._reading = True
        try:
            super().dataReceived(data)
        finally:
            self._reading = False
            self._send_answers()

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self._pairs.close(descriptor)
        self.drop("a descriptor was sent")

    def box_received(self, box: amp.AmpBox) -> None:
        name = box.get(amp.COMMAND, b"")
        if not name or amp.ANSWER in box or amp.ERROR in box:
            self.drop("a box that is no command")
        elif name in self._told:
            self._be_told(name, box)
        elif name in self._by_name and amp.ASK not in box:
            self.drop(f"{self._by_name[name].__name__} without a wish for its answer")
        else:
            super().box_received(box)

    def _be_told(self, name: bytes, box: amp.AmpBox) -> None:
        command, take = self._told[name]
        if amp.ASK in box or not self.knows(name):
            self.drop(f"{command.__name__} with a wish for an answer, or too early")
            return
        try:
            take(**command.parseArguments(box, self))
        except Exception:  # noqa: BLE001  (no exception leaves a responder)
            self.drop(f"{command.__name__}: {self._said(Failure())}")

    def locateResponder(self, name: bytes) -> Callable[..., Any] | None:
        if name not in self._by_name or not self.knows(name):
            return None
        responder: Callable[..., Any] = super().locateResponder(name)
        return responder

    def dispatchCommand(self, box: amp.AmpBox) -> Deferred[amp.AmpBox]:
        answering: Deferred[amp.AmpBox] = super().dispatchCommand(box)
        return answering.addErrback(self._fault)

    def _fault(self, failure: Failure) -> Failure:
        if failure.check(amp.RemoteAmpError):
            return failure
        return Failure(amp.RemoteAmpError(b"FAULT", self._said(failure)))

    def _said(self, failure: Failure) -> str:
        """What the peer may know of ``failure``."""
        error = failure.value
        if isinstance(error, MalformedError):
            return str(error)
        if isinstance(error, (ValueError, KeyError, amp.AmpError)):
            return f"an argument that can't be used ({type(error).__name__})"
        self._log.failure("a defect in the keeper", failure)
        return "a defect in the keeper"

    def unhandledError(self, failure: Failure) -> None:
        """An answer could not be written."""
        self.drop(failure.getErrorMessage())
