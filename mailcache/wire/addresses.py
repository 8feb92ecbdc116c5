"""
Mail addresses and host names as they stand in commands (RFC 5321 4.1.2, RFC 6531 3.3).

This is a filter for what goes over the wire, so that every server reads in it what we do. It is no reader of
message headers: no comments, no display names, nothing is put right. A value goes through as it is, or is
refused with the reason before there are any bytes of it.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Final

# Octets of a domain: RFC 5321 4.5.3.1.2.
MAX_DOMAIN: Final = 255
# Octets of an address: RFC 5321 4.5.3.1.1 and 4.5.3.1.2, 64 + 1 + 255. Real local parts (VERP, SRS) pass 64,
# so only the sum is bounded.
MAX_ADDRESS: Final = 320
# Characters of a bad value that an error quotes.
MAX_QUOTED: Final = 80

# What `check_address` is told of a forward path, which alone may be "postmaster" without a domain.
RECIPIENT: Final = "recipient"

_LABEL = r"[A-Za-z0-9_\x80-\U0010ffff](?:[A-Za-z0-9_\x80-\U0010ffff-]*[A-Za-z0-9_\x80-\U0010ffff])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# RFC 5321's Dot-string, but with dots where they fall: "a..b@" and "a.@" are in use.
_UNQUOTED = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\U0010ffff-]+")
# RFC 5321's Quoted-string: qtextSMTP and quoted-pairSMTP, and what RFC 6531 adds.
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*"')
# The usual address, for which nothing else need be looked at.
_USUAL = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
# Controls, surrogates, line and paragraph separators, and spaces beyond ASCII's.
_UNWRITABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp", "Zs"})


def quoted(value: object) -> str:
    """A bad value as an error shows it: printable ASCII, and not all of ten megabytes."""
    return ascii(value[: MAX_QUOTED + 1] if isinstance(value, str | bytes) else value)[:MAX_QUOTED]


def check_address(address: str, what: str) -> bytes:
    """
    The octets of a mailbox between the angle brackets; that SMTPUTF8 is needed is C{not address.isascii()}.

    :param address: local@domain. The local part may be a quoted string, the domain an address literal
    :param what: what the address is, for the error: "sender", or `RECIPIENT`, which may be "postmaster"
        without a domain (RFC 5321 4.1.1.3)
    :raises ValueError: for anything else, naming what is wrong
    """
    if len(address) > MAX_DOMAIN or _USUAL.fullmatch(address) is None:
        _check_unusual(address, what)
    return address.encode("utf-8")


def check_host_name(name: str, what: str) -> bytes:
    """
    The octets of a host's name for EHLO: a domain, A-labels for international ones (RFC 6531 3.7.1), or an
    address literal.

    :raises ValueError: for anything else, naming what is wrong
    """
    if not name.isascii():
        raise ValueError(f"{what} must be ASCII, an international name in its xn-- form: {quoted(name)}")
    _check_domain(name, what, name)
    return name.encode("ascii")


def _check_unusual(address: str, what: str) -> None:
    """The whole of the rules."""
    # Before any walk over it: nobody's ten megabytes are looked at one by one.
    if len(address) > MAX_ADDRESS or len(address.encode("utf-8", "surrogatepass")) > MAX_ADDRESS:
        raise ValueError(f"{what} address must be at most {MAX_ADDRESS} octets: {quoted(address)}")
    if what == RECIPIENT and address.lower() == "postmaster":
        return
    _check_characters(address, f"{what} address")
    local, at, domain = address.rpartition("@")
    if not at or not local or not domain:
        raise ValueError(f"{what} address must be local@domain: {quoted(address)}")
    if local.startswith('"'):
        if _QUOTED.fullmatch(local) is None:
            raise ValueError(
                f'the quoted local part of the {what} address must end with its only bare quote, with \\" '
                f"for a quote and \\\\ for a backslash: {quoted(address)}"
            )
    elif _UNQUOTED.fullmatch(local) is None:
        raise ValueError(
            f"the local part of the {what} address must be letters, digits, dots and !#$%&'*+-/=?^_`{{|}}~, "
            f'or "quoted": {quoted(address)}'
        )
    _check_domain(domain, f"the domain of the {what} address", address)


def _check_characters(text: str, what: str) -> None:
    """Refuse what ends or splits a line or a command, for us or for somebody behind us."""
    for character in text:
        if (character < " " or character > "~") and unicodedata.category(character) in _UNWRITABLE:
            raise ValueError(f"{what} must not have the character U+{ord(character):04X}: {quoted(text)}")


def _check_domain(domain: str, what: str, whole: str) -> None:
    """Refuse what is neither a domain name nor an address literal."""
    if len(domain) > MAX_DOMAIN or len(domain.encode("utf-8")) > MAX_DOMAIN:
        raise ValueError(f"{what} must be at most {MAX_DOMAIN} octets: {quoted(whole)}")
    if domain.startswith("["):
        if not _is_literal(domain):
            raise ValueError(f"{what} must be like [192.0.2.1] or [IPv6:2001:db8::1]: {quoted(whole)}")
    elif _DOMAIN.fullmatch(domain) is None:
        raise ValueError(
            f"{what} must be labels of letters, digits, '-' and '_' joined by single dots: {quoted(whole)}"
        )


def _is_literal(domain: str) -> bool:
    """RFC 5321 4.1.3, but for general literals: no tag for one was ever registered."""
    inner = domain[1:-1]
    # A zone ("%eth0") means nothing to the server, and may have any characters.
    if not domain.endswith("]") or "%" in inner:
        return False
    try:
        if inner[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(inner[5:])
        else:
            ipaddress.IPv4Address(inner)
    except ValueError:
        return False
    return True
