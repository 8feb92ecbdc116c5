"""TLS from a server, changed on its way: no byte that the server has not said is ever taken for its word.

A real server's side makes the records, so that there is something to change: an input says what the server says, in
which records, and what befalls them. Or it is the stream itself, from the first byte on.
"""

from __future__ import annotations

import warnings
from functools import cache

from OpenSSL import SSL
from twisted.internet.testing import StringTransport

from mailcache.connection import Connection, Cut
from mailcache.tls import Contexts, TLSFailed, TLSLayer
from mailcache.trust.evidence import TLSClass
from mailcache.wire.replies import Reply, ReplyParser
from tests.fuzz.choices import Choices, cut, one_by_one
from tests.fuzz.target import Target
from tests.helpers import TLSServer, certificate

warnings.simplefilter("ignore")

MAX_OPERATIONS = 24
"""What one input may do at most."""

SOME = 16_400
"""Bytes that a server says when it says much: more than a record holds."""


@cache
def _context() -> SSL.Context:
    return Contexts().get(TLSClass(None, "TLSv1.2", None, None), certificate().certificate_pem, None)


@cache
def _server_context(version: int) -> SSL.Context:
    context = certificate().server_context()
    context.set_max_proto_version(SSL.TLS1_2_VERSION if version else SSL.TLS1_3_VERSION)
    return context


class Followed:
    """A client's side that is fed, and what is true of it by what it was fed."""

    def __init__(self) -> None:
        self.layer = TLSLayer(_context(), "mx.test")
        self.layer.handshake()
        self.stream = b""
        self.plain = b""
        self.failed = False

    def take(self, data: bytes) -> None:
        """Feed ``data``; nothing but `TLSFailed` may come of it."""
        if self.failed or not data:
            return
        self.stream += data
        try:
            plain = self.layer.received(data)
        except TLSFailed as error:
            self.failed = True
            assert str(error).isprintable()
            return
        assert not plain or self.layer.established, "plain text before there are keys"
        self.plain += plain
        assert self.layer.partial == (not _ends_with_a_record(self.stream)), "partial"


def _ends_with_a_record(stream: bytes) -> bool:
    """Whether nothing of another record has come behind the last one (RFC 8446 5.1)."""
    at = 0
    while len(stream) - at >= 5:
        at += 5 + int.from_bytes(stream[at + 3 : at + 5], "big")
    return at == len(stream)


def check(data: bytes) -> None:
    """One of the ways to read a stream."""
    choices = Choices(data)
    way = choices.below(8)
    if way == 0:
        check_stream(choices)
    elif way < 5:
        check_layer(choices, way % 2)
    else:
        check_connection(choices, way % 2)


def check_stream(choices: Choices) -> None:
    """The first bytes of a server are these: the handshake fails, or waits for more, however they are cut."""
    places = bytes([choices.byte(), choices.byte()])
    stream = choices.rest()
    outcomes = set()
    for pieces in ([stream], cut(stream, places), [*one_by_one(stream[:400]), stream[400:]]):
        followed = Followed()
        for piece in pieces:
            followed.take(piece)
        assert not followed.layer.established and not followed.plain
        outcomes.add((followed.failed, followed.layer.closed))
    # Bytes that are followed by more may show what is wrong sooner; it shows in all cuts in the end.
    assert len(outcomes) == 1, outcomes


def check_layer(choices: Choices, version: int) -> None:
    """What is read is a beginning of what the server has said, and nothing behind a record that was touched."""
    followed, server = Followed(), TLSServer(_server_context(version))
    layer = followed.layer
    said = b""
    intact: bytes | None = None
    for _ in range(choices.below(3)):
        # The handshake, as far as these steps go untouched.
        followed.take(server.take(layer.outgoing()))
    for _ in range(MAX_OPERATIONS):
        if not choices.left or followed.failed:
            break
        records, plain = _said(choices, server, layer)
        said += plain
        touched, records = _befallen(choices, records)
        if touched and layer.established and intact is None:
            intact = said[: len(said) - len(plain)]
        for piece in cut(records, bytes([choices.byte()])):
            followed.take(piece)
        assert said.startswith(followed.plain), "plain text that the server has not said"
    if intact is not None and version == 0:
        # Records of TLS 1.3 are all protected. What was touched may have been a ticket: so said it may have been too.
        assert len(followed.plain) <= len(said)
    if layer.established:
        evidence = layer.evidence()
        assert evidence.version == ("TLSv1.2" if version else "TLSv1.3") and evidence.certificate is not None
        layer.close()


def _said(choices: Choices, server: TLSServer, layer: TLSLayer) -> tuple[bytes, bytes]:
    """What the server does next: the bytes for the network, and the plain text in them."""
    what = choices.below(6)
    try:
        if not server.established:
            return server.take(layer.outgoing()), b""
        if what < 3:
            plain = b"250 2.0.0 ok\r\n" if what == 0 else choices.piece()
            return (server.says(plain) if plain else b""), plain
        if what == 3:
            plain = b"x" * SOME
            return server.says(plain), plain
        if what == 4:
            server.ssl.shutdown()
            return server.outgoing(), b""
        return server.take(layer.outgoing()), b""
    except SSL.Error:
        return server.outgoing(), b""


