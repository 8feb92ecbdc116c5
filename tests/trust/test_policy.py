"""Policies: what they become for a route."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mailcache import TLSPolicy
from mailcache.trust.names import host_name, ip_address
from mailcache.trust.policy import LEVELS, Requirement, is_address

DIGEST = "AB" * 32


class Levels(SynchronousTestCase):
    def test_demand_more_and_more(self) -> None:
        for level, wants, demands, proof in (
            ("none", False, False, False),
            ("may", True, False, False),
            ("encrypt", True, True, False),
            ("fingerprint", True, True, True),
            ("verify", True, True, True),
            ("secure", True, True, True),
        ):
            requirement = Requirement(level)
            self.assertEqual(
                (requirement.wants_tls, requirement.demands_tls, requirement.demands_proof), (wants, demands, proof)
            )
            self.assertIn(level, LEVELS)
        self.assertEqual(len(LEVELS), 6)

    def test_what_is_not_known_demands_proof(self) -> None:
        """A level of a later version, say."""
        self.assertTrue(Requirement("dane").demands_proof)
        self.assertTrue(Requirement("dane").demands_tls)


class Resolving(SynchronousTestCase):
    """A policy, a next hop and the host that was found for it make a requirement."""

    def test_gives_names_and_the_server_name(self) -> None:
        for policy, next_hop, host, names, servername in (
            (TLSPolicy("may"), "example.com", "mx.example.com", (), "mx.example.com"),
            (TLSPolicy("encrypt"), "example.com", "MX.example.com.", (), "mx.example.com"),
            (TLSPolicy("verify"), "example.com", "mx.example.net", ("mx.example.net",), "mx.example.net"),
            (TLSPolicy("verify"), "example.com", "MX.Example.Net.", ("mx.example.net",), "mx.example.net"),
            (TLSPolicy("verify"), "192.0.2.1", "192.0.2.1", ("192.0.2.1",), None),
            (TLSPolicy("verify"), "2001:db8::1", "2001:db8::1", ("2001:db8::1",), None),
            (TLSPolicy("verify"), "fe80::1%lo", "fe80::1%lo", ("fe80::1",), None),
            (TLSPolicy("secure"), "example.com", "mx.example.net", ("example.com", ".example.com"), "mx.example.net"),
            (TLSPolicy("secure"), "Example.Com.", "mx.example.net", ("example.com", ".example.com"), "mx.example.net"),
            (TLSPolicy("secure"), "192.0.2.1", "192.0.2.1", ("192.0.2.1",), None),
            (TLSPolicy("secure"), "fe80::1%lo", "fe80::1%lo", ("fe80::1",), None),
            (TLSPolicy("verify", match=("B", ".a")), "example.com", "mx.example.net", (".a", "b"), "mx.example.net"),
            (TLSPolicy("secure", match=("b",)), "example.com", "mx.example.net", ("b",), "mx.example.net"),
            (TLSPolicy("verify", servername="S.test"), "example.com", "mx.test", ("mx.test",), "s.test"),
            (TLSPolicy("verify", servername="s.test"), "192.0.2.1", "192.0.2.1", ("192.0.2.1",), "s.test"),
            (TLSPolicy("verify"), "/run/lmtp", "localhost", ("localhost",), "localhost"),
        ):
            wanted = Requirement(policy.level, names, (), servername)
            self.assertEqual(policy.resolve(next_hop, host), wanted)

    def test_keeps_fingerprints(self) -> None:
        policy = TLSPolicy("fingerprint", fingerprints=(DIGEST.lower(),))
        self.assertEqual(policy.resolve("a.test", "mx.test"), Requirement("fingerprint", (), (DIGEST,), "mx.test"))

    def test_makes_equal_requirements_of_what_means_the_same(self) -> None:
        """So that a verdict is remembered for all of them."""
        one = TLSPolicy("verify", match=("A.test", "b.test"), ca_file="/a").resolve("x.test", "MX.test")
        other = TLSPolicy("verify", match=["b.test.", "a.test"], ca_file="/b").resolve("y.test", "mx.test.")
        self.assertEqual(one, other)
        self.assertEqual(hash(one), hash(other))


class Names(SynchronousTestCase):
    def test_have_one_form(self) -> None:
        for text, canonical in (
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("localhost", "localhost"),
            ("a_b.example", "a_b.example"),
            ("1.example", "1.example"),
            ("", None),
            (".", None),
            ("a..b", None),
            ("a.b..", None),
            ("1.2.3.4", None),
            ("a.1", None),
            ("a.0xF", None),
            ("0x7f000001", None),
            ("\u212a.example", None),
            ("\u017f", None),
            ("a\n", None),
            ("*.a", None),
            (None, None),
            (b"a", None),
        ):
            self.assertEqual(host_name(text), canonical)

    def test_addresses_have_one_form(self) -> None:
        for text, canonical in (
            ("192.0.2.1", "192.0.2.1"),
            ("0:0::1", "::1"),
            ("2001:DB8::1", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("fe80::1%" + "a" * 15, "fe80::1%" + "a" * 15),
            ("fe80::1%" + "a" * 16, None),
            ("fe80::1% ", None),
            ("fe80::1%a/b", None),
            ("192.0.2.1%eth0", None),
            ("010.0.0.1", None),
            ("1", None),
            ("", None),
            (16843009, None),
            (b"\x7f\0\0\1", None),
            (None, None),
        ):
            self.assertEqual(ip_address(text), canonical)

    def test_an_address_is_no_name(self) -> None:
        """Server names and certificates tell them apart."""
        for text, address in (("192.0.2.1", True), ("::1", True), ("fe80::1%lo", True), ("1.example", False)):
            self.assertEqual(is_address(text), address)
