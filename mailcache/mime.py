"""`email.message` objects as the bytes that are sent, whole or in 7-bit form.

What is sent differs as little as can be from what the caller has made: header fields that can stand as they are stay
so, folding included. A field is written anew only where it has non-ASCII characters or a line over 998 octets, and what
is signed (multipart/signed) is never touched. Body lines over 998 octets are what their maker has put there: the
library's own ``set_content`` makes none.
"""

from __future__ import annotations

import base64
import copy
import quopri
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email import policy
from email.header import Header
from email.headerregistry import Address, AddressHeader, Group
from email.message import Message
from email.parser import BytesParser
from typing import Any

MAX_LINE = 998
"""Octets of a line of text without its CRLF (RFC 5322 2.1.1)."""

HIDDEN = ("Bcc", "Resent-Bcc")
"""Fields that are for the sender's eyes (RFC 5322 3.6.3)."""

_ASCII: Any = policy.SMTP.clone(refold_source="none")
_UTF8: Any = policy.SMTPUTF8.clone(refold_source="none")
_SEVEN_BIT = ("7bit", "quoted-printable", "base64")

_FIELD_NAME = re.compile(r"[!-9;-~]+")
# A line end that is no folding: what follows would be read as another field, or as the body.
_NEW_LINE = re.compile(r"\r\n(?![ \t])|\r(?!\n)|(?<!\r)\n(?![ \t])")
# IDNA of 2003, which is what Python has, gives other names than that of 2008 to these.
_DEVIATIONS = re.compile("[\xdf\u03c2\u200c\u200d]")


def needs_smtputf8(message: Message) -> bool:
    """Whether an address in the header can't be written in ASCII: one with a non-ASCII local part (RFC 6531).

    :raises ValueError: if a header field can't be written.
    """
    with _telling_why():
        return any(
            not address.username.isascii() or _ascii_domain(address.domain) is None
            for part in _without_hidden(message).walk()
            for name, value in part.raw_items()
            for address in _addresses(name, value)
        )


def serialised(message: Message, *, smtputf8: bool) -> bytes:
    """The bytes of ``message``, which is not changed, with CRLF and without Bcc and Resent-Bcc.

    :param smtputf8: header fields as UTF-8 (RFC 6532); else in encoded words (RFC 2047) and with domains as A-labels.
    :raises ValueError: if it can't be written, with the reason.
    """
    rules = _UTF8 if smtputf8 else _ASCII
    with _telling_why():
        ours = _without_hidden(copy.deepcopy(message))
        _fit(ours, rules)
        return ours.as_bytes(policy=rules)


def seven_bit_form(data: bytes) -> bytes | None:
    """The message ``data``, which `serialised` has given, with all its 8-bit bodies as quoted-printable or base64.

    ``None`` if there is none: 8-bit bytes are in the header, or in what is signed.
    """
    try:
        message = BytesParser(policy=_ASCII).parsebytes(data)
        if b"multipart/signed" in data.lower() and message.as_bytes(policy=_ASCII) != data:
            # Reading and writing it again would change it, and who knows where.
            return None
        if not all(str(value).isascii() for part in message.walk() for _, value in part.raw_items()):
            return None
        _encode(message)
        if "MIME-Version" not in message:
            message["MIME-Version"] = "1.0"
        form = message.as_bytes(policy=_ASCII)
    except Exception:  # noqa: BLE001  (whatever the parts are that somebody has put together)
        return None
    return form if form.isascii() else None


@contextmanager
def _telling_why() -> Iterator[None]:
    """Whatever the library and the objects in a message raise, as the one `ValueError`, in one line."""
    try:
        yield
    except Exception as error:
        said = ascii(str(error))[1:-1][:200]
        kind = (
            "" if isinstance(error, ValueError) and not isinstance(error, UnicodeError) else type(error).__name__ + ": "
        )
        raise ValueError(f"content: the message can't be written: {kind}{said}") from error


