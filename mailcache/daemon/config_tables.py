"""What each table of a configuration file means: a function for each kind of table."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from mailcache.credentials import Credentials
from mailcache.daemon import config_files
from mailcache.daemon.config_reading import Table
from mailcache.destination import Destination
from mailcache.limits import Limits, Timeouts
from mailcache.remote.configuration import PER_DESTINATION, Login, Pattern, Rule
from mailcache.remote.floors import Demand
from mailcache.remote.users import Permission
from mailcache.trust.policy import TLSPolicy

LIMITS = tuple(field.name for field in attrs.fields(Limits))
TIMEOUTS = tuple(field.name for field in attrs.fields(Timeouts))
TLS = ("level", "match", "fingerprints", "servername", "min_version", "ciphers", "anchors")
NAMESPACE = ("limits", "timeouts", "tls")
NEXT_HOP = (
    "match", "limits", "timeouts", "tls", "credentials", "bind_address", "helo_name", "client_certificate",
)  # fmt: skip
CREDENTIALS = ("username", "password_file", "users", "groups")
ANCHORS = ("file",)
ACCESS = ("users", "groups", "leases_per_user")
SHARING = ("between",)
TOP = ("limits", "timeouts", "namespace", "next_hop", "credentials", "anchors", "access", "sharing")
"""The keys of each kind of table."""

MAX_ID = 2**32 - 2
"""The last number of a user or a group; the one after it means none."""


@attrs.define
class Named:
    """What other tables name; ``None`` stands for what was wrong, which has been said."""

    logins: dict[str, Login | None] = attrs.Factory(dict)
    anchors: dict[str, bytes | None] = attrs.Factory(dict)


def limits(table: Table, *, of_destination: bool) -> dict[str, Any]:
    """The fields of `Limits` in a table; of those that are the cache's, none for a destination."""
    if of_destination:
        for name in table:
            if name in LIMITS and name not in PER_DESTINATION:
                table.wrong(name, "is one for the whole keeper; write it in [limits]")
    table.only(LIMITS)
    return _fields(table, PER_DESTINATION if of_destination else LIMITS, Limits)


def timeouts(table: Table) -> dict[str, Any]:
    """The fields of `Timeouts` in a table."""
    table.only(TIMEOUTS)
    return _fields(table, TIMEOUTS, Timeouts)


def _fields(table: Table, names: Iterable[str], kind: Callable[..., Any]) -> dict[str, Any]:
    found = {}
    for name in names:
        made = table.checked(name, lambda value, name=name: kind(**{name: value}), None)  # type: ignore[misc]
        if made is not None:
            found[name] = getattr(made, name)
    return found


def tls(table: Table, anchors: Mapping[str, bytes | None], implied: str | None = None) -> Demand:
    """What a table demands.

    :param implied: the level where none is given.
    """
    table.only(TLS)
    level = table.checked("level", lambda value: TLSPolicy(value, fingerprints=_some(value)).level)
    match = table.checked("match", lambda value: TLSPolicy("secure", match=value).match, list)
    fingerprints = table.checked("fingerprints", _fingerprints, list)
    servername = table.checked("servername", lambda value: TLSPolicy(servername=value).servername)
    min_version = table.checked("min_version", lambda value: TLSPolicy(min_version=value).min_version)
    ciphers = table.checked("ciphers", lambda value: TLSPolicy(ciphers=value).ciphers)
    if "level" not in table:
        level = implied
    if level is not None or "level" not in table:
        if match and level not in ("verify", "secure"):
            table.wrong("match", 'is used by levels "verify" and "secure" only; give one of them as level')
        if fingerprints and level != "fingerprint":
            table.wrong("fingerprints", 'is used by level "fingerprint" only; give that as level')
        if level == "fingerprint":
            table.missing("fingerprints", 'level "fingerprint" needs at least one SHA-256 digest')
    named = table.text("anchors")
    return Demand(
        level,
        match or (),
        fingerprints or (),
        servername,
        min_version,
        ciphers,
        None if named is None else _named(table, "anchors", named, anchors),
    )


def _some(level: str) -> tuple[str, ...]:
    return ("0" * 64,) if level == "fingerprint" else ()


def _fingerprints(value: list[object]) -> tuple[str, ...]:
    if not value:
        raise ValueError("is empty; give at least one SHA-256 digest")
    return TLSPolicy("fingerprint", fingerprints=value).fingerprints


def _named(table: Table, key: str, name: str, there: Mapping[str, Any]) -> Any:
    if name not in there:
        known = f"there are {', '.join(there)}" if there else "there is none at all"
        table.wrong(key, f"there is no [{key}.{name}]; {known}")
    return there.get(name)


