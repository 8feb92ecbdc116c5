"""TLS over memory: one context per TLS class, a layer that does no I/O, and the evidence of a handshake."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL, crypto
from service_identity import CertificateError
from service_identity.hazmat import DNSPattern, IPAddressPattern

from mailcache.trust.evidence import Evidence, TLSClass
from mailcache.trust.pem import certificates, use_client_certificate

MAX_CONTEXTS = 256
"""Contexts kept, least used out first: each holds its trust anchors (some 4 ms and 1 MB for a platform's)."""

_RECORD_ROOM = 64
"""Bytes that TLS adds to a record of 16 KiB at most (header, nonce, tag, padding: RFC 8446 5.2), rounded up."""

_HEADER = 5
"""Bytes of a record's header: type, version, and the length in the last two (RFC 8446 5.1)."""

_APPLICATION_DATA = 23
_READ = 65_536
_VERSIONS = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}
_CHAIN_ERRORS = {
    value: name.removeprefix("ERR_").replace("_", " ").lower()
    for name, value in vars(SSL.X509VerificationCodes).items()
    if name.startswith("ERR_")
}
# A name in a certificate that some host could have; "*" stands for a label, which the patterns check.
_NAME = re.compile(r"[a-z0-9_*-]+(?:\.[a-z0-9_-]+)*", re.ASCII | re.IGNORECASE)
# What may come of reading a certificate that a stranger has made.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class TLSFailed(Exception):  # noqa: N818  (reads as the event it reports)
    """TLS could not be set up, or broke. The text is OpenSSL's own."""


