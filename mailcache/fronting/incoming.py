"""The content that a client of the front sends, kept until the server has taken it, so that it can be sent again."""

from __future__ import annotations

from tempfile import SpooledTemporaryFile

from mailcache.contents import BytesContent, Content, FileContent
from mailcache.wire.content import CHUNK

MAX_IN_MEMORY = 1 << 20
"""Bytes of content that are held in memory; what is longer goes to a temporary file."""

_END = b"\r\n.\r\n"


class IncomingContent:
    """One content, as it comes from the client: dot-stuffed up to the lone dot, or as it is in its file.

    :ivar failed: why it could not be kept, or ``None``.
    """

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115  (`close` is the owner's)
        self._size = 0
        self.failed: str | None = None
        # What may be the beginning of the end is held, and of it what was there before does not count.
        self._held = b"\r\n"
        self._before = 2

    def add(self, data: bytes) -> None:
        """Take ``data``, in which no dot was doubled."""
        self._keep(data)
        # What follows is stuffed again, and the lone dot of it may stand behind a line end of this.
        self._held, self._before = (b"\r\n", 2) if data.endswith(b"\n") else (b"", 0)

    def feed(self, data: bytes) -> bytes | None:
        """Take dot-stuffed ``data``; gives what came behind the end of content once that is there, else ``None``."""
        window = self._held + data
        end = window.find(_END)
        if end >= 0:
            self._unstuff(window[: end + 2])
            return window[end + len(_END) :]
        # Whatever is not complete begins with a CR among the last bytes.
        begun = window.find(b"\r", max(0, len(window) - len(_END) + 1))
        kept = len(window) if begun < 0 else begun
        self._held = window[kept:]
        if kept:
            self._unstuff(window[:kept])
        return None

    def source(self) -> Content:
        """All of it; can be read as often as it is sent."""
        self._file.seek(0)
        if self._size <= CHUNK:
            return BytesContent(self._file.read())
        return FileContent(self._file)  # type: ignore[arg-type]

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def _unstuff(self, stuffed: bytes) -> None:
        before, self._before = self._before, 0
        self._keep(stuffed.replace(b"\r\n.", b"\r\n")[before:])

    def _keep(self, data: bytes) -> None:
        if self.failed is not None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self.failed = f"the content can't be kept: {error.strerror}"
        self._size += len(data)
