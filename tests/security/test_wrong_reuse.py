"""What connection reuse got wrong elsewhere: curl's advisories and those of others, one by one, in terms of mail.

Each line is an advisory (or a change log's entry), the mistake in a few words, and two destinations that would share a
session by it. What comes of them is judged by what the server has seen. Where the mistake is no matter of two
destinations, there is a test of its own below.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from mailcache import Credentials, TLSPolicy
from mailcache.testing import Authority, Issued, MemoryReactor, self_signed
from tests.helpers import PORT, authority, stored, verifying
from tests.security.callers import BORROWERS, HERE, MECHANISMS, MEMORY, ORDERS, Pair, SharingCase, to
from tests.test_proxies import Directory

ANNE, BERT = Credentials("anne", "secret"), Credentials("bert", "secret")
AS_ANNE, AS_BERT, AS_NOBODY = {"user": "anne"}, {"user": "bert"}, {"user": None}
USERS = {"users": {"anne": "secret", "bert": "secret", "Anne": "secret"}, "mechanisms": MECHANISMS}
CLEAR = {"certificate": None}
ENCRYPT = TLSPolicy("encrypt")


def logins(one: Credentials | None, other: Credentials | None, *seen: dict[str, Any], **more: Any) -> Pair:
    """Two that differ in whom they log in as."""
    rest = {name: more.pop(name) for name in ("refused", "replaced") if name in more}
    server = {**USERS, **more.pop("server", {})}
    return Pair(to(credentials=one, **more), to(credentials=other, **more), seen or ({}, {}), server=server, **rest)  # type: ignore[arg-type]


def certificates(case: SharingCase, **more: Any) -> Pair:
    """Two that differ in their client certificate."""
    names = ("one.client.test", "other.client.test")
    one, other = (authority().issue((name,), (), client=True).private_pem for name in names)
    path = stored(case, one)
    first = to(client_certificate=path, **more)
    Path(path).write_bytes(other)
    second = to(client_certificate=path, **more)
    return Pair(first, second, ({"client_name": names[0]}, {"client_name": names[1]}), server=USERS)


def anchors(case: SharingCase, level: str = "verify") -> Pair:
    """Two whose trust anchors have the same path but for case, and only the first's have signed the certificate."""
    folder = Path(case.mktemp())
    folder.mkdir()
    (folder / "Anchors.pem").write_bytes(authority().certificate_pem)
    (folder / "anchors.pem").write_bytes(Authority("another").certificate_pem)
    one, other = (
        to(tls=TLSPolicy("verify" if name == "anchors.pem" else level, ca_file=str(folder / name)))
        for name in ("Anchors.pem", "anchors.pem")
    )
    return Pair(one, other, refused="trust")


def same_key(case: SharingCase) -> Pair:
    """Two that show the same key and certificate, one of them with the chain above it."""
    chained = authority().issue(("anne",), (), client=True)
    alone = Issued(chained.certificate, chained.key)
    one, other = (to(client_certificate=stored(case, issued.private_pem)) for issued in (chained, alone))
    return Pair(one, other, ({"client_name": "anne"}, {"client_name": "anne"}), server=USERS)


def by_proxies(one: str | None, other: str | None) -> Pair:
    """Two that go by different ways."""

    def proxies(reactor: MemoryReactor) -> dict[str, Directory]:
        return {name: Directory(reactor, {"127.0.0.1": "127.0.0.1"}) for name in ("anne", "bert")}

    return Pair(to(proxy=one), to(proxy=other), proxies=proxies)


def levels(one: str, other: str, refused: str | None = None, **server: Any) -> Pair:
    """Two that differ in how much TLS they demand."""
    return Pair(to(tls=TLSPolicy(one)), to(tls=TLSPolicy(other)), refused=refused, server=server)


def places(one: str, other: str, *more: tuple[int, str], **arguments: Any) -> Pair:
    """Two at different places."""
    return Pair(to(one, tls=ENCRYPT, **arguments), to(other, tls=ENCRYPT), more=more, server=USERS)


def tokens(one: str, other: str) -> tuple[Credentials, Credentials]:
    return Credentials("anne", token=one), Credentials("anne", token=other)


