"""What a borrower says to its keeper: boxes, bytes and what is said on the pairs that it is lent.

Whatever that is, each question is answered once or the link ends, others are served as before, and nothing is left.
"""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache import Destination, Envelope, Limits, MemorySessionCache, RemoteSessionCache, TLSPolicy, deliver
from mailcache.remote import codec
from mailcache.remote.guarded import MAX_BOX
from mailcache.remote.keeper import Keeper
from mailcache.remote.packed import Granted, Released
from mailcache.testing import MemoryPairs, MemoryReactor, SMTPServer
from tests.fuzz.choices import Choices, cut, expanded
from tests.fuzz.conversation import TIMEOUTS
from tests.fuzz.target import Target
from tests.helpers import KEEPER, PORT, SMALL, Outcome

MAX_OPERATIONS = 40

NAMES = (
    b"Hello", b"Ping", b"Acquire", b"Withdraw", b"Release", b"Statistics", b"Accounts", b"Retiring", b"StartTLS",
    b"ProtocolSwitch", b"_", b"",
)  # fmt: skip
KEYS = (
    b"_command", b"_ask", b"_answer", b"_error", b"_error_code", b"_error_description", b"version", b"destination",
    b"wanted", b"number", b"released", b"start", b"tls_localCertificate", b"x",
)  # fmt: skip
SAID = (
    b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@y>\r\n", b"DATA\r\n", b"Subject: x\r\n\r\n.\r\n", b"RSET\r\n", b"NOOP\r\n",
    b"QUIT\r\n", b"EHLO x\r\n", b"BDAT 5 LAST\r\nhello", b"BDAT 99999\r\n",
    b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n",
)  # fmt: skip
_WANTED = struct.Struct("!QdQB")


def destination() -> bytes:
    """What a borrower says that means the server here."""
    return codec.encode_destination(Destination(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("none")))


class Pair(Protocol):
    """The borrower's end of a pair."""

    def __init__(self) -> None:
        self.wire: Any = None
        self.read = b""
        self.sent = 0
        self.lost = False

    def connectionMade(self) -> None:
        self.wire = self.transport

    def dataReceived(self, data: bytes) -> None:
        self.read += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    def say(self, data: bytes) -> None:
        self.sent += len(data)
        self.wire.write(data)


@implementer(IFileDescriptorReceiver)
class Stranger(Protocol):
    """A borrower that says what an input decides, and keeps an eye on the answers."""

    def __init__(self, pairs: MemoryPairs) -> None:
        self.wire: Any = None
        self.lost = False
        self.asked: list[bytes] = []
        self.answered: list[bytes] = []
        self.grants: list[Granted] = []
        self.pairs: list[Pair] = []
        self._pairs = pairs
        self._read = b""

    def connectionMade(self) -> None:
        self.wire = self.transport

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self.pairs.append(Pair())
        self._pairs.adopt(descriptor, self.pairs[-1])

    def dataReceived(self, data: bytes) -> None:
        self._read += data
        while True:
            box, rest = first_box(self._read)
            if box is None:
                return
            self._read = rest
            ask = box.get(b"_answer", box.get(b"_error"))
            if ask is None:
                assert box == {b"_command": b"Retiring"}, box
                continue
            self.answered.append(ask)
            if b"granted" in box:
                self.grants.append(Granted.decode(box[b"granted"]))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True


def first_box(data: bytes) -> tuple[dict[bytes, bytes] | None, bytes]:
    """The first box of a stream, if it is whole, and what is behind it."""
    box: dict[bytes, bytes] = {}
    at = 0
    while True:
        name, at = _string(data, at)
        if name is None:
            return None, data
        if not name:
            return box, data[at:]
        value, at = _string(data, at)
        if value is None:
            return None, data
        box[name] = value


def _string(data: bytes, at: int) -> tuple[bytes | None, int]:
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    return (data[at + 2 : end], end) if at + 2 <= len(data) >= end else (None, at)


