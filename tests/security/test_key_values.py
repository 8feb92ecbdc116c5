"""Keys are equal exactly where what they are made of means the same, however it is written.

`tests.nightly.keys` draws a million pairs in the same way; here hypothesis looks for the smallest that is wrong.
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, Destination
from mailcache.destination import Endpoint, SessionKey
from tests.nightly import keys

ENDPOINT = Endpoint("smtp", "192.0.2.1", 25)


def key(next_hop: str = "[192.0.2.1]", **more: Any) -> SessionKey:
    """The key with the endpoint that the next hop itself names."""
    destination = Destination(next_hop, **more)
    return destination.key(Endpoint(destination.protocol, destination.hop.name, destination.hop.port))


class Drawn(SynchronousTestCase):
    @settings(max_examples=250, deadline=None)
    @given(st.randoms())
    def test_destinations(self, random: Random) -> None:
        """Their keys, their hashes, and what a keeper makes of them when they have crossed to it."""
        keys.check_destinations(random)

    @settings(max_examples=250, deadline=None)
    @given(st.randoms())
    def test_any_text(self, random: Random) -> None:
        keys.check_texts(random)


SAME = (
    ("Example.COM", "example.com", "example.com.", "EXAMPLE.com.:25", "example.com:25", "example.com:00025"),
    ("[Mail.Example.com]", "[mail.example.com.]", "[mail.example.com]:25"),
    ("xn--bcher-kva.example", "XN--BCHER-KVA.Example."),
    ("[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[IPv6:::1]", "[ipv6:0::1]:25"),
    ("[2001:db8::a]", "[2001:DB8:0:0:0:0:0:A]", "[IPv6:2001:db8:0::a]"),
    ("[fe80::1%lo]", "[FE80:0::1%lo]"),
    ("[::ffff:192.0.2.1]", "[::FFFF:c000:201]"),
)
"""Each line is one place, however it is written; any two of different lines are two."""

OTHERS = (
    *(line[0] for line in SAME),
    "example.com:26", "www.example.com", "[mail.example.com]:587", "[fe80::1]", "[fe80::1%Lo]", "[fe80::1%lo0]",
    "[fe80::1%eth0]", "[192.0.2.1]", "[2001:db8::a0]", "unix:/run/lmtp", "unix:/run/Lmtp", "unix:/run/lmtp/",
)  # fmt: skip

REFUSED = (
    "b\xfccher.example", "[b\xfccher.example]", "exam\u2024ple.com", "\uff45xample.com", "example.com:\u0662\u0665",
    "example.com\n", "example.com\0", "[example.com\r\n]", "[192.0.2.1\0]", "[fe80::1%lo\n]", "unix:/a\0b", "",
    "[192.0.2.01]", "[192.0.2]", "[0x7f.1]", "192.0.2.1", "[::1%]", "[fe80::1%l o]", "example..com", "[]", "*",
    "example.com:25:26", "example.com:+25", "example.com|b", "unix:run",
)  # fmt: skip
"""What could be taken for another place by who reads it otherwise is no next hop at all."""


class Places(SynchronousTestCase):
    def test_have_one_key_each(self) -> None:
        for line in SAME:
            self.assertEqual(len({key(written) for written in line}), 1, line)
        self.assertEqual(len({key(written) for written in OTHERS}), len(OTHERS))

    def test_that_are_none_are_refused(self) -> None:
        for written in REFUSED:
            error = self.assertRaises(ValueError, Destination, written)
            self.assertTrue(str(error).isprintable(), error)


class Texts(SynchronousTestCase):
    """Fields of text: one character more, or in another case, or at another place, is another stream."""

    def assert_differ(self, *several: dict[str, Any]) -> None:
        found = [key(**each) for each in several]
        self.assertEqual(len(set(found)), len(several), several)

    def test_of_secrets_are_taken_byte_for_byte(self) -> None:
        words = ("Secret", "secret", "secret ", " secret", "secre", "s\xe9cret", "se\u0301cret", "secret|", "secret\n")
        self.assert_differ(*({"credentials": Credentials("anne", word)} for word in words))
        self.assert_differ(*({"credentials": Credentials(word, "anne")} for word in words))

    def test_do_not_run_into_each_other(self) -> None:
        for mark in ("|", "*", ":", ",", '"', "'", "\\", "}", '","', "', '", " "):
            self.assert_differ(
                {"namespace": f"a{mark}b"},
                {"namespace": "a", "proxy": "b"},
                {"namespace": "a", "proxy": f"{mark}b"},
                {"namespace": f"a{mark}", "proxy": "b"},
                {"namespace": f"a{mark}b", "proxy": "b"},
                {"credentials": Credentials(f"a{mark}b", "c")},
                {"credentials": Credentials("a", f"b{mark}c")},
                {"credentials": Credentials(f"a{mark}", f"b{mark}c")},
            )

    def test_of_any_length_count_to_their_last_character(self) -> None:
        for size in (255, 256, 65_535, 65_536, 1 << 20):
            long = "n" * size
            self.assert_differ(*({"namespace": each} for each in (long, long + "n", long[:-1], long[:-1] + "m")))

    def test_that_can_not_be_printed_are_refused(self) -> None:
        for odd in ("\n", "\r", "\0", "\x1b", "\x7f", "\u2028", "\ud800"):
            for name in ("namespace", "proxy", "helo_name"):
                self.assertRaises(ValueError, Destination, "[192.0.2.1]", **{name: f"a{odd}b"})
