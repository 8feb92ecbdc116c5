"""Two domains on one server: a session is shared where its proof does for both, by the server's certificate."""

from __future__ import annotations

from typing import Any

from mailcache import DeliveryError, Destination, TLSPolicy
from tests.helpers import Bed, TableRouter, certificate, hop, verifying
from tests.session_cache.case import CacheCase

SERVED, OWN, REFUSED = "served by the first's session", "by one of its own", "by none"

LEVELS = ("none", "may", "encrypt", "fingerprint", "verify", "secure")

# What becomes of the second domain's message (columns: its level), by the level at which the first opened a session.
# The certificate is for mx.example.com, where both domains have their mail; it proves nothing about the second's name.
TABLE = {
    #               none    may     encrypt fingerp verify  secure
    "none":        (SERVED, OWN,    OWN,    OWN,    OWN,    REFUSED),
    "may":         (OWN,    SERVED, SERVED, SERVED, SERVED, REFUSED),
    "encrypt":     (OWN,    SERVED, SERVED, SERVED, SERVED, REFUSED),
    "fingerprint": (OWN,    SERVED, SERVED, SERVED, SERVED, REFUSED),
    "verify":      (OWN,    SERVED, SERVED, SERVED, SERVED, REFUSED),
    "secure":      (OWN,    SERVED, SERVED, SERVED, SERVED, REFUSED),
}  # fmt: skip

# The same where the server has no TLS at all.
CLEAR_TABLE = {
    "none": (SERVED, OWN, REFUSED, REFUSED, REFUSED, REFUSED),
    "may": (OWN, SERVED, REFUSED, REFUSED, REFUSED, REFUSED),
}


class SharingTests(CacheCase):
    def policy(self, level: str, **more: Any) -> TLSPolicy:
        if level == "none":
            return TLSPolicy("none")
        if level == "fingerprint":
            more["fingerprints"] = (certificate().digest().hex(),)
        # One set of trust anchors for all, since that can't be judged afterwards.
        return TLSPolicy(level, ca_file=verifying().ca_file, **more)

    def two_domains(self, **settings: Any) -> Bed:
        router = TableRouter(example=[hop()], other=[hop()], alias=[hop("localhost")])
        router.table["example.com"] = router.table["example.example"]
        return self.bed(router=router, **settings)

    def fate(self, bed: Bed, first: Destination, second: Destination) -> str:
        self.sent(bed, destination=first)
        value = bed.deliver(destination=second)
        if isinstance(value, DeliveryError):
            self.assertEqual((value.phase, value.retriable), (value.phase, True))
            self.assertEqual(bed.server.message_count, 1)
            return REFUSED
        return SERVED if bed.server.connection_count == 1 else OWN

    def test_a_session_is_shared_between_domains_where_the_proof_does_for_both(self) -> None:
        for first, expected in TABLE.items():
            for second, fate in zip(LEVELS, expected, strict=True):
                with self.subTest(first=first, second=second):
                    bed = self.two_domains()
                    one = Destination("example.com", tls=self.policy(first))
                    other = Destination("other.example", tls=self.policy(second))
                    self.assertEqual(self.fate(bed, one, other), fate)

    def test_a_session_in_clear_text_never_serves_who_demands_tls(self) -> None:
        for first, expected in CLEAR_TABLE.items():
            for second, fate in zip(LEVELS, expected, strict=True):
                with self.subTest(first=first, second=second):
                    bed = self.two_domains(server={"certificate": None})
                    one = Destination("example.com", tls=self.policy(first))
                    other = Destination("other.example", tls=self.policy(second))
                    self.assertEqual(self.fate(bed, one, other), fate)

    def test_a_name_that_was_not_asked_for_with_sni_is_proof_of_nothing(self) -> None:
        for level, fate in (("encrypt", SERVED), ("fingerprint", OWN), ("verify", OWN)):
            bed = self.two_domains()
            one = Destination("example.com", tls=self.policy(level))
            alias = Destination("alias.example", tls=self.policy(level))
            self.assertEqual(self.fate(bed, one, alias), fate)
            self.assertEqual([record.sni for record in bed.server.connections][-1] != "mx.example.com", fate == OWN)

    def test_the_names_that_are_wanted_are_judged_for_each_borrower_and_no_part_of_the_key(self) -> None:
        for match, fate in ((("mx.test",), SERVED), ((".example.com",), SERVED), (("mx.other.test",), REFUSED)):
            bed = self.two_domains()
            one = Destination("example.com", tls=self.policy("verify"))
            other = Destination("other.example", tls=self.policy("verify", match=match))
            self.assertEqual(self.fate(bed, one, other), fate)

    def test_a_fingerprint_is_judged_for_each_borrower(self) -> None:
        bed = self.two_domains()
        one = Destination("example.com", tls=self.policy("fingerprint"))
        policy = TLSPolicy("fingerprint", fingerprints=("00" * 32,), ca_file=verifying().ca_file)
        self.assertEqual(self.fate(bed, one, Destination("other.example", tls=policy)), REFUSED)
        self.assertEqual(bed.server.connection_count, 2)

    def test_a_domain_whose_demand_is_not_met_does_no_harm_to_the_session_of_the_other(self) -> None:
        bed = self.two_domains()
        one = Destination("example.com", tls=self.policy("verify"))
        self.fate(bed, one, Destination("other.example", tls=self.policy("secure")))
        self.sent(bed, destination=one)
        self.assertEqual(bed.server.connections[0].transactions, 2)

    def test_the_secure_level_shares_under_the_domains_own_name(self) -> None:
        bed = self.two_domains()
        for _ in range(2):
            self.sent(bed, destination=Destination("example.com", tls=self.policy("secure")))
        self.assertEqual(bed.server.connection_count, 1)
