"""What is to be sent: the envelope, and where the content comes from."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Protocol, cast

import attrs

from mailcache.wire import commands
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.content import CHUNK, TERMINATOR, ContentEncoder, encode, normalised_size

BODIES = ("7BIT", "8BITMIME")


@attrs.frozen(slots=True)
class Needs:
    """What a message demands of the server that is to take it. ``size`` is in bytes, ``None`` if unknown."""

    smtputf8: bool = False
    eightbitmime: bool = False
    size: int | None = None
    requiretls: bool = False

    def unmet_by(self, capabilities: Capabilities) -> str | None:
        """What ``capabilities`` lack of this, in words, or ``None`` if they suffice (RFC 6531, 6152, 1870, 8689)."""
        if self.smtputf8 and not capabilities.smtputf8:
            return "the server does not offer SMTPUTF8, which an address of this envelope needs"
        if self.eightbitmime and not capabilities.eightbitmime:
            return "the server does not offer 8BITMIME, which this content needs: encode it as 7-bit MIME"
        if self.requiretls and not capabilities.requiretls:
            return "the server does not offer REQUIRETLS, which this envelope demands"
        limit = capabilities.size
        if self.size is not None and limit and self.size > limit:
            return f"the message has {self.size} bytes and the server takes {limit} at most"
        return None


NO_NEEDS = Needs()


class Envelope:
    """Who sends and who is to receive, checked when made (RFC 5321 2.3.1).

    :param sender: the MAIL FROM address; "" is the null sender.
    :param recipients: one or more addresses; one given twice is asked for once.
    :param smtputf8: demand SMTPUTF8 even where the addresses are ASCII (for non-ASCII header fields, RFC 6531).
    :param body: "7BIT" or "8BITMIME" to say what the content is; ``None`` finds out from bytes, and takes a
        file as either.
    :param requiretls: demand REQUIRETLS of every hop (RFC 8689).
    :raises ValueError: for an address that no server could take, no recipients, or an unknown ``body``.
    """

    __slots__ = (
        "body",
        "mail_command",
        "other_commands",
        "recipients",
        "requiretls",
        "sender",
        "smtputf8",
    )

    def __init__(
        self,
        sender: str,
        recipients: Iterable[str],
        *,
        smtputf8: bool = False,
        body: str | None = None,
        requiretls: bool = False,
    ) -> None:
        if isinstance(recipients, str):
            raise ValueError(f"recipients: a list of addresses is wanted, not the one string {recipients!r}")
        if not isinstance(sender, str):
            raise ValueError(f'sender: an address as a string is wanted, or "", not {sender!r}')
        try:
            unique = tuple(dict.fromkeys(recipients))
            ascii_only = sender.isascii() and "".join(unique).isascii()
        except TypeError:
            raise ValueError(f"recipients: a list of addresses as strings is wanted, not {recipients!r}") from None
        if not unique:
            raise ValueError("recipients: at least one address is needed")
        if body is not None and body not in BODIES:
            raise ValueError(f"body: {body!r} is not one of {', '.join(BODIES)}, or None to find out")
        self.sender = sender
        self.recipients = unique
        self.smtputf8 = smtputf8 or not ascii_only
        self.body = body
        self.requiretls = requiretls
        self.mail_command = commands.mail(sender, smtputf8=self.smtputf8, requiretls=requiretls)[:-2]
        """MAIL without SIZE, BODY and CRLF: what differs from server to server is appended."""
        self.other_commands = (
            b"".join([commands.rcpt(address, smtputf8=self.smtputf8) for address in unique]) + commands.DATA
        )
        """All RCPTs in their order, and DATA."""

    def __repr__(self) -> str:
        return f"Envelope({self.sender!r}, {list(self.recipients)!r})"

    def needs(self, content: Content) -> Needs:
        """What this envelope and ``content`` together demand of a server.

        :raises ValueError: if ``body`` says 7BIT and the content has 8-bit bytes.
        """
        if self.body == "7BIT" and content.eight_bit:
            raise ValueError("body: the content has 8-bit bytes: it is 8BITMIME, or must be encoded")
        eight_bit = self.body == "8BITMIME" or (self.body is None and content.eight_bit is True)
        if not self.smtputf8 and not eight_bit and not self.requiretls:
            size = content.size
            return NO_NEEDS if size is None or size <= ALWAYS_TAKEN else Needs(size=size)
        return Needs(self.smtputf8, eight_bit, content.size, self.requiretls)


ALWAYS_TAKEN = 65_536
"""Bytes that any server takes: RFC 5321 4.5.3.1.7 wants a minimum of 64K octets. Below it no SIZE is looked at."""


class ContentFailed(Exception):  # noqa: N818  (reads as the event it reports)
    """The content could not be read to its end, so its end must not be written."""


class Content(Protocol):
    """Where the bytes of a message come from. ``size`` and ``eight_bit`` are ``None`` where not known."""

    size: int | None
    eight_bit: bool | None

    def whole(self) -> bytes | None:
        """All of it, encoded with its terminator, where that fits one write; else ``None``."""

    def chunks(self) -> Iterator[bytes]:
        """Encoded chunks; the terminator rides with the last. Raises `ContentFailed` if it can't be read to its end."""

    def rewind(self) -> bool:
        """Make it readable from the start again; ``False`` if that can't be done."""


