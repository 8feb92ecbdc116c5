"""PEM as callers have it."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import Authority
from mailcache.trust.pem import certificates, use_client_certificate

ONE, OTHER = Authority("one"), Authority("other")
TEXT = b"# what stands around it\nis no matter\n"


def context() -> SSL.Context:
    return SSL.Context(SSL.TLS_CLIENT_METHOD)


class Certificates(SynchronousTestCase):
    def test_come_in_their_order(self) -> None:
        pem = TEXT + ONE.certificate_pem + TEXT + OTHER.certificate_pem + ONE.issue().key_pem
        subjects = [certificate.get_subject().CN for certificate in certificates(pem)]
        self.assertEqual(subjects, ["one", "other"])

    def test_none_or_a_broken_one_is_an_error(self) -> None:
        """Half a bundle is not taken for the whole."""
        for pem in (
            b"",
            TEXT,
            ONE.issue().key_pem,
            ONE.certificate_pem[:-30],
            ONE.certificate_pem.replace(b"MII", b"XII"),
            ONE.certificate_pem + OTHER.certificate_pem.replace(b"MII", b"XII"),
        ):
            self.assertRaises(ValueError, certificates, pem)


class ClientCertificates(SynchronousTestCase):
    pair = ONE.issue(client=True)

    def test_key_and_chain_in_any_order(self) -> None:
        for pem in (
            self.pair.key_pem + self.pair.certificate_pem,
            self.pair.certificate_pem + self.pair.key_pem,
            TEXT + self.pair.certificate_pem + TEXT + self.pair.key_pem + TEXT,
        ):
            use_client_certificate(context(), pem)

    def test_what_does_not_fit_is_an_error(self) -> None:
        locked = self.pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
        for pem, kind in (
            (self.pair.key_pem, ValueError),
            (self.pair.certificate_pem, ValueError),
            (self.pair.key_pem[:-40] + self.pair.certificate_pem, ValueError),
            (locked + self.pair.certificate_pem, ValueError),
            (OTHER.issue().key_pem + self.pair.certificate_pem, SSL.Error),
            (self.pair.key_pem + ONE.certificate_pem + self.pair.certificate_pem, SSL.Error),
        ):
            self.assertRaises(kind, use_client_certificate, context(), pem)

    def test_an_encrypted_key_is_called_that(self) -> None:
        locked = self.pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
        error = self.assertRaises(ValueError, use_client_certificate, context(), locked + self.pair.certificate_pem)
        self.assertIn("encrypted", str(error))
