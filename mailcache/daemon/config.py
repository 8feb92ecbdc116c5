"""The keeper's configuration file: TOML, checked as a whole, each error in a line that names its place and its key."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator

from mailcache.daemon import config_tables as tables
from mailcache.daemon.config_lines import Path
from mailcache.daemon.config_reading import Problems, Table
from mailcache.limits import Limits, Timeouts
from mailcache.remote.configuration import Configuration, Pattern, Rule

__all__ = ["Configuration", "ConfigurationError", "load", "summary"]

# More digits than Python makes a number of.
_TOO_LONG = re.compile(r"[0-9](?:_?[0-9]){4300}")

MAX_FILE = 4 * 1024 * 1024
"""Bytes of a configuration file."""


class ConfigurationError(ValueError):
    """What is wrong with the file.

    :ivar lines: one for each error: "FILE:LINE: KEY: what is wrong; what would be right".
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


def load(path: str) -> Configuration:
    """The configuration in the file at ``path``, with what is in the files that it names.

    :raises ConfigurationError: if it can't be read, is no TOML, has an unknown key or a wrong value.
    """
    text, values = _read(path)
    problems = Problems(path, text)
    for where in _too_large(values):
        problems.add(where, "a number of more than 64 bits, which TOML does not have")
    if problems.lines:
        raise ConfigurationError(problems.lines)
    found = _configuration(path, Table(problems, (), values))
    if problems.lines:
        raise ConfigurationError(problems.lines)
    return found


def _read(path: str) -> tuple[str, dict[str, object]]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigurationError([f"{path}: can't be read: {error.strerror}"]) from error
    if len(content) > MAX_FILE:
        raise ConfigurationError([f"{path}: has more than {MAX_FILE} bytes; it is no configuration"])
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ConfigurationError([f"{path}:{line}: no TOML: a byte that is not UTF-8; write it as UTF-8"]) from error
    try:
        return text, tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        place = re.search(r" \(at line (\d+), column \d+\)", str(error))
        if place is not None:
            line, said = int(place[1]), str(error).replace(place[0], "")
        elif (number := _TOO_LONG.search(text)) is not None and not isinstance(error, tomllib.TOMLDecodeError):
            line, said = 1 + text.count("\n", 0, number.start()), "a number of thousands of digits"
        else:
            # It is the end of the text where something is missing.
            line, said = 1 + text.rstrip("\r\n").count("\n"), re.sub(r" \(at end of document\)", "", str(error))
        raise ConfigurationError([f"{path}:{line}: no TOML: {said}"]) from error


def _too_large(values: dict[str, object]) -> Iterator[Path]:
    """Where integers are that TOML does not have: Python's parser takes any, which are no numbers of seconds then."""
    left: list[tuple[Path, object]] = [((), values)]
    while left:
        where, value = left.pop()
        if isinstance(value, dict):
            left += [((*where, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [((*where, place), inner) for place, inner in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield where


def _configuration(path: str, top: Table) -> Configuration:
    folder = os.path.dirname(os.path.abspath(path))
    top.only(tables.TOP)
    named = tables.Named()
    named.anchors = {name: tables.anchors(table, folder) for name, table in top.named("anchors").items()}
    named.logins = {name: tables.credentials(table, folder) for name, table in top.named("credentials").items()}
    rules: list[tuple[Pattern, Rule]] = []
    seen: dict[Pattern, int] = {}
    for table in top.tables("next_hop"):
        pattern, rule = tables.next_hop(table, named, folder)
        if pattern is None:
            continue
        earlier = seen.get(pattern, seen.get(Pattern.parse("*")))
        if earlier is not None:
            table.wrong("match", f"all that it matches is matched in line {earlier} already; put it before that")
        seen.setdefault(pattern, table.line())
        rules.append((pattern, rule))
    access = top.table("access")
    access.only(tables.ACCESS)
    return Configuration(
        Limits(**tables.limits(top.table("limits"), of_destination=False)),
        Timeouts(**tables.timeouts(top.table("timeouts"))),
        {name: tables.namespace(table, named.anchors) for name, table in top.named("namespace").items()},
        tuple(rules),
        tables.permission(access),
        tables.sharing(top.table("sharing")) if "sharing" in top else (),
        tables.leases_per_user(access),
        path,
    )


def summary(found: Configuration) -> str:
    """What a configuration has, in some lines."""
    limits = found.limits
    logins = {rule.login.name for _, rule in found.next_hops if rule.login is not None}
    access = found.access
    most = limits.sessions, limits.sessions_per_destination, limits.sessions_per_endpoint
    lines = [
        "sessions: {} at most, {} a destination, {} a server address".format(*most),
        f"namespaces with rules of their own: {', '.join(found.namespaces) or 'none'}",
        f"rules for next hops: {len(found.next_hops)}",
        f"credentials in use: {', '.join(sorted(logins)) or 'none'}",
        "may connect: the keeper's own user, root"
        + "".join(f", user {uid}" for uid in sorted(access.uids))
        + "".join(f", group {gid}" for gid in sorted(access.gids)),
    ]
    lines += ["share sessions: users " + ", ".join(map(str, sorted(users))) for users in found.shared]
    return "".join(f"  {line}\n" for line in lines)
