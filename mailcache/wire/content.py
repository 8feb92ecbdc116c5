"""
Message content on the wire: line ends, dot-stuffing and the end of data (RFC 5321 4.1.1.4, 4.5.2).

What leaves here has no CR and no LF but in CRLF, and the end of data exactly once, at the end. Servers differ
in what else they take for an end of data (LF "." LF and a dozen like it: "SMTP smuggling", CVE-2023-51764 to
51766), so no content may choose it. A bare CR or LF becomes CRLF, which is what its author meant by it.
"""

from __future__ import annotations

from io import IncrementalNewlineDecoder
from typing import Final

# Octets of a file to read, encode and write at a time: some TLS records (16384), and the size of a UNIX pipe.
CHUNK: Final = 65536

# The end of data, behind the CRLF of the last line (RFC 5321 4.1.1.4).
TERMINATOR: Final = b".\r\n"

# Without any line end, or with nothing but CRLF.
_CLEAN: Final = (None, "\r\n")


def encode(content: bytes) -> bytes:
    """
    A whole content, ready to be written after a 354: dot-stuffed, ending with the lone dot.

    :param content: octets with any line ends; a last line without one gets it
    """
    if not content:
        return TERMINATOR
    content = _stuffed(_normalised(content))
    return b"".join(
        (
            b"." if content.startswith(b".") else b"",
            content,
            TERMINATOR if content.endswith(b"\n") else b"\r\n.\r\n",
        )
    )


def normalised_size(content: bytes) -> int:
    """
    The octets of a content for MAIL's SIZE (RFC 1870 section 3): with CRLF line ends and the last line
    complete, before dot-stuffing and without the lone dot.
    """
    pairs = content.count(b"\r\n")
    size = len(content) + content.count(b"\n") + content.count(b"\r") - 2 * pairs
    return size if not content or content.endswith((b"\n", b"\r")) else size + 2


class ContentEncoder:
    """
    The same for a content that comes in pieces: ``b"".join(encode(c) for c in pieces) + finish()`` is what
    `encode` gives for the whole, wherever it is cut. Serves for one content.
    """

    __slots__ = ("_carriage_return", "_finished", "_line_start")

    def __init__(self) -> None:
        self._line_start = True
        # A CR that ended a piece is held: the next may begin with its LF.
        self._carriage_return = False
        self._finished = False

    def encode(self, chunk: bytes) -> bytes:
        """
        What can be written now of the content so far; perhaps nothing.

        :raises RuntimeError: after `finish`: those bytes would be read as commands
        """
        if self._finished:
            raise RuntimeError("this content is finished")
        if self._carriage_return:
            chunk = b"\r" + chunk
        self._carriage_return = chunk.endswith(b"\r")
        if self._carriage_return:
            chunk = chunk[:-1]
        if not chunk:
            return b""
        chunk = _stuffed(_normalised(chunk))
        if self._line_start and chunk.startswith(b"."):
            chunk = b"." + chunk
        self._line_start = chunk.endswith(b"\n")
        return chunk

    def finish(self) -> bytes:
        """
        The end of data, with the line end before it where that is missing: one write with the last piece.

        :raises RuntimeError: the second time
        """
        if self._finished:
            raise RuntimeError("this content is finished")
        self._finished = True
        return TERMINATOR if self._line_start and not self._carriage_return else b"\r\n.\r\n"


def _normalised(content: bytes) -> bytes:
    """Every CR, LF and CRLF as CRLF."""
    # The decoder of text files notes which line ends it has seen, at a fifth of the cost of counting them.
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(content.decode("latin-1"), True)
    if decoder.newlines in _CLEAN:
        return content
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def _stuffed(content: bytes) -> bytes:
    """Normalised content with the dot doubled at the head of every line but the first (the caller's)."""
    # Searched no further than the last dot, which is found at once: in most encoded bodies there is none at all.
    # The longer needle is found sooner than LF "." would be.
    if content.find(b"\r\n.", 0, content.rfind(b".") + 1) < 0:
        return content
    return content.replace(b"\r\n.", b"\r\n..")