def _befallen(choices: Choices, records: bytes) -> tuple[bool, bytes]:
    """What comes of ``records`` on the way, and whether they were touched."""
    what = choices.below(12)
    if what < 5 or not records:
        return False, records
    at = len(records) * choices.byte() // 256
    if what == 5:
        return True, records[:at] + bytes([records[at] ^ (choices.byte() or 1)]) + records[at + 1 :]
    if what == 6:
        return True, records[:at]
    if what == 7:
        return True, records[:at] + choices.piece() + records[at:]
    if what == 8:
        return True, records + records
    if what == 9:
        return True, choices.piece()
    if what == 10:
        return True, records[at:]
    return True, records + b"\x15\x03\x03\x00\x02" + bytes([choices.below(3), choices.byte()])


class Heard:
    """Who has the conversation: all that it is told, in order."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.established = 0
        self.cut: Cut | None = None

    def tls_established(self) -> None:
        self.established += 1

    def replies_received(self, replies: list[Reply]) -> None:
        assert self.cut is None and replies
        self.replies += replies

    def read_finished(self) -> None:
        assert self.cut is None

    def connection_cut(self, cut: Cut) -> None:
        assert self.cut is None, "it is cut twice"
        self.cut = cut


def check_connection(choices: Choices, version: int) -> None:
    """The same above the layer: no reply of before the handshake is taken for one of behind it, nor one not said."""
    heard, transport, server = Heard(), _Wire(), TLSServer(_server_context(version))
    connection = Connection(heard, lambda: 0.0, lambda _: None)  # type: ignore[arg-type]
    connection.makeConnection(transport)
    behind = choices.piece()
    in_clear = b"220 mx.test\r\n220 go ahead\r\n" + behind
    connection.write(b"EHLO client.test\r\nSTARTTLS\r\n", (9.0, 9.0))
    for piece in cut(in_clear, bytes([choices.byte()])):
        connection.dataReceived(piece)
    assert connection.ended == bool(behind), "what was said behind the reply to STARTTLS"
    if connection.ended:
        return
    assert connection.quiet
    in_clear_heard = len(heard.replies)
    transport.clear()
    connection.start_tls(_context(), "mx.test", 9.0)
    said, owed = b"", 0
    for _ in range(MAX_OPERATIONS):
        if not choices.left or connection.ended:
            break
        layer = _Outgoing(transport)
        if heard.established and choices.flag():
            connection.write(b"NOOP\r\n", (9.0,))
            owed += 1
        records, plain = _said(choices, server, layer)  # type: ignore[arg-type]
        said += plain
        _, records = _befallen(choices, records)
        for piece in cut(records, bytes([choices.byte()])):
            connection.dataReceived(piece)
    under_tls = heard.replies[in_clear_heard:]
    assert len(under_tls) <= owed, "a reply that nobody was owed"
    assert under_tls == ReplyParser().feed(said)[: len(under_tls)], "a reply that the server has not said"
    if heard.cut is not None:
        assert transport.aborted and connection.ended
    elif not connection.ended:
        connection.cut("aborted", "the end of this input")


class _Wire(StringTransport):
    """What a connection writes to."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


class _Outgoing:
    """What the client has written, as its layer would give it."""

    def __init__(self, transport: _Wire) -> None:
        self._transport = transport

    def outgoing(self) -> bytes:
        data = self._transport.value()
        self._transport.clear()
        return data


_ALL = bytes(3)  # says "250 2.0.0 ok", untouched, in one piece

TARGET = Target(
    "tls",
    check,
    (
        b"\0\x40\x80" + b"220 mx.test ESMTP\r\n250 ok\r\n",
        b"\0\x40\x80" + b"\x15\x03\x03\0\x02\x02\x28",
        b"\0\x40\x80" + b"\x16\x03\x03\0\x04\x02\0\0\0",
        b"\0\x40\x80" + b"\x17\x03\x03\0\x40" + b"\xa5" * 64,
        *(bytes([way, 2]) + _ALL * 4 for way in (1, 2)),
        *(bytes([way, 2]) + _ALL + bytes([1, 5]) + b"250 a\0\0" + bytes([3, 0, 0, 4, 0, 0]) for way in (1, 2)),
        *(bytes([way, 2]) + _ALL + bytes([0, what, 0x80, 1, 0]) + _ALL for way in (1, 2) for what in range(5, 12)),
        *(bytes([way, 0]) + bytes([0, what, 0x40, 1, 0]) + _ALL * 3 for way in (1, 2) for what in range(5, 12)),
        *(bytes([way, 0, 0]) + _ALL * 3 + (b"\1" + _ALL) * 4 for way in (5, 6)),
        *(bytes([way, 12]) + b"250 injected" + bytes([0xF0]) + _ALL * 3 for way in (5, 6)),
        *(
            bytes([way, 0, 0]) + _ALL * 3 + b"\1" + bytes([0, what, 0x80, 3, 0]) + b"\1" + _ALL
            for way in (5, 6)
            for what in range(5, 12)
        ),
        *(bytes([way, 0, 0]) + _ALL * 3 + b"\1\1\5250 a\0\0\1\1\3\r\n2\0\0\0\4\0\0" for way in (5, 6)),
    ),
    (b"250 ok\r\n", b"\x15\x03\x03\0\x02", b"\x16\x03\x03", b"\x17\x03\x03\0", b"\x14\x03\x03\0\1\1", b"\0\0\0"),
    max_input=600,
)
