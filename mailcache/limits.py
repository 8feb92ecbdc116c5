"""How much and how long: the limits of a cache and the time limits of a conversation."""

from __future__ import annotations

import sys
from typing import Any

import attrs


def _whole(minimum: int) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{attribute.name}: {value!r} is not a whole number of at least {minimum}")

    return check


def _one_of(*known: str) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in known:
            raise ValueError(f"{attribute.name}: {value!r} is not one of {', '.join(known)}")

    return check


def _seconds(minimum: float) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not minimum <= value <= sys.float_info.max:  # type: ignore[operator]
            raise ValueError(f"{attribute.name}: {value!r} is not a number of seconds of at least {minimum:g}")

    return check


def patience(timeout: float | None, usual: float) -> float:
    """Seconds that a request may wait, ``usual`` where it does not say.

    :raises ValueError: for a ``timeout`` that is no such number.
    """
    if timeout is None:
        return usual
    if not isinstance(timeout, (int, float)) or not 0 <= timeout <= sys.float_info.max:
        raise ValueError(f"timeout: {timeout!r} is not a number of seconds of at least 0")
    return timeout


@attrs.frozen(slots=True, kw_only=True)
class Limits:
    """What a cache may hold, for how long, and who may wait. Seconds, unless said otherwise.

    ``sessions`` bounds all that is open or being opened, idle ones included; ``sessions_per_destination`` and
    ``sessions_per_endpoint`` bound the same for one destination and for one server address. ``waiters`` bounds
    the requests that wait for a place, ``wait_timeout`` how long one waits. ``idle_timeout`` (and
    ``idle_timeout_mx`` for next hops found by domain, which belong to others: Postfix
    smtp_connection_cache_time_limit is 2 s) ends what nobody uses; ``max_age`` (Postfix
    smtp_connection_reuse_time_limit) is spread by 20 % so that sessions opened together do not end together;
    ``max_uses`` is the number of transactions, ``None`` for no limit.

    ``keep`` is "always", or "busy" to keep sessions on demand: only while deliveries to their destination come back to
    back, within a second, or wait (Postfix smtp_connection_cache_on_demand). Where mail is rare, servers then see no
    idle connection.
    """

    sessions: int = attrs.field(default=1000, validator=_whole(1))
    sessions_per_destination: int = attrs.field(default=20, validator=_whole(1))
    sessions_per_endpoint: int = attrs.field(default=20, validator=_whole(1))
    waiters: int = attrs.field(default=1000, validator=_whole(0))
    idle_timeout: float = attrs.field(default=30, validator=_seconds(0))
    idle_timeout_mx: float = attrs.field(default=5, validator=_seconds(0))
    max_age: float = attrs.field(default=300, validator=_seconds(0))
    max_uses: int | None = attrs.field(default=None, validator=attrs.validators.optional(_whole(1)))
    wait_timeout: float = attrs.field(default=30, validator=_seconds(0))
    keep: str = attrs.field(default="always", validator=_one_of("always", "busy"))


@attrs.frozen(slots=True, kw_only=True)
class Timeouts:
    """Seconds that the peer may take, for each reply as a whole (RFC 5321 4.5.3.2).

    ``content`` is the longest time without progress while content is written; ``starttls`` is for the reply, and
    for the handshake behind it; ``first_reply`` is awaited on a reused session before it counts as dead.
    """

    connect: float = attrs.field(default=30, validator=_seconds(0.001))
    greeting: float = attrs.field(default=300, validator=_seconds(0.001))
    ehlo: float = attrs.field(default=300, validator=_seconds(0.001))
    starttls: float = attrs.field(default=300, validator=_seconds(0.001))
    auth: float = attrs.field(default=300, validator=_seconds(0.001))
    mail: float = attrs.field(default=300, validator=_seconds(0.001))
    rcpt: float = attrs.field(default=300, validator=_seconds(0.001))
    data: float = attrs.field(default=120, validator=_seconds(0.001))
    content: float = attrs.field(default=180, validator=_seconds(0.001))
    dot: float = attrs.field(default=600, validator=_seconds(0.001))
    rset: float = attrs.field(default=20, validator=_seconds(0.001))
    quit: float = attrs.field(default=5, validator=_seconds(0.001))
    first_reply: float = attrs.field(default=20, validator=_seconds(0.001))

    @property
    def opening(self) -> float:
        """Seconds that one server may take until a session with it is open: EHLO twice, STARTTLS and the handshake,
        AUTH, which has three replies at most."""
        return self.connect + self.greeting + 2 * self.ehlo + 2 * self.starttls + 3 * self.auth