def _without_hidden(message: Message) -> Message:
    """A copy, which shares all that it has with ``message`` but the list of header fields."""
    ours = copy.copy(message)
    for name in HIDDEN:
        del ours[name]
    return ours


# -- the header ------------------------------------------------------------------------------------------------------


def _fit(part: Message, rules: Any) -> None:
    """Make all header fields ones that can be written by ``rules``."""
    fields = [(name, _fitted(name, value, rules)) for name, value in part.raw_items()]
    for name in list(part.keys()):
        del part[name]
    for name, value in fields:
        part.set_raw(name, value)
    if part.is_multipart() and part.get_content_type() != "multipart/signed":
        for child in part.get_payload():
            _fit(child, rules)  # type: ignore[arg-type]


def _fitted(name: str, value: Any, rules: Any) -> Any:
    text = _checked(name, value)
    parsed = hasattr(value, "fold")
    if not parsed:
        lines = text.splitlines() or [""]
        if text.isascii() and len(name) + 2 + len(lines[0]) <= MAX_LINE and all(len(x) <= MAX_LINE for x in lines[1:]):
            return text
        value = rules.header_factory(name, "".join(_readable(text).splitlines()))
    if rules.utf8 or not isinstance(value, AddressHeader):
        return value
    groups = [_ascii_group(group) for group in value.groups]
    return value if groups == list(value.groups) else rules.header_factory(name, groups)


def _checked(name: str, value: Any) -> str:
    """The field's value as text; it must be one that ends nowhere but at its end."""
    if _FIELD_NAME.fullmatch(name) is None:
        raise ValueError(f"{name!a} is no name of a header field")
    if isinstance(value, Header):
        value = value.encode()
    if not isinstance(value, str):
        raise ValueError(f"the header field {name} has a {type(value).__name__} for its value")
    if _NEW_LINE.search(value) is not None:
        raise ValueError(f"the header field {name} has a line end in its value")
    return str(value)


def _readable(text: str) -> str:
    """What was parsed as bytes of no known charset, as UTF-8 if it is that."""
    try:
        return text.encode("ascii", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text


def _addresses(name: str, value: Any) -> Iterator[Address]:
    """Those in a header field, where it has something that is not ASCII."""
    text = _checked(name, value)
    if not text.isascii():
        if not hasattr(value, "fold"):
            value = _ASCII.header_factory(name, "".join(_readable(text).splitlines()))
        if isinstance(value, AddressHeader):
            yield from value.addresses


def _ascii_group(group: Group) -> Group:
    if all(address.domain.isascii() for address in group.addresses):
        return group
    return Group(
        group.display_name,
        [
            Address(address.display_name, address.username, _ascii_domain(address.domain) or address.domain)
            for address in group.addresses
        ],
    )


def _ascii_domain(domain: str) -> str | None:
    """``domain`` with A-labels, or ``None`` where there are none that everybody agrees on."""
    if domain.isascii():
        return domain
    if _DEVIATIONS.search(domain) is not None:
        return None
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return None


# -- bodies ----------------------------------------------------------------------------------------------------------


def _encode(part: Message) -> None:
    """Encode what is 8-bit in ``part``, but for what is signed."""
    if part.get_content_type() == "multipart/signed":
        return
    encoding = str(part.get("Content-Transfer-Encoding", "7bit")).strip().lower()
    if part.is_multipart():
        for child in part.get_payload():
            _encode(child)  # type: ignore[arg-type]
        if encoding not in _SEVEN_BIT:
            # What is inside may still not be 7-bit; then nothing of this is used.
            _set_encoding(part, "7bit")
        return
    payload = part.get_payload()
    if isinstance(payload, str) and (not payload.isascii() or encoding not in _SEVEN_BIT):
        body = part.get_payload(decode=True)
        assert isinstance(body, bytes)
        text = part.get_content_maintype() == "text"
        encoded = quopri.encodestring(body) if text else base64.encodebytes(body)
        part.set_payload(encoded.decode("ascii"))
        _set_encoding(part, "quoted-printable" if text else "base64")


def _set_encoding(part: Message, encoding: str) -> None:
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = encoding
