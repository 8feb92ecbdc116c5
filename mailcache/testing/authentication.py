"""The server's side of AUTH PLAIN and AUTH LOGIN (RFC 4954, RFC 4616)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

import attrs

_MALFORMED = b"501 5.5.2 not base64\r\n"
_WRONG = b"535 5.7.8 credentials not accepted\r\n"


@attrs.define(eq=False)
class Authentication:
    """
    One exchange.

    @ivar challenge: writes a 334.
    @ivar done: called once, with the user and password the client gave, and the reply if they are not right;
        the user is None where the exchange itself failed.
    """

    challenge: Callable[[bytes], object]
    done: Callable[[str | None, str, bytes], object]
    _login: bool = False
    _user: str | None = None

    def begin(self, mechanism: str, initial: bytes | None) -> None:
        """AUTH with its mechanism and the initial response, if there was one."""
        if mechanism not in {"PLAIN", "LOGIN"}:
            self.done(None, "", b"504 5.5.4 mechanism not known\r\n")
            return
        self._login = mechanism == "LOGIN"
        if initial is None:
            self.challenge(b"334 VXNlcm5hbWU6\r\n" if self._login else b"334 \r\n")
        else:
            self.line(b"" if initial == b"=" else initial)

    def line(self, line: bytes) -> None:
        """What the client says to a challenge."""
        try:
            response = base64.b64decode(line, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            self.done(None, "", b"501 5.0.0 cancelled\r\n" if line == b"*" else _MALFORMED)
            return
        if not self._login:
            parts = response.split("\0")
            if len(parts) == 3:
                self.done(parts[1], parts[2], _WRONG)
            else:
                self.done(None, "", _MALFORMED)
        elif self._user is None:
            self._user = response
            self.challenge(b"334 UGFzc3dvcmQ6\r\n")
        else:
            self.done(self._user, response, _WRONG)