class Contexts:
    """One OpenSSL context for each TLS class, made when first needed."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[TLSClass, SSL.Context] = OrderedDict()

    def get(self, tls_class: TLSClass, anchors: bytes | None, client_pem: bytes | None) -> SSL.Context:
        """The context of ``tls_class``, whose digests are those of ``anchors`` and ``client_pem``."""
        context = self._contexts.get(tls_class)
        if context is None:
            context = self._contexts[tls_class] = _make_context(tls_class, anchors, client_pem)
            if len(self._contexts) > MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        else:
            self._contexts.move_to_end(tls_class)
        return context


def _make_context(tls_class: TLSClass, anchors: bytes | None, client_pem: bytes | None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(_VERSIONS[tls_class.min_version])
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if tls_class.ciphers is not None:
        context.set_cipher_list(tls_class.ciphers.encode("ascii"))
    if anchors is None:
        context.set_default_verify_paths()
    else:
        store = context.get_cert_store()
        assert store is not None
        for certificate in certificates(anchors):
            store.add_cert(certificate)
    if client_pem is not None:
        use_client_certificate(context, client_pem)
    context.set_verify(SSL.VERIFY_PEER, _record_verdict)
    return context


def _record_verdict(connection: SSL.Connection, _certificate: object, error: int, _depth: int, _ok: int) -> bool:
    """Note the errors of the chain and go on: the judge decides, not the handshake."""
    if error:
        connection.get_app_data().append(_CHAIN_ERRORS.get(error, f"error {error}"))
    return True


class TLSLayer:
    """The client's side of one TLS connection over memory BIOs: bytes in, bytes out.

    :ivar established: the handshake is done.
    :ivar closed: the peer has sent close_notify: no more will come.
    :ivar broken: a record was broken, or an alert has come: why nothing more can be read.
    :ivar partial: a record has begun to arrive that is not complete; what is in it can't be known.
    """

    def __init__(self, context: SSL.Context, servername: str | None) -> None:
        self.established = False
        self.closed = False
        self.broken: TLSFailed | None = None
        self.partial = False
        # Of the record under way: the beginning of its header, then how many bytes are still to come.
        self._head = b""
        self._lacking = 0
        self._servername = servername
        self._chain_errors: list[str] = []
        self._ssl = connection = SSL.Connection(context, None)
        connection.set_app_data(self._chain_errors)
        connection.set_connect_state()
        if servername is not None:
            connection.set_tlsext_host_name(servername.encode("ascii"))

    def handshake(self) -> None:
        """Go on with the handshake as far as the bytes received allow.

        :raises TLSFailed: if it can't succeed any more.
        """
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.Error as error:
            raise TLSFailed(_said(error)) from None
        self.established = True

    def received(self, data: bytes) -> bytes:
        """Take bytes from the network; gives the plain text in them, or b"".

        What stands before a broken record or an alert is as good as any: it is given, and `broken` tells of the rest.

        :raises TLSFailed: for a broken record or an alert, with nothing before it.
        """
        connection = self._ssl
        connection.bio_write(data)
        # The usual case, a segment that is one record, takes one call; a second would only raise WantReadError.
        size = len(data)
        single = (
            not self.partial
            and size > _HEADER
            and data[0] == _APPLICATION_DATA
            and size == _HEADER + data[3] * 256 + data[4]
        )
        if not single:
            self._follow(data)
        if not self.established:
            self.handshake()
            if not self.established:
                return b""
        plain: list[bytes] = []
        try:
            while True:
                plain.append(connection.recv(size if single else _READ))
                if single and connection.pending() == 0:
                    break
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as error:
            self.broken = TLSFailed(_said(error))
            if not plain:
                raise self.broken from None
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def _follow(self, data: bytes) -> None:
        """Find where the last record ends, or how much of it is still to come."""
        data = self._head + data
        end = self._lacking
        while end + _HEADER <= len(data):
            end += _HEADER + int.from_bytes(data[end + 3 : end + _HEADER])
        self._head = data[end:]
        self._lacking = max(0, end - len(data))
        self.partial = end != len(data)

    def encrypt(self, data: bytes) -> bytes:
        """The records for ``data``, and whatever else is due.

        :raises TLSFailed: if TLS is broken already.
        """
        if not data:
            return self.outgoing()  # OpenSSL takes an empty write for an error
        try:
            sent = self._ssl.send(data)
            if sent < len(data):
                rest = memoryview(data)
                while sent < len(data):
                    sent += self._ssl.send(rest[sent : sent + 16_384])
        except SSL.Error as error:
            raise TLSFailed(_said(error)) from None
        return self.outgoing(len(data))

    def outgoing(self, plain: int = 0) -> bytes:
        """The bytes that are to go out now; ``plain`` is about how many bytes of plain text they hold."""
        room = plain + _RECORD_ROOM * (2 + plain // 16_384) if plain else 8_192
        try:
            data = self._ssl.bio_read(room)
        except SSL.WantReadError:
            return b""
        if len(data) < room:
            return data
        parts = [data]
        while len(data) == room:
            try:
                data = self._ssl.bio_read(room)
            except SSL.WantReadError:
                break
            parts.append(data)
        return b"".join(parts)

    def close(self) -> bytes:
        """The bytes of our close_notify."""
        try:
            self._ssl.shutdown()
        except SSL.Error:
            return b""
        return self.outgoing()

    def evidence(self) -> Evidence:
        """What the handshake has shown. The layer must be established."""
        connection = self._ssl
        shown = connection.get_peer_cert_chain() or []
        not_before, not_after = _validity(connection.get_verified_chain() or shown)
        chain_error = "the server showed no certificate" if not shown else None
        return Evidence(
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name(),
            servername=self._servername,
            chain_error=self._chain_errors[0] if self._chain_errors else chain_error,
            not_before=not_before,
            not_after=not_after,
            **(_facts(shown[0]) if shown else {}),
        )


def _validity(chain: list[crypto.X509]) -> tuple[float, float]:
    """From when and until when all of these are valid; never, where one can't be read or there is none."""
    try:
        read = [certificate.to_cryptography() for certificate in chain]
        return (
            max(each.not_valid_before_utc.timestamp() for each in read),
            min(each.not_valid_after_utc.timestamp() for each in read),
        )
    except _UNREADABLE:
        return 0.0, 0.0


def _facts(leaf: crypto.X509) -> dict[str, Any]:
    """What can be read of a server's certificate. It is the server's to choose: what can't be read is not there."""
    facts: dict[str, Any] = {"certificate": _digest(crypto.dump_certificate(crypto.FILETYPE_ASN1, leaf))}
    try:
        read = leaf.to_cryptography()
        facts["public_key"] = _digest(read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        facts["names"] = _names(read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except _UNREADABLE:
        pass
    return facts


def _names(shown: x509.SubjectAlternativeName) -> tuple[DNSPattern | IPAddressPattern, ...]:
    """The hosts and addresses that are named; a name that no host can have does not spoil the others."""
    names: list[DNSPattern | IPAddressPattern] = []
    for name in shown.get_values_for_type(x509.DNSName):
        if _NAME.fullmatch(name):
            with suppress(CertificateError):
                names.append(DNSPattern.from_bytes(name.encode("ascii")))
    addresses = shown.get_values_for_type(x509.IPAddress)
    names += [IPAddressPattern(each) for each in addresses if isinstance(each, IPv4Address | IPv6Address)]
    return tuple(names)


def _digest(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest().upper()


def _said(error: SSL.Error) -> str:
    """OpenSSL's reason, without its function and library names."""
    said = error.args[-1] if error.args else ""
    if isinstance(said, list):
        return "; ".join(entry[-1] for entry in said if entry) or "the connection broke"
    return str(said) or "the connection broke"
