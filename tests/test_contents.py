"""Contents: what is read from wherever it comes, and in which form it is sent."""

from __future__ import annotations

import contextlib
import email
import io
import os
import tempfile
from email import policy
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryError, DeliveryResult, mime
from mailcache.contents import BytesContent, ContentFailed, FileContent, content_of, seven_bit
from mailcache.testing import Fault
from mailcache.wire.content import CHUNK, encode
from tests.helpers import LARGE, PORT, SMALL, Bed, Failing, KeeperBed, Unseekable, stored

LINES = b"Subject: hello\r\n\r\n.dots\r\n" + b"A line with caf\xc3\xa9 in it.\r\n" * 10_000
BIG = LINES[: 3 * CHUNK + 100]


def sent(content: Any) -> bytes:
    """All that would be written of it."""
    whole = content.whole()
    return whole if whole is not None else b"".join(content.chunks())


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


class FromPipes(SynchronousTestCase):
    """A pipe is a file like others, read to its end, and not twice."""

    def piped(self, data: bytes) -> BinaryIO:
        """The reading end of a pipe into which somebody else writes this, bit by bit."""
        reading, writing = os.pipe()

        def write() -> None:
            with os.fdopen(writing, "wb", buffering=0) as file, contextlib.suppress(BrokenPipeError):
                for at in range(0, len(data), 50_000):
                    file.write(data[at : at + 50_000])

        writer = Thread(target=write, daemon=True)
        writer.start()
        self.addCleanup(writer.join, 30)
        pipe: BinaryIO = os.fdopen(reading, "rb")
        self.addCleanup(pipe.close)
        return pipe

    def test_are_sent_whole(self) -> None:
        for kind in (Bed, KeeperBed):
            bed = kind()
            for content in (SMALL, LARGE, b""):
                result = bed.deliver(self.piped(content))
                self.assertEqual(result.accepted, ("b@example.com",), repr(result))
                self.assertEqual(bed.server.messages[-1].content, content)
                self.assertNotIn("SIZE", str(bed.server.messages[-1].parameters))
            bed.close()

    def test_are_sent_once(self) -> None:
        """A session that breaks before they are read costs nothing; one that breaks behind that, the message."""
        for point, delivered in (("rcpt", True), ("content", False)):
            bed = Bed(faults=[Fault(point, "rst", connection=1, transaction=2)])
            bed.deliver()
            value = bed.deliver(self.piped(LARGE))
            self.assertIsInstance(value, DeliveryResult if delivered else DeliveryError)
            self.assertEqual(bed.server.message_count, 1 + delivered)
            bed.close()


