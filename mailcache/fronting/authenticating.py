"""The server's side of AUTH PLAIN and LOGIN (RFC 4954, RFC 4616), for the credentials that a stock client sends."""

from __future__ import annotations

import base64
import binascii

from mailcache.destination import Credentials
from mailcache.fronting.replies import own
from mailcache.wire.replies import Reply

MECHANISMS = (b"PLAIN", b"LOGIN")
"""Those that tell the password, which the real session needs: CRAM-MD5 does not."""

_PROMPTS = (base64.b64encode(b"Username:").decode(), base64.b64encode(b"Password:").decode())


class Authentication:
    """One exchange: each step gives the next challenge or a refusal, or the credentials."""

    def __init__(self, mechanism: bytes) -> None:
        self._login = mechanism == b"LOGIN"
        self._username: str | None = None

    def begin(self, initial: bytes) -> Reply | Credentials:
        """AUTH, with the initial response if there was one."""
        if initial:
            return self.respond(b"" if initial == b"=" else initial)
        return own(334, _PROMPTS[0] if self._login else "")

    def respond(self, line: bytes) -> Reply | Credentials:
        """The client's answer to a challenge."""
        if line == b"*":
            return own(501, "5.7.0 Authentication cancelled")
        try:
            response = base64.b64decode(line, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return own(501, "5.5.2 Malformed response")
        if not self._login:
            return self._plain(response)
        if self._username is None:
            self._username = response
            return own(334, _PROMPTS[1])
        return _credentials(self._username, response)

    @staticmethod
    def _plain(response: str) -> Reply | Credentials:
        parts = response.split("\0")
        if len(parts) != 3:
            return own(501, "5.5.2 Malformed response")
        on_behalf_of, username, password = parts
        if on_behalf_of not in ("", username):
            return own(535, "5.7.8 nobody logs in here on another's behalf")
        return _credentials(username, password)


def _credentials(username: str, password: str) -> Reply | Credentials:
    try:
        return Credentials(username, password)
    except ValueError:
        return own(535, "5.7.8 no credentials that any server could take")
