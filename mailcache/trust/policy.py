"""TLS policy: what a caller asks for, and the requirement it becomes for one route (Postfix TLS levels)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import attrs
from OpenSSL import SSL

from mailcache.trust.names import host_name, ip_address

LEVELS = ("none", "may", "encrypt", "fingerprint", "verify", "secure")
VERSIONS = ("TLSv1.2", "TLSv1.3")
_BY_NAME = ("verify", "secure")
_FINGERPRINT = re.compile(r"[0-9A-F]{64}")


def _one_of(known: tuple[str, ...]) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in known:
            raise ValueError(f"{attribute.name}: {value!r} is not one of {', '.join(known)}")

    return check


def _several(field: str, values: object, convert: Callable[[object], str]) -> tuple[str, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{field}: a tuple of strings is wanted, not {values!r}")
    return tuple(sorted({convert(value) for value in values}))


def _fingerprint(value: object) -> str:
    digest = value.replace(":", "").upper() if isinstance(value, str) else ""
    if not _FINGERPRINT.fullmatch(digest):
        raise ValueError(
            f"fingerprints: {value!r} is no SHA-256 digest: 64 hexadecimal digits are wanted, colons allowed"
        )
    return digest


def _match(value: object) -> str:
    below = isinstance(value, str) and value.startswith(".")
    name = host_name(value[1:] if below else value)  # type: ignore[index]
    if name is None:
        name = None if below else ip_address(value)
    if name is None:
        raise ValueError(
            f"match: {value!r} is neither a host name in ASCII nor an address nor .example.com (for every name below)"
        )
    return f".{name}" if below else name


def _matches(values: object) -> tuple[str, ...]:
    return _several("match", values, _match)


def _fingerprints(values: object) -> tuple[str, ...]:
    return _several("fingerprints", values, _fingerprint)


def _servername(value: object) -> str | None:
    if value is None:
        return None
    name = host_name(value)
    if name is None:
        raise ValueError(f"servername: {value!r} is not a host name in ASCII, such as mail.example.com")
    return name


def _path(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError(f"{attribute.name}: the path of a PEM file is wanted, as a string, not {value!r}")


def _ciphers(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and value.isprintable() and _selects(value)):
        raise ValueError(f"{attribute.name}: {value!r} is no OpenSSL cipher string that selects anything for TLS 1.2")


@lru_cache(maxsize=64)
def _selects(ciphers: str) -> bool:
    try:
        SSL.Context(SSL.TLS_CLIENT_METHOD).set_cipher_list(ciphers.encode("ascii"))
    except (SSL.Error, UnicodeError):
        return False
    return True


@attrs.frozen(slots=True, cache_hash=True)
class TLSPolicy:
    """How much TLS a destination must have.

    :param level: "none": clear text only. "may": TLS where it is offered, without proof. "encrypt": TLS, without
        proof. "fingerprint": the certificate, or its public key, has one of the SHA-256 ``fingerprints``.
        "verify": a trusted chain, and a name of the host. "secure": a trusted chain, and a name made from the
        next hop itself, which no DNS answer can change.
    :param ca_file: path of PEM trust anchors; ``None`` is the platform's.
    :param match: names to accept instead of those that the level implies; ".example.com" is every name below.
    :param servername: the name to send as SNI instead of the host's.
    :param min_version: "TLSv1.2" or "TLSv1.3".
    :param ciphers: an OpenSSL cipher string for TLS 1.2; ``None`` is OpenSSL's default.
    :raises ValueError: that names the field, what was wrong with it and what would be right.
    """

    level: str = attrs.field(default="may", validator=_one_of(LEVELS))
    ca_file: str | None = attrs.field(default=None, kw_only=True, validator=_path)
    match: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_matches)
    fingerprints: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_fingerprints)
    servername: str | None = attrs.field(default=None, kw_only=True, converter=_servername)
    min_version: str = attrs.field(default="TLSv1.2", kw_only=True, validator=_one_of(VERSIONS))
    ciphers: str | None = attrs.field(default=None, kw_only=True, validator=_ciphers)

    def __attrs_post_init__(self) -> None:
        if self.level == "fingerprint" and not self.fingerprints:
            raise ValueError('fingerprints: level "fingerprint" needs at least one SHA-256 digest')
        if self.fingerprints and self.level != "fingerprint":
            raise ValueError(f'fingerprints: used by level "fingerprint" only, and the level is "{self.level}"')
        if self.match and self.level not in _BY_NAME:
            raise ValueError(f'match: used by levels "verify" and "secure" only, and the level is "{self.level}"')

    def resolve(self, next_hop: str, host: str) -> Requirement:
        """What this demands of a session with ``host``, found for ``next_hop`` (a domain, host or address).

        ``host`` may come from DNS without proof; "secure" trusts only ``next_hop`` (Postfix
        smtp_tls_secure_cert_match = nexthop, dot-nexthop).
        """
        own, host = _compared(next_hop), _compared(host)
        names: tuple[str, ...] = ()
        if self.level == "verify":
            names = self.match or (host,)
        elif self.level == "secure":
            names = self.match or ((own,) if is_address(own) else (own, f".{own}"))
        servername = self.servername
        if servername is None and not is_address(host):
            servername = host
        return Requirement(self.level, names, self.fingerprints, servername)


@attrs.frozen(slots=True, cache_hash=True)
class Requirement:
    """What one borrower demands of a session, its policy resolved for its route.

    ``servername`` is the SNI it would send: above "encrypt" a session made with another does not serve.
    """

    level: str
    names: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    servername: str | None = None

    @property
    def wants_tls(self) -> bool:
        """Whether TLS is to be tried at all."""
        return self.level != "none"

    @property
    def demands_tls(self) -> bool:
        """Whether a session in clear text is no session."""
        return self.level not in ("none", "may")

    @property
    def demands_proof(self) -> bool:
        """Whether the certificate matters."""
        return self.level not in ("none", "may", "encrypt")


def _compared(host: str) -> str:
    """A name without its final dot, an address without its scope, which no certificate can show."""
    return host.lower().removesuffix(".").partition("%")[0]


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address rather than a name: addresses are never sent as SNI (RFC 6066 3)."""
    return ":" in host or host.replace(".", "").isdigit()
