"""A server that says what an input decides, when it decides, and in the segments that it decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.fuzz.choices import Choices, expanded

REPLIES = (
    b"421 4.3.2 closing\r\n", b"450 4.2.1 later\r\n", b"451 4.3.0 later\r\n", b"452 4.5.3 too many\r\n",
    b"503 5.5.1 sequence\r\n", b"550 5.1.1 no\r\n", b"552 5.3.4 size\r\n", b"554 5.6.0 no\r\n",
    b"220 mx.test\r\n", b"250 2.0.0 ok\r\n", b"251 forwarded\r\n", b"252 maybe\r\n", b"354 go ahead\r\n",
    b"250-a\r\n250 b\r\n", b"250 ok\n", b"250 a\rb\r\n",
)  # fmt: skip

CAPABILITIES = (
    b"250-mx.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 10000000\r\n",
    b"250 mx.test\r\n",
    b"250-mx.test\r\n250-LIMITS RCPTMAX=1\r\n250 PIPELINING\r\n",
    b"250-mx.test\r\n250-STARTTLS\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 ENHANCEDSTATUSCODES\r\n",
)

RIGHT, PIECES, IN_PLACE, BEFORE, BEHIND, LAST, LATER, CLOSING, ABORTING, SILENT, ANOTHER, ODD = range(12)
"""What may come of something that the client has said."""


class StrangeServer(Protocol):
    """One connection. All connections of an input take their choices from the same ones.

    :param clock: for what it says later.
    """

    def __init__(self, choices: Choices, clock: Any) -> None:
        self._choices = choices
        self._clock = clock
        self._wanting_content = False
        self._content = b""
        self._later: set[IDelayedCall] = set()
        self._wire: Any = None

    def connectionMade(self) -> None:
        self._wire = self.transport
        self._step([b"220 mx.test ESMTP\r\n"])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for call in self._later:
            if call.active():
                call.cancel()

    def dataReceived(self, data: bytes) -> None:
        self._step(self._right(data))

    def _right(self, data: bytes) -> list[bytes]:
        """What a server would say to this."""
        if self._wanting_content and not data.startswith((b"RSET", b"MAIL", b"QUIT", b"EHLO")):
            self._content += data
            if not self._content.endswith((b"\r\n.\r\n", b"BDAT")) and self._content != b".\r\n":
                return []
            self._wanting_content = False
            return [b"250 2.0.0 taken\r\n"]
        replies = []
        self._wanting_content = False
        for line in data.split(b"\r\n")[:-1]:
            verb = line[:4]
            if verb in (b"EHLO", b"LHLO"):
                replies.append(CAPABILITIES[self._choices.below(len(CAPABILITIES))])
            elif verb == b"DATA":
                self._wanting_content, self._content = True, b""
                replies.append(b"354 go ahead\r\n")
            else:
                replies.append(b"221 bye\r\n" if verb == b"QUIT" else b"250 2.0.0 ok\r\n")
        return replies

    def _step(self, right: list[bytes]) -> None:
        if not right:
            return
        choices = self._choices
        what = choices.below(16)
        all_of_it = b"".join(right)
        if what == PIECES:
            at = len(all_of_it) * choices.byte() // 256
            self._say(all_of_it[:at])
            self._say_later(all_of_it[at:])
        elif what == IN_PLACE:
            self._say(self._odd())
        elif what == BEFORE:
            self._say(self._odd() + all_of_it)
        elif what == BEHIND:
            self._say(all_of_it)
            self._say_later(self._odd())
        elif what == LAST:
            right[-1] = self._odd()
            self._say(b"".join(right))
        elif what == LATER:
            self._say_later(all_of_it)
        elif what == CLOSING:
            self._say(all_of_it)
            self._wire.loseConnection()
        elif what == ABORTING:
            self._say(all_of_it)
            self._in(0.001 * choices.byte(), self._wire.abortConnection)
        elif what == SILENT:
            pass
        elif what == ANOTHER:
            place = choices.below(len(right))
            right[place] = self._odd()
            self._say(b"".join(right))
        elif what == ODD:
            self._say(all_of_it + self._odd())
        else:
            self._say(all_of_it)

    def _odd(self) -> bytes:
        """A reply that is out of place here, or any bytes."""
        which = self._choices.below(len(REPLIES) + 4)
        return REPLIES[which] if which < len(REPLIES) else expanded(self._choices.piece())

    def _say(self, data: bytes) -> None:
        self._wire.write(data)

    def _say_later(self, data: bytes) -> None:
        self._in(0.02 * self._choices.byte(), self._say, data)

    def _in(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        self._later.add(self._clock.callLater(seconds, call, *arguments))