class World:
    """A keeper, a server behind it, a stranger, and somebody who behaves."""

    def __init__(self) -> None:
        self.reactor = MemoryReactor()
        self.pairs = MemoryPairs(self.reactor)
        self.server = SMTPServer(self.reactor)
        self.server.listen(PORT, "127.0.0.1")
        limits = Limits(wait_timeout=5, idle_timeout=5, sessions_per_destination=1_000, sessions_per_endpoint=1_000)
        self.cache = MemorySessionCache(self.reactor, limits, TIMEOUTS, clock=self.reactor.seconds)
        self.keeper = Keeper(self.reactor, self.cache, self.pairs)
        self.reactor.listenUNIX(KEEPER, self.keeper)
        self.stranger = Stranger(self.pairs)
        self.finish(connectProtocol(UNIXClientEndpoint(self.reactor, KEEPER), self.stranger))
        self.reactor.pump()

    def finish(self, deferred: Deferred[Any]) -> Any:
        outcome = Outcome(deferred)
        self.reactor.run_until(lambda: outcome.done, 120)
        return outcome.value

    def say(self, data: bytes, places: bytes = b"") -> None:
        """The stranger says it, cut at these places."""
        for piece in cut(data, places):
            if not self.stranger.lost:
                self.stranger.wire.write(piece)
                self.reactor.pump()

    def check_others(self) -> None:
        """Somebody who behaves gets a session, and has his message sent, once."""
        other = RemoteSessionCache(
            self.reactor, f"unix:{KEEPER}", pairs=self.pairs, timeouts=TIMEOUTS, wait_timeout=5, fallback=None,
            clock=self.reactor.seconds,
        )  # fmt: skip
        where = Destination(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("none"))
        result = self.finish(deliver(other, where, Envelope("good@example.com", ["b@example.com"]), SMALL))
        assert not isinstance(result, Exception), result
        said = [command for each in self.server.connections for command in each.commands if "<good@" in command]
        # Had he been given a session that the stranger has left in the middle of something, he would have tried again.
        assert (result.accepted, len(said)) == (("b@example.com",), 1), said
        assert [message.sender for message in self.server.messages].count("good@example.com") == 1
        self.finish(other.close())

    def close(self) -> None:
        """Nothing is left."""
        if not self.stranger.lost:
            self.stranger.wire.abortConnection()
        self.reactor.pump()
        assert not self.keeper.borrowers
        counts = self.finish(self.cache.statistics())
        assert (counts["leased"], counts["waiting"]) == (0, 0), counts
        for pair in self.stranger.pairs:
            # Until now: who has it may have given it to another process.
            if not pair.lost:
                pair.wire.abortConnection()
        self.finish(self.keeper.close())
        self.reactor.run_for(10)
        counts = self.finish(self.cache.statistics())
        assert not any(counts[name] for name in ("leased", "idle", "opening", "waiting")), counts
        assert self.reactor.connections == [], self.reactor.connections
        assert self.reactor.descriptors == {}, self.reactor.descriptors
        assert self.reactor.getDelayedCalls() == []


class Asking:
    """What an input has the stranger say."""

    def __init__(self, world: World, choices: Choices) -> None:
        self._world = world
        self._choices = choices
        self._asks = 0
        self.may_owe = 0

    def box(self, values: dict[bytes, bytes], *, ask: bool = True) -> None:
        """A box that is well made, with a question's number of its own."""
        if ask:
            self._asks += 1
            values = {**values, b"_ask": b"%d" % self._asks}
            self._world.stranger.asked.append(values[b"_ask"])
        places = bytes([self._choices.byte()]) if self._choices.flag() else b""
        self._world.say(bytes(amp.AmpBox(values).serialize()), places)

    def operation(self) -> None:
        """One thing that it does."""
        choices, world = self._choices, self._world
        what = choices.below(12)
        if what == 0:
            self.box({b"_command": b"Hello", b"version": b"1"})
        elif what == 1:
            wanted = _WANTED.pack(choices.byte(), 1.0, 0, choices.byte() & 1)
            self.box({b"_command": b"Acquire", b"destination": destination(), b"wanted": wanted})
            world.reactor.run_for(0.01)
        elif what == 2:
            self.release()
        elif what == 3:
            self.on_a_pair()
        elif what == 4:
            world.reactor.run_for(0.05 * choices.byte())
        elif what == 5:
            values = {b"_command": NAMES[choices.below(len(NAMES))]}
            for _ in range(choices.below(4)):
                values[KEYS[choices.below(len(KEYS))]] = choices.piece()
            self.box(values, ask=choices.flag())
        elif what == 6:
            world.say(expanded(choices.piece()), bytes([choices.byte()]))
        elif what == 7:
            self.box({b"_command": b"Withdraw", b"number": b"%d" % choices.byte()}, ask=False)
        elif what == 8:
            text = destination()
            at = len(text) * choices.byte() // 256
            changed = text[:at] + choices.piece() + text[at + choices.below(4) :]
            self.box({b"_command": b"Acquire", b"destination": changed, b"wanted": _WANTED.pack(7, 1.0, 0, 0)})
        elif what == 9:
            wanted = _WANTED.pack(8, 1.0, 0, 0)
            at = choices.below(len(wanted))
            wanted = wanted[:at] + choices.piece() + wanted[at + choices.below(9) :]
            self.box({b"_command": b"Acquire", b"destination": destination(), b"wanted": wanted})
        elif what == 10:
            self.box({b"_command": b"Accounts", b"start": choices.piece()})
        else:
            self.box({b"_command": b"Statistics"})

    def release(self) -> None:
        """A lease that it has, or thinks up, with counts that are right or not."""
        choices, stranger = self._choices, self._world.stranger
        if not stranger.grants:
            self.box({b"_command": b"Release", b"released": choices.piece()}, ask=False)
            return
        grant = stranger.grants[choices.byte() % len(stranger.grants)]
        pair = stranger.pairs[grant.pair - 1] if 0 < grant.pair <= len(stranger.pairs) else Pair()
        sent, received = pair.sent + choices.below(2), len(pair.read) + choices.below(2)
        released = Released(grant.lease + choices.below(2), grant.pair, sent, received, choices.flag())
        self.box({b"_command": b"Release", b"released": released.encode()}, ask=False)

    def on_a_pair(self) -> None:
        """Something for the server, in its turn or not."""
        choices, stranger = self._choices, self._world.stranger
        if not stranger.pairs:
            return
        pair = stranger.pairs[choices.byte() % len(stranger.pairs)]
        what = choices.below(len(SAID) + 3)
        if pair.lost:
            return
        if what < len(SAID):
            pair.say(SAID[what])
        elif what == len(SAID):
            pair.wire.loseConnection()
        else:
            pair.say(expanded(choices.piece()))
        self._world.reactor.run_for(0.01)


