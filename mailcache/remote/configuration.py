"""What a keeper is configured to do: values, and what they make of what a borrower asks for. No I/O, no Twisted."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from mailcache.credentials import Credentials
from mailcache.destination import Destination, NextHop
from mailcache.limits import Limits, Timeouts
from mailcache.remote.floors import Demand, floor, remade
from mailcache.remote.users import Permission, User, own_and_root
from mailcache.result import DeliveryError
from mailcache.ticker import interval_for

PER_DESTINATION = (
    "sessions_per_destination",
    "idle_timeout",
    "idle_timeout_mx",
    "max_age",
    "max_uses",
    "keep",
)
"""The fields of `Limits` that a destination may have of its own; the others are the cache's."""

MAX_SETTINGS = 10_000
"""Next hops whose settings are remembered."""

_FORMS = '"example.com", "*.example.com", "[192.0.2.1]:25", "unix:/path", "*" or "*:25"'


@attrs.frozen(slots=True)
class Pattern:
    """Which next hops are meant: one host, all hosts below a name, one socket, or all there are.

    Brackets make no difference, else who leaves them off would get under the floor. Without a port it is any port.
    """

    kind: str
    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern in ``text``.

        :raises ValueError: that says which forms there are.
        """
        any_host, below = text == "*" or text.startswith("*:"), text.startswith("*.")
        plain = f"any{text[1:]}" if any_host else text[2:] if below else text
        try:
            # Port 0 is none that could be written.
            hop = NextHop.parse(plain, 0)
        except ValueError as error:
            said = str(error).removeprefix("next hop: ").partition(" is none of ")
            raise ValueError(f"{said[0]}{' is no pattern' if said[1] else ''}; write {_FORMS}") from None
        if below and hop.kind != "domain":
            raise ValueError(f"{text!r} has no name after the asterisk; write {_FORMS}")
        if any_host:
            return cls("any", "", hop.port or None)
        kind = "below" if below else "unix" if hop.kind == "unix" else "host"
        return cls(kind, _unmapped(hop.name), hop.port or None)

    def matches(self, hop: NextHop) -> bool:
        """Whether ``hop`` is meant."""
        if self.port not in (None, hop.port):
            return False
        if self.kind == "any":
            return True
        if (self.kind == "unix") != (hop.kind == "unix"):
            return False
        return hop.name.endswith(f".{self.name}") if self.kind == "below" else _unmapped(hop.name) == self.name


@attrs.frozen(slots=True)
class Login:
    """Credentials of the keeper's, and who may use them."""

    name: str
    credentials: Credentials
    allowed: Permission


@attrs.frozen(slots=True)
class Rule:
    """What is configured for a namespace, or for some next hops; what is not said is ``None``, or not there.

    :ivar limits: the fields of `Limits` that are given; ``timeouts`` likewise.
    """

    limits: Mapping[str, Any] = attrs.Factory(dict)
    timeouts: Mapping[str, Any] = attrs.Factory(dict)
    demand: Demand | None = None
    login: Login | None = None
    bind_address: str | None = None
    helo_name: str | None = None
    client_pem: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen(slots=True)
class Settings:
    """What holds for one next hop in one namespace. Of ``limits`` those of `PER_DESTINATION` count."""

    limits: Limits
    timeouts: Timeouts
    demands: tuple[Demand, ...] = ()
    login: Login | None = None
    bind_address: str | None = None
    helo_name: str | None = None
    client_pem: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen(slots=True)
