"""Replies: what is one, what is flawed, what is none; and that no cut and no size of the stream matters."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire.replies import MAX_LINE, MAX_LINES, MAX_REPLY, MAX_TEXT, Reply, ReplyParser

Outcome = tuple[list[tuple[int, tuple[bytes, ...], str | None]], str | None, bool]


def outcome(pieces: list[bytes], lenient: bool = False) -> Outcome:
    """All that a parser tells: replies with their flaws, the error, and whether something is pending."""
    parser = ReplyParser()
    parser.lenient = lenient
    replies = [reply for piece in pieces for reply in parser.feed(piece)]
    return [(reply.code, reply.lines, reply.flaw) for reply in replies], parser.error, parser.pending


GOOD: list[tuple[bytes, list[tuple[int, tuple[bytes, ...], str | None]]]] = [
    (b"250 ok\r\n", [(250, (b"ok",), None)]),
    (b"250 \r\n", [(250, (b"",), None)]),
    (b"250\r\n", [(250, (b"",), None)]),
    (b"200 a\r\n599 b\r\n", [(200, (b"a",), None), (599, (b"b",), None)]),
    (b"250-a\r\n250-\r\n250\r\n", [(250, (b"a", b"", b""), None)]),
    (b"250-a\r\n250 b\r\n354 c\r\n", [(250, (b"a", b"b"), None), (354, (b"c",), None)]),
    (b"250  two spaces \r\n", [(250, (b" two spaces ",), None)]),
    (b"250 250-no\r\n", [(250, (b"250-no",), None)]),
    (b"250 \xff\x1b\t\r\n", [(250, (b"\xff\x1b\t",), None)]),
    (b"250 ok\n", [(250, (b"ok",), "bare LF")]),
    (b"250\n", [(250, (b"",), "bare LF")]),
    (b"250-a\n250 b\r\n250 c\r\n", [(250, (b"a", b"b"), "bare LF"), (250, (b"c",), None)]),
    (b"250 a\rb\r\n", [(250, (b"a\rb",), "bare CR")]),
    (b"250 a\r354 go\r\n", [(250, (b"a\r354 go",), "bare CR")]),
    (b"250 ok\r\r\n", [(250, (b"ok\r",), "bare CR")]),
    (b"250-\ra\n250 b\n", [(250, (b"\ra", b"b"), "bare CR")]),
    (b"421 4.3.2 bye\r\n", [(421, (b"4.3.2 bye",), None)]),
]

NOT_REPLIES = (
    b"25 ok\r\n", b"2500 ok\r\n", b"250ok\r\n", b"000 ok\r\n", b"150 x\r\n", b"199 x\r\n", b"600 x\r\n",
    b"\r\n", b"\n", b" 250 ok\r\n", b"-250 ok\r\n", b"+50 ok\r\n", b"250\tok\r\n", b"250\r\r\n",
    b"250\rok\r\n", b"2 50 ok\r\n", b"ok\r\n", b"250_ok\r\n", b"\xb2\xb5\xb0 ok\r\n", b"\0250 ok\r\n",
    b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0-x\r\n", b"\x15\x03\x01\0\x02\x02\n", b"250-a\r\n251 b\r\n",
    b"250-a\r\n251-b\r\n", b"250-a\r\n\r\n", b"250-a\r\nb\r\n",
)  # fmt: skip


class ReadingReplies(SynchronousTestCase):
    def test_good_ones_in_every_cut(self) -> None:
        for data, replies in GOOD:
            expected = (replies, None, False)
            with self.subTest(data=data):
                self.assertEqual(outcome([data]), expected)
                self.assertEqual(outcome([data[i : i + 1] for i in range(len(data))]), expected)
                for count in (1, 2):
                    for chosen in combinations(range(len(data) + 1), count):
                        bounds = [0, *chosen, len(data)]
                        pieces = [data[a:b] for a, b in pairwise(bounds)]
                        self.assertEqual(outcome(pieces), expected)
                self.assertEqual(outcome([data], lenient=True), expected)

    def test_what_is_no_reply_ends_the_parser_in_every_cut(self) -> None:
        for bad in NOT_REPLIES:
            for lenient in (False, True):
                with self.subTest(bad=bad, lenient=lenient):
                    data = b"220 before\r\n" + bad + b"250 after\r\n"
                    whole = outcome([data], lenient)
                    replies, error, pending = whole
                    self.assertEqual(replies, [(220, (b"before",), None)])
                    self.assertFalse(pending)
                    assert error is not None
                    self.assertTrue(error.isprintable() and error.isascii() and len(error) < 300, error)
                    for cut in range(len(data)):
                        self.assertEqual(outcome([data[:cut], data[cut:]], lenient), whole)
                    self.assertEqual(outcome([data[i : i + 1] for i in range(len(data))], lenient), whole)

    def test_nothing_is_read_after_an_error(self) -> None:
        parser = ReplyParser()
        self.assertEqual(parser.feed(b"junk\r\n250 ok\r\n250-"), [])
        error = parser.error
        self.assertEqual(error, "not an SMTP reply: b'junk\\r\\n'")
        self.assertEqual(parser.feed(b"250 ok\r\n"), [])
        self.assertEqual((parser.error, parser.pending), (error, False))

    def test_pending_says_that_a_reply_has_begun(self) -> None:
        parser = ReplyParser()
        for data, replies, pending in (
            (b"", 0, False), (b"2", 0, True), (b"", 0, True), (b"50-a\r", 0, True), (b"\n", 0, True),
            (b"250 b\r\n", 1, False), (b"250 c\r\n2", 1, True), (b"50 d\r\n", 1, False),
        ):  # fmt: skip
            with self.subTest(data=data):
                self.assertEqual(len(parser.feed(data)), replies)
                self.assertEqual(parser.pending, pending)

    @settings(deadline=None, max_examples=400)
    @given(
        st.lists(
            st.one_of(
                st.sampled_from(
                    [
                        b"250 ok\r\n",
                        b"250-a\r\n",
                        b"250",
                        b"354 ",
                        b"-",
                        b" ",
                        b"\r",
                        b"\n",
                        b"\r\n",
                        b"\0",
                        b"x" * 1500,
                    ]
                ),
                st.binary(max_size=6),
            ),
            max_size=12,
        ),
        st.booleans(),
    )
    def test_no_cut_matters(self, parts: list[bytes], lenient: bool) -> None:
        data = b"".join(parts)
        whole = outcome([data], lenient)
        self.assertEqual(outcome(parts, lenient), whole)
        self.assertEqual(outcome([data[i : i + 1] for i in range(len(data))], lenient), whole)


class Limits(SynchronousTestCase):
    def line(self, length: int, head: bytes = b"250 ") -> bytes:
        return head + b"x" * (length - len(head) - 2) + b"\r\n"

    def check(self, data: bytes, lenient: bool = False) -> Outcome:
        """The outcome, which no cut changes."""
        whole = outcome([data], lenient)
        for step in (1, 7, 1460, 2047, 2048, 2049, 16384, 65535):
            self.assertEqual(outcome([data[i : i + step] for i in range(0, len(data), step)], lenient), whole, step)
        return whole

    def test_a_line_of_the_limit_is_good(self) -> None:
        self.assertEqual(self.check(self.line(MAX_LINE))[1:], (None, False))

    def test_a_longer_line_is_an_error(self) -> None:
        for data in (
            self.line(MAX_LINE + 1),
            self.line(MAX_LINE + 1, b"junk"),
            self.line(MAX_LINE + 1, b"250-"),
        ):
            replies, error, _ = self.check(b"220 a\r\n" + data)
            self.assertEqual(len(replies), 1)
            self.assertIn("reply line longer than 2048 bytes: b'", str(error))

    def test_a_line_that_is_too_long_is_refused_before_its_end(self) -> None:
        parser = ReplyParser()
        parser.feed(b"250 " + b"x" * (MAX_LINE - 5))
        self.assertIsNone(parser.error)
        parser.feed(b"x")
        self.assertIsNotNone(parser.error)
        self.assertFalse(parser.pending)

    def test_as_many_lines_as_the_limit_are_good(self) -> None:
        replies, error, _ = self.check(b"250-a\r\n" * (MAX_LINES - 1) + b"250 b\r\n")
        self.assertEqual((len(replies[0][1]), error), (MAX_LINES, None))

    def test_more_lines_are_an_error(self) -> None:
        for lenient in (False, True):
            _, error, pending = self.check(b"250-a\r\n" * MAX_LINES + b"250 b\r\n", lenient)
            self.assertEqual((error, pending), ("reply of more than 100 lines: b'250-a\\r\\n'", False))

    def test_a_reply_of_the_limit_is_good_and_a_longer_one_an_error(self) -> None:
        lines = self.line(MAX_LINE, b"250-") * (MAX_REPLY // MAX_LINE - 1)
        for lenient in (False, True):
            replies, error, _ = self.check(lines + self.line(MAX_LINE), lenient)
            self.assertEqual((len(replies), error), (1, None))
            for rest in (self.line(MAX_LINE + 1), self.line(1000, b"250-") + self.line(1049), b"\0" * 5000):
                replies, error, pending = self.check(lines + rest, lenient)
                self.assertEqual((replies, pending), ([], False))
                self.assertIn("longer than", str(error))

    def test_an_endless_stream_is_not_held(self) -> None:
        for piece in (b"x", b"250-" + b"y" * 1000 + b"\r\n", b"\0" * 10000):
            for lenient in (False, True):
                parser = ReplyParser()
                parser.lenient = lenient
                tracemalloc.start()
                for _ in range(2 * MAX_REPLY // len(piece)):
                    parser.feed(piece)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                self.assertLess(peak, 5 * MAX_REPLY)
                self.assertIsNotNone(parser.error)


class AfterTheContent(SynchronousTestCase):
    """What is an error elsewhere is a flaw there, if the verdict can be read."""

    def test_nul_and_long_lines(self) -> None:
        long = b"250 " + b"x" * MAX_LINE + b"\r\n"
        for data, flaw in (
            (b"250 o\0k\r\n", "NUL"),
            (b"250 \0\n", "NUL"),
            (long, "line too long"),
            (long[:-2] + b"\0\r\n", "line too long"),
            (b"250-" + b"\0\r\n" + long, "NUL"),
            (b"250 " + b"x" * (MAX_REPLY - 6) + b"\r\n", "line too long"),
        ):
            with self.subTest(data=data[:10], length=len(data)):
                strict_replies, strict_error, _ = outcome([data])
                self.assertEqual(strict_replies, [])
                self.assertIsNotNone(strict_error)
                for step in (len(data), 1000, 1):
                    pieces = [data[i : i + step] for i in range(0, len(data), step)]
                    replies, error, pending = outcome(pieces, lenient=True)
                    self.assertEqual([(code, flaw) for code, _, flaw in replies], [(250, flaw)])
                    self.assertEqual((error, pending), (None, False))

    def test_no_more_than_a_whole_reply(self) -> None:
        self.assertIsNotNone(outcome([b"250 " + b"x" * (MAX_REPLY - 5) + b"\r\n"], lenient=True)[1])

    def test_the_code_must_be_readable(self) -> None:
        for data in (b"\0250 ok\r\n", b"25\x000 ok\r\n", b"250\0ok\r\n"):
            self.assertIsNotNone(outcome([data], lenient=True)[1], data)

    def test_it_can_begin_and_end_between_replies(self) -> None:
        parser = ReplyParser()
        parser.feed(b"354 go\r\n")
        parser.lenient = True
        (reply,) = parser.feed(b"250 \0\r\n")
        self.assertEqual(reply.flaw, "NUL")
        parser.lenient = False
        self.assertEqual(parser.feed(b"250 \0\r\n"), [])
        self.assertEqual(parser.error, "NUL in a reply: b'250 \\x00\\r\\n'")


class Replies(SynchronousTestCase):
    def test_equal_are_those_of_one_code_and_lines(self) -> None:
        (received,) = ReplyParser().feed(b"250-a\r\n250 b\n")
        self.assertEqual(received, Reply.make(250, "a", "b"))
        self.assertEqual(hash(received), hash(Reply.make(250, "a", "b")))
        for other in (
            Reply.make(251, "a", "b"),
            Reply.make(250, "a"),
            Reply.make(250, "a", "c"),
            "250 a; b",
            None,
        ):
            self.assertNotEqual(received, other)

    def test_are_immutable(self) -> None:
        reply = Reply.make(250, "ok")
        for name in ("code", "flaw", "_raw", "other"):
            self.assertRaises(AttributeError, setattr, reply, name, 1)
            self.assertRaises(AttributeError, delattr, reply, name)
        self.assertEqual(reply.code, 250)

    def test_can_be_copied_and_pickled(self) -> None:
        (reply,) = ReplyParser().feed(b"250 ok\n")
        for twin in (copy.copy(reply), copy.deepcopy(reply), pickle.loads(pickle.dumps(reply))):
            self.assertEqual((twin, twin.flaw), (reply, "bare LF"))

    def test_made_ones_must_be_what_a_server_could_send(self) -> None:
        self.assertEqual(Reply.make(250), Reply.make(250, ""))
        for code, text in (
            (199, "a"),
            (600, "a"),
            (250, "a\r\n354 go"),
            (250, "a\rb"),
            (250, "a\nb"),
            (250, "\0"),
        ):
            self.assertRaises(ValueError, Reply.make, code, text)

    def test_kinds(self) -> None:
        for code, kinds in (
            (250, ("positive",)),
            (354, ("intermediate",)),
            (421, ("transient", "negative")),
            (550, ("permanent", "negative")),
        ):
            reply = Reply.make(code, "x")
            names = ("positive", "intermediate", "transient", "permanent", "negative")
            self.assertEqual(tuple(name for name in names if getattr(reply, name)), kinds)

    def test_enhanced_status(self) -> None:
        for code, text, enhanced in (
            (250, "2.1.0 ok", (2, 1, 0)),
            (250, "2.1.0", (2, 1, 0)),
            (550, "5.7.509 no", (5, 7, 509)),
            (421, "4.3.2\tbye", (4, 3, 2)),
            (250, "ok 2.1.0", None),
            (250, "5.1.0 contradiction", None),
            (354, "3.0.0 no such class", None),
            (250, "2.1.0.1 address", None),
            (250, "2.1.0ok", None),
            (250, "2.1 ok", None),
            (250, "2.1.1000 ok", None),
            (250, " 2.1.0 ok", None),
            (250, "", None),
        ):
            with self.subTest(code=code, text=text):
                self.assertEqual(Reply.make(code, text, "2.9.9 b").enhanced, enhanced)

    def test_enhanced_statuses_of_all_lines(self) -> None:
        for texts, statuses in (
            (("2.1.0 a", "2.1.5 b"), ((2, 1, 0), (2, 1, 5))),
            (("a", "2.1.5 b", "c", "5.1.1 contradiction"), ((2, 1, 5),)),
            (("a", "b"), ()),
        ):
            self.assertEqual(Reply.make(250, *texts).statuses, statuses)

    def test_text_is_one_printable_line(self) -> None:
        for raw, text in (
            (b"250-a\r\n250 b\r\n", "a; b"),
            (b"250 \xc3\xbc\r\n", "ü"),
            (b"250 \xfc\r\n", "\\xfc"),
            (b"250 a\x1b[2Jb\x7f\r\n", "a\\x1b[2Jb\\x7f"),
            (b"250 a\rb\tc\r\n", "a\\rb\\tc"),
            ("250 a\x85\u2028\u202eb\r\n".encode(), "a\\x85\\u2028\\u202eb"),
        ):
            (reply,) = ReplyParser().feed(raw)
            with self.subTest(raw=raw):
                self.assertEqual(reply.text, text)
                self.assertEqual(str(reply), f"250 {text}")
                self.assertTrue(repr(reply).startswith(f"Reply(250, {text!r}"), repr(reply))

    def test_text_is_bounded(self) -> None:
        for character in ("a", "ü", "\U0001f4e7", "\x1b", "\u2028"):
            reply = Reply.make(250, *[character * 400] * 5)
            self.assertEqual(len(reply.text), MAX_TEXT)
            self.assertTrue(reply.text.isprintable() and reply.text.endswith("..."))
        self.assertEqual(Reply.make(250, "\U0001f4e7" * MAX_TEXT).text, "\U0001f4e7" * MAX_TEXT)
