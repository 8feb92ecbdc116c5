"""In which line of a TOML text a key stands. For texts that `tomllib` has read, and which are therefore whole."""

from __future__ import annotations

import re
import tomllib
from typing import Any

Path = tuple[str | int, ...]
"""The keys down to a value; a number is the place in an array of tables."""

_KEY = r"""[ \t]*(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')[ \t]*"""
_KEYS = rf"{_KEY}(?:\.{_KEY})*"
_HEADER = re.compile(rf"\[(\[?)({_KEYS})\]\]?")
_ASSIGNED = re.compile(rf"({_KEYS})=")
_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[][{}]|\n|[^]["\'#{}\n]+''',
    re.DOTALL,
)


class Lines:
    """The lines of the keys and tables in ``text``."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}
        self._scan(text)

    def of(self, path: Path) -> int:
        """The line of ``path``, else that of the table it is in, else 1."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _scan(self, text: str) -> None:
        text = text.replace("\r\n", "\n")
        table: Path = ()
        at, line = 0, 1
        while at < len(text):
            while text[at : at + 1] in (" ", "\t"):
                at += 1
            header, assigned = _HEADER.match(text, at), _ASSIGNED.match(text, at)
            if header is not None:
                table = self._table(_split(header[2]), bool(header[1]), line)
                at = header.end()
            elif assigned is not None:
                path = table + _split(assigned[1])
                for length in range(len(table) + 1, len(path) + 1):
                    self._lines.setdefault(path[:length], line)
                at = assigned.end()
            end = _end_of_line(text, at)
            line += text.count("\n", at, end)
            at = end

    def _table(self, keys: Path, one_of_many: bool, line: int) -> Path:
        """The path that a header names: of arrays it is the last table that is meant."""
        path: Path = ()
        for place, key in enumerate(keys):
            path = (*path, key)
            if one_of_many and place == len(keys) - 1:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            # The tables around it may have no header of their own, and an array begins with its first table.
            self._lines.setdefault(path, line)
            if path in self._arrays:
                path = (*path, self._arrays[path])
                self._lines.setdefault(path, line)
        return path


def _end_of_line(text: str, at: int) -> int:
    """Behind the end of the line, or of the value that goes over several of them."""
    depth = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return len(text)
        at = token.end()
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        elif token[0] == "\n" and depth <= 0:
            break
    return at


def _split(keys: str) -> Path:
    """The single keys of a dotted one, without quotes."""
    value: Any = tomllib.loads(f"{keys} = 0")
    path: list[str] = []
    while isinstance(value, dict):
        ((key, value),) = value.items()
        path.append(key)
    return tuple(path)
