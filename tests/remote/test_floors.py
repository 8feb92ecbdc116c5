"""The floor: what a keeper demands of TLS can be raised by a borrower, and never lowered."""

from __future__ import annotations

import itertools
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, Destination, TLSPolicy
from mailcache.remote.floors import Demand, floor, remade
from mailcache.trust.policy import LEVELS
from tests.helpers import authority, ca_file, certificate

ONE, TWO, THREE = ("AA" * 32, "BB" * 32, "CC" * 32)
ANCHORS = authority().certificate_pem
OTHERS = certificate().certificate_pem

# What comes of a level that is asked for, by the level that is demanded, in the order of LEVELS.
LEVEL_TABLE = {
    None: ("none", "may", "encrypt", "fingerprint", "verify", "secure"),
    "none": ("none", "may", "encrypt", "fingerprint", "verify", "secure"),
    "may": ("may", "may", "encrypt", "fingerprint", "verify", "secure"),
    "encrypt": ("encrypt", "encrypt", "encrypt", "fingerprint", "verify", "secure"),
    "fingerprint": ("fingerprint",) * 6,
    "verify": ("verify", "verify", "verify", "verify", "verify", "secure"),
    "secure": ("secure",) * 6,
}


def policy(level: str, **more: Any) -> TLSPolicy:
    if level == "fingerprint":
        more.setdefault("fingerprints", (ONE,))
    return TLSPolicy(level, **more)


def demand(level: str | None, **more: Any) -> Demand:
    return Demand(level, fingerprints=(TWO,) if level == "fingerprint" else (), **more)


def raised(asked: TLSPolicy, demanded: Demand) -> TLSPolicy:
    """The policy that comes of it."""
    return floor(Destination("[mx.test]", tls=asked), demanded).tls


class LevelTests(SynchronousTestCase):
    def test_table(self) -> None:
        for demanded, expected in LEVEL_TABLE.items():
            found = tuple(raised(policy(level), demand(demanded)).level for level in LEVELS)
            self.assertEqual(found, expected, demanded)

    def test_nothing_falls_below(self) -> None:
        """Whatever is asked for: the demand is met again by what comes of it, which no second look changes."""
        demands = [
            Demand(level, match=match, fingerprints=digests, min_version=version, ciphers=ciphers, trust_anchors=pem)
            for level in (None, *LEVELS)
            for match in ((), ("a.test", ".b.test"))
            for digests in ((), (ONE, TWO))
            for version in (None, "TLSv1.3")
            for ciphers in (None, "ECDHE+AESGCM")
            for pem in (None, ANCHORS)
            if not (match and level not in ("verify", "secure")) and bool(digests) == (level == "fingerprint")
        ]
        asked = [
            Destination("[mx.test]", tls=policy(level, min_version=version, ciphers=ciphers, ca_file=anchors))
            for level in LEVELS
            for version in ("TLSv1.2", "TLSv1.3")
            for ciphers in (None, "ALL:eNULL", "ECDHE-RSA-AES128-GCM-SHA256")
            for anchors in (None, ca_file())
        ]
        for demanded, where in itertools.product(demands, asked):
            once = floor(where, demanded)
            self.assertEqual(floor(once, demanded), once)
            rank = LEVELS.index
            if demanded.level is not None:
                self.assertGreaterEqual(min(rank(once.tls.level), 3), min(rank(demanded.level), 3))
            if demanded.proof:
                self.assertEqual(once.trust_anchors, demanded.trust_anchors)
                self.assertLessEqual(set(once.tls.match), set(demanded.match))
                self.assertLessEqual(set(once.tls.fingerprints), set(demanded.fingerprints))
            if demanded.min_version is not None:
                self.assertEqual(once.tls.min_version, demanded.min_version)

    def test_nothing_demanded(self) -> None:
        """What meets the demand is the same object."""
        asked = Destination("[mx.test]", tls=TLSPolicy("verify", ca_file=ca_file()))
        for demanded in (Demand(), Demand("may"), Demand("encrypt", min_version="TLSv1.2")):
            self.assertIs(floor(asked, demanded), asked)


