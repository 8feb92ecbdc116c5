"""AMP for a peer that is not trusted: bounded, paced, with no exception let out and no descriptor left open.

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

MAX_BOX = 131_072
"""Bytes of one box: a destination and a request of 32 KiB each, with room."""


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


class GuardedAMP(amp.AMP):
    """The serving end of a link. While answers wait to be read, no more commands are.

    :cvar COMMANDS: those that there are; no other is known, AMP's own neither.
    """

    COMMANDS: ClassVar[tuple[type[amp.Command], ...]] = ()
    _log = Logger()

    def __init__(self, pairs: IPairs) -> None:
        super().__init__()
        self._pairs = pairs
        self._by_name: dict[bytes, type[amp.Command]] = {command.commandName: command for command in self.COMMANDS}
        self._unboxed = 0
        self._dropped = False
        self._leaving: list[int] = []

    def knows(self, name: bytes) -> bool:
        """Whether the command ``name`` may be called now."""
        raise NotImplementedError

    # -- the link ----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        super().connectionMade()
        self._pace()

    def _pace(self) -> None:
        transport: Any = self.transport
        transport.registerProducer(Pausing(transport.pauseProducing, transport.resumeProducing), True)

    def close_when_sent(self, descriptor: int) -> None:
        """Close ``descriptor``, which the answer that is being made carries, when it has left."""
        transport: Any = self.transport
        self._leaving.append(descriptor)
        if len(self._leaving) == 1:
            transport.unregisterProducer()
            transport.pauseProducing()
            transport.registerProducer(_WhenSent(self._all_sent), False)

    def _all_sent(self) -> None:
        transport: Any = self.transport
        self._close_descriptors()
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

    def drop(self, why: str) -> None:
        """End the link."""
        if not self._dropped:
            self._dropped = True
            self._log.warn("the link with {link} is dropped: {why}", link=self, why=why)
            transport: Any = self.transport
            transport.abortConnection()

    # -- what comes in -----------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self._dropped:
            return
        self._unboxed += len(data)
        if self._unboxed > MAX_BOX + len(data):
            self.drop(f"a box of more than {MAX_BOX} bytes")
            return
        super().dataReceived(data)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self._pairs.close(descriptor)
        self.drop("a descriptor was sent")

    def lengthLimitExceeded(self, length: int) -> None:
        self.drop(f"a key of {length} bytes")

    def ampBoxReceived(self, box: amp.AmpBox) -> None:
        self._unboxed = 0
        if self._dropped:
            return
        command = self._by_name.get(box.get(amp.COMMAND, b""))
        if amp.COMMAND not in box or amp.ANSWER in box or amp.ERROR in box:
            self.drop("a box that is no command")
        elif command is not None and command.requiresAnswer and amp.ASK not in box:
            self.drop(f"{command.__name__} without a wish for its answer")
        else:
            super().ampBoxReceived(box)

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
        error = failure.value
        if isinstance(error, MalformedError):
            said = str(error)
        elif isinstance(error, (ValueError, KeyError, amp.AmpError)):
            said = f"an argument that can't be used ({type(error).__name__})"
        else:
            self._log.failure("a defect in the keeper", failure)
            said = "a defect in the keeper"
        return Failure(amp.RemoteAmpError(b"FAULT", said))

    def unhandledError(self, failure: Failure) -> None:
        """A command that is not answered was not understood, or its answer could not be written."""
        self.drop(failure.getErrorMessage())
