"""SASL: the exchanges, what is chosen, and that no secret shows."""

from __future__ import annotations

import base64

from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire import sasl
from mailcache.wire.sasl import Login, Plain, SaslError, choose, decode_challenge


class Exchanges(SynchronousTestCase):
    def test_plain_says_all_at_once(self) -> None:
        plain = Plain("üser", "pass wörd")
        self.assertEqual((plain.name, plain.initial()), ("PLAIN", "\0üser\0pass wörd".encode()))
        self.assertRaises(SaslError, plain.respond, b"what?")

    def test_plain_repeats_itself_once_for_a_server_that_asks(self) -> None:
        plain = Plain("user", "secret")
        self.assertEqual(plain.respond(b""), plain.initial())
        self.assertRaises(SaslError, plain.respond, b"")

    def test_login_answers_two_prompts(self) -> None:
        for prompts in ((b"Username:", b"Password:"), (b"User Name\0", b"Password\0"), (b"", b"")):
            login = Login("user", "secret")
            self.assertEqual((login.name, login.initial()), ("LOGIN", None))
            self.assertEqual([login.respond(prompt) for prompt in prompts], [b"user", b"secret"])
            self.assertRaises(SaslError, login.respond, b"Password:")

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


class Choosing(SynchronousTestCase):
    def test_the_best_that_is_offered(self) -> None:
        for offered, name in (
            ({"PLAIN", "LOGIN"}, "PLAIN"),
            ({"LOGIN", "CRAM-MD5"}, "LOGIN"),
            ({"GSSAPI"}, None),
            (set(), None),
        ):
            mechanism = choose(frozenset(offered), "user", "secret")
            self.assertEqual(None if mechanism is None else mechanism.name, name)

    def test_further_mechanisms_are_put_into_the_table(self) -> None:
        class Better(Plain):
            name = "X-BETTER"

        self.patch(sasl, "MECHANISMS", [("X-BETTER", Better), *sasl.MECHANISMS])
        mechanism = choose(frozenset({"PLAIN", "X-BETTER"}), "user", "secret")
        assert mechanism is not None
        self.assertEqual(mechanism.name, "X-BETTER")


class Secrets(SynchronousTestCase):
    def test_do_not_show(self) -> None:
        for mechanism in (Plain("user", "c4n4ry"), Login("user", "c4n4ry")):
            for shown in (repr(mechanism), str(mechanism), f"{mechanism}"):
                self.assertNotIn("c4n4ry", shown)
                self.assertNotIn(base64.b64encode(b"c4n4ry").decode(), shown)
                self.assertIn("user", shown)

    def test_bad_ones_are_refused_unsaid(self) -> None:
        for make in (Plain, Login):
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
                self.assertRaises(ValueError, choose, frozenset({"PLAIN"}), username, password)
