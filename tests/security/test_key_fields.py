"""Every field by which mail streams differ keeps them apart, for every cache and in both orders.

The tables are checked against the classes, so that whoever adds a field has to say here what comes of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from mailcache import Credentials, Destination, TLSPolicy
from mailcache.destination import Identity
from mailcache.testing import Authority, MemoryReactor
from mailcache.trust.evidence import TLSClass
from tests.helpers import PORT, authority, ca_file, certificate, stored, verifying
from tests.security.callers import BORROWERS, KEEPER, MECHANISMS, MEMORY, ORDERS, WAYS, Pair, SharingCase, to
from tests.test_proxies import Directory

Field = tuple[type, str]

KEYED = (Destination, Identity, TLSPolicy, TLSClass, Credentials)
"""The classes whose fields say what is the same."""

ANNE, BERT = Credentials("anne", "secret"), Credentials("bert", "secret")
USERS = {"users": {"anne": "secret", "bert": "secret", "role": "one.client.test"}, "mechanisms": MECHANISMS}
UIDS = (1001, 1002)

SHARED: dict[Field, str] = {
    (
        Destination,
        "one_flight",
    ): "it is how one message is sent; the session is the same before and after it",
    (Destination, "_hash"): "it is the hash of the others",
    (Destination, "lineage"): "it says which sessions end when there is a newer token, and is made of the others",
}
"""Fields that keep nobody apart by themselves, and why that is right."""

JUDGED: dict[Field, str] = {
    (TLSPolicy, "level"): "what the handshake has proved is judged for each borrower",
    (TLSPolicy, "match"): "the names of the certificate are judged for each borrower",
    (TLSPolicy, "fingerprints"): "the certificate's digests are judged for each borrower",
    (TLSPolicy, "servername"): "where the certificate matters, the name that was asked for is judged for each borrower",
}
"""Fields by which nobody is kept apart whose demands the session meets; who is not served by it is below."""

ALIKE: dict[Field, Field] = {
    (Destination, "hop"): (Destination, "next_hop"),
    (Destination, "identity"): (Destination, "credentials"),
    (Destination, "tls_class"): (TLSPolicy, "min_version"),
    (Destination, "trust_anchors"): (TLSPolicy, "ca_file"),
    (Destination, "client_pem"): (Destination, "client_certificate"),
    **{
        (Identity, name): (Destination, name)
        for name in ("namespace", "bind_address", "helo_name", "credentials", "client_certificate", "proxy")
    },
    (TLSClass, "trust_anchors"): (TLSPolicy, "ca_file"),
    (TLSClass, "min_version"): (TLSPolicy, "min_version"),
    (TLSClass, "ciphers"): (TLSPolicy, "ciphers"),
    (TLSClass, "client_certificate"): (Destination, "client_certificate"),
}
"""Fields that are made of another, so that they differ with it."""


def _proxies(reactor: MemoryReactor) -> dict[str, Directory]:
    return {name: Directory(reactor, {"127.0.0.1": "127.0.0.1"}) for name in ("one", "other")}


def _certified(case: SharingCase, *names: str) -> list[str]:
    return [stored(case, authority().issue((name,), (), client=True).private_pem) for name in names]


def pairs(case: SharingCase) -> dict[Field, tuple[Pair, ...]]:
    """For each field two destinations that differ in that alone."""
    one, other = _certified(case, "one.client.test", "other.client.test")
    more_anchors = stored(case, authority().certificate_pem + Authority("another").certificate_pem)
    replaced = stored(case, authority().certificate_pem)
    before = to(tls=TLSPolicy("verify", ca_file=replaced))
    Path(replaced).write_bytes(Authority("another").certificate_pem)
    after = to(tls=TLSPolicy("verify", ca_file=replaced))
    token = Credentials("anne", token="secret")
    digest = certificate().digest().hex()

    def printed(*prints: str) -> Destination:
        return to(tls=TLSPolicy("fingerprint", ca_file=ca_file(), fingerprints=prints))

    def login(first: Credentials, second: Credentials, **more: Any) -> Pair:
        given = more.pop("destination", {})
        return Pair(to(credentials=first, **given), to(credentials=second, **given), server=USERS, **more)

    named = {"client_name": "one.client.test"}, {"client_name": "other.client.test"}
    here, may = f"[127.0.0.1]:{PORT}", TLSPolicy("may")
    helos = {"helo_name": "a.example"}, {"helo_name": "b.example"}
    users = [to().on_behalf(uid, authority().certificate_pem, None) for uid in UIDS]
    return {
        (Destination, "next_hop"): (
            Pair(to(here), to(f"[127.0.0.1]:{PORT + 1}"), more=((PORT + 1, "127.0.0.1"),)),
            Pair(to(here, tls=may), to(f"[127.0.0.2]:{PORT}", tls=may), more=((PORT, "127.0.0.2"),)),
        ),
        (Destination, "protocol"): (
            Pair(to(protocol="smtp"), to(protocol="lmtp"), refused="ehlo", faulted=True),
            Pair(to(protocol="lmtp"), to(protocol="smtp"), refused="ehlo", faulted=True, server={"lmtp": True}),
            Pair(to(protocol="smtp"), to(protocol="smtps"), refused="tls", faulted=True),
        ),
        (Destination, "namespace"): (Pair(to(namespace="a"), to(namespace="A")), Pair(to(), to(namespace="default "))),
        (Destination, "bind_address"): (
            Pair(to(bind_address="127.0.0.2"), to(bind_address="127.0.0.3")),
            Pair(to(bind_address="127.0.0.1"), to()),
        ),
        (Destination, "helo_name"): (
            Pair(to(helo_name="a.example"), to(helo_name="b.example"), helos),
            Pair(to(helo_name="[127.0.0.1]"), to()),
        ),
        (Destination, "proxy"): (
            Pair(to(proxy="one"), to(proxy="other"), proxies=_proxies),
            Pair(to(proxy="one"), to(), proxies=_proxies),
        ),
        (Destination, "client_certificate"): (
            Pair(to(client_certificate=one), to(client_certificate=other), named, server=USERS),
            Pair(to(client_certificate=one), to(), (named[0], {"client_name": None}), server=USERS),
        ),
        (Destination, "credentials"): (
            login(ANNE, BERT, seen=({"user": "anne"}, {"user": "bert"})),
            Pair(to(credentials=ANNE), to(), ({"user": "anne"}, {"user": None}), server=USERS),
        ),
        (Destination, "tls"): (Pair(to(tls=TLSPolicy("none")), to()),),
        (Identity, "uid"): (Pair(users[0], users[1]),),
        (TLSPolicy, "level"): (
            Pair(to(tls=TLSPolicy("none")), to(tls=may)),
            Pair(to(tls=may), to(tls=TLSPolicy("encrypt")), refused="starttls", server={"certificate": None}),
            Pair(to(tls=TLSPolicy("encrypt", ca_file=after.tls.ca_file)), after, refused="trust"),
        ),
        (TLSPolicy, "ca_file"): (
            Pair(before, after, refused="trust"),
            Pair(to(), to(tls=TLSPolicy("verify", ca_file=more_anchors))),
            Pair(to(), to(tls=TLSPolicy("verify")), refused="trust"),
        ),
        (TLSPolicy, "match"): (Pair(to(), to(tls=verifying(match=("mx.other.test",))), refused="trust"),),
        (TLSPolicy, "fingerprints"): (Pair(printed(digest), printed("00" * 32), refused="trust"),),
        (TLSPolicy, "servername"): (
            Pair(
                to(tls=verifying(servername="mx.test")), to(tls=verifying(servername="localhost")),
                ({"sni": "mx.test"}, {"sni": "localhost"}),
            ),
        ),
        (TLSPolicy, "min_version"): (Pair(to(), to(tls=verifying(min_version="TLSv1.3"))),),
        (TLSPolicy, "ciphers"): (Pair(to(), to(tls=verifying(ciphers="ECDHE+AESGCM"))),),
        (Credentials, "username"): (
            login(ANNE, BERT, seen=({"user": "anne"}, {"user": "bert"})),
            login(ANNE, Credentials("Anne", "secret"), refused="auth"),
        ),
        (Credentials, "password"): (
            login(ANNE, Credentials("anne", "Secret"), refused="auth"),
            login(ANNE, Credentials("anne", "secret "), refused="auth"),
        ),
        (Credentials, "token"): (
            login(token, Credentials("anne", token="Secret"), refused="auth", replaced=True),
            login(ANNE, token),
        ),
        (Credentials, "external"): (
            login(
                Credentials("role", external=True), Credentials("role", "one.client.test"),
                destination={"client_certificate": one}, seen=({"user": "role"}, {"user": "role"}),
            ),
        ),
        (Credentials, "mechanisms"): (login(ANNE, Credentials("anne", "secret", mechanisms=("PLAIN",))),),
    }  # fmt: skip


class Fields(SharingCase):
    def test_are_all_in_the_tables(self) -> None:
        """A field that somebody adds, and of which nobody has thought here, is noticed."""
        there = {(kind, field.name) for kind in KEYED for field in attrs.fields(kind)}
        tried = pairs(self).keys()
        self.assertEqual(there, tried | SHARED.keys() | ALIKE.keys())
        for one, other in ((tried, SHARED), (tried, ALIKE), (SHARED, ALIKE)):
            self.assertEqual(one & other.keys(), set())
        self.assertLessEqual(set(ALIKE.values()) | JUDGED.keys(), tried)

    def ways(self, field: Field) -> tuple[str, ...]:
        """Where it can differ at all: one borrower has one user."""
        return (MEMORY, BORROWERS) if field == (Identity, "uid") else WAYS

    def test_keep_streams_apart(self) -> None:
        count = 0
        for field, tried in pairs(self).items():
            users = UIDS if field == (Identity, "uid") else (None, None)
            for pair in tried:
                for way in self.ways(field):
                    for order in ORDERS:
                        with self.about(field, pair, way, order):
                            self.assert_apart(pair, way, order, users=users)
                            count += 1
        self.assertGreater(count, 180)

    def test_that_are_the_same_do_not(self) -> None:
        """The same destinations without the difference share, so it is the difference that keeps them apart."""
        for field, tried in pairs(self).items():
            for pair in tried:
                with self.about(field, pair):
                    self.assert_shared(pair, BORROWERS)

    def test_that_are_made_of_others_differ_with_them(self) -> None:
        """And with nothing else: they are what is compared in the other's place."""
        found = pairs(self)
        for (kind, name), source in ALIKE.items():
            values = [self.value(kind, name, destination) for destination in found[source][0].destinations]
            self.assertNotEqual(values[0], values[1], (kind, name))

    def value(self, kind: type, name: str, destination: Destination) -> Any:
        holder = {Destination: destination, Identity: destination.identity, TLSClass: destination.tls_class}[kind]
        return getattr(holder, name)

    def test_that_are_shared_are_shared(self) -> None:
        for way in WAYS:
            with self.callers(way) as callers:
                for which in (0, 1, 0, 1):
                    self.sent(callers.deliver(which, to(one_flight=bool(which))))
                self.assertEqual(len(callers.connections), 1)

    def test_that_are_judged_share_where_the_proof_does(self) -> None:
        anchors = {"ca_file": ca_file()}
        shared = {
            "level": (TLSPolicy("encrypt", **anchors), TLSPolicy("verify", **anchors)),
            "match": (TLSPolicy("verify", **anchors), TLSPolicy("verify", match=("mx.test",), **anchors)),
            "fingerprints": tuple(
                TLSPolicy("fingerprint", fingerprints=(certificate().digest().hex(), *more), **anchors)
                for more in ((), ("00" * 32,))
            ),
            "servername": tuple(TLSPolicy("encrypt", servername=name, **anchors) for name in ("a.test", "b.test")),
        }
        self.assertEqual({(TLSPolicy, name) for name in shared}, JUDGED.keys())
        for name, policies in shared.items():
            for way in (MEMORY, KEEPER):
                with self.about(name, way), self.callers(way) as callers:
                    for which in (0, 1, 0):
                        self.sent(callers.deliver(which, to(tls=policies[which])))
                    self.assertEqual(len(callers.connections), 1)
