"""``python -m mailcache.demo.sender_process``: sends over the sessions of a keeper, as it is told on standard input.

It prints lines of JSON. When it is ready there is one; then it reads one, its order: "keeper" and "ca_file" (paths),
"port", "first" and "messages" (which of them), "senders" (how many at a time). While it sends it tells how many are
"sent"; at last what was "measured", or why it has "failed". It ends with its standard input.
"""

from __future__ import annotations

import json
import time
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from mailcache.demo.measuring import DemoFailed, Measured, measure
from mailcache.demo.server import destination
from mailcache.remote.client import RemoteSessionCache

EVERY = 0.1
"""Seconds between lines on how many are sent: quick enough for the eye, and no burden for what is measured."""


class Sender(LineOnlyReceiver):
    """Carries out the order."""

    delimiter = b"\n"

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._next = 0.0

    def connectionMade(self) -> None:
        self._say(ready=True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._reactor.stop()

    def lineReceived(self, line: bytes) -> None:
        sending = Deferred.fromCoroutine(self._send(**json.loads(line)))
        sending.addCallbacks(
            lambda measured: self._say(measured=attrs.asdict(measured)),
            lambda failure: self._say(failed=_told(failure)),
        )

    async def _send(self, keeper: str, port: int, ca_file: str, first: int, messages: int, senders: int) -> Measured:
        # Without a fallback: what is sent goes over the keeper's sessions, or not at all.
        cache = RemoteSessionCache(self._reactor, f"unix:{quoteStringArgument(keeper)}", fallback=None)
        return await measure(cache, destination(port, ca_file), range(first, first + messages), senders, self._sent)

    def _sent(self, count: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY
            self._say(sent=count)

    def _say(self, **facts: Any) -> None:
        if self.transport is not None:
            self.transport.write(json.dumps(facts).encode("ascii") + b"\n")


def _told(failure: Failure) -> str:
    if failure.check(DemoFailed):
        return failure.getErrorMessage()
    return f"{failure.type.__name__}: {failure.getErrorMessage()}"  # type: ignore[union-attr]


def main() -> None:
    """Send, and stay until standard input ends."""
    from twisted.internet import reactor, stdio

    loop: Any = reactor
    stdio.StandardIO(Sender(loop), reactor=loop)
    loop.run()


if __name__ == "__main__":
    main()
