"""Messages: envelopes, what they need, and content from wherever it comes."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Envelope
from mailcache.message import (
    ALWAYS_TAKEN,
    NO_NEEDS,
    BytesContent,
    ContentFailed,
    FileContent,
    Needs,
    content_of,
    seven_bit,
)
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.content import CHUNK, encode
from tests.helpers import Failing, Unseekable, stored

LINES = b"Subject: hello\r\n\r\n.dots\r\n" + b"A line with caf\xc3\xa9 in it.\r\n" * 10_000
BIG = LINES[: 3 * CHUNK + 100]


def sent(content: Any) -> bytes:
    """All that would be written of it."""
    whole = content.whole()
    return whole if whole is not None else b"".join(content.chunks())


class Envelopes(SynchronousTestCase):
    def test_say_who_sends_and_who_receives(self) -> None:
        envelope = Envelope("a@example.com", iter(["b@example.com", "c@example.com", "b@example.com"]))
        self.assertEqual((envelope.sender, envelope.recipients), ("a@example.com", ("b@example.com", "c@example.com")))
        self.assertEqual(envelope.mail_command, b"MAIL FROM:<a@example.com>")
        self.assertEqual(
            envelope.other_commands, b"RCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\nDATA\r\n", "each once"
        )
        self.assertEqual(repr(envelope), "Envelope('a@example.com', ['b@example.com', 'c@example.com'])")

    def test_may_have_the_null_sender(self) -> None:
        self.assertEqual(Envelope("", ["postmaster"]).mail_command, b"MAIL FROM:<>")

    def test_demand_what_their_addresses_need(self) -> None:
        ascii_only, international = "a@example.com", "\xe4@example.com"
        for sender, recipient, asked, mail in (
            (ascii_only, ascii_only, False, b"MAIL FROM:<a@example.com>"),
            (ascii_only, ascii_only, True, b"MAIL FROM:<a@example.com> SMTPUTF8"),
            (ascii_only, international, False, b"MAIL FROM:<a@example.com> SMTPUTF8"),
            (international, ascii_only, False, b"MAIL FROM:<\xc3\xa4@example.com> SMTPUTF8"),
        ):
            envelope = Envelope(sender, [recipient], smtputf8=asked)
            self.assertEqual(envelope.mail_command, mail)
            self.assertEqual(envelope.smtputf8, b"SMTPUTF8" in mail)
        self.assertEqual(
            Envelope(ascii_only, [ascii_only], requiretls=True).mail_command, b"MAIL FROM:<a@example.com> REQUIRETLS"
        )


class WhatIsNeeded(SynchronousTestCase):
    """Of the server, by an envelope and a content together."""

    def test_follows_from_both(self) -> None:
        seven, eight, big = BytesContent(b"a\r\n"), BytesContent(b"\xe4\r\n"), BytesContent(b"a\r\n" * 50_000)
        file = FileContent(io.BytesIO(b"\xe4" * 100_000))
        pipe = FileContent(Unseekable(b"\xe4"))
        for more, content, needs in (
            ({}, seven, Needs()),
            ({}, eight, Needs(eightbitmime=True, size=3)),
            ({}, big, Needs(size=150_000)),
            ({}, file, Needs(size=100_000)),
            ({}, pipe, Needs()),
            ({"body": "7BIT"}, seven, Needs()),
            ({"body": "8BITMIME"}, seven, Needs(eightbitmime=True, size=3)),
            ({"body": "8BITMIME"}, eight, Needs(eightbitmime=True, size=3)),
            ({"body": "8BITMIME"}, file, Needs(eightbitmime=True, size=100_000)),
            ({"smtputf8": True}, seven, Needs(smtputf8=True, size=3)),
            ({"smtputf8": True}, pipe, Needs(smtputf8=True)),
            ({"requiretls": True}, seven, Needs(requiretls=True, size=3)),
            ({"requiretls": True, "smtputf8": True}, eight, Needs(True, True, 3, True)),
        ):
            envelope = Envelope("a@example.com", ["b@example.com"], **more)
            self.assertEqual(envelope.needs(content), needs, more)

    def test_is_nothing_for_the_usual_message(self) -> None:
        envelope = Envelope("a@example.com", ["b@example.com"])
        self.assertIs(envelope.needs(BytesContent(b"a" * (ALWAYS_TAKEN - 2))), NO_NEEDS)
        self.assertEqual(envelope.needs(BytesContent(b"a" * ALWAYS_TAKEN)), Needs(size=ALWAYS_TAKEN + 2))

    def test_says_what_a_server_lacks(self) -> None:
        everything = Needs(True, True, 1000, True)
        offers = {"SMTPUTF8": (), "8BITMIME": (), "REQUIRETLS": (), "SIZE": ("1000",)}
        self.assertIsNone(everything.unmet_by(Capabilities(offers)))
        for keyword in ("SMTPUTF8", "8BITMIME", "REQUIRETLS"):
            some = {name: values for name, values in offers.items() if name != keyword}
            self.assertIn(f"does not offer {keyword}", everything.unmet_by(Capabilities(some)) or "")
        for size, limit, lacking in (
            (1000, ("1000",), None),
            (1001, ("1000",), "the message has 1001 bytes and the server takes 1000 at most"),
            (10**9, ("0",), None),
            (10**9, (), None),
            (10**9, ("much",), None),
            (None, ("1000",), None),
        ):
            self.assertEqual(Needs(size=size).unmet_by(Capabilities({"SIZE": limit})), lacking)
        self.assertIsNone(Needs(size=10**9).unmet_by(Capabilities()))
        self.assertIsNone(NO_NEEDS.unmet_by(Capabilities()))


class FromBytes(SynchronousTestCase):
    def test_is_one_write_where_it_is_small(self) -> None:
        for data in (b"", b"a", b"a\r\n", b".\r\n", b"x" * (CHUNK - 2), b"x" * CHUNK):
            content = BytesContent(data)
            self.assertEqual(content.whole(), encode(data))
            self.assertEqual(b"".join(content.chunks()), encode(data))

    def test_comes_in_chunks_where_it_is_big(self) -> None:
        for data in (b"x" * (CHUNK + 1), BIG, b"\r\n." * CHUNK, b"." * 3 * CHUNK):
            content = BytesContent(data)
            self.assertIsNone(content.whole())
            chunks = list(content.chunks())
            self.assertEqual(b"".join(chunks), encode(data))
            self.assertTrue(chunks[-1].endswith(b".\r\n") and len(chunks[-1]) > 3, "the end rides with the last bytes")
            self.assertTrue(content.rewind())
            self.assertEqual(b"".join(content.chunks()), encode(data))

    def test_knows_its_size_and_whether_it_is_8_bit(self) -> None:
        for data, size, eight_bit in (
            (b"", 0, False),
            (b"a", 3, False),
            (b"a\n", 3, False),
            (b"a\r\n", 3, False),
            (b"\xe4\r\n", 3, True),
            (b"x" * 100_000, 100_002, False),
            (b"x" * 100_000 + b"\xff\n", 100_003, True),
        ):
            content = BytesContent(data)
            self.assertEqual((content.size, content.eight_bit), (size, eight_bit))

    def test_may_be_any_kind_of_bytes(self) -> None:
        data = bytearray(b"one\r\n")
        content = content_of(memoryview(data))  # type: ignore[arg-type]
        data[:3] = b"two"
        self.assertEqual(content.whole(), b"one\r\n.\r\n", "what it was when it was handed in")
        self.assertIs(content_of(content), content)


class FromFiles(SynchronousTestCase):
    def test_is_read_from_where_the_file_stands(self) -> None:
        for file in (io.BytesIO(b"skip" + BIG), Path(stored(self, b"skip" + BIG)).open("rb")):  # noqa: SIM115
            with file:
                file.read(4)
                content = content_of(file)
                self.assertEqual(content.size, len(BIG))
                self.assertEqual(sent(content), encode(BIG))

    def test_comes_in_chunks_of_the_file(self) -> None:
        """It is never held as a whole."""
        chunks = list(FileContent(io.BytesIO(b"x" * 10 * CHUNK)).chunks())
        self.assertEqual([len(chunk) for chunk in chunks], [CHUNK] * 9 + [CHUNK + 5])

    def test_any_file_of_bytes_will_do(self) -> None:
        plain = Path(stored(self, BIG))
        with plain.open("rb") as buffered, plain.open("rb", buffering=0) as raw, tempfile.TemporaryFile() as temporary:
            temporary.write(BIG)
            temporary.seek(0)
            with tempfile.SpooledTemporaryFile(max_size=10) as spooled:
                spooled.write(BIG)
                spooled.seek(0)
                for file in (buffered, raw, temporary, spooled, Unseekable(BIG)):
                    self.assertEqual(sent(content_of(file)), encode(BIG))  # type: ignore[arg-type]

    def test_an_empty_file_is_an_empty_message(self) -> None:
        for file in (io.BytesIO(), Unseekable()):
            self.assertEqual(sent(content_of(file)), b".\r\n")

    def test_a_pipe_is_read_to_its_end(self) -> None:
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as file:
            file.write(BIG[:10_000])
        with os.fdopen(reading, "rb") as pipe:
            content = content_of(pipe)
            self.assertIsNone(content.size)
            self.assertEqual(sent(content), encode(BIG[:10_000]))

    def test_what_is_appended_meanwhile_is_not_sent(self) -> None:
        path = Path(stored(self, BIG))
        with path.open("rb") as file:
            content = FileContent(file)
            chunks = content.chunks()
            first = next(chunks)
            with path.open("ab") as more:
                more.write(b"more" * CHUNK)
            self.assertEqual(first + b"".join(chunks), encode(BIG))

    def test_a_file_that_ends_early_has_failed(self) -> None:
        """Its end is never written: the last chunk does not come."""
        for left in (0, 100, CHUNK, 2 * CHUNK, len(BIG) - 1):
            path = Path(stored(self, BIG))
            with path.open("rb", buffering=0) as file:
                content = FileContent(file)
                os.truncate(path, left)
                self.check_failing(content, f"the file ended {len(BIG) - left} bytes before its size of {len(BIG)}")

    def test_a_file_that_can_not_be_read_on_has_failed(self) -> None:
        for problem, said in (
            (OSError(5, "Input/output error"), "reading the content failed: [Errno 5] Input/output error"),
            (RuntimeError("whatever"), "reading the content failed: whatever"),
            ("text", "gave str, not bytes: open it in binary mode"),
            (None, "gave NoneType, not bytes"),
        ):
            for after in (0, CHUNK, 2 * CHUNK):
                self.check_failing(FileContent(Failing(BIG, after, problem)), said)

    def check_failing(self, content: FileContent, said: str) -> None:
        written = b""
        with self.assertRaises(ContentFailed) as raised:
            for chunk in content.chunks():
                written += chunk
        self.assertIn(said, str(raised.exception))
        self.assertTrue(encode(BIG).startswith(written))
        self.assertFalse(written.endswith(b"\r\n.\r\n"))

    def test_is_rewound_to_where_it_stood(self) -> None:
        for read in (0, 1, 2, 100):
            file = io.BytesIO(b"skip" + BIG)
            file.read(4)
            content = FileContent(file)
            for _ in zip(range(read), content.chunks(), strict=False):
                pass
            self.assertTrue(content.rewind())
            self.assertEqual(sent(content), encode(BIG))

    def test_what_can_not_be_rewound_is_not(self) -> None:
        """But what was not read need not be."""
        content = FileContent(Unseekable(BIG))
        self.assertTrue(content.rewind())
        next(content.chunks())
        self.assertFalse(content.rewind())
        for file in (io.BytesIO(BIG), Path(stored(self, BIG)).open("rb")):  # noqa: SIM115
            content = FileContent(file)
            next(content.chunks())
            file.close()
            self.assertFalse(content.rewind())

    def test_is_read_only_when_it_is_wanted(self) -> None:
        """Until then its owner may do with it what he likes."""

        class Counting(io.BytesIO):
            asked = 0

            def read(self, size: int | None = -1) -> bytes:
                self.asked += size or 0
                return super().read(size)

        file: BinaryIO = Counting(BIG)
        content = FileContent(file)
        content.whole()
        chunks = content.chunks()
        self.assertEqual((file.asked, file.tell()), (0, 0))  # type: ignore[attr-defined]
        next(chunks)
        self.assertLessEqual(file.tell(), 2 * CHUNK)


class SevenBit(SynchronousTestCase):
    def test_content_passes_up_to_the_first_byte_that_is_not(self) -> None:
        plain = [b"a" * 10, b"b" * 10]
        self.assertEqual(list(seven_bit(iter(plain))), plain)
        chunks = seven_bit(iter([*plain, b"caf\xc3\xa9", b"never"]))
        self.assertEqual([next(chunks), next(chunks)], plain)
        error = self.assertRaises(ContentFailed, next, chunks)
        self.assertIn("8BITMIME", str(error))
