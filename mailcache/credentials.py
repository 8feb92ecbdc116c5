"""Whom to log in as, and what proves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import attrs
from twisted.internet.defer import Deferred

from mailcache.wire import commands, sasl
from mailcache.wire.oauth import OAuthBearer, XOAuth2
from mailcache.wire.scram import ScramSHA256

TokenSupplier = Callable[[], "str | Deferred[str] | Awaitable[str]"]
"""Gives the token that is good now. It is called for each session that is acquired, so it should remember what it gets:
a token that it gives again costs nothing. A `Deferred` is the caller's own, and is cancelled with the delivery."""

PASSWORD, TOKEN, EXTERNAL = "password", "token", "external"

_MECHANISMS = {PASSWORD: sasl.FOR_PASSWORDS, TOKEN: sasl.FOR_TOKENS, EXTERNAL: sasl.FOR_CERTIFICATES}


def _compared(token: object) -> object:
    """A token is its text; a supplier is itself, whatever it says it equals."""
    return token if token is None or isinstance(token, str) else id(token)


@attrs.frozen(slots=True, cache_hash=True)
class Credentials:
    """A name to log in as, with a password, a token, or the destination's client certificate: exactly one of them.

    Compared byte for byte, suppliers of tokens by what they are. No secret is in the repr, and they can't be pickled.

    :param username: the account. With ``external`` it may be empty: the certificate says it all.
    :param password: for SCRAM-SHA-256, PLAIN, LOGIN and CRAM-MD5.
    :param token: an OAuth 2.0 bearer token, for OAUTHBEARER and XOAUTH2; or a callable without arguments that gives
        it, or a Deferred or another awaitable of it. A new token is another identity: sessions of the one before
        it are ended as soon as nobody uses them. Tokens only go over TLS.
    :param external: log in by the client certificate of the destination (EXTERNAL).
    :param mechanisms: the SASL mechanisms that may be used, of those that are possible; the order is no matter.
    :raises ValueError: for what no mechanism can carry: an empty name, a NUL, a lone surrogate, or more than fits a
        line. It quotes no value.
    """

    username: str
    password: str | None = attrs.field(default=None, repr=False)
    token: str | TokenSupplier | None = attrs.field(default=None, repr=False, eq=_compared, kw_only=True)
    external: bool = attrs.field(default=False, kw_only=True)
    mechanisms: tuple[str, ...] | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        # No value is quoted: the password is a secret, and so is what was given in its place by mistake.
        if not isinstance(self.username, str):
            raise ValueError(f"credentials: the username must be a string, not {type(self.username).__name__}")
        if not isinstance(self.external, bool):
            raise ValueError(f"credentials: external must be True or False, not {type(self.external).__name__}")
        if self.external and self.password == "":
            object.__setattr__(self, "password", None)
        given = (self.password is not None) + (self.token is not None) + self.external
        if given > 1:
            raise ValueError("credentials: a password, a token or external=True is wanted, not several of them")
        if not given:
            raise ValueError(
                "credentials: the password must be a string, not NoneType, where there is no token or external=True"
            )
        if self.password is not None and not isinstance(self.password, str):
            raise ValueError(f"credentials: the password must be a string, not {type(self.password).__name__}")
        if self.token is not None and not isinstance(self.token, str) and not callable(self.token):
            raise ValueError(
                f"credentials: the token must be a string or a callable that gives one, not {type(self.token).__name__}"
            )
        if not self.username and not self.external:
            raise ValueError("credentials: the username is empty")
        self._check_contents()
        if self.mechanisms is not None:
            object.__setattr__(self, "mechanisms", self._checked_mechanisms(self.mechanisms))

    def __reduce__(self) -> NoReturn:
        """:raises TypeError: a pickle is a copy of the secret that nobody looks after."""
        raise TypeError("credentials are not pickled: a secret is in them")

    def __copy__(self) -> Credentials:
        return self

    def __deepcopy__(self, memo: object) -> Credentials:
        return self

    def _check_contents(self) -> None:
        password, token = self.password, self.token
        try:
            if password is not None:
                commands.auth("PLAIN", sasl.Plain(self.username, password).initial())
            elif self.external:
                commands.auth("EXTERNAL", sasl.External(self.username).initial())
            else:
                # A supplier's tokens are checked as they come; the name can be checked now.
                text = token if isinstance(token, str) else "x"
                commands.auth("OAUTHBEARER", OAuthBearer(self.username, text).initial())
                commands.auth("XOAUTH2", XOAuth2(self.username, text).initial())
        except ValueError as error:
            raise ValueError(f"credentials: {error}") from None

    def _checked_mechanisms(self, given: Sequence[str]) -> tuple[str, ...]:
        possible = _MECHANISMS[self.kind]
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise ValueError(f"credentials: mechanisms: a tuple of some of {', '.join(possible)} is wanted")
        names = [name.upper() if isinstance(name, str) else name for name in given]
        for name in names:
            if name not in possible:
                shown = repr(name) if isinstance(name, str) else type(name).__name__
                raise ValueError(
                    f"credentials: mechanisms: with a {self.kind} there are {', '.join(possible)}, not {shown}"
                    if self.kind != EXTERNAL
                    else f"credentials: mechanisms: with external=True there is EXTERNAL, not {shown}"
                )
        if names == ["SCRAM-SHA-256"] and self.password is not None:
            try:
                ScramSHA256(self.username, self.password)
            except ValueError as error:
                raise ValueError(f"credentials: {error}") from None
        # In our order: which of them is preferred is not said here, and equal sets are equal.
        return tuple(name for name in possible if name in names)

    @property
    def kind(self) -> str:
        """`PASSWORD`, `TOKEN` or `EXTERNAL`."""
        if self.external:
            return EXTERNAL
        return TOKEN if self.token is not None else PASSWORD

    @property
    def supplier(self) -> TokenSupplier | None:
        """What gives the token, if it has to be asked."""
        return self.token if callable(self.token) else None

    def with_token(self, token: str) -> Credentials:
        """The same with this token.

        :raises ValueError: for what is no token, or too long a one.
        """
        return attrs.evolve(self, token=token)

    def names(self, *, in_clear: bool) -> tuple[str, ...]:
        """The mechanisms that may be used, the best first."""
        possible: Sequence[str] = _MECHANISMS[self.kind]
        if in_clear and self.kind == PASSWORD:
            possible = sasl.FOR_PASSWORDS_IN_CLEAR
        return tuple(name for name in possible if self.mechanisms is None or name in self.mechanisms)

    def makers(self) -> sasl.Makers:
        """What makes each mechanism that is possible."""
        username = self.username
        if self.external:
            return {"EXTERNAL": lambda: sasl.External(username)}
        password, token = self.password, self.token
        if password is not None:
            return {
                "SCRAM-SHA-256": lambda: ScramSHA256(username, password),
                "PLAIN": lambda: sasl.Plain(username, password),
                "LOGIN": lambda: sasl.Login(username, password),
                "CRAM-MD5": lambda: sasl.CramMD5(username, password),
            }
        assert isinstance(token, str), "a supplier is asked before a session is opened"
        return {"OAUTHBEARER": lambda: OAuthBearer(username, token), "XOAUTH2": lambda: XOAuth2(username, token)}

    @property
    def secret(self) -> str:
        """The password or the token; "" where neither is known."""
        if self.password is not None:
            return self.password
        return self.token if isinstance(self.token, str) else ""

    def problem(self, *, certificate: bool, tls_level: str) -> str | None:
        """Why they can't be used by a destination, in words, or ``None``.

        :param certificate: whether it has a client certificate.
        :param tls_level: the level of its TLS policy.
        """
        if self.external and not certificate:
            return "external=True logs in by a client certificate: give the destination a client_certificate"
        if self.kind != PASSWORD and tls_level == "none":
            what = "a token" if self.kind == TOKEN else "a certificate"
            return f'{what} only goes over TLS: level "none" has none'
        return None

    def account(self) -> tuple[Any, ...]:
        """All of them but the secret."""
        return (self.kind, self.username, self.mechanisms)
