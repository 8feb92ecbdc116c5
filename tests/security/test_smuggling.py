"""SMTP smuggling: no content ends a message before its end, for whatever a server may take for one.

The exhaustive part by way of the encoder is in `tests.wire.test_content`; `tests.nightly.stuffing` goes further.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.mail.smtp import ESMTPSenderFactory
from twisted.protocols.basic import FileSender
from twisted.trial.unittest import SynchronousTestCase

from mailcache import (
    Destination,
    Envelope,
    MemorySessionCache,
    RemoteSessionCache,
    SessionEndpoint,
    TLSPolicy,
    contents,
    deliver,
)
from mailcache.contents import BytesContent, FileContent
from mailcache.remote.keeper import Keeper
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.content import CHUNK, encode
from mailcache.wire.one_flight import MAX_CONTENT, OneFlight, unstuffed
from tests.helpers import Bed, KeeperBed, Unseekable
from tests.integration.case import ServerTestCase
from tests.integration.corpus import label_of, labelled
from tests.integration.debian_postfix import PostfixServer
from tests.integration.servers import DOMAIN
from tests.nightly import stuffing
from tests.senders import ONE, SENDER
from tests.test_front import FrontCase
from tests.wire.test_content import lines_of

reactor: Any = _reactor

ENDS = (
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r\n\0.\r\n", b"\r\n.\0\r\n",
    b"\r\n.\r\r\n", b"\n\r.\r\n",
)  # fmt: skip
"""What some server has taken for the end of a message, and is none."""

BEGINNINGS = (b".\n", b".\r", b"..\r\n.\n", b"\n.\n", b"\r.\r\n", b"\n.\r\n", b" .\n", b"..\n")
"""First bytes which, behind a line that somebody puts in front of them, would be such an end."""

RECORD, AMP_VALUE = 16_384, 65_535
"""Octets of a TLS record, and of a value of AMP's."""

EDGES = sorted({*(1 << power for power in range(10, 18)), RECORD, AMP_VALUE, FileSender.CHUNK_SIZE, CHUNK})
"""Where something may be cut that is written in pieces."""


class EveryContentTests(SynchronousTestCase):
    """All strings of up to six of CR, LF, dot and a letter, by each way that content takes in pieces."""

    def test_read_from_a_file_that_gives_it_in_pieces(self) -> None:
        self.assertEqual(stuffing.check("a file read in pieces", 6), 149_796)

    def test_written_in_pieces_by_a_client_of_the_front(self) -> None:
        self.assertEqual(stuffing.check("the front", 6), 149_796)

    def test_in_chunks_of_each_size(self) -> None:
        """Cut by ourselves: bytes, a file, and one that can't be rewound."""
        for size in range(1, 6):
            self.patch(contents, "CHUNK", size)
            for length in range(1, 6):
                for content in stuffing.contents(length):
                    right = encode(content)
                    for source in (
                        BytesContent(content),
                        FileContent(io.BytesIO(content)),
                        FileContent(Unseekable(content)),
                    ):
                        self.assertEqual(b"".join(source.chunks()), right, (content, size))

    def test_behind_bdat(self) -> None:
        """Exactly as many bytes as were said follow, no dot of them doubled, and nothing follows those."""
        offered = Capabilities({"CHUNKING": (), "PIPELINING": (), "ENHANCEDSTATUSCODES": ()})
        for length in range(7):
            for content in stuffing.contents(length):
                plain = b"".join(line + b"\r\n" for line in lines_of(content))
                flight = OneFlight(
                    b"MAIL FROM:<a@x.test>", ("b@y.test",), b"RCPT TO:<b@y.test>\r\nDATA\r\n", offered,
                    unstuffed(encode(content)), size=None, eight_bit=False, reused=False,
                )  # fmt: skip
                written, _ = flight.flight()
                head, _, body = written.partition(b" LAST\r\n")
                self.assertEqual((int(head.rpartition(b"BDAT ")[2]), body), (len(plain), plain), content)


TAILS = (
    (1, b"\n.\nRSET\n", b"\r\n.\r\nRSET\r\n"),
    (2, b"\r\n.\r\n.\0\r\n", b"\r\n.\r\n.\0\r\n"),
    (1, b"\r", b"\r\n"),
    (2, b"\r\n.\r\nQUIT", b"\r\n.\r\nQUIT\r\n"),
    (3, b"\r\n.", b"\r\n.\r\n"),
    (2, b"\r\r\n.\r.\r\n", b"\r\n\r\n.\r\n.\r\n"),
)
"""How many of its bytes stand before the edge; what stands there; and what the server is to have of it."""


