"""SCRAM-SHA-256 (RFC 5802, RFC 7677): the password does not cross, and the server proves that it knows it too."""

from __future__ import annotations

import contextlib
from typing import Final

from scramp import ScramClient, ScramException  # type: ignore[import-untyped]

from mailcache.wire.sasl import SaslError, ServerNotProvenError, encoded

# The server chooses how often the password is hashed, and the reactor stands still meanwhile: 100,000 take 20 to
# 50 ms. Mail servers have 4,096 to 10,000; RFC 7677 wants 4,096 at least, which the library demands.
MAX_ITERATIONS: Final = 100_000

# RFC 5802 section 7, "server-error-value": the server's words, and no others, go into errors.
_ERRORS: Final = frozenset(
    (
        b"invalid-encoding",
        b"extensions-not-supported",
        b"invalid-proof",
        b"channel-bindings-dont-match",
        b"server-does-support-channel-binding",
        b"channel-binding-not-supported",
        b"unsupported-channel-binding-type",
        b"unknown-user",
        b"invalid-username-encoding",
        b"no-resources",
        b"other-error",
    )
)

_BEGUN, _PROOF_SENT, _SERVER_PROVEN, _FAILED = range(4)


class ScramSHA256:
    """SCRAM-SHA-256 without channel binding.

    :param nonce: for tests with known values; else it is random.
    """

    name = "SCRAM-SHA-256"

    __slots__ = ("_client", "_first", "_repeated", "_state", "problem", "username")

    def __init__(self, username: str, password: str, nonce: str | None = None) -> None:
        """
        :raises ValueError: for a user name or password that is empty, or that SASLprep (RFC 4013) refuses
        """
        encoded("user name", username)
        encoded("password", password)
        client = None
        with contextlib.suppress(ScramException):
            client = ScramClient([self.name], username, password, c_nonce=nonce)
        if client is None or not bytes(client.password):
            raise ValueError("user name and password must be what SASLprep (RFC 4013) takes, and not empty")
        self.username = username
        self.problem: str | None = None
        self._client = client
        self._first: bytes = client.get_client_first().encode()
        self._repeated = False
        self._state = _BEGUN

    def __repr__(self) -> str:
        return f"ScramSHA256({self.username!r}, ...)"

    def initial(self) -> bytes:
        """The user name and a nonce."""
        return self._first

    def respond(self, challenge: bytes) -> bytes:
        """The proof; then, to the server's proof, nothing."""
        if self._state == _BEGUN and not challenge and not self._repeated:
            self._repeated = True
            return self._first
        if self._state in (_BEGUN, _PROOF_SENT) and challenge.startswith(b"e="):
            said = challenge[2:].partition(b",")[0]
            self.problem = said.decode() if said in _ERRORS else "other-error"
            self._state = _FAILED
            return b""
        if self._state == _BEGUN:
            return self._prove(challenge)
        if self._state == _PROOF_SENT:
            self._verify(challenge)
            return b""
        raise SaslError(f"unexpected challenge in {self.name}")

    def finish(self) -> None:
        if self._state != _SERVER_PROVEN:
            raise ServerNotProvenError("the server does not prove that it knows the password")

    def _prove(self, challenge: bytes) -> bytes:
        self._state = _FAILED
        try:
            self._client.set_server_first(challenge.decode("utf-8", "strict"))
            iterations = int(self._client.iterations)
        except (ScramException, ValueError):
            iterations = 0
        if not iterations:
            raise SaslError("the server's first message is malformed, or not meant for ours")
        if iterations > MAX_ITERATIONS:
            raise SaslError(f"the server demands {iterations} iterations; {MAX_ITERATIONS} at most are computed here")
        self._state = _PROOF_SENT
        proof: bytes = self._client.get_client_final().encode()
        return proof

    def _verify(self, challenge: bytes) -> None:
        self._state = _FAILED
        try:
            self._client.set_server_final(challenge.decode("utf-8", "strict"))
        except (ScramException, ValueError):
            proven = False
        else:
            proven = True
        if not proven:
            raise ServerNotProvenError("the server does not prove that it knows the password")
        self._state = _SERVER_PROVEN
