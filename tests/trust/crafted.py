"""Certificates that no authority in its right mind would issue, and chains with something between."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

from mailcache.testing import Authority, Issued

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def crafted(
    authority: Authority,
    names: Sequence[x509.GeneralName] | None,
    common_name: str = "crafted",
    under: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    days: float = 100,
) -> Issued:
    """A leaf with just these names (``None``: without the extension), issued by the authority or ``under`` it."""
    key = ec.generate_private_key(ec.SECP256R1())
    above, signing = under or (authority.certificate, authority._key)
    builder = _builder(common_name, above.subject, key, days)
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    chain = (above,) if above is authority.certificate else (above, authority.certificate)
    return Issued(builder.sign(signing, hashes.SHA256()), key, chain)


def intermediate(authority: Authority, days: float) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """An authority under an authority, for so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("intermediate", authority.certificate.subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.sign(authority._key, hashes.SHA256()), key


def renamed_extension(authority: Authority, issued: Issued, old: str, new: str) -> Issued:
    """The same certificate with one extension's OID changed to another of the same length, and signed again."""
    oids = [x509.ObjectIdentifier(each) for each in (old, new)]
    before, after = (_oid(each) for each in oids)
    body = issued.certificate.tbs_certificate_bytes
    assert body.count(before) == 1 and len(before) == len(after)
    body = body.replace(before, after)
    signature = authority._key.sign(body, ec.ECDSA(hashes.SHA256()))
    whole = _der(0x30, body + ECDSA_WITH_SHA256 + _der(0x03, b"\0" + signature))
    # As OpenSSL has it, which looks into no extension before it must.
    return Issued(crypto.load_certificate(crypto.FILETYPE_ASN1, whole), issued.key, issued.chain)  # type: ignore[arg-type]


ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


def _oid(oid: x509.ObjectIdentifier) -> bytes:
    first, second, *rest = (int(part) for part in oid.dotted_string.split("."))
    assert all(part < 128 for part in rest)
    return _der(0x06, bytes([first * 40 + second, *rest]))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _builder(
    common_name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + days * DAY)
    )