def namespace(table: Table, anchors: Mapping[str, bytes | None]) -> Rule:
    """A table of a namespace."""
    table.only(NAMESPACE)
    if not table.path[-1] or not str(table.path[-1]).isprintable():
        table.wrong("", "the name of a namespace is printable text of at least one character")
    return Rule(
        limits(table.table("limits"), of_destination=True),
        timeouts(table.table("timeouts")),
        tls(table.table("tls"), anchors) if "tls" in table else None,
    )


def next_hop(table: Table, named: Named, folder: str) -> tuple[Pattern | None, Rule]:
    """One of the tables of next hops."""
    table.only(NEXT_HOP)
    table.missing("match", 'say which next hops are meant, as in match = "*.example.com"')
    pattern = table.checked("match", Pattern.parse)
    login = None
    name = table.text("credentials")
    if name is not None:
        login = _named(table, "credentials", name, named.logins)
    # Credentials go to who has proved its name, unless it is said that less will do.
    implied = "verify" if "credentials" in table else None
    demand = tls(table.table("tls"), named.anchors, implied)
    rule = Rule(
        limits(table.table("limits"), of_destination=True),
        timeouts(table.table("timeouts")),
        demand if demand != Demand() else None,
        login,
        table.checked("bind_address", lambda value: Destination("[x]", bind_address=value).bind_address),
        table.checked("helo_name", lambda value: Destination("[x]", helo_name=value).helo_name),
        table.checked("client_certificate", _file(folder, config_files.client_certificate)),
    )
    return pattern, rule


def credentials(table: Table, folder: str) -> Login | None:
    """A table of credentials; ``None`` if it is wrong."""
    table.only(CREDENTIALS)
    table.missing("username", "give the name of the account")
    table.missing("password_file", "give the path of a file that holds the password")
    if "users" not in table and "groups" not in table:
        table.wrong("users", "is missing; name the users, or the groups, who may use these credentials")
    username = table.checked("username", lambda value: _stripped(value, "x").username)
    secret = table.checked("password_file", _file(folder, config_files.password))
    allowed = permission(table)
    if username is None or secret is None:
        return None
    try:
        made = _stripped(username, secret)
    except ValueError as error:
        table.wrong("password_file", f"{error}; write another password into it")
        return None
    return Login(str(table.path[-1]), made, allowed)


def _stripped(username: str, secret: str) -> Credentials:
    try:
        return Credentials(username, secret)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("credentials: ")) from None


def anchors(table: Table, folder: str) -> bytes | None:
    """A table of trust anchors; ``None`` if it is wrong."""
    table.only(ANCHORS)
    table.missing("file", "give the path of a PEM file with the certificates")
    return table.checked("file", _file(folder, config_files.trust_anchors))


def _file(folder: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Paths are those of the file that names them, wherever the keeper runs."""

    def take(value: str) -> Any:
        if not value:
            raise ValueError("is empty; give the path of a file")
        return read(os.path.join(folder, value))

    return take


def permission(table: Table) -> Permission:
    """Who is named by ``users`` and ``groups`` of a table."""
    return Permission(frozenset(table.each("users", user_id)), frozenset(table.each("groups", group_id)))


def leases_per_user(table: Table) -> int | None:
    """How many sessions one user may have or wait for at a time; ``None`` for no limit."""
    return table.checked("leases_per_user", _at_least_one, None)


def _at_least_one(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return value


def sharing(table: Table) -> tuple[frozenset[int], ...]:
    """The groups of users between whom sessions may be shared."""
    table.only(SHARING)
    table.missing("between", 'give arrays of users, as in between = [["mail", "news"]]')
    groups = table.each("between", _sharers)
    seen: set[int] = set()
    for group in groups:
        for uid in sorted(group & seen):
            table.wrong("between", f"user {uid} is in two groups; let it be in one")
        seen |= group
    return groups


def _sharers(value: object) -> frozenset[int]:
    if not isinstance(value, list):
        raise ValueError('an array of arrays of users is wanted, as in [["mail", "news"]]')
    group = frozenset(map(user_id, value))
    if len(group) < 2:
        raise ValueError("a group of fewer than two users shares nothing; name at least two")
    return group


def user_id(value: object) -> int:
    """The number of a user.

    :raises ValueError: for what is neither a number nor the name of one.
    """
    return _id(value, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_id(value: object) -> int:
    """The number of a group.

    :raises ValueError: for what is neither a number nor the name of one.
    """
    return _id(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def _id(value: object, kind: str, known: Callable[[str], int]) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID:
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no {kind}; give a name in quotes, or a number from 0 to {MAX_ID}")
    try:
        return known(value)
    except (KeyError, ValueError):
        raise ValueError(f"there is no {kind} {value!r} on this host; give a name that is known, or a number") from None
