"""Where and how a connection in memory is cut: after so many octets of what one end writes, counted from now on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: How a connection can break when the last octet has arrived, and what becomes of both ends.
WAYS: Mapping[str, str] = MappingProxyType(
    {
        "rst": "both ends have a reset; what either of them is about to send is lost, be it an answer to that octet",
        "fin": "the end that has sent it closes: the other one reads the end of the stream behind it",
        "close": "the end that has received it closes, behind what it answers",
        "silence": "nothing arrives any more, at either end, and nobody is told",
    }
)


class Cut:
    """
    A cut that is still to come.

    @ivar left: octets that still arrive.
    @ivar how: one of L{WAYS}.
    """

    def __init__(self, octets: int, how: str, at_next: bool) -> None:
        if how not in WAYS:
            raise ValueError(f"a connection can't be cut by {how!r}; there are {', '.join(WAYS)}")
        if octets < 0:
            raise ValueError("octets are counted from 0")
        self.left = octets
        self.how = how
        self._at_next = at_next or octets == 0

    def falls_in(self, segment: bytes) -> bool:
        """Whether it falls into this segment, the next to be sent; else that counts."""
        if len(segment) > self.left or (len(segment) == self.left and not self._at_next):
            return True
        self.left -= len(segment)
        return False