def at_the_edges() -> Iterator[tuple[bytes, bytes]]:
    """Contents with something dangerous just before, at and just behind each edge, and what the server is to have."""
    for edge in EDGES:
        for k in range(edge - 2, edge + 3):
            for before, tail, expected in TAILS[:1] + TAILS[1 + k % 5 :][:1]:
                body = b"." + b"a" * (k - before - 1)
                yield body + tail, body + expected


class EdgeTests(SynchronousTestCase):
    """The server has of each what the book says, in one message, and no command from within it."""

    def check(self, kind: type[Bed], make: Any = lambda content: content, tls: bool = False, **settings: Any) -> None:
        bed = kind(tls=None if tls else TLSPolicy("none"), **settings)
        for content, expected in at_the_edges():
            result = bed.deliver(make(content))
            self.assertEqual(result.accepted, ("b@example.com",), repr(result))
            # No difference of 100 kB is printed.
            self.assertTrue(bed.server.messages.pop().content == expected, content[-20:])
        self.assertEqual((bed.server.violations, bed.server.connection_count), ([], 1))
        verbs = {command.partition(" ")[0] for command in bed.server.connections[0].commands}
        self.assertLessEqual(verbs, {"EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "BDAT"})
        bed.close()

    def test_bytes(self) -> None:
        self.check(Bed)

    def test_files(self) -> None:
        self.check(Bed, io.BytesIO, tls=True)

    def test_pipes(self) -> None:
        self.check(Bed, Unseekable)

    def test_through_a_keeper(self) -> None:
        self.check(KeeperBed, io.BytesIO)

    def test_in_one_flight(self) -> None:
        self.check(Bed, one_flight=True)

    def test_largest_of_one_flight(self) -> None:
        """One byte more goes behind DATA, and no byte of either is lost."""
        bed = Bed(one_flight=True)
        for size in range(MAX_CONTENT - 6, MAX_CONTENT + 3):
            content = b"." + b"a" * (size - 3) + b"\r\n"
            bed.deliver(content)
            self.assertEqual(bed.server.messages[-1].content, content)
            last = bed.server.connections[0].commands[-1]
            self.assertEqual(last, f"BDAT {size} LAST" if size <= MAX_CONTENT else "DATA")
        self.assertEqual(bed.server.violations, [])
        bed.close()


class FrontTests(FrontCase, SynchronousTestCase):
    """A client of the front that says malformed ends itself."""

    def test_only_the_right_end_is_one(self) -> None:
        """Behind any other the client's commands are content; the server reads in it what the front has read."""
        bed = self.bed(server={"users": None})
        client = self.connect(bed)
        self.say(bed, client, "EHLO client.example.com")
        for number, attack in enumerate((*ENDS, *BEGINNINGS)):
            content = attacking(b"" if attack in BEGINNINGS else b"body", attack)
            said = self.say(bed, client, f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{ONE}>", "DATA", content + b"\r\n.")
            self.assertEqual([answer[:3] for answer in said], ["250", "250", "354", "250"], attack)
            self.assertEqual((bed.server.message_count, bed.server.messages[-1].sender), (number + 1, SENDER))
            unstuffed_lines = [line.removeprefix(b".") for line in content.split(b"\r\n")]
            expected = lines_of(b"\r\n".join(unstuffed_lines))
            self.assertEqual(bed.server.messages[-1].content, b"".join(line + b"\r\n" for line in expected))
        self.leave(bed, client)


def attacking(before: bytes, end: bytes, recipient: str = "evil@example.com") -> bytes:
    """Content that goes on behind ``end`` with a message of somebody else's."""
    commands = f"MAIL FROM:<evil@example.com>\r\nRCPT TO:<{recipient}>\r\nDATA\r\nSubject: smuggled\r\n\r\nevil"
    return before + end + commands.encode()


class Conversation(Protocol):
    """Says lines one by one as a server answers them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._waiting: Deferred[str] | None = None
        self._read = b""

    def dataReceived(self, data: bytes) -> None:
        self._read += data
        if self._waiting is not None and re.search(rb"^\d{3} .*\r\n\Z", self._read, re.MULTILINE):
            waiting, self._waiting = self._waiting, None
            read, self._read = self._read, b""
            waiting.callback(read.decode())

    def connectionLost(self, reason: Any = None) -> None:
        if self._waiting is not None:
            self._waiting.errback(reason)

    def say(self, data: bytes) -> Deferred[str]:
        waiting = self._waiting = Deferred()
        if data:
            self.transport.write(data)  # type: ignore[union-attr]
        return waiting


class PostfixTests(ServerTestCase):
    """Debian's Postfix, which takes LF "." LF for the end of a message where it trusts the network."""

    kind = PostfixServer

    def attacks(self) -> dict[str, bytes]:
        """By label."""
        found = {}
        for number, end in enumerate(ENDS):
            body = attacking(b"Subject: a\r\n\r\nbody", end, f"evil@{DOMAIN}")
            found[f"end-{number}"] = labelled(f"end-{number}", body).replace(b"\n", b"\r\n", 1)
        return found

    async def talk(self, conversation: Conversation, content: bytes) -> None:
        """One message as it is, by a client that encodes nothing."""
        for line in (f"MAIL FROM:<{SENDER}>", f"RCPT TO:<b@{DOMAIN}>", "DATA"):
            await conversation.say(line.encode() + b"\r\n")
        await conversation.say(content + b"\r\n.\r\n")

    def destination(self, one_flight: bool = False) -> Destination:
        tls = TLSPolicy("verify", ca_file=str(self.server.ca_file))
        return Destination(f"[{self.server.address}]:{self.server.port}", tls=tls, one_flight=one_flight)

    async def check(self, expected: int) -> None:
        """As many messages as were sent are there, each as a whole, and nobody else has sent one."""
        await self.server.wait_for(expected, 60)
        await self.server.wait_closed(10)
        stored = self.server.messages()
        self.assertEqual(len(stored), expected)
        for message in stored:
            self.assertIn(b"MAIL FROM:<evil@example.com>", message)
            self.assertIn(b"Subject: smuggled", message)
        self.assertNotIn("evil", self.server.log_text())
        self.assertEqual(self.server.command_counts()["mail"], expected)

    async def test_it_can_be_deceived(self) -> None:
        """By who sends content as it is: what follows would show nothing otherwise."""
        where = TCP4ClientEndpoint(reactor, self.server.address, self.server.port)
        for number, end in enumerate((b"\n.\n", b"\n.\r\n")):
            conversation = await connectProtocol(where, Conversation())
            await conversation.say(b"")
            await conversation.say(b"EHLO client.example.com\r\n")
            await self.talk(conversation, attacking(b"Subject: a\r\n\r\nbody", end, f"evil@{DOMAIN}"))
            await self.server.wait_for(2 * number + 1, 10)
            conversation.transport.abortConnection()  # type: ignore[union-attr]
        await self.server.wait_closed(10)
        self.assertIn("evil@example.com", self.server.log_text())

    async def test_by_way_of_the_cache_it_is_not(self) -> None:
        """Bytes and files, in memory and with a keeper, in two flights and in one."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "keeper")
        kept = MemorySessionCache(reactor)
        keeper = Keeper(reactor, kept)
        port = reactor.listenUNIX(path, keeper, mode=0o600)
        memory = MemorySessionCache(reactor)
        remote = RemoteSessionCache(reactor, f"unix:{path}", fallback=None)
        sent = 0
        for cache, one_flight in product((memory, remote), (False, True)):
            where: Any = self.destination(one_flight)
            for attack in self.attacks().values():
                for content in (attack, io.BytesIO(attack)):
                    result = await deliver(cache, where, Envelope(SENDER, [f"b@{DOMAIN}"]), content)
                    self.assertEqual(result.rejected, {})
                    sent += 1
        for cache in (memory, remote, keeper):
            await cache.close()
        await port.stopListening()
        await self.check(sent)
        counts = self.server.command_counts()
        self.assertTrue(counts["bdat"] and counts["data"], counts)
        for message in self.server.messages():
            self.assertIn(label_of(message), self.attacks())

    async def test_by_way_of_the_front_it_is_not(self) -> None:
        """A stock sender with such content, and a client that says it as it is, at the beginning too."""
        cache = MemorySessionCache(reactor)
        endpoint = SessionEndpoint(cache, self.destination())
        sent = 0
        for attack in self.attacks().values():
            done: Deferred[Any] = Deferred()
            factory = ESMTPSenderFactory(
                None, None, SENDER, f"b@{DOMAIN}", io.BytesIO(attack), done, requireAuthentication=False
            )
            await endpoint.connect(factory)
            accepted, _ = await done
            self.assertEqual(accepted, 1)
            sent += 1
        client = await endpoint.connect(Factory.forProtocol(Conversation))
        await client.say(b"EHLO client.example.com\r\n")
        for attack in (*self.attacks().values(), *(attacking(b"", each, f"evil@{DOMAIN}") for each in BEGINNINGS)):
            await self.talk(client, attack)
            sent += 1
        client.transport.loseConnection()
        await cache.close()
        await self.check(sent)
