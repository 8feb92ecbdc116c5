"""The authority issues what it was asked for, and TLS stacks believe it."""

from __future__ import annotations

import datetime
import ipaddress
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mailcache.testing import Authority, self_signed
from tests.testing.lockstep import AUTHORITY, CERTIFICATE, Scene, Trusting


class Issuing(SynchronousTestCase):
    """What stands in a certificate."""

    def test_names(self) -> None:
        """DNS names (in their ASCII form) and addresses are in subjectAltName."""
        issued = AUTHORITY.issue(("mx.test", "bücher.test"), ("192.0.2.1", "2001:db8::1"))
        names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["mx.test", "xn--bcher-kva.test"])
        addresses = [ipaddress.ip_address(each) for each in ("192.0.2.1", "2001:db8::1")]
        self.assertEqual(names.get_values_for_type(x509.IPAddress), addresses)
        issued.certificate.verify_directly_issued_by(AUTHORITY.certificate)

    def test_nameless(self) -> None:
        """Without names or addresses there is no subjectAltName."""
        issued = AUTHORITY.issue((), ())
        with self.assertRaises(x509.ExtensionNotFound):
            issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)

    def test_dates(self) -> None:
        """Valid now, or as was said."""
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        issued = AUTHORITY.issue()
        self.assertLess(issued.certificate.not_valid_before_utc, now)
        self.assertGreater(issued.certificate.not_valid_after_utc, now)
        day = datetime.timedelta(days=1)
        expired = AUTHORITY.issue(not_before=now - 2 * day, not_after=now - day)
        self.assertEqual(expired.certificate.not_valid_before_utc, now - 2 * day)
        self.assertEqual(expired.certificate.not_valid_after_utc, now - day)

    def test_purpose(self) -> None:
        """A server's or a client's."""
        for client, purpose in (
            (False, ExtendedKeyUsageOID.SERVER_AUTH),
            (True, ExtendedKeyUsageOID.CLIENT_AUTH),
        ):
            issued = AUTHORITY.issue(client=client)
            usage = issued.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            self.assertEqual(list(usage), [purpose])

    def test_pem(self) -> None:
        """The chain is leaf, then root; the key is the leaf's; Twisted can load all in one."""
        issued = AUTHORITY.issue()
        leaf, root = x509.load_pem_x509_certificates(issued.certificate_pem)
        self.assertEqual(leaf, issued.certificate)
        self.assertEqual(root, AUTHORITY.certificate)
        self.assertEqual(x509.load_pem_x509_certificate(AUTHORITY.certificate_pem), root)
        key: Any = load_pem_private_key(issued.key_pem, None)
        self.assertEqual(key.public_key(), leaf.public_key())
        loaded: Any = PrivateCertificate.loadPEM(issued.private_pem)
        self.assertEqual(loaded.digest("sha256").replace(b":", b"").lower(), issued.digest().hex().encode())
        self.assertEqual(len(issued.digest("sha512")), 64)

    def test_self_signed(self) -> None:
        """It vouches for itself, and comes alone."""
        issued = self_signed(("mx.test",))
        self.assertEqual(len(x509.load_pem_x509_certificates(issued.certificate_pem)), 1)
        issued.certificate.verify_directly_issued_by(issued.certificate)
        self_signed((), ())

    def test_creator(self) -> None:
        """One context for all connections of a certificate."""
        creator = CERTIFICATE.server_creator()
        verifyObject(IOpenSSLServerConnectionCreator, creator)
        self.assertIs(creator, CERTIFICATE.server_creator())
        self.assertIsInstance(CERTIFICATE.server_context(), SSL.Context)


class Believing(SynchronousTestCase):
    """TLS over the network in memory, with Twisted's own client side."""

    def handshake(self, certificate: Any, creator: Any) -> tuple[Scene, Any]:
        scene = Scene(certificate=certificate)
        client = scene.ready()
        self.assertTrue(scene.say(client, b"STARTTLS\r\n").startswith(b"220"))
        client.start_tls(creator)
        scene.reactor.run_for(1)
        return scene, client

    def test_stock_client(self) -> None:
        """Twisted's optionsForClientTLS is satisfied by the root, and says its name."""
        root: Any = Certificate.loadPEM(AUTHORITY.certificate_pem)
        scene, client = self.handshake(CERTIFICATE, optionsForClientTLS("mx.test", trustRoot=root))
        self.assertIsNone(client.lost)
        self.assertEqual(scene.server.connections[0].sni, "mx.test")
        self.assertEqual(scene.server.handshake_count, 1)
        self.assertTrue(scene.say(client, b"EHLO me\r\n").startswith(b"250"))

    def test_another_name(self) -> None:
        """A stock client does not take a certificate for another name."""
        root: Any = Certificate.loadPEM(AUTHORITY.certificate_pem)
        _, client = self.handshake(CERTIFICATE, optionsForClientTLS("other.test", trustRoot=root))
        self.assertIsNotNone(client.lost)

    def test_not_trusted(self) -> None:
        """Another authority's, a self-signed or an expired certificate is not believed."""
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
        for certificate in (
            Authority().issue(("mx.test",)),
            self_signed(("mx.test",)),
            AUTHORITY.issue(("mx.test",), not_after=past),
        ):
            scene, client = self.handshake(certificate, Trusting())
            client.lost.trap(SSL.Error)
            self.assertEqual(scene.server.handshake_count, 0)
            self.assertEqual(scene.reactor.connections, [])

    def test_versions(self) -> None:
        """TLS 1.2 is good enough, 1.1 is not."""
        for version, good in ((SSL.TLS1_2_VERSION, True), (SSL.TLS1_1_VERSION, False)):
            creator = Trusting()
            creator.context.set_min_proto_version(0)
            creator.context.set_cipher_list(b"ALL:@SECLEVEL=0")
            creator.context.set_max_proto_version(version)
            _, client = self.handshake(CERTIFICATE, creator)
            self.assertEqual(client.lost is None, good)

    def test_much_content_under_tls(self) -> None:
        """A megabyte goes through both TLS layers and the window, whole."""
        scene = Scene(certificate=CERTIFICATE, latency=0.001)
        client = scene.ready(tls=True)
        content = b"0123456789" * 100 + b"\r\n"
        scene.deliver(client, content * 1000)
        self.assertEqual(scene.server.messages[0].content, content * 1000)
