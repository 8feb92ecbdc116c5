"""Names and addresses of hosts, in the one form in which they are compared, saved and found."""

from __future__ import annotations

import ipaddress
import re

MAX_NAME = 253
"""Characters of a host name without its final dot: 255 octets on the wire (RFC 1035 2.3.4)."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII | re.IGNORECASE)
# What resolvers take for the end of an address ("127.1", "0x7f000001"), whatever stands before it.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.ASCII | re.IGNORECASE)
# The name of a network interface (Linux IFNAMSIZ, less its NUL) or its number.
_SCOPE = re.compile(r"[!-.0-~]{1,15}")


def host_name(text: object) -> str | None:
    """A host's name in lower case, without a final dot; ``None`` for what is no ASCII name or reads as an address."""
    if not isinstance(text, str) or not text.isascii():
        return None
    name = text.removesuffix(".").lower()
    if len(name) > MAX_NAME or not _NAME.fullmatch(name) or _NUMBER.fullmatch(name):
        return None
    return name


def ip_address(text: object) -> str | None:
    """An IP address as it is usually written, its scope included; ``None`` for what is none."""
    if not isinstance(text, str):
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    scope = getattr(address, "scope_id", None)
    return str(address) if scope is None or _SCOPE.fullmatch(scope) else None
