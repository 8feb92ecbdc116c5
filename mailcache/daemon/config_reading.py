"""Tables of a configuration file, read key by key: what is wrong is noted, each with its line, and reading goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from mailcache.daemon.config_lines import Lines, Path

_T = TypeVar("_T")

_KINDS: dict[type, str] = {str: "text in quotes", int: "a whole number", list: "an array", dict: "a table"}


class Problems:
    """What is wrong with the file at ``path``."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = Lines(text)
        self._found: list[tuple[int, str]] = []

    def add(self, where: Path, message: str) -> None:
        """Note what is wrong with the key or table at ``where``, and what would be right."""
        line = self._lines.of(where)
        key, said = _shown(where), " ".join(message.split())
        found = line, f"{self._path}:{line}: {key}: {said}"
        if found not in self._found:
            self._found.append(found)

    def line(self, where: Path) -> int:
        """Where ``where`` stands."""
        return self._lines.of(where)

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each, as they stand in the file."""
        return tuple(text for _, text in sorted(self._found, key=lambda found: found[0]))


class Table:
    """A table at ``path``; a key that is not there gives ``None``, and so does one that is wrong."""

    def __init__(self, problems: Problems, path: Path, values: dict[str, Any]) -> None:
        self._problems = problems
        self.path = path
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def only(self, known: Iterable[str]) -> None:
        """Note each key that is none of these."""
        known = tuple(known)
        for name in self._values:
            if name not in known:
                self.wrong(name, f"is not known; there are {', '.join(known)}")

    def wrong(self, name: str, message: str) -> None:
        """Note what is wrong with a key; "" is the table as a whole."""
        self._problems.add((*self.path, name) if name else self.path, message)

    def missing(self, name: str, message: str) -> None:
        """Note that a key is not there. Where it is there and wrong, that has been noted."""
        if name not in self._values:
            self.wrong(name, f"is missing; {message}")

    def value(self, name: str, kind: type[_T]) -> _T | None:
        """The value of a key, if it is of this kind."""
        value = self._values.get(name)
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        self.wrong(name, f"is {_said(value)}; {_KINDS[kind]} is wanted")
        return None

    def text(self, name: str) -> str | None:
        """The text of a key."""
        return self.value(name, str)

    def checked(self, name: str, check: Callable[[Any], _T], kind: type | None = str) -> _T | None:
        """What ``check`` makes of a key's value; it says what is wrong by `ValueError`.

        :param kind: what is wanted; ``None`` leaves that to ``check``.
        """
        value = self._values.get(name) if kind is None else self.value(name, kind)
        if value is None:
            return None
        try:
            return check(value)
        except ValueError as error:
            self.wrong(name, str(error).removeprefix(f"{name}: "))
            return None

    def each(self, name: str, check: Callable[[Any], _T]) -> tuple[_T, ...]:
        """What ``check`` makes of the entries of an array; those that are wrong are noted and left out."""
        made = []
        for entry in self.value(name, list) or ():
            try:
                made.append(check(entry))
            except ValueError as error:
                self.wrong(name, str(error))
        return tuple(made)

    def table(self, name: str) -> Table:
        """The table of this name; an empty one if there is none."""
        path = (*self.path, name)
        values = self._values.get(name, {})
        if not isinstance(values, dict):
            self.wrong(name, f"is {_said(values)}; it is a table: write [{_shown(path)}]")
            values = {}
        return Table(self._problems, path, values)

    def named(self, name: str) -> dict[str, Table]:
        """The tables in the table of this name."""
        whole = self.table(name)
        return {key: whole.table(key) for key in whole}

    def tables(self, name: str) -> list[Table]:
        """The tables of an array of them."""
        values = self._values.get(name, [])
        if not isinstance(values, list) or not all(isinstance(entry, dict) for entry in values):
            self.wrong(name, f"is {_said(values)}; it is an array of tables: write [[{name}]]")
            return []
        return [Table(self._problems, (*self.path, name, place), entry) for place, entry in enumerate(values)]

    def line(self) -> int:
        """Where it stands."""
        return self._problems.line(self.path)


def _shown(path: Path) -> str:
    return ".".join(part if part.isprintable() else repr(part) for part in path if isinstance(part, str))


def _said(value: object) -> str:
    """What kind of a value it is. It is not quoted, since it may be a password."""
    if isinstance(value, bool):
        return "true or false"
    return _KINDS.get(type(value), f"a {type(value).__name__}")
