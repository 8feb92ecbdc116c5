"""What a client says to the front: any cut of it has the same answers, and what it is told was sent was sent."""

from __future__ import annotations

import re

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from mailcache import Destination, Limits, SessionEndpoint, TLSPolicy
from mailcache.testing import MemoryReactor, SMTPServer
from mailcache.testing.records import Connection
from tests.fuzz.choices import Choices, cut, expanded, one_by_one
from tests.fuzz.conversation import TIMEOUTS
from tests.fuzz.target import Target
from tests.helpers import PORT, Outcome, memory_cache

LINES = (
    b"EHLO client.test", b"HELO x", b"MAIL FROM:<a@example.com>", b"MAIL FROM:<a@example.com> SIZE=100 BODY=8BITMIME",
    b"RCPT TO:<b@example.com>", b"RCPT TO:<refused@example.com>", b"DATA", b"Subject: x\r\n\r\n..dot\r\n.", b".",
    b"RSET",
    b"NOOP", b"QUIT", b"VRFY b", b"AUTH PLAIN AHUAcA==", b"AUTH LOGIN", b"dXNlcg==",
)  # fmt: skip
ENOUGH_BY_ONE = 600
_ANSWER = re.compile(rb"(?:([2-5][0-9][0-9])-[^\r\n]*\r\n)*([2-5][0-9][0-9]) [ -~]*\r\n")


class Client(Protocol):
    """Notes what it reads."""

    read = b""
    lost = False

    def dataReceived(self, data: bytes) -> None:
        self.read += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True


def _verdict(point: str, argument: str, _: Connection) -> bytes | None:
    return b"550 5.1.1 no\r\n" if point == "rcpt" and argument.startswith("refused") else None


def converse(pieces: list[bytes]) -> tuple[bytes, bool, list[bytes]]:
    """What a client that says these pieces hears, whether it was hung up on, and the messages that the server has."""
    reactor = MemoryReactor()
    server = SMTPServer(reactor, verdict=_verdict)
    server.listen(PORT, "127.0.0.1")
    cache = memory_cache(reactor, Limits(wait_timeout=5), TIMEOUTS, None)
    connecting = Outcome(
        SessionEndpoint(cache, Destination(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("none"))).connect(
            Factory.forProtocol(Client)
        )
    )
    reactor.run_until(lambda: connecting.done, 10)
    client = connecting.value
    assert IProtocol.providedBy(client)
    for piece in pieces:
        if client.lost:
            break
        client.transport.write(piece)
        reactor.pump()
    reactor.run_for(1)
    hung_up = client.lost
    if not hung_up:
        client.transport.loseConnection()
    closing = Outcome(cache.close())
    reactor.run_until(lambda: closing.done, 60)
    reactor.run_for(1)
    counts = Outcome(cache.statistics()).value
    assert not any(counts[name] for name in ("leased", "idle", "opening", "waiting")), counts
    assert reactor.connections == [] and reactor.getDelayedCalls() == []
    assert server.violations == [], server.violations
    return client.read, hung_up, [message.content for message in server.messages if message.accepted]


def check(data: bytes) -> None:
    """The same stream, cut in three ways."""
    choices = Choices(data)
    places = bytes([choices.byte(), choices.byte()])
    stream = b""
    for _ in range(30):
        if not choices.left:
            break
        what = choices.byte()
        stream += LINES[what % len(LINES)] + b"\r\n" if what < 224 else expanded(choices.piece())
    heard, hung_up, messages = converse([stream])
    # Each answer is whole, and each message that the server took was told to be taken.
    at = 0
    codes = []
    while (found := _ANSWER.match(heard, at)) is not None:
        at = found.end()
        codes.append(int(found[2]))
    assert at == len(heard), heard[at:]
    assert heard.count(b"ok: queued") == len(messages), (heard, messages)
    ways = [cut(stream, places)]
    if len(stream) < ENOUGH_BY_ONE:
        ways.append(one_by_one(stream))
    for pieces in ways:
        again = converse(pieces)
        assert again == (heard, hung_up, messages), (pieces, again, (heard, hung_up, messages))


_MESSAGE = bytes([0, 2, 4, 6, 7])

TARGET = Target(
    "front",
    check,
    (
        b"\x40\x80" + _MESSAGE,
        b"\x40\x80" + _MESSAGE + _MESSAGE[1:] + b"\x0b",
        b"\x40\x80" + bytes([0, 2, 5, 4, 6, 8]),
        b"\x40\x80" + bytes([0, 2, 5, 6, 7]),
        b"\x40\x80" + bytes([0, 13, 2, 4, 6, 8]),
        b"\x40\x80" + bytes([0, 14, 15, 15, 10]),
        *(b"\x40\x80" + bytes([0, line]) for line in range(16)),
        *(b"\x40\x80" + bytes([0, 2, line, 4, 6, 8]) for line in range(16)),
        b"\x40\x80" + bytes([0, 2, 4, 6, 240, 30]) + b"a\r\n.\nb\n.\r\nc\r.\r\nd\r\n..\r\n\r\n.\r\n",
        b"\x40\x80" + bytes([0, 2, 4, 6, 240, 12]) + b"\0\x80\xff\r\n.\r\nNOO" + bytes([240, 3]) + b"P\r\n",
        b"\x40\x80" + bytes([0, 240, 4]) + b"x\xfd\xc3y" + bytes([10]),
        b"\xf0\xff" + bytes([0, 240, 4]) + b"x\xfd\xc3y" + bytes([2, 10]),
        b"\x40\x80" + bytes([0, 240, 22]) + b"MAIL FROM:<a@x> X=1\r\n\n" + bytes([10]),
        b"\x40\x80" + bytes([0, 240, 21]) + b"MAIL FROM:<\xc3\xbc@x.test>\r\n",
    ),
    (
        b"\xf0\x05",
        b"MAIL FROM:<",
        b"RCPT TO:<",
        b">\r\n",
        b"\r\n.\r\n",
        b"\n.\n",
        b" SIZE=",
        b" SMTPUTF8",
        bytes([0, 2, 4, 6]),
    ),
    max_input=300,
)
