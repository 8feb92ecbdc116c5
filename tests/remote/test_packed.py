"""What crosses for each lease: round trips, and refusals of all that is not exactly right."""

from __future__ import annotations

import contextlib
import itertools
import json
import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.destination import Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.remote.codec import MalformedError
from mailcache.remote.packed import MAX_AVOIDED, MAX_TIMEOUT, MAX_WANTED, Granted, Released, Wanted

ADDRESS, PATH = Endpoint("smtp", "192.0.2.1", 25), Endpoint("lmtp", "/run/lmtp", None)
PLAIN = Wanted(1, NO_NEEDS, False, frozenset(), 1.0)


class WantedTests(SynchronousTestCase):
    def test_round_trips(self) -> None:
        """Every need and every flag by itself and with all others; a size of 0 is not the same as none."""
        truths = (False, True)
        for smtputf8, eight_bit, size, requiretls, fresh in itertools.product(
            truths, truths, (None, 0, 1, 2**40), truths, truths
        ):
            needs = Needs(smtputf8, eight_bit, size, requiretls)
            for avoid in (frozenset(), frozenset((ADDRESS, PATH))):
                wanted = Wanted(2**40, needs, fresh, avoid, 1.5)
                self.assertEqual(Wanted.decode(wanted.encode()), wanted)

    def test_no_needs_are_known_at_a_glance(self) -> None:
        self.assertIs(Wanted.decode(PLAIN.encode()).needs, NO_NEEDS)

    def test_what_a_keeper_would_not_take_is_cut(self) -> None:
        many = frozenset(Endpoint("smtp", f"192.0.2.{number}", 25) for number in range(MAX_AVOIDED + 10))
        found = Wanted.decode(Wanted(1, NO_NEEDS, False, many, 1e9).encode())
        self.assertEqual(found.timeout, MAX_TIMEOUT)
        self.assertEqual(len(found.avoid), MAX_AVOIDED)
        self.assertLess(found.avoid, many)

    def test_refusals(self) -> None:
        good = PLAIN.encode()
        flags = len(good) - 1
        size = flags - 8
        for wrong, word in (
            (b"", "bytes"),
            (good[:-1], "bytes"),
            (good[:flags] + b"\x20", "flag"),
            (good[:flags] + b"\xff", "flag"),
            (good[:size] + b"\0\0\0\0\0\0\0\1" + good[flags:], "flag"),
            (good + b" " * MAX_WANTED, "bytes"),
            *((Wanted(1, NO_NEEDS, False, frozenset(), time).encode(), "time") for time in (-1.0, math.nan, -math.inf)),
        ):
            with self.assertRaises(MalformedError, msg=repr(wrong)) as caught:
                Wanted.decode(wrong)
            self.assertIn(word, str(caught.exception))

    def test_a_time_without_end_is_refused(self) -> None:
        """As it can't come from `Wanted.encode`."""
        good = bytearray(PLAIN.encode())
        good[8:16] = b"\x7f\xf0\0\0\0\0\0\0"
        with self.assertRaises(MalformedError):
            Wanted.decode(bytes(good))

    def test_endpoints_to_avoid_that_are_none(self) -> None:
        for wrong in (
            5, {}, [5], ["smtp"], [["smtp", "192.0.2.1"]], [["smtp", "192.0.2.1", "25"]], [["smtp", "192.0.2.1", True]],
            [["smtp", None, 25]], [["smtp", "192.0.2.1", 25]] * (MAX_AVOIDED + 1),
        ):  # fmt: skip
            with self.assertRaises(MalformedError, msg=repr(wrong)) as caught:
                Wanted.decode(PLAIN.encode() + json.dumps(wrong).encode())
            self.assertIn("avoid", str(caught.exception))
        for data in (b"[", b"[" * 20_000, b"\xff"):
            with self.assertRaises(MalformedError):
                Wanted.decode(PLAIN.encode() + data)


class SmallValueTests(SynchronousTestCase):
    def test_round_trips(self) -> None:
        for granted in (Granted(1, 2, 3, None, True), Granted(2**40, 0, 2**32 - 1, 0, False)):
            self.assertEqual(Granted.decode(granted.encode()), granted)
        for released in (Released(1, 2, 2**40, 0, True), Released(2**40, 0, 0, 2**63, False)):
            self.assertEqual(Released.decode(released.encode()), released)

    def test_refusals(self) -> None:
        for decode, good in (
            (Granted.decode, Granted(1, 2, 3, None, True).encode()),
            (Released.decode, Released(1, 2, 3, 4, True).encode()),
        ):
            for wrong in (b"", good[:-1], good + b"\0", good[:-1] + b"\2"):
                with self.assertRaises(MalformedError):
                    decode(wrong)

    @given(st.binary(max_size=100))
    def test_any_bytes(self, data: bytes) -> None:
        for decode in (Wanted.decode, Granted.decode, Released.decode):
            with contextlib.suppress(MalformedError):
                decode(data)