def check(data: bytes) -> None:
    """Some things that a borrower does, in a row."""
    choices = Choices(data)
    world = World()
    stranger = world.stranger
    asking = Asking(world, choices)
    if choices.flag():
        asking.box({b"_command": b"Hello", b"version": b"1"})
    for _ in range(MAX_OPERATIONS):
        if not choices.left or stranger.lost:
            break
        asking.operation()
        held = sum(len(each._unprocessed) for each in world.keeper.borrowers)  # type: ignore[attr-defined]
        assert held <= MAX_BOX, f"{held} bytes of a box are held"
    world.check_others()
    # Requests wait for 5 s at most, so that by now all is answered that was asked.
    world.reactor.run_for(8)
    assert len(stranger.answered) == len(set(stranger.answered)), f"answered twice: {stranger.answered}"
    world.close()


_HELLO = b"\1\0"
_ACQUIRE = b"\1\x07\0\0"
_RIGHT, _TOO_MUCH, _DISCARD = b"\2\0\0\0\0\0\0", b"\2\0\1\0\0\0\0", b"\2\0\0\0\0\1\0"
_WHOLE = b"\3\0\x0a\3\0\3"

TARGET = Target(
    "boxes",
    check,
    (
        b"\0",
        _HELLO,
        _HELLO + _ACQUIRE,
        *(_HELLO + _ACQUIRE + _WHOLE + release for release in (_RIGHT, _TOO_MUCH, _DISCARD)),
        *(_HELLO + _ACQUIRE + bytes([3, 0, said]) + release for said in range(12) for release in (_RIGHT, _DISCARD)),
        *(_HELLO + _ACQUIRE + b"\3\0\x0a\3\0" + bytes([said]) + _RIGHT for said in range(12)),
        _HELLO + _ACQUIRE + b"\3\0\x0c\2MA" + _RIGHT,
        _HELLO + _ACQUIRE + _RIGHT + b"\3\0\5" + _ACQUIRE + _WHOLE,
        _HELLO + _ACQUIRE + _WHOLE + _RIGHT + _ACQUIRE + _WHOLE + _RIGHT + _RIGHT,
        _HELLO + _ACQUIRE + _ACQUIRE + b"\1\x08\0\0\1\x09\1\0" + _RIGHT,
        _HELLO + _ACQUIRE + b"\3\0\0\4\xff\4\xff",
        _HELLO + _ACQUIRE + b"\3\0\x0b\4\xff",
        _HELLO + b"\1\x07\0\0\7\7\0",
        *(
            _HELLO + b"\5" + bytes([name, count, *(2 * [3, 2, 49, 50])[: 4 * count], 1, 0])
            for name in range(12)
            for count in (0, 1, 2)
        ),
        # Each command with each key, and some value.
        *(
            _HELLO + bytes([5, name, 1, key, len(value)]) + value + b"\1\0"
            for name in range(len(NAMES))
            for key in range(len(KEYS))
            for value in (b"1", b"\xff\xfe")
        ),
        _HELLO + b"\6\6\0\2ab\0\0\x80",
        _HELLO + b"\6\6\0\1a\0\1\xfd\xff\0\6\2\xfd\xff\0\6\2\xfd\xff\0",
        _HELLO + b"\6\2\x7f\xff\0",
        _HELLO + b"\x08\x40\3abc\1\0",
        _HELLO + b"\x08\x10\1 \0\0",
        _HELLO + b"\x09\x08\x08\x7f\xf0\0\0\0\0\0\0\x08\0",
        _HELLO + b"\x09\x18\2\xff[]\1\0",
        _HELLO + b"\x0a\2-1\0\x0a\x0299\0\x0b\0",
        b"\0" + _ACQUIRE,
        b"\0\4\xff\4\xff" + _ACQUIRE,
    ),
    (b"\0\0", b"\0\4_ask", b"\0\7_answer", b"\0\x08_command", _ACQUIRE, _WHOLE, _RIGHT, _DISCARD, b"\xfd\xff"),
    max_input=500,
)