class BytesContent:
    """Content that is in memory already: always replayable."""

    __slots__ = ("_data", "_encoded", "eight_bit", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.eight_bit: bool | None = not data.isascii()
        self._encoded = encode(data) if len(data) <= CHUNK else None
        # SIZE may be an estimate (RFC 1870 5): stuffed dots are counted rather than looked for twice.
        self.size: int | None = normalised_size(data) if self._encoded is None else len(self._encoded) - len(TERMINATOR)

    def whole(self) -> bytes | None:
        return self._encoded

    def chunks(self) -> Iterator[bytes]:
        return _encoded(self._data[at : at + CHUNK] for at in range(0, len(self._data), CHUNK))

    def rewind(self) -> bool:
        return True


class FileContent:
    """Content read from a binary file in chunks, from where it stands; never held as a whole.

    The size is taken when the delivery starts: a file that ends before that has failed, and what is appended
    meanwhile is not sent. A file that can't be rewound (a pipe) is never replayed.
    """

    __slots__ = ("_file", "_read_from", "_start", "eight_bit", "size")

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.eight_bit: bool | None = None
        self.size: int | None = None
        self._start: int | None = None
        self._read_from = False
        try:
            if isinstance(file.read(0), str):
                raise TypeError("content: a text file can't be sent: open it in binary mode ('rb')")
            if file.seekable():
                self._start = file.tell()
                self.size = file.seek(0, io.SEEK_END) - self._start
                file.seek(self._start)
        except (OSError, ValueError) as error:
            raise ValueError(f"content: the file can't be read: {error}") from error

    def whole(self) -> bytes | None:
        return None

    def chunks(self) -> Iterator[bytes]:
        return _encoded(self._read())

    def rewind(self) -> bool:
        if not self._read_from:
            return True
        if self._start is None:
            return False
        try:
            self._file.seek(self._start)
        except (OSError, ValueError):
            return False
        return True

    def _read(self) -> Iterator[bytes]:
        left = self.size
        self._read_from = True
        while left is None or left > 0:
            try:
                chunk = self._file.read(CHUNK if left is None else min(CHUNK, left))
            except Exception as error:
                raise ContentFailed(f"reading the content failed: {error}") from error
            if not isinstance(chunk, bytes):
                raise ContentFailed(
                    f"the content's file gave {type(chunk).__name__}, not bytes: open it in binary mode"
                )
            if not chunk:
                if left is None:
                    return
                raise ContentFailed(f"the file ended {left} bytes before its size of {self.size}")
            if left is not None:
                left -= len(chunk)
            yield chunk


def _encoded(chunks: Iterable[bytes]) -> Iterator[bytes]:
    encoder = ContentEncoder()
    held = b""
    for chunk in chunks:
        if held:
            yield held
        held = encoder.encode(chunk)
    yield held + encoder.finish()


def seven_bit(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """``chunks``, where they must be 7-bit: fails at the first byte that is not."""
    for chunk in chunks:
        if not chunk.isascii():
            raise ContentFailed(
                "the content has 8-bit bytes, and the server offers no 8BITMIME or the envelope says 7BIT"
            )
        yield chunk


def content_of(content: bytes | BinaryIO | Content) -> Content:
    """The source for what a caller handed in.

    :raises TypeError: for anything but bytes or a binary file.
    :raises ValueError: for a file that is closed or can't be read.
    """
    if isinstance(content, (BytesContent, FileContent)):
        return content
    if isinstance(content, (bytes, bytearray, memoryview)):
        return BytesContent(bytes(content))
    if all(hasattr(content, name) for name in ("chunks", "whole", "rewind")):
        return cast(Content, content)
    if hasattr(content, "read"):
        return FileContent(cast(BinaryIO, content))
    raise TypeError(f"content: bytes or a binary file is wanted, not {type(content).__name__}")
