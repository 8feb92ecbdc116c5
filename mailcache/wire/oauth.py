"""SASL mechanisms for OAuth 2.0 bearer tokens: OAUTHBEARER (RFC 7628) and XOAUTH2 (Google's and Microsoft's)."""

from __future__ import annotations

import json
import re
from typing import ClassVar

from mailcache.wire.sasl import ClientFirst, SaslError, encoded

# RFC 6750 section 2.1: what a bearer token is made of.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
# A status is "invalid_token" and the like (RFC 6750 section 3.1), or a number: no room for a secret or a lie.
_STATUS = re.compile(r"[A-Za-z0-9_.-]{1,40}")


class _Bearer(ClientFirst):
    """One message; in place of a refusal the server gives JSON that tells why, and refuses after an answer to it."""

    refused_answer: ClassVar[bytes]

    __slots__ = ("problem",)

    def __init__(self, username: str, message: bytes) -> None:
        super().__init__(username, message)
        self.problem: str | None = None

    def respond(self, challenge: bytes) -> bytes:
        """What ends the exchange after an error of the server's; the message if the server, once, asks for it again."""
        if not challenge and self.problem is None:
            return super().respond(challenge)
        if self.problem is not None:
            raise SaslError(f"unexpected challenge in {self.name}")
        self.problem = _status(challenge) or "no status"
        return self.refused_answer

    def finish(self) -> None:
        if self.problem is not None:
            raise SaslError(f"the server takes the token that it has refused ({self.problem})")


class OAuthBearer(_Bearer):
    """OAUTHBEARER (RFC 7628)."""

    name = "OAUTHBEARER"
    refused_answer = b"\x01"

    __slots__ = ()

    def __init__(self, username: str, token: str) -> None:
        """
        :raises ValueError: for a user name with NUL, or what is no bearer token
        """
        # RFC 5801 section 4: the separators of the GS2 header, escaped.
        user = encoded("user name", username).replace(b"=", b"=3D").replace(b",", b"=2C")
        super().__init__(username, b"n,a=" + user + b",\x01auth=Bearer " + _checked(token) + b"\x01\x01")


class XOAuth2(_Bearer):
    """XOAUTH2 (https://developers.google.com/gmail/imap/xoauth2-protocol)."""

    name = "XOAUTH2"
    refused_answer = b""

    __slots__ = ()

    def __init__(self, username: str, token: str) -> None:
        """
        :raises ValueError: for a user name with NUL or ^A, or what is no bearer token
        """
        if "\x01" in username:
            raise ValueError("user name must not have ^A, which separates the fields of XOAUTH2")
        user = encoded("user name", username)
        super().__init__(username, b"user=" + user + b"\x01auth=Bearer " + _checked(token) + b"\x01\x01")


def _checked(token: str) -> bytes:
    if _TOKEN.fullmatch(token) is None:
        raise ValueError("a token is made of letters, digits and -._~+/, with = only at its end (RFC 6750)")
    return token.encode("ascii")


def _status(challenge: bytes) -> str | None:
    """The status in the JSON of an error, if it can be read."""
    try:
        fields = json.loads(challenge)
    except (ValueError, RecursionError):
        return None
    status = fields.get("status") if isinstance(fields, dict) else None
    text = str(status) if isinstance(status, str) or type(status) is int else ""
    return text if _STATUS.fullmatch(text) else None