class Configuration:
    """What a keeper is configured to do.

    :ivar namespaces: rules by the name of a namespace.
    :ivar next_hops: rules by patterns, of which the first that matches counts.
    :ivar access: who may connect besides the keeper's own user and root.
    :ivar shared: users between whom sessions may be shared.
    :ivar leases_per_user: how many sessions one user may have or wait for at a time, in all his processes; ``None``
        for no limit.
    :ivar path: the file that says so.
    """

    limits: Limits = attrs.Factory(Limits)
    timeouts: Timeouts = attrs.Factory(Timeouts)
    namespaces: Mapping[str, Rule] = attrs.Factory(dict)
    next_hops: tuple[tuple[Pattern, Rule], ...] = ()
    access: Permission = attrs.Factory(Permission)
    shared: tuple[frozenset[int], ...] = ()
    leases_per_user: int | None = None
    path: str | None = attrs.field(default=None, eq=False)
    _known: dict[tuple[str, NextHop], Settings] = attrs.field(factory=dict, init=False, repr=False, eq=False)

    # -- users -------------------------------------------------------------------------------------------------

    @property
    def asks_for_groups(self) -> bool:
        """Whether it matters anywhere in which groups a user is."""
        return bool(self.access.gids) or any(rule.login and rule.login.allowed.gids for rule in self._rules())

    def admits(self, user: User) -> bool:
        """Whether ``user`` may connect."""
        return user.uid in own_and_root() or self.access.given_to(user)

    def common(self, uid: int | None) -> int | None:
        """The one value that stands for all who share sessions with ``uid``; ``uid`` itself if nobody does.

        It is a negative number, which no user has, and another one for other users.
        """
        for users in self.shared:
            if uid in users:
                return _common(users)
        return uid

    # -- destinations ------------------------------------------------------------------------------------------

    def destination(self, asked: Destination, user: User) -> Destination:
        """What ``user`` gets who has ``asked`` for this.

        :raises DeliveryError: if he may not use the credentials that are configured for it, and brings none.
        """
        settings = self.settings(asked)
        where = asked
        for demand in settings.demands:
            where = floor(where, demand)
        own_login = asked.credentials is not None
        changes: dict[str, Any] = {}
        if settings.login is not None and not own_login:
            if not settings.login.allowed.given_to(user):
                raise DeliveryError(
                    f"{asked}: the keeper logs in as {settings.login.name!r} there, which user {user.uid} may not use: "
                    "give credentials of your own",
                    phase="auth",
                    retriable=False,
                )
            changes["credentials"] = settings.login.credentials
        if settings.client_pem is not None and asked.client_pem is None and not own_login:
            changes["client_pem"] = settings.client_pem
        if settings.bind_address is not None and asked.proxy is None:
            changes["bind_address"] = settings.bind_address
        if settings.helo_name is not None:
            changes["helo_name"] = settings.helo_name
        common = self.common(user.uid)
        if common != user.uid and not own_login and asked.client_pem is None:
            changes["uid"] = common
        return remade(where, **changes) if changes else where

    def settings(self, destination: Destination) -> Settings:
        """What holds for ``destination``, asked for or made of what was."""
        key = destination.namespace, destination.hop
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_SETTINGS:
                self._known.clear()
            known = self._known[key] = self._settings(*key)
        return known

    def limits_of(self, destination: Destination) -> Limits:
        """The limits of ``destination``, as far as they are its own."""
        return self.settings(destination).limits

    def timeouts_of(self, destination: Destination) -> Timeouts:
        """The time limits of conversations for ``destination``."""
        return self.settings(destination).timeouts

    @property
    def interval(self) -> float:
        """Seconds between ticks that notice the shortest limit of any destination in time."""
        return min(
            interval_for(attrs.evolve(self.limits, **rule.limits), attrs.evolve(self.timeouts, **rule.timeouts))
            for rule in (Rule(), *self._rules())
        )

    def _rules(self) -> Iterator[Rule]:
        yield from self.namespaces.values()
        for _, rule in self.next_hops:
            yield rule

    def _settings(self, namespace: str, hop: NextHop) -> Settings:
        general = self.namespaces.get(namespace, Rule())
        special = next((rule for pattern, rule in self.next_hops if pattern.matches(hop)), Rule())
        limits = attrs.evolve(self.limits, **{**general.limits, **special.limits})
        return Settings(
            Limits(**{name: getattr(limits, name) for name in PER_DESTINATION}),
            attrs.evolve(self.timeouts, **{**general.timeouts, **special.timeouts}),
            tuple(demand for demand in (general.demand, special.demand) if demand is not None),
            special.login,
            special.bind_address,
            special.helo_name,
            special.client_pem,
        )


def changed(old: Configuration, new: Configuration) -> Callable[[Destination], bool]:
    """Tells of a destination made with ``old`` whether ``new`` would have it otherwise, or for others."""
    numbers = {_common(users) for users in new.shared}

    def outdated(destination: Destination) -> bool:
        uid = destination.identity.uid
        shared = uid is not None and uid < 0
        if uid not in numbers if shared else old.common(uid) != new.common(uid):
            return True
        return old.settings(destination) != new.settings(destination)

    return outdated


def _unmapped(name: str) -> str:
    """An IPv4 address in the clothes of IPv6 without them; anything else as it is."""
    mapped = ipaddress.IPv6Address(name).ipv4_mapped if name.startswith("::ffff:") else None
    return name if mapped is None else str(mapped)


def _common(users: frozenset[int]) -> int:
    named = ",".join(map(str, sorted(users)))
    return -1 - int.from_bytes(hashlib.sha256(named.encode("ascii")).digest()[:6])
