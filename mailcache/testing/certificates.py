"""A certificate authority of a test's own: P-256, made in a millisecond, known to nobody else.

authority = Authority()
issued = authority.issue(("mx.test",), ("192.0.2.1",))
issued.certificate_pem      # leaf, then the chain: what a server sends
authority.certificate_pem   # the trust anchor for the client under test
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

_DAY = datetime.timedelta(days=1)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def _distinguished(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


@implementer(IOpenSSLServerConnectionCreator)
@attrs.frozen(eq=False)
class ServerTLS:
    """The server side of TLS for one certificate: all its connections share one context, so tickets work."""

    context: SSL.Context

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A fresh OpenSSL connection of the context."""
        return SSL.Connection(self.context, None)


@attrs.define(eq=False)
class Issued:
    """A leaf certificate with its key and the chain above it (empty when it is self-signed)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()
    _creators: dict[bool, ServerTLS] = attrs.field(factory=dict, init=False)

    @property
    def certificate_pem(self) -> bytes:
        """The leaf, then the chain: what a server's certificate file holds."""
        return _pem(self.certificate, *self.chain)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS 8, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def private_pem(self) -> bytes:
        """Key, leaf and chain in one, as C{ssl.PrivateCertificate.loadPEM} and Postfix take it."""
        return self.key_pem + self.certificate_pem

    def digest(self, algorithm: str = "sha256") -> bytes:
        """The digest of the leaf's DER form: its fingerprint."""
        return self.certificate.fingerprint({"sha256": hashes.SHA256(), "sha512": hashes.SHA512()}[algorithm])

    def server_context(self) -> SSL.Context:
        """A new server-side context: TLS 1.2 and later, no client certificate asked for."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_session_id(b"mailcache.testing")
        context.use_certificate(self.certificate)
        context.use_privatekey(self.key)
        for above in self.chain:
            context.add_extra_chain_cert(above)
        return context

    def server_creator(self, ask: bool = False) -> ServerTLS:
        """The connection creator for a Twisted server; the same one, and so one context, at each call.

        @param ask: ask the client for a certificate, and take any, and none.
        """
        known = self._creators.get(ask)
        if known is None:
            context = self.server_context()
            if ask:
                context.set_verify(SSL.VERIFY_PEER, lambda *verdict: True)
            known = self._creators[ask] = ServerTLS(context)
        return known


@attrs.define(eq=False, init=False)
class Authority:
    """A root certificate that issues leaves. Two of them do not trust each other."""

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    def __init__(self, common_name: str = "mailcache test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        name = _distinguished(common_name)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        public = self._key.public_key()
        self.certificate = (
            _builder(name, name, public, now - _DAY, now + 3650 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate_pem(self) -> bytes:
        """The root: the trust anchor of whoever should believe what this authority issues."""
        return _pem(self.certificate)

    def issue(
        self,
        names: Iterable[str] = ("localhost",),
        addresses: Iterable[str] = ("127.0.0.1",),
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        client: bool = False,
    ) -> Issued:
        """
        A leaf for these DNS names and IP addresses (subjectAltName), with the root in its chain.

        @param not_before: a day ago if not given.
        @param not_after: in a year if not given.
        @param client: for a client's certificate in place of a server's (extended key usage).
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _leaf(
            key.public_key(),
            tuple(names),
            tuple(addresses),
            self.certificate.subject,
            not_before,
            not_after,
            client,
        ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        return Issued(builder.sign(self._key, hashes.SHA256()), key, (self.certificate,))


def self_signed(
    names: Iterable[str] = ("localhost",),
    addresses: Iterable[str] = ("127.0.0.1",),
    not_before: datetime.datetime | None = None,
    not_after: datetime.datetime | None = None,
) -> Issued:
    """A server certificate that vouches for itself: no chain, no authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = tuple(names)
    builder = _leaf(
        key.public_key(), names, tuple(addresses), _distinguished(_first(names)), not_before, not_after, False
    )
    return Issued(builder.sign(key, hashes.SHA256()), key)


def _first(names: tuple[str, ...]) -> str:
    return names[0] if names else "mailcache test"


def _leaf(
    public: ec.EllipticCurvePublicKey,
    names: tuple[str, ...],
    addresses: tuple[str, ...],
    issuer: x509.Name,
    not_before: datetime.datetime | None,
    not_after: datetime.datetime | None,
    client: bool,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    subjects: list[x509.GeneralName] = [x509.DNSName(each.encode("idna").decode("ascii")) for each in names]
    subjects += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
    builder = (
        _builder(
            _distinguished(_first(names)),
            issuer,
            public,
            not_before or now - _DAY,
            not_after or now + 365 * _DAY,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    if subjects:
        builder = builder.add_extension(x509.SubjectAlternativeName(subjects), critical=False)
    return builder


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
