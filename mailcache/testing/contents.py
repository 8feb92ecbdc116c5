"""Receiving the content of a message: after DATA to the lone dot, after BDAT by count. No I/O."""

from __future__ import annotations

import attrs

_END = b"\r\n.\r\n"


@attrs.define(eq=False)
class DataContent:
    """
    Content after a 354: until CRLF . CRLF and nothing less (RFC 5321 4.5.2).

    @ivar kept: it is held as a whole. What is not is counted, and nothing more is known of it.
    """

    kept: bool = True
    _octets: bytearray = attrs.field(factory=lambda: bytearray(b"\r\n"))  # as if a line had ended before it
    _dropped: int = 0

    @property
    def received(self) -> int:
        """Octets so far."""
        return self._dropped + len(self._octets) - 2

    def feed(self, data: bytes) -> bytes | None:
        """Take some more: what came behind the end if the end is there, else None."""
        searched = max(0, len(self._octets) - len(_END) + 1)
        self._octets += data
        end = self._octets.find(_END, searched)
        if end < 0:
            surplus = 0 if self.kept else len(self._octets) - len(_END)
            if surplus > 0:
                self._dropped += surplus
                del self._octets[:surplus]
            return None
        behind = bytes(self._octets[end + len(_END) :])
        del self._octets[end + 2 :]
        return behind

    def content(self) -> bytes:
        """What the client meant: without the dots that were added to its lines. Nothing, if it is not kept."""
        if not self.kept:
            return b""
        return bytes(self._octets).replace(b"\r\n.", b"\r\n")[2:]

    def misplaced(self) -> str | None:
        """What RFC 5321 2.3.8 forbids and the content has: CR or LF apart from each other."""
        pairs = self._octets.count(b"\r\n")
        if self._octets.count(b"\n") > pairs:
            return "bare LF in content"
        if self._octets.count(b"\r") > pairs:
            return "bare CR in content"
        return None


@attrs.define(eq=False)
class ChunkContent:
    """
    One chunk of BDAT (RFC 3030).

    @ivar size: octets announced.
    @ivar last: it is the last of its message.
    """

    size: int
    last: bool
    _octets: bytearray = attrs.field(factory=bytearray)

    @property
    def received(self) -> int:
        """Octets so far."""
        return len(self._octets)

    def feed(self, data: bytes) -> bytes | None:
        """Take some more: what came behind the end if the end is there, else None."""
        self._octets += data
        if len(self._octets) < self.size:
            return None
        behind = bytes(self._octets[self.size :])
        del self._octets[self.size :]
        return behind

    def content(self) -> bytes:
        """The octets as they came: nothing is stuffed in a chunk."""
        return bytes(self._octets)
