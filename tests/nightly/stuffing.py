"""Every short content, in every way to cut it: none of them ends before its end, and none of it is lost.

``python -m tests.nightly.stuffing --length 8`` takes all strings of up to eight of CR, LF, dot and a letter, in all the
ways to cut them into pieces, by way of the encoder, of a file that is read in pieces, and of the front, whose client
writes in pieces. There is no chance in it, and so no seed.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product

from mailcache.contents import FileContent
from mailcache.fronting.incoming import IncomingContent
from mailcache.wire.content import encode
from tests.wire.test_content import ALPHABET, cuts, in_pieces, lines_of, received, reference

END = b"\r\n.\r\n"


class Pieces(io.RawIOBase):
    """A file that gives these, one for each time it is read, and can't be rewound."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._left = pieces[::-1]

    def read(self, size: int = -1) -> bytes:
        return self._left.pop() if size and self._left else b""


def by_file(pieces: list[bytes]) -> bytes:
    """What is written to the server of a file that comes in these pieces."""
    return b"".join(FileContent(Pieces(pieces)).chunks())


def through_front(pieces: list[bytes]) -> tuple[bytes, bytes]:
    """A client writes these and then the end of content: what the server is sent, and what is left for commands."""
    incoming = IncomingContent()
    writes = iter([*pieces, END])
    behind = None
    for data in writes:
        behind = incoming.feed(data)
        if behind is not None:
            break
    assert behind is not None, "no end of content"
    source = incoming.source()
    sent = b"".join(source.chunks())
    incoming.close()
    return sent, behind + b"".join(writes)


def front_reference(written: bytes) -> tuple[bytes, bytes]:
    """The same by the book: the first CRLF "." CRLF ends it, also at its very beginning (RFC 5321 4.1.1.4)."""
    content, _, behind = (b"\r\n" + written + END).partition(END)
    lines = (content + b"\r\n")[2:].split(b"\r\n")
    return reference(b"\r\n".join(line.removeprefix(b".") for line in lines)), behind


def whole(content: bytes) -> bytes:
    """The encoded content; an `AssertionError` if a server could read anything else in it than its author meant."""
    data = encode(content)
    assert data == reference(content), content
    assert received(data) == (lines_of(content), b""), content
    bare = data.replace(b"\r\n", b"")
    assert b"\r" not in bare and b"\n" not in bare, content
    assert (b"\r\n" + data).find(END) == len(data) - 3, content
    return data


def contents(length: int) -> Iterator[bytes]:
    """All of ``length`` octets."""
    return map(b"".join, product(ALPHABET, repeat=length))


WAYS: dict[str, tuple[Callable[[list[bytes]], object], Callable[[bytes], object]]] = {
    "the encoder": (in_pieces, whole),
    "a file read in pieces": (by_file, whole),
    "the front": (through_front, front_reference),
}
"""What is done with the pieces, and what must come of it, by the whole."""


def check(way: str, longest: int) -> int:
    """Try one way with all contents of up to ``longest`` octets; gives in how many pieces-wise ways.

    :raises AssertionError: for the first that is wrong.
    """
    done, expected = WAYS[way]
    tried = 0
    for length in range(1, longest + 1):
        for content in contents(length):
            right = expected(content)
            for pieces in cuts(content):
                tried += 1
                found = done(pieces)
                if found != right:
                    raise AssertionError(f"{way}: {pieces!r} gives {found!r}, not {right!r}")
    return tried


def main(arguments: list[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(description="Contents of every kind, cut in every way.")
    parser.add_argument("--length", type=int, default=8, metavar="OCTETS", help="of the longest contents (8)")
    longest = parser.parse_args(arguments).length
    print(f"contents of 1 to {longest} octets: {sum(4**length for length in range(1, longest + 1)):,}")
    wrong = 0
    for way in WAYS:
        began = time.perf_counter()
        try:
            tried = check(way, longest)
        except AssertionError as error:
            wrong += 1
            print(f"wrong: {error}")
            continue
        print(f"cut in every way, by {way}: {tried:,} ({time.perf_counter() - began:.1f} s)")
    print(f"ways in which an end was found before the end, or anything was lost: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
