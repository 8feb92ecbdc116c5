"""The keeper's configuration file: TOML, checked as a whole, each error named by its key."""

from __future__ import annotations

import tomllib
from typing import Any, TypeVar

import attrs

from mailcache.limits import Limits, Timeouts

_T = TypeVar("_T")


class ConfigurationError(ValueError):
    """What is wrong with the file; the text names the file, the key, and what would be right."""


@attrs.frozen
class Configuration:
    """What a keeper is configured to do."""

    limits: Limits = attrs.Factory(Limits)
    timeouts: Timeouts = attrs.Factory(Timeouts)


_TABLES: dict[str, Any] = {"limits": Limits, "timeouts": Timeouts}


def load(path: str) -> Configuration:
    """The configuration in the file at ``path``.

    :raises ConfigurationError: if it can't be read, is no TOML, has an unknown key or a wrong value.
    """
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: no TOML: {error}") from error
    for name in tables:
        if name not in _TABLES:
            raise ConfigurationError(f"{path}: [{name}] is not known; there are {_list(_TABLES)}")
    return Configuration(**{name: _table(path, name, kind, tables.get(name, {})) for name, kind in _TABLES.items()})


def _table(path: str, name: str, kind: type[_T], values: Any) -> _T:
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: {name} is a table: write [{name}]")
    known = [field.name for field in attrs.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigurationError(f"{path}: {key} in [{name}] is not known; there are {_list(known)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigurationError(f"{path}: [{name}] {error}") from error


def _list(names: Any) -> str:
    return ", ".join(names)
