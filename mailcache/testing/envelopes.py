"""Reading MAIL, RCPT and BDAT: their syntax, and what must be offered before it is used. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

_PATH = r'<((?:"(?:[^"\\]|\\.)*"|[^">])*)>((?: +[^ ]+)*)$'
_MAIL = re.compile(r"MAIL FROM:" + _PATH, re.IGNORECASE)
_RCPT = re.compile(r"RCPT TO:" + _PATH, re.IGNORECASE)
_BDAT = re.compile(r"BDAT (\d{1,19})( LAST)?$", re.IGNORECASE)

#: What must be offered before a parameter may be used (RFC 1870, 6152, 6531, 3461); others have its own name.
_CAPABILITY = {"BODY": "8BITMIME", "RET": "DSN", "ENVID": "DSN", "NOTIFY": "DSN", "ORCPT": "DSN"}


@attrs.define(eq=False)
class Transaction:
    """What one MAIL has begun."""

    sender: str
    parameters: tuple[str, ...]
    recipients: list[str] = attrs.field(factory=list)
    recipient_parameters: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    chunks: bytearray = attrs.field(factory=bytearray)


@attrs.frozen
class Path:
    """The address of a MAIL or RCPT, with its parameters."""

    address: str
    parameters: tuple[str, ...]


def parse_path(line: str) -> Path | None:
    """What MAIL or RCPT says, or None if it is wrong (RFC 5321 4.1.2: no space behind the colon either)."""
    match = _MAIL.match(line) or _RCPT.match(line)
    return None if match is None else Path(match[1], tuple(match[2].split()))


def parse_chunk(line: str) -> tuple[int, bool] | None:
    """The size BDAT announces, and whether the chunk is the last; None if it is wrong."""
    match = _BDAT.match(line)
    return None if match is None else (int(match[1]), match[2] is not None)


def not_offered(path: Path, mail: Transaction | None, offered: Mapping[str, str]) -> tuple[str, bytes] | None:
    """
    What the path uses without its having been offered, and the reply to that.

    @param mail: the transaction, for a RCPT.
    @param offered: keywords of the capabilities, with what follows them.
    """
    asked = (*path.parameters, *(mail.parameters if mail is not None else ()))
    if not path.address.isascii() and not any(each.upper() == "SMTPUTF8" for each in asked):
        return f"address {path.address!r} without SMTPUTF8", b"553 5.6.7 SMTPUTF8 needed\r\n"
    for parameter in path.parameters:
        keyword = parameter.upper().partition("=")[0]
        if _CAPABILITY.get(keyword, keyword) not in offered:
            return f"parameter {keyword} without the capability", b"555 5.5.4 parameter not known\r\n"
    return None


def too_big(path: Path, offered: Mapping[str, str]) -> bool:
    """The message is announced to be bigger than the server's limit (0 or none: no limit)."""
    limit = offered.get("SIZE", "")
    sizes = [each[5:] for each in path.parameters if each.upper().startswith("SIZE=")]
    return limit.isdigit() and any(each.isdigit() and 0 < int(limit) < int(each) for each in sizes)