class FromMessages(SynchronousTestCase):
    """`EmailMessage` objects: each server gets the form that it can take."""

    EIGHT = ["PIPELINING", "8BITMIME", "SIZE 0"]
    SEVEN = ["PIPELINING", "SIZE 0"]

    def made(self, body: str = "caf\xe9\n", to: str = "J\xfcrgen <b@example.com>", cte: str = "8bit") -> EmailMessage:
        message = EmailMessage()
        message["Subject"], message["To"], message["Bcc"] = "caf\xe9", to, "secret@example.com"
        message.set_content(body, cte=cte)
        return message

    def signed(self) -> EmailMessage:
        message = email.message_from_bytes(
            b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\ncaf\xc3\xa9\r\n--s--\r\n",
            policy=policy.default,
        )
        assert isinstance(message, EmailMessage)
        return message

    def test_go_as_they_are_to_servers_that_take_8_bits(self) -> None:
        for kind in (Bed, KeeperBed):
            bed = kind(server={"capabilities": self.EIGHT})
            message = self.made()
            before = message.as_bytes()
            for _ in range(2):
                self.assertEqual(bed.deliver(message).accepted, ("b@example.com",))
            for seen in bed.server.messages:
                self.assertTrue(seen.content.endswith(b"\r\n\r\ncaf\xc3\xa9\r\n"))
                self.assertIn(b"Subject: =?utf-8?q?caf=C3=A9?=\r\n", seen.content)
                self.assertNotIn(b"secret", seen.content)
                self.assertEqual(seen.parameters, (f"SIZE={len(seen.content)}", "BODY=8BITMIME"))
            self.assertEqual(message.as_bytes(), before)
            bed.close()

    def test_go_in_7_bit_form_to_others(self) -> None:
        for arguments in ({"capabilities": self.SEVEN}, {"capabilities": self.EIGHT, "body": "7BIT"}):
            for body in ("caf\xe9\n", "caf\xe9\n" * 20_000):
                envelope = {key: value for key, value in arguments.items() if key == "body"}
                bed = Bed(server={"capabilities": arguments["capabilities"]})
                for _ in range(2):
                    result = bed.deliver(self.made(body), **envelope)
                    self.assertEqual(result.accepted, ("b@example.com",), repr(result))
                for seen in bed.server.messages:
                    self.assertTrue(seen.content.isascii())
                    self.assertEqual(seen.parameters, (f"SIZE={len(seen.content)}",))
                    parsed = email.message_from_bytes(seen.content, policy=policy.default)
                    self.assertEqual(parsed.get_content().replace("\r\n", "\n"), body)
                bed.close()

    def test_that_have_no_7_bit_form_need_8_bits(self) -> None:
        bed = Bed(server={"capabilities": self.SEVEN})
        error = bed.deliver(self.signed())
        assert isinstance(error, DeliveryError), repr(error)
        self.assertEqual((error.phase, error.retriable), ("needs", False))
        self.assertIn("8BITMIME", str(error))
        self.assertRaises(ValueError, bed.start, self.signed(), body="7BIT")
        bed.close()
        bed = Bed(server={"capabilities": self.EIGHT})
        self.assertEqual(bed.deliver(self.signed()).accepted, ("b@example.com",))
        bed.close()

    def test_that_are_ascii_go_anywhere(self) -> None:
        for capabilities in (self.EIGHT, self.SEVEN, []):
            bed = Bed(server={"capabilities": capabilities})
            for message in (self.made(cte="base64"), self.made("plain\n", cte="7bit"), MIMEText("plain\n")):
                self.assertEqual(bed.deliver(message).accepted, ("b@example.com",))
            self.assertNotIn("BODY", str([seen.parameters for seen in bed.server.messages]))
            bed.close()

    def test_demand_smtputf8_where_an_address_does(self) -> None:
        for kind in (Bed, KeeperBed):
            bed = kind(server={"capabilities": [*self.EIGHT, "SMTPUTF8"]})
            for message, arguments, demanded in (
                (self.made(to="\xfc@example.com"), {}, True),
                (self.made(), {"smtputf8": True}, True),
                (self.made(), {"sender": "\xfc@example.com"}, True),
                (self.made(), {}, False),
                (self.made(to="b@b\xfccher.example"), {}, False),
            ):
                result = bed.deliver(message, recipients=["b@example.com", "c@example.com"], **arguments)
                self.assertEqual(result.accepted, ("b@example.com", "c@example.com"), repr(result))
                seen = bed.server.messages[-1]
                self.assertEqual("SMTPUTF8" in seen.parameters, demanded)
                self.assertEqual(b"Subject: caf\xc3\xa9" in seen.content, demanded)
            self.assertEqual(bed.server.violations, [])
            bed.close()
            bed = kind(server={"capabilities": self.EIGHT})
            error = bed.deliver(self.made(to="\xfc@example.com"))
            assert isinstance(error, DeliveryError), repr(error)
            self.assertEqual((error.phase, error.retriable), ("needs", False))
            self.assertIn("SMTPUTF8, which an address of this message needs", str(error))
            bed.close()

    def test_are_what_they_were_when_they_were_handed_in(self) -> None:
        bed = Bed(latency=0.5)
        message = self.made("before\n", cte="7bit")
        outcome = bed.start(message)
        message.set_content("after\n")
        self.assertEqual(bed.finish(outcome).accepted, ("b@example.com",))
        self.assertIn(b"before", bed.server.messages[0].content)
        bed.close()

    def test_can_be_sent_again(self) -> None:
        bed = Bed(faults=[Fault("content", "rst", connection=1)], server={"capabilities": self.SEVEN})
        bed.add_server(interface="127.0.0.2")
        bed.reactor.hosts["mx.test"] = ["127.0.0.1", "127.0.0.2"]
        where = bed.to(f"[mx.test]:{PORT}")
        result = bed.deliver(self.made("caf\xe9\n" * 20_000), destination=where)
        self.assertEqual(result.accepted, ("b@example.com",), repr(result))
        (seen,) = bed.servers[1].messages
        self.assertIn(b"Content-Transfer-Encoding: 8bit", seen.content, "the second server takes 8 bits")
        bed.close()

    def test_can_be_sent_on_a_lease(self) -> None:
        bed = Bed(server={"capabilities": self.SEVEN})
        lease = bed.finish(bed.acquire())
        self.assertEqual(bed.finish(bed.send(lease, self.made())).accepted, ("b@example.com",))
        error = bed.finish(bed.send(lease, self.made(to="\xfc@example.com")))
        self.assertIn("SMTPUTF8", str(error))
        lease.release()
        bed.close()

    def test_that_can_not_be_written_are_refused_at_once(self) -> None:
        bed = Bed()
        wrong = Message()
        wrong.set_payload("caf\xe9")
        error = self.assertRaises(ValueError, bed.start, wrong)
        self.assertIn("content: the message can't be written: ", str(error))
        self.assertEqual(bed.server.connection_count, 0)
        bed.close()

    def test_go_in_the_form_that_the_server_s_size_is_for(self) -> None:
        """The 7-bit form is the larger one."""
        body = "\xe9" * 30 + "\n"
        size = len(mime.serialised(self.made(body * 2000), smtputf8=False))
        for eight, fits in ((["8BITMIME"], True), ([], False)):
            bed = Bed(server={"capabilities": [f"SIZE {size}", *eight]})
            value = bed.deliver(self.made(body * 2000))
            if fits:
                self.assertIsInstance(value, DeliveryResult)
            else:
                assert isinstance(value, DeliveryError), repr(value)
                self.assertIn(f"and the server takes {size} at most", str(value))
            bed.close()
