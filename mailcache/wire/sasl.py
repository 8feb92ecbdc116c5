"""
The client's side of SASL mechanisms for AUTH (RFC 4954): which to use, and what to say.

A `Mechanism` serves for one exchange. It sees octets; base64 is the affair of `commands.auth` on the way out
and of `decode_challenge` on the way in. No secret is in any repr or error here.

Those for tokens are in `mailcache.wire.oauth`, SCRAM is in `mailcache.wire.scram`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol


class SaslError(Exception):
    """The server's side of the exchange makes no sense."""


class ServerNotProvenError(SaslError):
    """The server says that we are in, but not what only who knows the password can say."""


class Mechanism(Protocol):
    """One exchange by one mechanism."""

    @property
    def name(self) -> str:
        """The mechanism's registered name, in upper case."""

    @property
    def problem(self) -> str | None:
        """What the server has said is wrong, in its own word, if it has said so in a challenge."""

    def initial(self) -> bytes | None:
        """The initial response, to ride with the AUTH command; None where the server begins."""

    def respond(self, challenge: bytes) -> bytes:
        """
        The response to a decoded challenge.

        :raises SaslError: if there is nothing to respond to it
        """

    def finish(self) -> None:
        """
        The server says that the exchange has succeeded.

        :raises SaslError: if it can't have
        """


def encoded(what: str, text: str) -> bytes:
    """
    A user name or password as the octets that all mechanisms send.

    :raises ValueError: if it has NUL, which separates the fields of PLAIN, or is no Unicode text
    """
    # Not `str.encode` in a try block: UnicodeEncodeError carries the text, and this one is a secret.
    octets = text.encode("utf-8", "replace")
    if "\0" in text or octets.decode("utf-8") != text:
        raise ValueError(f"{what} must be Unicode text without NUL")
    return octets


class ClientFirst:
    """What mechanisms have in common that say all there is to say in one message."""

    name = ""
    problem: str | None = None

    __slots__ = ("_message", "_repeated", "username")

    def __init__(self, username: str, message: bytes) -> None:
        self.username = username
        self._message = message
        self._repeated = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.username!r}, ...)"

    def initial(self) -> bytes:
        """The message."""
        return self._message

    def respond(self, challenge: bytes) -> bytes:
        """The message for a server that, by an empty challenge, asks for it again; once."""
        if challenge or self._repeated:
            raise SaslError(f"unexpected challenge in {self.name}")
        self._repeated = True
        return self._message

    def finish(self) -> None:
        """Nothing is left to be said."""


class Plain(ClientFirst):
    """PLAIN (RFC 4616): empty authorization identity, user name, password."""

    name = "PLAIN"

    __slots__ = ()

    def __init__(self, username: str, password: str) -> None:
        """
        :raises ValueError: for a user name or password with NUL
        """
        super().__init__(username, b"\0" + encoded("user name", username) + b"\0" + encoded("password", password))


class External(ClientFirst):
    """EXTERNAL (RFC 4422 appendix A): whom the client certificate shows, acting as ``username``, or as itself."""

    name = "EXTERNAL"

    __slots__ = ()

    def __init__(self, username: str) -> None:
        """
        :param username: the authorization identity; "" leaves it to the certificate
        :raises ValueError: for a user name with NUL
        """
        super().__init__(username, encoded("user name", username))


class Login:
    """LOGIN (draft-murchison-sasl-login): the server asks for user name and password, in this order."""

    name = "LOGIN"
    problem: str | None = None

    __slots__ = ("_answers", "username")

    def __init__(self, username: str, password: str) -> None:
        """
        :raises ValueError: for a user name or password with NUL
        """
        self.username = username
        self._answers = [encoded("password", password), encoded("user name", username)]

    def __repr__(self) -> str:
        return f"Login({self.username!r}, ...)"

    def initial(self) -> None:
        """None: the server begins."""

    def respond(self, challenge: bytes) -> bytes:
        """The user name, then the password. What the prompts say is no matter: they vary."""
        if not self._answers:
            raise SaslError("a third challenge in LOGIN")
        return self._answers.pop()

    def finish(self) -> None:
        """A server may know enough at any time."""


class CramMD5:
    """CRAM-MD5 (RFC 2195): the password does not cross, but who has listened can guess it at leisure."""

    name = "CRAM-MD5"
    problem: str | None = None

    __slots__ = ("_answered", "_password", "username")

    def __init__(self, username: str, password: str) -> None:
        """
        :raises ValueError: for a user name or password with NUL
        """
        encoded("user name", username)
        self.username = username
        self._password = encoded("password", password)
        self._answered = False

    def __repr__(self) -> str:
        return f"CramMD5({self.username!r}, ...)"

    def initial(self) -> None:
        """None: the server begins."""

    def respond(self, challenge: bytes) -> bytes:
        """The user name and the digest of the challenge; once, and never of nothing."""
        if self._answered or not challenge:
            raise SaslError("unexpected challenge in CRAM-MD5")
        self._answered = True
        digest = hmac.new(self._password, challenge, "md5").hexdigest()
        return self.username.encode() + b" " + digest.encode()

    def finish(self) -> None:
        if not self._answered:
            raise SaslError("CRAM-MD5 has succeeded without a challenge")


# The names in order of preference. Over TLS a password that crosses is safe, and the server need not have it in
# clear text; in clear text whatever hides it comes first.
FOR_PASSWORDS: Final = ("SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5")
FOR_PASSWORDS_IN_CLEAR: Final = ("SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN")
FOR_TOKENS: Final = ("OAUTHBEARER", "XOAUTH2")
FOR_CERTIFICATES: Final = ("EXTERNAL",)

Makers = Mapping[str, Callable[[], Mechanism]]
"""Makes a mechanism, for each name of those that can be used. It raises `ValueError` where it can't carry these."""


def choose(offered: frozenset[str], names: Sequence[str], makers: Makers) -> Mechanism | None:
    """
    The first of ``names`` that the server offers and that can carry the credentials, or None.

    :param offered: names in upper case, as in `Capabilities.auth`
    """
    for name in names:
        if name in offered:
            try:
                return makers[name]()
            except ValueError:
                # SCRAM takes no password that SASLprep refuses; that is known beforehand and nobody's to bring about.
                continue
    return None


def decode_challenge(text: bytes) -> bytes:
    """
    The octets of a challenge, from the text of a 334 reply.

    :raises SaslError: if it is not wholly base64 (RFC 4648 section 4)
    """
    try:
        challenge = base64.b64decode(text, validate=True)
    except binascii.Error:
        challenge = None
    # The decoder passes over excess padding.
    if challenge is None or base64.b64encode(challenge) != text:
        raise SaslError("the challenge is not base64")
    return challenge