class DetailTests(SynchronousTestCase):
    def test_names(self) -> None:
        """The keeper's, or those of them that the borrower names too."""
        for level, own, demanded, expected in (
            ("verify", (), (), ()),
            ("verify", (), ("a.test",), ("a.test",)),
            ("verify", ("x.test",), (), ()),
            ("verify", ("x.test",), ("a.test",), ("a.test",)),
            ("verify", ("a.test", "x.test"), ("a.test", "b.test"), ("a.test",)),
            ("secure", ("x.test",), (), ()),
            ("secure", ("x.test",), ("a.test",), ("a.test",)),
            ("fingerprint", (), ("a.test",), ("a.test",)),
            ("none", (), ("a.test",), ("a.test",)),
        ):
            found = raised(policy(level, match=own), Demand("verify", match=demanded))
            self.assertEqual(found.match, expected, (level, own, demanded))

    def test_names_that_nobody_demands(self) -> None:
        for level in (None, "may", "encrypt"):
            self.assertEqual(raised(policy("verify", match=("x.test",)), Demand(level)).match, ("x.test",))

    def test_fingerprints(self) -> None:
        for own, demanded, expected in (
            ((ONE,), (TWO,), (TWO,)),
            ((ONE, TWO), (TWO, THREE), (TWO,)),
            ((ONE,), (ONE, TWO), (ONE,)),
        ):
            found = raised(policy("fingerprint", fingerprints=own), Demand("fingerprint", fingerprints=demanded))
            self.assertEqual(found.fingerprints, expected)

    def test_anchors(self) -> None:
        """The keeper's where there are any, and where there are none the platform's, if a proof is demanded."""
        for level, pem, expected in (
            (None, None, ANCHORS),
            ("encrypt", None, ANCHORS),
            (None, OTHERS, OTHERS),
            ("encrypt", OTHERS, OTHERS),
            ("verify", OTHERS, OTHERS),
            ("verify", None, None),
            ("secure", None, None),
        ):
            asked = Destination("[mx.test]", tls=TLSPolicy("secure", ca_file=ca_file()))
            found = floor(asked, Demand(level, trust_anchors=pem))
            self.assertEqual(found.trust_anchors, expected, (level, pem))
            assert found.tls_class is not None and asked.tls_class is not None
            same = found.tls_class.trust_anchors == asked.tls_class.trust_anchors
            self.assertEqual(same, expected == ANCHORS)

    def test_minimal_version(self) -> None:
        for own, demanded, expected in (
            ("TLSv1.2", None, "TLSv1.2"),
            ("TLSv1.2", "TLSv1.3", "TLSv1.3"),
            ("TLSv1.3", "TLSv1.2", "TLSv1.3"),
        ):
            self.assertEqual(raised(TLSPolicy(min_version=own), Demand(min_version=demanded)).min_version, expected)

    def test_server_name(self) -> None:
        for own, demanded, expected in (
            ("x.test", None, "x.test"),
            ("x.test", "a.test", "a.test"),
            (None, "a.test", "a.test"),
        ):
            found = raised(policy("verify", servername=own), Demand("verify", servername=demanded))
            self.assertEqual(found.servername, expected)

    def test_ciphers(self) -> None:
        """Fewer of those that would do may be asked for, and no others."""
        strong, weak = "ECDHE+AESGCM", "ALL:eNULL"
        one = "ECDHE-RSA-AES128-GCM-SHA256"
        for level, own, demanded, expected in (
            ("may", weak, None, weak),
            ("may", None, strong, strong),
            ("encrypt", weak, None, None),
            ("encrypt", one, None, one),
            ("encrypt", one, strong, one),
            ("encrypt", weak, strong, strong),
            ("may", weak, strong, strong),
            ("encrypt", f"{one}:@SECLEVEL=0", None, None),
        ):
            self.assertEqual(
                raised(TLSPolicy("encrypt", ciphers=own), Demand(level, ciphers=demanded)).ciphers, expected
            )

    def test_the_rest_stays(self) -> None:
        """All that is no matter of TLS, and no file is read for it."""
        asked = Destination(
            "example.com:587", protocol="lmtp", namespace="x", bind_address="192.0.2.1", helo_name="x.test",
            credentials=Credentials("u", "p"), tls=TLSPolicy("may"), one_flight=True,
        ).on_behalf(77, None, certificate().private_pem)  # fmt: skip
        asked = asked.with_credentials(Credentials("u", "p"))
        found = floor(asked, Demand("encrypt"))
        self.assertEqual(found.tls, TLSPolicy("encrypt"))
        self.assertEqual((found.identity, found.hop, found.protocol), (asked.identity, asked.hop, asked.protocol))
        self.assertEqual((found.client_pem, found.one_flight), (asked.client_pem, True))
        self.assertEqual(remade(found, tls=asked.tls), asked)
