"""How an input is read: as choices, one after the other, and as the pieces of a stream."""

from __future__ import annotations

from itertools import pairwise

REPEAT_LINE, REPEAT_BYTE = 0xFE, 0xFD
"""In a stream: so many times the line before, or 64 times the byte before, as the next byte says. So a few bytes of
input reach the limits that are there for thousands."""

MAX_STREAM = 140_000
"""Bytes that `expanded` gives: above every limit of a reply or a box."""


class Choices:
    """Bytes that decide something; at their end they decide for 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have decided nothing yet."""
        return len(self._data) - self._at

    def byte(self) -> int:
        """0 to 255."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, bound: int) -> int:
        """0 to ``bound`` - 1."""
        return self.byte() % bound

    def flag(self) -> bool:
        """True or false."""
        return bool(self.byte() & 1)

    def piece(self) -> bytes:
        """Some bytes, as many as their first byte says."""
        length = self.byte()
        self._at += length
        return self._data[self._at - length : self._at]

    def number(self) -> int:
        """A number of any size that a field may have."""
        return int.from_bytes(self.piece()[:9], "big")

    def rest(self) -> bytes:
        """All that is left."""
        rest, self._at = self._data[self._at :], len(self._data)
        return rest


def cut(data: bytes, places: bytes) -> list[bytes]:
    """``data`` in pieces, cut at each of ``places``, which are 256ths of its length."""
    bounds = sorted({0, len(data), *(len(data) * place // 256 for place in places)})
    return [data[start:end] for start, end in pairwise(bounds)]


def one_by_one(data: bytes) -> list[bytes]:
    """``data`` byte by byte."""
    return [data[at : at + 1] for at in range(len(data))]


def expanded(data: bytes) -> bytes:
    """``data`` with its repetitions written out; see `REPEAT_LINE`."""
    made = bytearray()
    at = 0
    while at < len(data) and len(made) < MAX_STREAM:
        byte = data[at]
        if byte in (REPEAT_LINE, REPEAT_BYTE) and at + 1 < len(data):
            at += 1
            if byte == REPEAT_LINE:
                before = made[made.rfind(b"\n", 0, -1) + 1 :]
                made += before * data[at]
            else:
                made += made[-1:] * (64 * data[at])
        else:
            made.append(byte)
        at += 1
    return bytes(made[:MAX_STREAM])
