"""
The client's side of SASL mechanisms for AUTH (RFC 4954): which to use, and what to say.

A `Mechanism` serves for one exchange. It sees octets; base64 is the affair of `commands.auth` on the way out
and of `decode_challenge` on the way in. No secret is in any repr or error here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Protocol


class SaslError(Exception):
    """The server's side of the exchange makes no sense."""


class Mechanism(Protocol):
    """One exchange by one mechanism."""

    @property
    def name(self) -> str:
        """The mechanism's registered name, in upper case."""

    def initial(self) -> bytes | None:
        """The initial response, to ride with the AUTH command; None where the server begins."""

    def respond(self, challenge: bytes) -> bytes:
        """
        The response to a decoded challenge.

        :raises SaslError: if there is nothing to respond to it
        """


def _encoded(what: str, text: str) -> bytes:
    """
    A user name or password as the octets both mechanisms send.

    :raises ValueError: if it has NUL, which separates the fields of PLAIN, or is no Unicode text
    """
    # Not `str.encode` in a try block: UnicodeEncodeError carries the text, and this one is a secret.
    encoded = text.encode("utf-8", "replace")
    if "\0" in text or encoded.decode("utf-8") != text:
        raise ValueError(f"{what} must be Unicode text without NUL")
    return encoded


class Plain:
    """PLAIN (RFC 4616): all in one message, on nobody else's behalf."""

    name = "PLAIN"

    __slots__ = ("_message", "_sent", "username")

    def __init__(self, username: str, password: str) -> None:
        """
        :raises ValueError: for a user name or password with NUL
        """
        self.username = username
        self._message = b"\0" + _encoded("user name", username) + b"\0" + _encoded("password", password)
        self._sent = False

    def __repr__(self) -> str:
        return f"Plain({self.username!r}, ...)"

    def initial(self) -> bytes:
        """The message: empty authorization identity, user name, password."""
        return self._message

    def respond(self, challenge: bytes) -> bytes:
        """The message for a server that, by an empty challenge, asks for it again; once."""
        if challenge or self._sent:
            raise SaslError("unexpected challenge in PLAIN")
        self._sent = True
        return self._message


class Login:
    """LOGIN (draft-murchison-sasl-login): the server asks for user name and password, in this order."""

    name = "LOGIN"

    __slots__ = ("_answers", "username")

    def __init__(self, username: str, password: str) -> None:
        """
        :raises ValueError: for a user name or password with NUL
        """
        self.username = username
        self._answers = [_encoded("password", password), _encoded("user name", username)]

    def __repr__(self) -> str:
        return f"Login({self.username!r}, ...)"

    def initial(self) -> None:
        """None: the server begins."""

    def respond(self, challenge: bytes) -> bytes:
        """The user name, then the password. What the prompts say is no matter: they vary."""
        if not self._answers:
            raise SaslError("a third challenge in LOGIN")
        return self._answers.pop()


# Mechanisms in order of preference, each made of user name and password. More can be put in.
MECHANISMS: list[tuple[str, Callable[[str, str], Mechanism]]] = [("PLAIN", Plain), ("LOGIN", Login)]


def choose(offered: frozenset[str], username: str, password: str) -> Mechanism | None:
    """
    The best of `MECHANISMS` that the server offers, or None.

    :param offered: names in upper case, as in `Capabilities.auth`
    :raises ValueError: for NUL in user name or password
    """
    for name, make in MECHANISMS:
        if name in offered:
            return make(username, password)
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
