"""The server's side of AUTH (RFC 4954), strict: what a client gets wrong is noted, not only refused."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import unicodedata
from collections.abc import Callable, Container, Generator, Mapping

import attrs

#: What is offered where nothing else is said.
MECHANISMS = ("PLAIN", "LOGIN")

#: All that there are.
ALL_MECHANISMS = ("SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2", "EXTERNAL")

#: How often SCRAM hashes: the least that RFC 7677 allows.
ITERATIONS = 4096

#: What is wrong with a token, as the server says: RFC 7628, and Google.
INVALID_TOKEN = {"status": "invalid_token", "scope": "mail", "openid-configuration": "https://mx.test/.well-known"}
INVALID_TOKEN_GOOGLE = {"status": "401", "schemes": "bearer", "scope": "https://mail.google.com/"}

_MALFORMED = b"501 5.5.2 not base64\r\n"
_WRONG = b"535 5.7.8 credentials not accepted\r\n"

#: Challenges go out, responses come in; in the end there is the user, and whether he has proved to be that.
_Exchange = Generator[bytes, bytes, tuple[str, bool]]


class _MalformedError(Exception):
    """The client's side of the exchange makes no sense."""


@attrs.define(eq=False)
class Authentication:
    """
    One exchange.

    @ivar challenge: writes a 334.
    @ivar done: called once, with the user, whether the client has proved to be that, and the reply if not; the user
        is None where the exchange itself failed.
    @ivar users: passwords or tokens by name; for EXTERNAL the common name of the certificate.
    @ivar mechanisms: what may be used.
    @ivar certified: the common name of the client's certificate, if there is one.
    @ivar violation: notes what the client has done wrong.
    @ivar alter: see L{mailcache.testing.server.Challenge}.
    """

    challenge: Callable[[bytes], object]
    done: Callable[[str | None, bool, bytes], object]
    users: Mapping[str, str] = attrs.Factory(dict)
    mechanisms: Container[str] = MECHANISMS
    certified: str | None = None
    violation: Callable[[str], object] = lambda what: None
    alter: Callable[[str, bytes], bytes | None] | None = None
    _name: str = ""
    _exchange: _Exchange | None = None

    def begin(self, mechanism: str, initial: bytes | None) -> None:
        """AUTH with its mechanism and the initial response, if there was one."""
        if mechanism not in self.mechanisms or mechanism not in ALL_MECHANISMS:
            self.done(None, False, b"504 5.5.4 mechanism not known\r\n")
            return
        self._name = mechanism
        exchanges: dict[str, Callable[[], _Exchange]] = {
            "PLAIN": self._plain,
            "LOGIN": self._login,
            "CRAM-MD5": self._cram_md5,
            "SCRAM-SHA-256": self._scram,
            "OAUTHBEARER": lambda: self._bearer(_OAUTHBEARER, INVALID_TOKEN, b"\x01"),
            "XOAUTH2": lambda: self._bearer(_XOAUTH2, INVALID_TOKEN_GOOGLE, b""),
            "EXTERNAL": self._external,
        }
        self._exchange = exchanges[mechanism]()
        first = next(self._exchange)
        if initial is None:
            self._say(first)
        elif mechanism == "CRAM-MD5":
            self.violation(f"{mechanism} with an initial response")
            self.done(None, False, _MALFORMED)
        else:
            self.line(b"" if initial == b"=" else initial)

    def line(self, line: bytes) -> None:
        """What the client says to a challenge."""
        if line == b"*":
            self.done(None, False, b"501 5.0.0 cancelled\r\n")
            return
        assert self._exchange is not None
        try:
            self._say(self._exchange.send(base64.b64decode(line, validate=True)))
        except StopIteration as end:
            user, right = end.value
            self.done(user, right, _WRONG)
        except (binascii.Error, UnicodeDecodeError, _MalformedError):
            self.done(None, False, _MALFORMED)

    def _say(self, octets: bytes) -> None:
        altered = self.alter(self._name, octets) if self.alter is not None else None
        self.challenge(b"334 " + base64.b64encode(octets) + b"\r\n" if altered is None else altered)

    def _knows(self, user: str, secret: str) -> bool:
        return self.users.get(user) == secret

    # Mechanisms

    def _plain(self) -> _Exchange:
        parts = (yield b"").decode().split("\0")
        if len(parts) != 3:
            raise _MalformedError
        _, user, password = parts
        return user, self._knows(user, password)

    def _login(self) -> _Exchange:
        user = (yield b"Username:").decode()
        password = (yield b"Password:").decode()
        return user, self._knows(user, password)

    def _cram_md5(self) -> _Exchange:
        challenge = b"<" + os.urandom(8).hex().encode() + b"@mx.test>"
        user, space, digest = (yield challenge).decode().rpartition(" ")
        if not space or not re.fullmatch("[0-9a-f]{32}", digest):
            self.violation("a CRAM-MD5 response that is none")
            raise _MalformedError
        password = self.users.get(user)
        if password is None:
            return user, False
        return user, hmac.compare_digest(hmac.new(password.encode(), challenge, "md5").hexdigest(), digest)

    def _scram(self) -> _Exchange:
        first = yield b""
        match = re.fullmatch(r"n,,(n=((?:[^,=]|=2C|=3D)+),r=([!-+\--~]{16,}))", first.decode())
        if match is None:
            self.violation("a SCRAM client's first message that is none")
            raise _MalformedError
        bare, escaped, nonce = match.groups()
        user = escaped.replace("=2C", ",").replace("=3D", "=")
        salt = os.urandom(16)
        nonce += os.urandom(12).hex()
        server_first = f"r={nonce},s={base64.b64encode(salt).decode()},i={ITERATIONS}"
        final = (yield server_first.encode()).decode()
        match = re.fullmatch(r"(c=biws,r=([!-+\--~]+)),p=([A-Za-z0-9+/]{43}=)", final)
        if match is None or match[2] != nonce:
            self.violation("a SCRAM client's final message that is none")
            raise _MalformedError
        message = f"{bare},{server_first},{match[1]}".encode()
        password = unicodedata.normalize("NFKC", self.users.get(user, os.urandom(16).hex()))
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
        key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
        if base64.b64decode(match[3]) != bytes(one ^ other for one, other in zip(key, signature, strict=True)):
            return user, False
        ours = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        answer = yield b"v=" + base64.b64encode(ours)
        if answer:
            self.violation("an answer to SCRAM's last message that is not empty")
        return user, True

    def _bearer(self, form: re.Pattern[str], problem: Mapping[str, str], wanted: bytes) -> _Exchange:
        match = form.fullmatch((yield b"").decode())
        if match is None:
            self.violation(f"an {self._name} message that is none")
            raise _MalformedError
        user = match[1].replace("=2C", ",").replace("=3D", "=") if self._name == "OAUTHBEARER" else match[1]
        if self._knows(user, match[2]):
            return user, True
        if (yield json.dumps(problem).encode()) != wanted:
            self.violation(f"an answer to {self._name}'s error that is not {wanted!r}")
        return user, False

    def _external(self) -> _Exchange:
        user = (yield b"").decode()
        certified = self.certified
        if certified is None:
            self.violation("EXTERNAL without a certificate")
            return user, False
        return user or certified, user in ("", certified) or self._knows(user, certified)


_OAUTHBEARER = re.compile(r"n,a=((?:[^,=]|=2C|=3D)+),\x01auth=Bearer ([A-Za-z0-9\-._~+/]+=*)\x01\x01")
_XOAUTH2 = re.compile(r"user=([^\x01]+)\x01auth=Bearer ([A-Za-z0-9\-._~+/]+=*)\x01\x01")
