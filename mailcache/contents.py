"""Where the content of a message comes from: bytes, files, and `email.message` objects."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from email.message import Message
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from mailcache import mime
from mailcache.wire.content import CHUNK, TERMINATOR, ContentEncoder, encode, normalised_size

if TYPE_CHECKING:
    from mailcache.envelope import Envelope
    from mailcache.wire.capabilities import Capabilities


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


Sendable = bytes | BinaryIO | Message | Content
"""What a caller may hand in: `content_of` makes a `Content` of it."""


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
    meanwhile is not sent. A file that can't be rewound (a pipe) is never replayed. It is read by whoever writes it to
    the server, in the reactor's thread: a pipe that is not filled as fast holds up all that this thread does.
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


class MessageContent:
    """An `email.message` object, as it is when it is handed in: held in memory, always replayable.

    With 8-bit bodies it has two forms, and what the server offers chooses one. ``size`` is that of the 8-bit form;
    ``eight_bit`` is ``True`` where there is no other, since 8-bit bytes are in the header or in what is signed.

    :param envelope: whose demands it must meet.
    :ivar smtputf8: its header needs SMTPUTF8, or ``envelope`` demands that.
    :raises ValueError: if the message can't be written.
    """

    __slots__ = ("_as_it_is", "_data", "_seven_bit", "_seven_bit_only", "eight_bit", "size", "smtputf8")

    def __init__(self, message: Message, envelope: Envelope | None = None) -> None:
        self.smtputf8 = (envelope is not None and envelope.smtputf8) or mime.needs_smtputf8(message)
        self._data = data = mime.serialised(message, smtputf8=self.smtputf8)
        self._as_it_is = BytesContent(data)
        self._seven_bit: BytesContent | None = None
        self._seven_bit_only = envelope is not None and envelope.body == "7BIT"
        self.size = self._as_it_is.size
        self.eight_bit = self._as_it_is.eight_bit
        if self.eight_bit and not self.smtputf8:
            # That there is no other form is rare, and it is made only where it is needed.
            rare = self._seven_bit_only or b"multipart/signed" in data.lower()
            self.eight_bit = rare and not self._has_seven_bit()

    def demanded(self, envelope: Envelope) -> Envelope:
        """``envelope``, with SMTPUTF8 demanded where the header needs it."""
        return envelope.evolved(smtputf8=True) if self.smtputf8 and not envelope.smtputf8 else envelope

    def for_server(self, capabilities: Capabilities) -> BytesContent:
        """The form for a server with ``capabilities``."""
        wanted = self._seven_bit_only or not capabilities.eightbitmime
        if wanted and self._as_it_is.eight_bit and not self.smtputf8 and self._has_seven_bit():
            assert self._seven_bit is not None
            return self._seven_bit
        return self._as_it_is

    def _has_seven_bit(self) -> bool:
        if self._seven_bit is None:
            data = mime.seven_bit_form(self._data)
            self._seven_bit = None if data is None else BytesContent(data)
        return self._seven_bit is not None

    def whole(self) -> bytes | None:
        return self._as_it_is.whole()

    def chunks(self) -> Iterator[bytes]:
        return self._as_it_is.chunks()

    def rewind(self) -> bool:
        return True


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


def content_of(content: Sendable, envelope: Envelope | None = None) -> Content:
    """The source for what a caller handed in.

    :param envelope: that of the message; an `email.message` object is written as it demands.
    :raises TypeError: for anything but bytes, a binary file, or an `email.message` object.
    :raises ValueError: for a file that is closed or can't be read, or a message that can't be written.
    """
    if isinstance(content, (BytesContent, FileContent, MessageContent)):
        return content
    if isinstance(content, (bytes, bytearray, memoryview)):
        return BytesContent(bytes(content))
    if isinstance(content, Message):
        return MessageContent(content, envelope)
    if all(hasattr(content, name) for name in ("chunks", "whole", "rewind")):
        return cast(Content, content)
    if hasattr(content, "read"):
        return FileContent(cast(BinaryIO, content))
    raise TypeError(f"content: bytes, a binary file or an EmailMessage is wanted, not {type(content).__name__}")
