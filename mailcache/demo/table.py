"""What is shown: a bar while mail is sent, and the table of what it has cost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from typing import TextIO

import attrs

from mailcache.demo.measuring import Measured
from mailcache.demo.server import Counts


class Progress:
    """A bar on a terminal; nothing elsewhere."""

    EVERY = 0.1  # seconds: quick enough for the eye, and no burden for what is measured

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty()
        self._next = 0.0

    def at(self, name: str, of: int, done: int) -> None:
        """So many are done; the last one is always shown."""
        if not self._shown or (done < of and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + self.EVERY
        counted = f"{done:,}/{of:,}"
        room = min(40, shutil.get_terminal_size().columns - len(name) - len(counted) - 6)
        filled = max(0, room) * done // of
        bar = f" [{'#' * filled}{'.' * (room - filled)}]" if room > 0 else ""
        self._stream.write(f"\r{name}{bar} {counted}\x1b[K")
        self._stream.flush()

    def clear(self) -> None:
        """Leave the line empty."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


@attrs.frozen
class Row:
    """One row of the table."""

    name: str
    counts: Counts
    measured: Measured


def table(rows: Iterable[Row]) -> str:
    """The rows under their headings, every line ended."""
    heads = ("", "connections", "handshakes", "messages/s", "CPU ms/message", "ms/message")
    lines = [heads]
    for row in rows:
        messages, took = row.counts.messages, row.measured
        lines.append(
            (
                row.name,
                f"{row.counts.connections:,}",
                f"{row.counts.handshakes:,}",
                f"{messages / took.seconds:,.0f}",
                f"{took.cpu_seconds / messages * 1e3:.3f}",
                f"{took.waited / messages * 1e3:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for first, *others in lines:
        text += first.ljust(widths[0])
        text += "".join("  " + cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)) + "\n"
    return text
