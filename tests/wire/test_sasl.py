"""SASL: the exchanges, with the values of the RFCs, what is chosen, and that no secret shows."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire import sasl, scram
from mailcache.wire.oauth import OAuthBearer, XOAuth2
from mailcache.wire.sasl import CramMD5, External, Login, Mechanism, Plain, SaslError, choose, decode_challenge
from mailcache.wire.scram import MAX_ITERATIONS, ScramSHA256

TOKEN = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
CLIENT_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


class Exchanges(SynchronousTestCase):
    def test_plain_says_all_at_once(self) -> None:
        plain = Plain("üser", "pass wörd")
        self.assertEqual((plain.name, plain.initial()), ("PLAIN", "\0üser\0pass wörd".encode()))
        self.assertRaises(SaslError, plain.respond, b"what?")

    def test_who_says_all_at_once_repeats_it_once_for_a_server_that_asks(self) -> None:
        for mechanism in (
            Plain("user", "secret"),
            External("user"),
            OAuthBearer("user", TOKEN),
            XOAuth2("user", TOKEN),
            ScramSHA256("user", "secret"),
        ):
            self.assertEqual(mechanism.respond(b""), mechanism.initial())
            self.assertRaises(SaslError, mechanism.respond, b"")
            self.assertIsNone(mechanism.problem)

    def test_login_answers_two_prompts(self) -> None:
        for prompts in ((b"Username:", b"Password:"), (b"User Name\0", b"Password\0"), (b"", b"")):
            login = Login("user", "secret")
            self.assertEqual((login.name, login.initial()), ("LOGIN", None))
            self.assertEqual([login.respond(prompt) for prompt in prompts], [b"user", b"secret"])
            self.assertRaises(SaslError, login.respond, b"Password:")
            login.finish()

    def test_cram_md5(self) -> None:
        """RFC 2195 section 2."""
        cram = CramMD5("tim", "tanstaaftanstaaf")
        self.assertEqual((cram.name, cram.initial()), ("CRAM-MD5", None))
        self.assertRaises(SaslError, cram.finish)
        self.assertRaises(SaslError, cram.respond, b"")
        answer = cram.respond(b"<1896.697170952@postoffice.reston.mci.net>")
        self.assertEqual(answer, b"tim b913a602c7eda7a495b4e6e7334d3890")
        cram.finish()
        self.assertRaises(SaslError, cram.respond, b"<1896.697170952@postoffice.reston.mci.net>")

    def test_external(self) -> None:
        """RFC 4422 appendix A: an empty identity leaves it to the certificate."""
        self.assertEqual(External("fred@example.com").initial(), b"fred@example.com")
        self.assertEqual(External("").initial(), b"")
        self.assertRaises(SaslError, External("").respond, b"what?")

    def test_oauthbearer(self) -> None:
        """RFC 7628 section 4.1, whose host and port bearer tokens need not have, and the failure of section 4.3."""
        said = OAuthBearer("user@example.com", TOKEN)
        example = base64.b64decode(
            b"bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyIHZGOWRmdDRxbVRj"
            b"Mk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
        )
        self.assertEqual(said.initial(), example.replace(b"\x01host=server.example.com\x01port=143", b""))
        challenge = b'{"status":"invalid_token","scope":"example_scope","openid-configuration":"https://example.com/x"}'
        self.assertEqual(base64.b64encode(said.respond(challenge)), b"AQ==")
        self.assertEqual(said.problem, "invalid_token")
        self.assertRaises(SaslError, said.respond, b"")
        self.assertRaises(SaslError, said.respond, b"{}")
        self.assertRaises(SaslError, said.finish)
        self.assertEqual(OAuthBearer("a=b,c", "t").initial(), b"n,a=a=3Db=2Cc,\x01auth=Bearer t\x01\x01")

    def test_xoauth2(self) -> None:
        """As in Google's description of it."""
        said = XOAuth2("someuser@example.com", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg")
        self.assertEqual(
            base64.b64encode(said.initial()),
            b"dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0Q2cBAQ==",
        )
        challenge = (
            b"eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIG1hYyIsInNjb3BlIjoiaHR0cHM6Ly9tYWlsLmdvb2dsZS5jb20vIn0K"
        )
        self.assertEqual(said.respond(decode_challenge(challenge)), b"")
        self.assertEqual(said.problem, "401")
        self.assertRaises(SaslError, said.respond, b"")
        self.assertRaises(SaslError, said.finish)

    def test_tokens_are_tokens(self) -> None:
        for make in (OAuthBearer, XOAuth2):
            for token in ("", "=", "a b", "a\x01", "a\r\n", "ä", "a=b", '"a"', "a,b", "\ud800"):
                error = self.assertRaises(ValueError, make, "user", token)
                self.assertIn("a token is made of", str(error))
            self.assertRaises(ValueError, make, "us\0er", "t")
        self.assertRaises(ValueError, XOAuth2, "us\x01er", "t")

    def test_challenges_are_strict_base64(self) -> None:
        for octets in (b"", b"Username:", b"\0\xff\r\n"):
            self.assertEqual(decode_challenge(base64.b64encode(octets)), octets)
        for text in (
            b"VXNl cm5hbWU6",
            b"VXNlcm5hbWU6\r",
            b"VXNlcm5hbWU",
            b"VXNlcm5hbWU6=",
            b"=",
            b"Username:",
            b"\xff",
            b"YQ==YQ==",
        ):
            self.assertRaises(SaslError, decode_challenge, text)

    @given(st.binary(max_size=200), st.binary(max_size=200))
    def test_whatever_the_server_says(self, first: bytes, second: bytes) -> None:
        """A response or an error of ours, nothing else; and no success where a server has to prove itself."""
        for make in MAKERS.values():
            mechanism = make()
            for challenge in (first, second):
                try:
                    self.assertIsInstance(mechanism.respond(challenge), bytes)
                except SaslError:
                    break
            if mechanism.name == "SCRAM-SHA-256":
                self.assertRaises(SaslError, mechanism.finish)


class Scram(SynchronousTestCase):
    """RFC 7677 section 3, and what may be wrong with each of its messages."""

    def begun(self) -> ScramSHA256:
        said = ScramSHA256("user", "pencil", NONCE)
        self.assertEqual(said.initial(), b"n,,n=user,r=" + NONCE.encode())
        return said

    def test_the_exchange(self) -> None:
        said = self.begun()
        self.assertRaises(SaslError, said.finish)
        self.assertEqual(said.respond(SERVER_FIRST), CLIENT_FINAL)
        self.assertRaises(SaslError, said.finish)
        self.assertEqual(said.respond(SERVER_FINAL), b"")
        said.finish()
        self.assertRaises(SaslError, said.respond, SERVER_FINAL)

    def test_every_octet_of_the_servers_proof_counts(self) -> None:
        for index in range(2, len(SERVER_FINAL) - 1):
            said = self.begun()
            said.respond(SERVER_FIRST)
            other = b"A" if SERVER_FINAL[index : index + 1] != b"A" else b"B"
            wrong = SERVER_FINAL[:index] + other + SERVER_FINAL[index + 1 :]
            self.assertRaises(sasl.ServerNotProvenError, said.respond, wrong)
            self.assertRaises(sasl.ServerNotProvenError, said.finish)

    def test_nonces_are_new(self) -> None:
        self.assertEqual(len({ScramSHA256("user", "pencil").initial() for _ in range(20)}), 20)

    def test_another_nonce_is_not_ours(self) -> None:
        for nonce in (b"r=" + NONCE.encode() + b",", b"r=x" + NONCE.encode()):
            wrong = SERVER_FIRST.replace(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,", nonce + b",")
            self.assertRaises(SaslError, self.begun().respond, wrong)

    def test_iterations_are_bounded(self) -> None:
        for iterations in (MAX_ITERATIONS, 4096):
            self.assertIn(b",p=", self.begun().respond(SERVER_FIRST.replace(b"i=4096", b"i=%d" % iterations)))

        def computed(*_: object) -> bytes:
            raise AssertionError("so many are not computed")

        self.patch(scram.ScramClient, "get_client_final", computed)
        for iterations in (MAX_ITERATIONS + 1, 2**31, 4095, 0):
            wrong = SERVER_FIRST.replace(b"i=4096", b"i=%d" % iterations)
            self.assertRaises(SaslError, self.begun().respond, wrong)

    def test_errors_of_the_server_are_told_in_its_known_words(self) -> None:
        for said_instead, told in (
            (b"e=invalid-proof", "invalid-proof"),
            (b"e=unknown-user,x=y", "unknown-user"),
            (b"e=pencil", "other-error"),
        ):
            for messages in ((said_instead,), (SERVER_FIRST, said_instead)):
                said = self.begun()
                *_, answer = [said.respond(message) for message in messages]
                self.assertEqual((answer, said.problem), (b"", told))
                self.assertRaises(SaslError, said.finish)
                self.assertRaises(SaslError, said.respond, SERVER_FINAL)

    def test_names_and_passwords_are_prepared(self) -> None:
        """RFC 4013: what looks the same is the same, and what can't be prepared is not sent."""
        self.assertEqual(ScramSHA256("us\u00ade=r,", "x", NONCE).initial(), b"n,,n=use=3Dr=2C,r=" + NONCE.encode())
        one, other = ScramSHA256("user", "\u2168", NONCE), ScramSHA256("user", "IX", NONCE)
        self.assertEqual(one.respond(SERVER_FIRST), other.respond(SERVER_FIRST))
        for username, password in (
            ("user", ""),
            ("", "x"),
            ("user", "\u00ad"),
            ("user", "\x07"),
            ("user", "\U0001f4ee"),
            ("user", "\u06271"),
        ):
            error = self.assertRaises(ValueError, ScramSHA256, username, password)
            self.assertIsNone(error.__context__)


MAKERS: dict[str, Callable[[], Mechanism]] = {
    "SCRAM-SHA-256": lambda: ScramSHA256("user", "secret"),
    "PLAIN": lambda: Plain("user", "secret"),
    "LOGIN": lambda: Login("user", "secret"),
    "CRAM-MD5": lambda: CramMD5("user", "secret"),
    "OAUTHBEARER": lambda: OAuthBearer("user", TOKEN),
    "XOAUTH2": lambda: XOAuth2("user", TOKEN),
    "EXTERNAL": lambda: External("user"),
}


class Choosing(SynchronousTestCase):
    def test_the_first_that_is_offered(self) -> None:
        for offered, names, name in (
            ({"PLAIN", "LOGIN"}, sasl.FOR_PASSWORDS, "PLAIN"),
            ({"LOGIN", "CRAM-MD5"}, sasl.FOR_PASSWORDS, "LOGIN"),
            ({"LOGIN", "CRAM-MD5"}, sasl.FOR_PASSWORDS_IN_CLEAR, "CRAM-MD5"),
            ({"PLAIN", "SCRAM-SHA-256"}, sasl.FOR_PASSWORDS_IN_CLEAR, "SCRAM-SHA-256"),
            ({"PLAIN", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1"}, sasl.FOR_PASSWORDS, "PLAIN"),
            ({"PLAIN", "XOAUTH2"}, sasl.FOR_TOKENS, "XOAUTH2"),
            ({"GSSAPI"}, sasl.FOR_PASSWORDS, None),
            (set(), sasl.FOR_PASSWORDS, None),
        ):
            mechanism = choose(frozenset(offered), names, MAKERS)
            self.assertEqual(None if mechanism is None else mechanism.name, name)

    def test_one_that_can_not_carry_the_password_is_passed_over(self) -> None:
        makers = {**MAKERS, "SCRAM-SHA-256": lambda: ScramSHA256("user", "\U0001f4ee")}
        for offered, name in (({"PLAIN", "SCRAM-SHA-256"}, "PLAIN"), ({"SCRAM-SHA-256"}, None)):
            mechanism = choose(frozenset(offered), sasl.FOR_PASSWORDS, makers)
            self.assertEqual(None if mechanism is None else mechanism.name, name)


class Secrets(SynchronousTestCase):
    PASSWORDS: tuple[Callable[[str, str], Any], ...] = (Plain, Login, CramMD5, ScramSHA256)

    def test_do_not_show(self) -> None:
        for mechanism in (make("user", "c4n4ry") for make in (*self.PASSWORDS, OAuthBearer, XOAuth2)):
            mechanism.initial()
            for shown in (repr(mechanism), str(mechanism), f"{mechanism}"):
                self.assertNotIn("c4n4ry", shown)
                self.assertNotIn(base64.b64encode(b"c4n4ry").decode(), shown)
                self.assertIn("user", shown)

    def test_bad_ones_are_refused_unsaid(self) -> None:
        for make in self.PASSWORDS:
            for username, password in (
                ("a\0", "c4n4ry"),
                ("a", "c4n4ry\0"),
                ("\0", "c4n4ry"),
                ("a", "c4n4ry\ud800"),
                ("\udc00", "b"),
            ):
                error = self.assertRaises(ValueError, make, username, password)
                self.assertNotIn("c4n4ry", repr(error))
                self.assertIsNone(error.__context__)
                self.assertNotIsInstance(error, UnicodeError)
        self.assertRaises(ValueError, External, "a\0")
