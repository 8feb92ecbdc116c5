"""What a keeper says to a borrower: boxes, bytes, sessions that it lends. No answer makes the borrower lie or hang."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from twisted.internet.protocol import Protocol
from twisted.protocols import amp

from mailcache import DeliveryError, RemoteSessionCache
from mailcache.destination import Endpoint
from mailcache.remote import borrowed, codec
from mailcache.remote.codec import Facts
from mailcache.remote.packed import Granted
from mailcache.testing import MemoryPairs
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply
from tests.fuzz.boxes import KEYS, NAMES, first_box
from tests.fuzz.choices import Choices, cut, expanded
from tests.fuzz.conversation import TIMEOUTS, World, check_claim
from tests.fuzz.ledger import TappedPair
from tests.fuzz.strange_server import StrangeServer
from tests.fuzz.target import Target
from tests.helpers import KEEPER, PORT, Outcome

_FACTS = codec.encode_facts(
    Facts("1f", Endpoint("smtp", "127.0.0.1", PORT), "127.0.0.1", Capabilities({"PIPELINING": ()}), CLEAR, "clear", 0.5)
)
_ERROR = codec.encode_error(
    DeliveryError("no", phase="auth", retriable=False, endpoint="smtp:[192.0.2.1]:25", reply=Reply.make(535, "no"))
)
MAX_BOXES = 2_000
"""Boxes that a keeper takes of a borrower in one input. It does not ask for ever."""

DEADLINE = 4.0
"""Seconds for a message. How long a request waits is for the keeper to say, and this one may say nothing."""


class LentServer(StrangeServer):
    """The server at the other end of a pair: it has said its greeting long since."""

    def connectionMade(self) -> None:
        self._wire = self.transport


class StrangeKeeper(Protocol):
    """One link. All links of an input take their choices from the same ones."""

    def __init__(self, choices: Choices, world: BorrowersWorld, pairs: MemoryPairs) -> None:
        self._choices = choices
        self._world = world
        self._pairs = pairs
        self._wire: Any = None
        self._read = b""
        self._boxes = 0
        self._descriptors = 0
        self._lease = 0

    def connectionMade(self) -> None:
        self._wire = self.transport

    def dataReceived(self, data: bytes) -> None:
        self._read += data
        while True:
            box, self._read = first_box(self._read)
            if box is None:
                return
            self._boxes += 1
            assert self._boxes < MAX_BOXES, "the borrower asks for ever"
            if box.get(b"_command") == b"Acquire":
                # It takes its time: a borrower who gets what is of no use to him asks again at once.
                self._world.reactor.callLater(0.1, self._take, box)
            else:
                self._take(box)

    def _take(self, box: dict[bytes, bytes]) -> None:
        choices = self._choices
        if not self._wire.connected:
            return
        ask = box.get(b"_ask")
        what = choices.below(20)
        if what == 1:
            self._say(expanded(choices.piece()))
        elif what == 2:
            self._box({b"_command": NAMES[choices.below(len(NAMES))], KEYS[choices.below(len(KEYS))]: choices.piece()})
        elif what == 3:
            self._wire.loseConnection()
        elif what == 4:
            self._box({b"_command": b"Retiring"})
        if ask is None or what == 5:
            return
        answer = {b"_answer": ask}
        if what == 6:
            code = (b"FAULT", b"RETIRING", b"UNKNOWN", b"UNHANDLED")[choices.below(4)]
            self._box({b"_error": ask, b"_error_code": code, b"_error_description": choices.piece()})
        elif what == 7:
            self._box({**answer, KEYS[choices.below(len(KEYS))]: choices.piece(), b"granted": choices.piece()})
        elif what == 8:
            self._box({**answer, b"error": self._bent(_ERROR)})
        elif what == 9:
            self._box({b"_answer": b"%d" % choices.byte(), b"granted": choices.piece()})
        elif box[b"_command"] == b"Hello":
            self._box({**answer, b"version": b"1" if what != 10 else choices.piece()})
        elif box[b"_command"] == b"Acquire":
            self._grant(answer, what)
        else:
            self._box({**answer, b"counts": b"{}" if what != 10 else choices.piece()})
        if what == 11:
            self._box(answer)

    def _bent(self, message: bytes) -> bytes:
        """``message``, or something near it."""
        choices = self._choices
        at = len(message) * choices.byte() // 256
        return message[:at] + choices.piece() + message[at + choices.below(8) :]

    def _grant(self, answer: dict[bytes, bytes], what: int) -> None:
        """Lend a session, or something like it: a new one mostly, else one that was lent before."""
        choices = self._choices
        self._lease += 1
        granted = Granted(self._lease, self._descriptors + 1, choices.below(3), None, choices.below(4) == 3).encode()
        if what == 12:
            granted = self._bent(granted)
        answer = {**answer, b"granted": granted}
        if what == 13:
            self._box(answer)
            return
        if what != 14:
            server = LentServer(choices, self._world.reactor)
            self._world.servers.append(server)
            descriptor = self._pairs.make(server)
            self._wire.sendFileDescriptor(descriptor)
            self._world.reactor.callLater(0.001, self._pairs.close, descriptor)
        facts = self._bent(_FACTS) if what == 15 else _FACTS
        self._box({**answer, b"facts": facts, b"descriptor": b"%d" % (self._descriptors + (what == 16))})
        self._descriptors += 1

    def _box(self, values: dict[bytes, bytes]) -> None:
        for piece in cut(bytes(amp.AmpBox(values).serialize()), b"\x80"):
            self._say(piece)

    def _say(self, data: bytes) -> None:
        self._wire.write(data)


class BorrowersWorld(World):
    """A borrower, and a strange keeper."""

    kind = TappedPair

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self.servers: list[LentServer] = []
        pairs = MemoryPairs(self.reactor)
        self.reactor.listenUNIX(KEEPER, self.listen(lambda: StrangeKeeper(choices, self, pairs)))
        self.cache = RemoteSessionCache(
            self.reactor, f"unix:{KEEPER}", pairs=pairs, timeouts=TIMEOUTS, wait_timeout=5, fallback=None,
            clock=self.reactor.seconds,
        )  # fmt: skip

    def close(self) -> None:
        """A keeper that is strange may leave its pairs open: they are closed from this side."""
        self.finish(Outcome(self.cache.close()))
        for server in self.servers:
            server.transport.abortConnection()  # type: ignore[union-attr]
        super().close()


def check(data: bytes) -> None:
    """Three messages, one after the other, by way of a keeper that answers anything."""
    choices = Choices(data)
    world = BorrowersWorld(choices)
    with patch.object(borrowed, "BorrowedConnection", world.connection):
        for number in range(3):
            content = b"Subject: message %d\r\n\r\n" % number
            recipients = ("b@example.com", "c@example.com")[: 1 + number % 2]
            value = world.deliver(content, recipients, DEADLINE)
            check_claim(value, recipients, world.ended(content), exact=True)
            world.reactor.run_for(0.05 * choices.byte())
        world.close()


TARGET = Target(
    "answers",
    check,
    (
        b"",
        *(bytes([*[0] * place, what, 3]) + b"abc" + bytes([0, 0x80]) for what in range(1, 17) for place in range(6)),
        *(
            bytes([*[0] * place, 15, 0, 0, at, 4]) + b"1e99"
            for at in (0x20, 0x60, 0x90, 0xC0, 0xF0)
            for place in (1, 2)
        ),
        *(bytes([0, 0, 0, 0, what, 17, 12]) + b"250 a\r\n354 b\r\n" for what in (2, 3, 4)),
    ),
    (
        b"\x0c\0\x08",
        b"\x0f\x80\x04",
        b"1e99",
        b"null",
        b"[]",
        b"{}",
        b"\0\0",
        b"250 ok\r\n",
        b"\xfd\xff",
        b"\xff\xff\xff",
    ),
    max_input=400,
)