def advisories(case: SharingCase) -> Iterator[tuple[str, str, Pair]]:
    """Who, what was wrong, and two that must be kept apart."""
    yield (
        "CVE-2014-0015",
        "a login counts for a request, so its connection serves another user",
        logins(ANNE, BERT, AS_ANNE, AS_BERT),
    )
    yield (
        "CVE-2014-0138",
        "protocols that the match does not know are taken for one it does",
        logins(ANNE, BERT, AS_ANNE, AS_BERT, protocol="lmtp", server={"lmtp": True}),
    )
    yield (
        "CVE-2014-0138",
        "the same with TLS from the first byte",
        logins(ANNE, BERT, AS_ANNE, AS_BERT, protocol="smtps", server={"implicit_tls": True}),
    )
    yield (
        "CVE-2015-3143",
        "a connection that is logged in serves who has no login",
        logins(ANNE, None, AS_ANNE, AS_NOBODY),
    )
    yield (
        "CVE-2015-3148",
        "one who was let in by another mechanism is let in as the same",
        logins(
            Credentials("anne", "secret", mechanisms=("PLAIN",)),
            Credentials("bert", "secret", mechanisms=("CRAM-MD5",)),
            AS_ANNE,
            AS_BERT,
        ),
    )
    yield (
        "CVE-2015-3236",
        "credentials stay with a connection for who comes without",
        logins(BERT, None, AS_BERT, AS_NOBODY),
    )
    yield "CVE-2016-0755", "the login at a proxy is not compared", by_proxies("anne", "bert")
    yield "CVE-2016-5420", "the client certificate is not compared", certificates(case)
    with_one = certificates(case)
    yield (
        "CVE-2016-7141",
        "the client certificate of one is shown for who has none",
        attrs.evolve(with_one, other=to(), seen=(with_one.seen[0], {"client_name": None})),
    )
    yield (
        "CVE-2016-8616",
        "passwords are compared without regard to case",
        logins(ANNE, Credentials("anne", "Secret"), AS_ANNE, {}, refused="auth"),
    )
    yield "CVE-2016-8616", "and so are names", logins(ANNE, Credentials("Anne", "secret"), AS_ANNE, {"user": "Anne"})
    yield "CVE-2021-22924", "paths of trust anchors are compared without regard to case", anchors(case)
    yield (
        "CVE-2022-22576",
        "bearer tokens are not compared",
        logins(*tokens("secret", "another"), AS_ANNE, {}, refused="auth", replaced=True),
    )
    yield (
        "CVE-2022-27775",
        "the zone of an IPv6 address is not compared",
        places(f"[fe80::1%lo]:{PORT}", f"[fe80::1%eth0]:{PORT}", (PORT, "fe80::1%lo"), (PORT, "fe80::1%eth0")),
    )
    yield (
        "CVE-2022-27782",
        "ciphers are not compared",
        Pair(to(tls=verifying()), to(tls=verifying(ciphers="ECDHE+AESGCM"))),
    )
    yield (
        "CVE-2022-27782",
        "nor is the least version of TLS",
        Pair(to(tls=verifying()), to(tls=verifying(min_version="TLSv1.3"))),
    )
    yield "CVE-2023-27535", "whether TLS is used at all is not compared", levels("may", "none", **CLEAR)
    yield (
        "CVE-2023-27536",
        "what the mechanism may do is not compared",
        logins(ANNE, Credentials("anne", "secret", mechanisms=("PLAIN",)), AS_ANNE, AS_ANNE),
    )
    yield (
        "CVE-2023-27538",
        "keys that log in are not compared",
        certificates(case, credentials=Credentials("", external=True)),
    )
    yield (
        "CVE-2024-11053",
        "credentials for one host go to another",
        attrs.evolve(
            places(HERE, f"[127.0.0.1]:{PORT + 1}", (PORT + 1, "127.0.0.1"), credentials=ANNE),
            seen=(AS_ANNE, AS_NOBODY),
        ),
    )
    yield (
        "CVE-2026-1965",
        "who logs in is not compared where the login is the connection's",
        logins(BERT, ANNE, AS_BERT, AS_ANNE),
    )
    yield "CVE-2026-3784", "the proxy's credentials are not compared", by_proxies("anne", "bert")
    yield "CVE-2026-3784", "and a proxy is taken for none", by_proxies("anne", None)
    yield (
        "CVE-2026-4873",
        "who demands TLS gets a connection in clear text",
        levels("may", "encrypt", "starttls", **CLEAR),
    )
    yield (
        "CVE-2026-5545",
        "a login by one mechanism serves who wants another",
        logins(
            Credentials("anne", "secret", mechanisms=("LOGIN",)),
            Credentials("anne", "secret", mechanisms=("PLAIN",)),
            AS_ANNE,
            AS_ANNE,
        ),
    )
    yield (
        "CVE-2026-5773",
        "the part of a server that is meant is not compared",
        Pair(to(namespace="share-one"), to(namespace="share-other")),
    )
    yield (
        "CVE-2026-6429",
        "credentials go along to a second host by way of a proxy",
        Pair(
            to(credentials=ANNE, proxy="anne"),
            to(f"[127.0.0.1]:{PORT + 1}", proxy="anne"),
            (AS_ANNE, AS_NOBODY),
            more=((PORT + 1, "127.0.0.1"),),
            proxies=by_proxies("anne", None).proxies,
            server=USERS,
        ),
    )
    yield "CVE-2026-8286", "protocols with STARTTLS leave out the comparison of TLS", anchors(case, "may")
    yield (
        "CVE-2026-8458",
        "the service for which one logs in is not compared",
        Pair(
            to(credentials=ANNE, namespace="one"),
            to(credentials=ANNE, namespace="other"),
            (AS_ANNE, AS_ANNE),
            server=USERS,
        ),
    )
    yield "CVE-2026-8932", "of the client's key and chain only a part is compared", same_key(case)
    yield (
        "CVE-2026-9079",
        "credentials are still set after they were taken back",
        logins(ANNE, None, AS_ANNE, AS_NOBODY, tls=ENCRYPT),
    )
    yield (
        "CVE-2026-11564",
        "the platform's trust anchors stay in force",
        Pair(to(), to(tls=TLSPolicy("verify")), refused="trust"),
    )
    yield (
        "curl, by design",
        "who does not bind gets a connection that is bound",
        Pair(to(bind_address="127.0.0.2"), to()),
    )
    yield (
        "CVE-2024-35195 (requests)",
        "verification that was off stays off",
        Pair(
            to(tls=TLSPolicy("encrypt", ca_file=verifying().ca_file)),
            to(),
            refused="trust",
            server={"certificate": self_signed(("localhost",))},
        ),
    )
    yield (
        "CVE-2025-12819 (PgBouncer)",
        "what one client has set counts for the next",
        Pair(
            to(helo_name="one.example"),
            to(helo_name="other.example"),
            ({"helo_name": "one.example"}, {"helo_name": "other.example"}),
        ),
    )
    yield "Exim JH/22", "the port is not compared", places(HERE, f"[127.0.0.1]:{PORT + 1}", (PORT + 1, "127.0.0.1"))
    yield "Exim 1141", "the interface is not compared", Pair(to(bind_address="127.0.0.2"), to(bind_address="127.0.0.3"))
    yield (
        "Postfix 20250622",
        "the level is not compared where the certificate was not verified",
        Pair(
            to(tls=TLSPolicy("may", ca_file=verifying().ca_file)),
            to(),
            refused="trust",
            server={"certificate": self_signed(("localhost",))},
        ),
    )
    yield "Postfix CONNECTION_CACHE_README", "there is one account for each server", logins(
        ANNE, BERT, AS_ANNE, AS_BERT, helo_name="same.example"
    )  # fmt: skip


class Advisories(SharingCase):
    """A and B in turn, B and A in turn, in memory and as two borrowers of a keeper."""

    def test_what_they_mixed_up_is_kept_apart(self) -> None:
        count = 0
        for name, mistake, pair in advisories(self):
            for way in (MEMORY, BORROWERS):
                for order in ORDERS:
                    with self.about(name, mistake, way, order):
                        self.assert_apart(pair, way, order)
                        count += 1
        self.assertGreater(count, 140)

    def test_who_asks_for_the_same_shares(self) -> None:
        """So it is for the difference that the others do not."""
        for name, mistake, pair in advisories(self):
            for way in (MEMORY, BORROWERS):
                with self.about(name, mistake, way):
                    self.assert_shared(pair, way)
