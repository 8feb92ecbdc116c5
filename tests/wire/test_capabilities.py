"""Capabilities: what servers say to EHLO, and the ways in which they say it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply, ReplyParser

FLAGS = {
    "PIPELINING": "pipelining",
    "8BITMIME": "eightbitmime",
    "SMTPUTF8": "smtputf8",
    "STARTTLS": "starttls",
    "CHUNKING": "chunking",
    "ENHANCEDSTATUSCODES": "enhancedstatuscodes",
    "DSN": "dsn",
    "REQUIRETLS": "requiretls",
}


def said(*lines: str) -> Capabilities:
    return Capabilities.parse(Reply.make(250, "mx.example greets you", *lines))


class WhatServersSay(SynchronousTestCase):
    def test_a_usual_server(self) -> None:
        capabilities = said(
            "PIPELINING", "SIZE 10240000", "ETRN", "STARTTLS", "AUTH PLAIN LOGIN", "ENHANCEDSTATUSCODES",
            "8BITMIME", "DSN", "SMTPUTF8", "CHUNKING", "LIMITS RCPTMAX=100 MAILMAX=20",
        )  # fmt: skip
        self.assertEqual(capabilities.size, 10240000)
        self.assertEqual(capabilities.auth, {"PLAIN", "LOGIN"})
        self.assertEqual((capabilities.mail_max, capabilities.rcpt_max, capabilities.rcpt_domain_max), (20, 100, None))
        self.assertTrue(capabilities.has("etrn"))
        self.assertEqual(capabilities.keywords["SIZE"], ("10240000",))
        off = [name for name in FLAGS.values() if not getattr(capabilities, name)]
        self.assertEqual(off, ["requiretls"])

    def test_each_flag_is_a_whole_word_in_any_case(self) -> None:
        for keyword, name in FLAGS.items():
            for line, there in (
                (keyword, True),
                (keyword.lower(), True),
                (keyword.title() + " with parameters", True),
                (keyword + " ", True),
                (" " + keyword, True),
                ("X" + keyword, False),
                ("X-" + keyword, False),
                (keyword + "X", False),
                (keyword + "-", False),
                (keyword + "=", False),
                ("X " + keyword, False),
                ("\x1b" + keyword, False),
                (keyword + " \x07", False),
                (keyword + " ü", False),
            ):
                with self.subTest(line=line):
                    capabilities = said(line)
                    self.assertIs(getattr(capabilities, name), there)
                    self.assertEqual([flag for flag in FLAGS.values() if getattr(capabilities, flag)], [name] * there)
                    self.assertIs(capabilities.has(keyword.lower()), there)

    def test_the_greeting_is_no_keyword(self) -> None:
        for greeting in ("STARTTLS", "PIPELINING", "SIZE 1"):
            self.assertEqual(Capabilities.parse(Reply.make(250, greeting)), Capabilities.none())

    def test_nothing_is_known_after_helo(self) -> None:
        nothing = Capabilities.none()
        self.assertFalse(any(getattr(nothing, name) for name in FLAGS.values()))
        self.assertEqual((nothing.size, nothing.auth, dict(nothing.keywords)), (None, frozenset(), {}))

    def test_size(self) -> None:
        for lines, size in (
            ((), None),
            (("SIZE",), 0),
            (("SIZE 0",), 0),
            (("size 52428800",), 52428800),
            (("SIZE  100 ",), 100),
            (("SIZE " + "9" * 20,), int("9" * 20)),
            (("SIZE " + "9" * 21,), None),
            (("SIZE -1",), None),
            (("SIZE many",), None),
            (("SIZE 1e6",), None),
            (("SIZE=100",), None),
            (("XSIZE 100",), None),
        ):
            with self.subTest(lines=lines):
                self.assertEqual(said(*lines).size, size)

    def test_auth(self) -> None:
        for lines, mechanisms in (
            (("AUTH PLAIN LOGIN",), {"PLAIN", "LOGIN"}),
            (("auth plain xoauth2",), {"PLAIN", "XOAUTH2"}),
            (("AUTH=LOGIN",), {"LOGIN"}),
            (("AUTH=PLAIN LOGIN",), {"PLAIN", "LOGIN"}),
            (("AUTH= LOGIN",), {"LOGIN"}),
            (("AUTH PLAIN", "AUTH=LOGIN PLAIN"), {"PLAIN", "LOGIN"}),
            (("AUTH PLAIN", "AUTH LOGIN"), {"PLAIN", "LOGIN"}),
            (("AUTH",), set()),
            (("XAUTH PLAIN",), set()),
        ):
            with self.subTest(lines=lines):
                self.assertEqual(said(*lines).auth, mechanisms)

    def test_parameters_are_kept_as_given(self) -> None:
        for line in ("AUTH Plain xY=", "AUTH=Plain xY=", "auth=Plain xY="):
            self.assertEqual(said(line).keywords["AUTH"], ("Plain", "xY="), line)

    def test_limits(self) -> None:
        for line, limits in (
            ("LIMITS MAILMAX=20 RCPTMAX=100 RCPTDOMAINMAX=1", (20, 100, 1)),
            ("limits mailmax=20", (20, None, None)),
            ("LIMITS", (None, None, None)),
            ("LIMITS MAILMAX=0 RCPTMAX=999999", (None, 999999, None)),
            ("LIMITS MAILMAX=07 RCPTMAX=1000000", (None, None, None)),
            ("LIMITS MAILMAX= RCPTMAX =5 RCPTDOMAINMAX=x", (None, None, None)),
            ("LIMITS MAILMAX=-1 XMAILMAX=5 MAILMAXX=5", (None, None, None)),
            ("LIMITS MAILMAX=7 MAILMAX=5 MAILMAX=6", (5, None, None)),
        ):
            with self.subTest(line=line):
                capabilities = said(line)
                self.assertEqual((capabilities.mail_max, capabilities.rcpt_max, capabilities.rcpt_domain_max), limits)

    def test_values(self) -> None:
        capabilities = said("SIZE 1", "DSN")
        self.assertEqual(capabilities, said("DSN", "size 1"))
        self.assertEqual(hash(capabilities), hash(said("DSN", "size 1")))
        self.assertNotEqual(capabilities, said("SIZE 2", "DSN"))
        self.assertRaises(AttributeError, setattr, capabilities, "size", 2)
        self.assertFalse(hasattr(capabilities.keywords, "__setitem__"))

    @given(st.lists(st.binary(max_size=30)))
    def test_no_line_raises(self, lines: list[bytes]) -> None:
        data = b"".join(b"250-" + line.replace(b"\n", b"").replace(b"\0", b"") + b"\r\n" for line in [b"mx", *lines])
        for reply in ReplyParser().feed(data + b"250 DSN\r\n"):
            self.assertTrue(Capabilities.parse(reply).dsn)
