"""Credentials: what they may be, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, Destination, TLSPolicy
from mailcache.destination import Endpoint
from tests.helpers import authority, stored

ENDPOINT = Endpoint("smtp", "192.0.2.1", 25)


class Box:
    """Has a token to give, and equals everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> str:
        return "t0ken"


class CredentialsTests(SynchronousTestCase):
    def wrong(self, make: Callable[..., Any], part: str, *given: Any, **more: Any) -> None:
        error = self.assertRaises(ValueError, make, *given, **more)
        self.assertIn(part, str(error))
        self.assertNotIn("c4n4ry", str(error) + repr(error) + repr(error.__cause__))
        self.assertTrue(error.__suppress_context__ or error.__context__ is None)

    def test_there_is_exactly_one_proof(self) -> None:
        several = "a password, a token or external=True is wanted, not several of them"
        self.wrong(Credentials, several, "user", "c4n4ry", token="c4n4ry")
        self.wrong(Credentials, several, "user", "c4n4ry", external=True)
        self.wrong(Credentials, several, "user", token="c4n4ry", external=True)
        self.wrong(Credentials, "where there is no token or external=True", "user")
        self.assertEqual(Credentials("user", "", external=True), Credentials("user", external=True))

    def test_wrong_values_are_named_and_not_quoted(self) -> None:
        self.wrong(
            Credentials, "the token must be a string or a callable that gives one, not bytes", "u", token=b"c4n4ry"
        )
        self.wrong(Credentials, "a token is made of", "user", token="c4n4ry c4n4ry")
        self.wrong(Credentials, "a token is made of", "user", token="")
        self.wrong(Credentials, "at most 12288 bytes", "user", token="c4n4ry" * 2000)
        self.wrong(Credentials, "without NUL", "us\0er", token="c4n4ry")
        self.wrong(Credentials, "^A", "us\x01er", token=Box())
        self.wrong(Credentials, "the username is empty", "", token="c4n4ry")
        self.wrong(Credentials, "external must be True or False, not str", "user", external="c4n4ry")
        self.wrong(Credentials, "without NUL", "us\0er", external=True)

    def test_mechanisms_are_some_of_those_that_there_are(self) -> None:
        passwords = "with a password there are SCRAM-SHA-256, PLAIN, LOGIN, CRAM-MD5, not "
        self.wrong(Credentials, passwords + "'XOAUTH2'", "user", "c4n4ry", mechanisms=("XOAUTH2",))
        self.wrong(Credentials, passwords + "'SCRAM-SHA-256-PLUS'", "u", "c", mechanisms=("SCRAM-SHA-256-PLUS",))
        self.wrong(Credentials, passwords + "bytes", "user", "c4n4ry", mechanisms=(b"PLAIN",))
        self.wrong(Credentials, "there are OAUTHBEARER, XOAUTH2, not 'PLAIN'", "u", token="t", mechanisms=("PLAIN",))
        self.wrong(Credentials, "there is EXTERNAL, not 'PLAIN'", "u", external=True, mechanisms=("PLAIN",))
        for none in ((), "PLAIN", 5):
            self.wrong(Credentials, "a tuple of some of SCRAM-SHA-256", "user", "c4n4ry", mechanisms=none)
        self.wrong(Credentials, "SASLprep", "user", "c4n4ry\U0001f4ee", mechanisms=("SCRAM-SHA-256",))
        both = Credentials("user", "secret", mechanisms=["login", "PLAIN"])  # type: ignore[arg-type]
        self.assertEqual(both.mechanisms, ("PLAIN", "LOGIN"))
        self.assertEqual(both, Credentials("user", "secret", mechanisms=("PLAIN", "LOGIN", "LOGIN")))

    def test_suppliers_are_what_they_are(self) -> None:
        one, other = Box(), Box()
        first, second = Credentials("user", token=one), Credentials("user", token=other)
        self.assertNotEqual(first, second)
        self.assertEqual(first, Credentials("user", token=one))
        self.assertEqual(hash(first), hash(Credentials("user", token=one)))
        self.assertEqual(first.with_token("t0ken"), second.with_token("t0ken"))
        self.assertNotEqual(first.with_token("t0ken"), first.with_token("T0ken"))

    def test_no_secret_is_in_the_repr(self) -> None:
        def c4n4ry() -> str:
            return "c4n4ry"

        for credentials in (
            Credentials("user", "c4n4ry"),
            Credentials("user", token="c4n4ry"),
            Credentials("user", token=c4n4ry),
        ):
            where = Destination("[192.0.2.1]", credentials=credentials)
            for value in (credentials, where, where.identity, where.key(ENDPOINT)):
                self.assertNotIn("c4n4ry", repr(value) + str(value))
                self.assertIn("user", repr(value))

    def test_a_destination_must_be_able_to_use_them(self) -> None:
        pem = stored(self, authority().issue(client=True).private_pem)
        external, token = Credentials("", external=True), Credentials("user", token="c4n4ry")
        clear = TLSPolicy("none")
        self.wrong(Destination, "give the destination a client_certificate", "[192.0.2.1]", credentials=external)
        more: dict[str, Any] = {"credentials": external, "client_certificate": pem}
        self.wrong(Destination, "a certificate only goes over TLS", "[192.0.2.1]", tls=clear, **more)
        self.wrong(Destination, "a token only goes over TLS", "[192.0.2.1]", tls=clear, credentials=token)
        where = Destination("[192.0.2.1]", tls=clear)
        self.wrong(where.with_credentials, "a token only goes over TLS", token)
        Destination("[192.0.2.1]", **more)

    def test_a_destination_with_others_is_as_if_it_were_made_with_them(self) -> None:
        pem = stored(self, authority().issue(client=True).private_pem)
        values: dict[str, Any] = {"namespace": "a", "helo_name": "a.example", "client_certificate": pem}
        values |= {"tls": TLSPolicy("verify", ciphers="ECDHE+AESGCM"), "one_flight": True, "protocol": "smtps"}
        plain = Destination("[192.0.2.1]", **values)
        for credentials in (
            Credentials("user", "secret"),
            Credentials("user", token="secret"),
            Credentials("user", external=True),
        ):
            made, other = (
                Destination("[192.0.2.1]", credentials=credentials, **values),
                plain.with_credentials(credentials),
            )
            self.assertEqual((made, hash(made), made.lineage), (other, hash(other), other.lineage))
            self.assertEqual(made.key(ENDPOINT), other.key(ENDPOINT))
            self.assertEqual((made.client_pem, made.trust_anchors), (other.client_pem, other.trust_anchors))

    def test_only_tokens_have_a_lineage(self) -> None:
        one, other = (Destination("[192.0.2.1]", credentials=Credentials("user", token=text)) for text in ("a", "b"))
        self.assertEqual(one.lineage, other.lineage)
        self.assertNotEqual(one.identity, other.identity)
        self.assertIsNone(Destination("[192.0.2.1]").lineage)
        self.assertIsNone(Destination("[192.0.2.1]", credentials=Credentials("user", "a")).lineage)
        self.assertNotEqual(one.lineage, one.on_behalf(1000, None, None).lineage)
