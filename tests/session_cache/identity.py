"""Mail streams that differ in anything never meet on one session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mailcache import Credentials, DeliveryResult, Destination, TLSPolicy
from mailcache.destination import Identity, field_names
from mailcache.testing import Authority
from mailcache.trust.evidence import TLSClass
from tests.helpers import PORT, Bed, authority, stored, verifying
from tests.session_cache.case import CacheCase

HERE = f"[127.0.0.1]:{PORT}"
USERS = {"anne": "secret", "bert": "secret"}


def _policies(case: CacheCase) -> dict[str, tuple[TLSPolicy, TLSPolicy]]:
    both = authority().certificate_pem + Authority("another").certificate_pem
    return {
        "level": (TLSPolicy("none"), verifying()),
        "trust_anchors": (verifying(), TLSPolicy("verify", ca_file=stored(case, both))),
        "min_version": (verifying(), verifying(min_version="TLSv1.3")),
        "ciphers": (verifying(), verifying(ciphers="ECDHE+AESGCM")),
        "servername": (verifying(servername="mx.test"), verifying(servername="localhost")),
    }


def _identities(case: CacheCase) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    pem = authority().issue(client=True).private_pem
    anne, bert = Credentials("anne", "secret"), Credentials("bert", "secret")
    return {
        "namespace": ({"namespace": "a"}, {"namespace": "b"}),
        "bind_address": ({"bind_address": "127.0.0.2"}, {"bind_address": "127.0.0.3"}),
        "helo_name": ({"helo_name": "a.example"}, {"helo_name": "b.example"}),
        "credentials": ({"credentials": anne}, {"credentials": bert}),
        "no credentials": ({"credentials": anne}, {}),
        "client_certificate": ({"client_certificate": stored(case, pem)}, {}),
    }


class IdentityTests(CacheCase):
    def in_turn(self, make: Callable[[Bed, int], Destination], connections: int, **settings: Any) -> None:
        """Deliver to two destinations in turn, twice, in both orders: how many connections does that take?"""
        for order in ((0, 1), (1, 0)):
            bed = self.bed(server={"users": USERS}, **settings)
            for which in order * 2:
                self.sent(bed, destination=make(bed, which))
            self.assertEqual(bed.server.connection_count, connections, order)

    def test_equal_destinations_share_a_session(self) -> None:
        pem = stored(self, authority().issue(client=True).private_pem)
        settings: dict[str, Any] = {
            "namespace": "a",
            "bind_address": "127.0.0.2",
            "helo_name": "a.example",
            "credentials": Credentials("anne", "secret"),
            "client_certificate": pem,
        }
        self.in_turn(lambda bed, _: bed.to(HERE, tls=verifying(ciphers="ECDHE+AESGCM"), **settings), 1)

    def test_destinations_that_differ_in_their_identity_never_share_a_session(self) -> None:
        for name, pair in _identities(self).items():
            with self.subTest(name):
                self.in_turn(lambda bed, which, pair=pair: bed.to(HERE, **pair[which]), 2)  # type: ignore[misc]

    def test_destinations_that_differ_in_what_of_tls_can_not_be_judged_never_share_a_session(self) -> None:
        for name, pair in _policies(self).items():
            with self.subTest(name):
                self.in_turn(lambda bed, which, pair=pair: bed.to(HERE, tls=pair[which]), 2)  # type: ignore[misc]

    def test_files_count_by_what_is_in_them(self) -> None:
        copies = [stored(self, authority().certificate_pem) for _ in range(2)]
        self.in_turn(lambda bed, which: bed.to(HERE, tls=TLSPolicy("verify", ca_file=copies[which])), 1)

    def test_whether_one_flight_is_allowed_is_no_part_of_identity(self) -> None:
        self.in_turn(lambda bed, which: bed.to(HERE, one_flight=bool(which)), 1)

    def test_ports_and_addresses_are_servers_of_their_own(self) -> None:
        for next_hop, port, interface in (
            (f"[127.0.0.1]:{PORT + 1}", PORT + 1, "127.0.0.1"),
            (f"[127.0.0.2]:{PORT}", PORT, "127.0.0.2"),
        ):
            bed = self.bed()
            other = bed.add_server(port, interface)
            for _ in range(2):
                self.sent(bed)
                self.sent(bed, destination=bed.to(next_hop, tls=TLSPolicy("encrypt")))
            self.assertEqual((bed.server.connection_count, other.connection_count), (1, 1))

    def test_a_name_and_its_address_share_where_the_proof_does_for_both(self) -> None:
        bed = self.bed()
        bed.reactor.hosts["mx.test"] = ["127.0.0.1"]
        plain = TLSPolicy("encrypt")
        self.sent(bed, destination=bed.to(HERE, tls=plain))
        self.sent(bed, destination=bed.to(f"[mx.test]:{PORT}", tls=plain))
        self.assertEqual(bed.server.connection_count, 1)

    def test_smtp_and_lmtp_are_never_mixed(self) -> None:
        for protocols in (("smtp", "lmtp"), ("lmtp", "smtp")):
            bed = self.bed(server={"lmtp": protocols[0] == "lmtp"})
            self.sent(bed, destination=bed.to(HERE, protocol=protocols[0]))
            value = bed.deliver(destination=bed.to(HERE, protocol=protocols[1]))
            self.assertNotIsInstance(value, DeliveryResult)
            self.assertEqual(bed.server.connection_count, 2)
            bed.server.violations.clear()

    def test_another_password_of_the_same_user_is_another_identity(self) -> None:
        bed = self.bed(server={"users": USERS})
        self.sent(bed, destination=bed.to(HERE, credentials=Credentials("anne", "secret")))
        value = bed.deliver(destination=bed.to(HERE, credentials=Credentials("anne", "guess")))
        self.assertEqual((value.phase, value.retriable, value.reply.code), ("auth", False, 535))
        self.assertEqual(bed.server.connection_count, 2)

    def test_a_session_that_is_lent_while_the_password_changes_does_not_serve_the_new_one(self) -> None:
        bed = self.bed(server={"users": {"anne": "old"}})
        old, new = (bed.to(HERE, credentials=Credentials("anne", word)) for word in ("old", "new"))
        lease = self.lease(bed, old)
        bed.server.users = {"anne": "new"}
        lease.release()
        self.sent(bed, destination=new)
        self.assertEqual(bed.server.connection_count, 2)

    def test_every_field_that_a_key_is_made_of_is_in_these_tables(self) -> None:
        # Whoever adds a field decides with it whether sessions are shared over it, and says so here.
        identities = {*_identities(self)} - {"no credentials"}
        elsewhere = {"proxy", "uid"}  # see test_proxies; set by a keeper
        self.assertEqual(set(field_names(Identity)), identities | elsewhere)
        self.assertEqual(set(field_names(TLSClass)), {*_policies(self), "client_certificate"} - {"level", "servername"})
        derived = {"hop", "identity", "tls_class"}
        others = {"next_hop", "protocol", "tls", "one_flight", "proxy"}
        self.assertEqual(set(field_names(Destination)), identities | others | derived)
