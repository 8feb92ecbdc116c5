"""Content on the wire: nothing in it ends it, and nothing of it is lost, wherever it is cut."""

from __future__ import annotations

from itertools import combinations, pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire.content import CHUNK, TERMINATOR, ContentEncoder, encode, normalised_size

ALPHABET = (b"\r", b"\n", b".", b"a")


def lines_of(content: bytes) -> list[bytes]:
    """The reference: what an author means by lines, octet by octet."""
    lines, line, after_return = [], b"", False
    for octet in content:
        if octet == 0x0A and after_return:
            after_return = False
            continue
        after_return = octet == 0x0D
        if octet in (0x0D, 0x0A):
            lines.append(line)
            line = b""
        else:
            line += bytes((octet,))
    return [*lines, line] if line else lines


def reference(content: bytes) -> bytes:
    """RFC 5321 4.5.2, line by line."""
    return (
        b"".join(
            line.replace(b".", b"..", 1) + b"\r\n" if line[:1] == b"." else line + b"\r\n" for line in lines_of(content)
        )
        + b".\r\n"
    )


def received(data: bytes) -> tuple[list[bytes], bytes]:
    """The strictest server: its lines up to the lone dot, and what it would take for commands."""
    lines = []
    while data:
        line, _, data = data.partition(b"\r\n")
        if line == b".":
            return lines, data
        lines.append(line[1:] if line.startswith(b".") else line)
    raise AssertionError("no end of data")


def in_pieces(pieces: list[bytes]) -> bytes:
    encoder = ContentEncoder()
    return b"".join([encoder.encode(piece) for piece in pieces]) + encoder.finish()


def cuts(content: bytes) -> list[list[bytes]]:
    """Every way to cut it into pieces that are not empty."""
    found = []
    places = range(1, len(content))
    for count in range(len(content)):
        for chosen in combinations(places, count):
            bounds = [0, *chosen, len(content)]
            found.append([content[a:b] for a, b in pairwise(bounds)])
    return found or [[]]


class EveryShortContent(SynchronousTestCase):
    """All strings of up to six of CR, LF, dot and a letter, in all ways to cut them."""

    def test_is_read_by_a_server_as_its_author_meant_it(self) -> None:
        for length in range(7):
            for octets in product(ALPHABET, repeat=length):
                content = b"".join(octets)
                data = encode(content)
                self.assertEqual(data, reference(content), content)
                self.assertEqual(received(data), (lines_of(content), b""), content)
                bare = data.replace(b"\r\n", b"")
                self.assertFalse(b"\r" in bare or b"\n" in bare, content)
                self.assertEqual((b"\r\n" + data).find(b"\r\n.\r\n"), len(data) - 3, content)

    def test_is_the_same_however_it_is_cut(self) -> None:
        for length in range(7):
            for octets in product(ALPHABET, repeat=length):
                content = b"".join(octets)
                whole = encode(content)
                for pieces in cuts(content):
                    if in_pieces(pieces) != whole:
                        self.fail(f"{pieces!r} gives {in_pieces(pieces)!r}, not {whole!r}")

    def test_has_the_size_of_its_complete_lines(self) -> None:
        for length in range(7):
            for octets in product(ALPHABET, repeat=length):
                content = b"".join(octets)
                size = sum(len(line) + 2 for line in lines_of(content))
                self.assertEqual(normalised_size(content), size, content)


class LongContent(SynchronousTestCase):
    def test_a_dot_at_the_edge_of_a_chunk_is_stuffed(self) -> None:
        sizes = [1 << power for power in range(10, 18)] + [65535, 16384]
        for size in sizes:
            for k in range(size - 2, size + 3):
                content = b"a" * (k - 1) + b"\n" + b".\nRSET\n"
                for step in (size, 16384, CHUNK):
                    pieces = [content[at : at + step] for at in range(0, len(content), step)]
                    data = in_pieces(pieces)
                    self.assertEqual(data, b"a" * (k - 1) + b"\r\n..\r\nRSET\r\n.\r\n")
                    self.assertEqual(received(data)[1], b"")

    def test_beginnings_and_ends(self) -> None:
        for pieces, data in (
            ([], b".\r\n"),
            ([b""], b".\r\n"),
            ([b"", b".", b""], b"..\r\n.\r\n"),
            ([b"."], b"..\r\n.\r\n"),
            ([b".", b"."], b"...\r\n.\r\n"),
            ([b".\r\n", b".\r\n"], b"..\r\n..\r\n.\r\n"),
            ([b"a\r", b"", b"\n"], b"a\r\n.\r\n"),
            ([b"a\r", b"\r"], b"a\r\n\r\n.\r\n"),
            ([b"a\r"], b"a\r\n.\r\n"),
            ([b"a\r", b"."], b"a\r\n..\r\n.\r\n"),
            ([b"a"], b"a\r\n.\r\n"),
            ([b"a\0b\r\n\0.\r\n"], b"a\0b\r\n\0.\r\n.\r\n"),
            ([b"\xff\n"], b"\xff\r\n.\r\n"),
        ):
            with self.subTest(pieces=pieces):
                self.assertEqual(in_pieces(pieces), data)
                self.assertEqual(encode(b"".join(pieces)), data)

    def test_malformed_ends_of_data_end_nothing(self) -> None:
        # Each of them has ended a message for some server.
        for end in (
            b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r\n\0.\r\n",
            b"\r\n.\0\r\n", b"\r\n.\r\r\n", b"\n\r.\r\n", b"\r\n.\r\n",
        ):  # fmt: skip
            content = b"Subject: a\r\n\r\nb" + end + b"MAIL FROM:<evil@example.com>\r\n"
            with self.subTest(end=end):
                lines, commands = received(encode(content))
                self.assertEqual(commands, b"")
                self.assertIn(b"MAIL FROM:<evil@example.com>", lines)
                self.assertEqual(encode(content), reference(content))

    def test_clean_content_is_passed_as_it_is(self) -> None:
        content = b"Subject: a\r\n\r\n" + b"x" * 70 + b"\r\n"
        self.assertEqual(encode(content), content + TERMINATOR)
        self.assertEqual(normalised_size(content), len(content))

    def test_nothing_follows_the_end(self) -> None:
        encoder = ContentEncoder()
        encoder.encode(b"a")
        self.assertEqual(encoder.finish(), b"\r\n.\r\n")
        self.assertRaises(RuntimeError, encoder.encode, b"QUIT\r\n")
        self.assertRaises(RuntimeError, encoder.finish)

    @settings(deadline=None)
    @given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n."]))))
    def test_any_content_in_any_pieces(self, pieces: list[bytes]) -> None:
        content = b"".join(pieces)
        self.assertEqual(in_pieces(pieces), reference(content))
        self.assertEqual(encode(content), reference(content))
        self.assertEqual(received(encode(content)), (lines_of(content), b""))
