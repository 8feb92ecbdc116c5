"""Evidence: what real handshakes show, and that what can't be read is not there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from service_identity.hazmat import DNSPattern
from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryError, TLSPolicy
from mailcache.testing import Authority, Issued, self_signed
from mailcache.trust.evidence import CLEAR, Evidence
from tests.helpers import Bed, authority, certificate, evidence_of, verdict_of, verifying
from tests.trust.crafted import DAY, NOW, crafted, intermediate, renamed_extension

OURS = authority()


class Handshakes(SynchronousTestCase):
    """Over STARTTLS and from the first byte, through a cache."""

    def shown(self, issued: Issued, tls: TLSPolicy, **more: Any) -> Evidence:
        bed = Bed(tls=tls, server={"certificate": issued, **more.pop("server", {})}, **more)
        lease = bed.finish(bed.acquire())
        evidence: Evidence = lease.evidence
        lease.release()
        bed.close()
        return evidence

    def test_show_all_there_is_to_know(self) -> None:
        issued = certificate()
        leaf = issued.certificate
        spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for protocol, server in (("smtp", {}), ("smtps", {"implicit_tls": True}), ("lmtp", {"lmtp": True})):
            evidence = self.shown(issued, verifying(servername="mx.test"), protocol=protocol, server=server)
            self.assertEqual((evidence.version, evidence.cipher), ("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
            self.assertEqual(evidence.summary, "TLSv1.3 TLS_AES_256_GCM_SHA384")
            self.assertEqual((evidence.servername, evidence.chain_error), ("mx.test", None))
            self.assertEqual(evidence.certificate, issued.digest().hex().upper())
            self.assertEqual(evidence.public_key, hashlib.sha256(spki).hexdigest().upper())
            names = {str(name.pattern) for name in evidence.names}
            self.assertEqual(names, {"b'localhost'", "b'mx.test'", "b'mx.example.com'", "127.0.0.1"})
            self.assertEqual(evidence.not_before, leaf.not_valid_before_utc.timestamp())
            self.assertEqual(evidence.not_after, leaf.not_valid_after_utc.timestamp())

    def test_show_what_is_wrong_with_the_chain(self) -> None:
        """At a level that does not care, so that one that does can judge the same session."""
        for issued, error in (
            (certificate(), None),
            (self_signed(("mx.test",)), "depth zero self signed cert"),
            (Authority("other").issue(("mx.test",)), "self signed cert in chain"),
            (OURS.issue(("mx.test",), not_before=NOW - 9 * DAY, not_after=NOW - DAY), "cert has expired"),
            (OURS.issue(("mx.test",), not_before=NOW + DAY), "cert not yet valid"),
            (OURS.issue(("mx.test",), client=True), "invalid purpose"),
        ):
            evidence = self.shown(issued, TLSPolicy("encrypt", ca_file=verifying().ca_file))
            self.assertEqual(evidence.chain_error, error)
            self.assertEqual(evidence.certificate, issued.digest().hex().upper())

    def test_the_first_error_of_the_chain_is_kept(self) -> None:
        issued = self_signed(("mx.test",), not_before=NOW - 9 * DAY, not_after=NOW - DAY)
        evidence = self.shown(issued, TLSPolicy("encrypt", ca_file=verifying().ca_file))
        self.assertEqual(evidence.chain_error, "depth zero self signed cert")

    def test_the_servers_authority_alone_is_no_trust(self) -> None:
        """What a server sends along is no anchor."""
        evidence = self.shown(certificate(), TLSPolicy("encrypt"))
        self.assertEqual(evidence.chain_error, "self signed cert in chain")

    def test_no_tls_shows_nothing(self) -> None:
        bed = Bed(tls=TLSPolicy("none"))
        lease = bed.finish(bed.acquire())
        self.assertIs(lease.evidence, CLEAR)
        self.assertIsNone(CLEAR.summary)
        lease.release()
        bed.close()


class Dates(SynchronousTestCase):
    """A chain is valid while all of it is."""

    def test_are_the_narrowest_of_the_chain(self) -> None:
        for leaf_days, above_days, days in ((100, 50, 50), (20, 50, 20), (50, 5000, 50)):
            issued = crafted(OURS, [x509.DNSName("mx.test")], under=intermediate(OURS, above_days), days=leaf_days)
            evidence = evidence_of(issued, OURS.certificate_pem, "mx.test")
            self.assertEqual(evidence.chain_error, None)
            self.assertEqual(evidence.not_after, (NOW + days * DAY).timestamp())
            self.assertEqual(evidence.not_before, (NOW - DAY).timestamp())

    def test_are_those_of_the_anchor_too(self) -> None:
        """Even where the server does not send it."""
        issued = crafted(OURS, [x509.DNSName("mx.test")], days=100_000)
        alone = Issued(issued.certificate, issued.key)
        evidence = evidence_of(alone, OURS.certificate_pem, "mx.test")
        self.assertEqual(evidence.not_after, OURS.certificate.not_valid_after_utc.timestamp())

    def test_what_is_sent_besides_the_chain_is_no_matter(self) -> None:
        issued = certificate()
        stray = self_signed(not_before=NOW - 9 * DAY, not_after=NOW - DAY).certificate
        evidence = evidence_of(
            Issued(issued.certificate, issued.key, (*issued.chain, stray)), OURS.certificate_pem, None
        )
        self.assertEqual(evidence.chain_error, None)
        self.assertEqual(evidence.not_after, issued.certificate.not_valid_after_utc.timestamp())


class OddCertificates(SynchronousTestCase):
    """The server chooses its certificate: what can't be read of it is not there, and nothing breaks."""

    def names(self, *names: x509.GeneralName) -> Sequence[Any]:
        return evidence_of(crafted(OURS, list(names)), OURS.certificate_pem, None).names

    def test_a_name_that_no_host_has_does_not_spoil_the_others(self) -> None:
        good = DNSPattern(b"mx.test")
        for odd in (
            x509.DNSName("192.0.2.1"),
            x509.DNSName("a\0.mx.test"),
            x509.DNSName(""),
            x509.DNSName(" mx.example"),
            x509.DNSName("mx.example."),
            x509.DNSName(".example"),
            x509.DNSName("a..b"),
            x509.DNSName("*"),
            x509.DNSName("*.com"),
            x509.DNSName("a.*.com"),
            x509.DNSName("1234"),
            x509.UniformResourceIdentifier("https://a:443/b:c"),
            x509.UniformResourceIdentifier("urn"),
            x509.RFC822Name("postmaster@mx.test"),
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.7"), b"\x16\x04none"),
            x509.DirectoryName(x509.Name([])),
            x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        ):
            self.assertEqual(self.names(odd, x509.DNSName("mx.test")), (good,), odd)
            self.assertEqual(self.names(x509.DNSName("MX.test"), odd), (good,), odd)

    def test_one_that_can_not_be_read_at_all(self) -> None:
        """Two extensions of the same kind, here. Levels without proof deliver, others refuse, nothing raises."""
        whole = OURS.issue(("mx.test",))
        issued = renamed_extension(OURS, whole, "2.5.29.14", "2.5.29.17")
        evidence = evidence_of(issued, OURS.certificate_pem, "mx.test")
        self.assertEqual((evidence.version, evidence.names), ("TLSv1.3", ()))
        self.assertEqual(len(evidence.certificate), 64)
        for policy, word in (
            (TLSPolicy("may"), "SENT"),
            (TLSPolicy("encrypt"), "SENT"),
            (TLSPolicy("fingerprint", fingerprints=(evidence.certificate,)), "SENT"),
            (TLSPolicy("fingerprint", fingerprints=("ab" * 32,)), "NEXT"),
            (verifying(match=("mx.test",)), "NEXT"),
        ):
            bed = Bed(tls=policy, server={"certificate": issued})
            value = bed.deliver()
            self.assertEqual(verdict_of(value), word, policy)
            if isinstance(value, DeliveryError):
                self.assertEqual(value.phase, "trust")
            bed.close()
