"""
xtext: how ESMTP parameters carry octets that their grammar excludes (RFC 3461 section 4).
"""

from __future__ import annotations

import re

# xchar is "!" to "~" without "+", which begins a hexchar, and "=", which ends a keyword.
_EXCLUDED = re.compile(rb"[^!-*,-<>-~]")
_ESCAPED = re.compile(rb"\+([0-9A-Fa-f]{2})")
_WHOLE = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})*")


def xtext_encode(text: str) -> bytes:
    """
    The UTF-8 octets of a text as xtext. What the octets may be is the affair of each parameter.

    :raises ValueError: for a lone surrogate, which has no octets
    """
    return _EXCLUDED.sub(lambda match: b"+%02X" % match[0][0], text.encode("utf-8"))


def xtext_decode(encoded: bytes) -> str:
    """
    What `xtext_encode` was given. Lower-case digits are read, too, though none should be sent.

    :raises ValueError: for what is not xtext, or not that of UTF-8
    """
    if _WHOLE.fullmatch(encoded) is None:
        raise ValueError("xtext is printable ASCII without space and '=', and with two digits after each '+'")
    return _ESCAPED.sub(lambda match: bytes((int(match[1], 16),)), encoded).decode("utf-8")
