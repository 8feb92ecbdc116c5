"""TLS over memory: one context per TLS class, a layer that does no I/O, and the evidence of a handshake."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL
from service_identity import CertificateError
from service_identity.cryptography import extract_patterns

from mailcache.trust.evidence import Evidence, TLSClass
from mailcache.trust.pem import certificates, use_client_certificate

MAX_CONTEXTS = 256
"""Contexts kept, least used out first: each holds its trust anchors (some 4 ms and 1 MB for a platform's)."""

_RECORD_ROOM = 64
"""Bytes that TLS adds to a record of 16 KiB at most (header, nonce, tag, padding: RFC 8446 5.2), rounded up."""

_APPLICATION_DATA = 23
_READ = 65_536
_VERSIONS = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}
_CHAIN_ERRORS = {
    value: name.removeprefix("ERR_").replace("_", " ").lower()
    for name, value in vars(SSL.X509VerificationCodes).items()
    if name.startswith("ERR_")
}


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
    """Note the first error of the chain and go on: the judge decides, not the handshake."""
    layer = connection.get_app_data()
    if error and layer.chain_error is None:
        layer.chain_error = _CHAIN_ERRORS.get(error, f"error {error}")
    return True


class TLSLayer:
    """The client's side of one TLS connection over memory BIOs: bytes in, bytes out.

    :ivar established: the handshake is done.
    :ivar closed: the peer has sent close_notify: no more will come.
    :ivar chain_error: why the chain is not trusted, as far as has been seen.
    """

    def __init__(self, context: SSL.Context, servername: str | None) -> None:
        self.established = False
        self.closed = False
        self.chain_error: str | None = None
        self._servername = servername
        self._ssl = connection = SSL.Connection(context, None)
        connection.set_app_data(self)
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

        :raises TLSFailed: for a broken record or an alert.
        """
        connection = self._ssl
        connection.bio_write(data)
        if not self.established:
            self.handshake()
            if not self.established:
                return b""
        # The usual case, a segment that is one record, takes one call; a second would only raise WantReadError.
        size = len(data)
        single = size > 5 and data[0] == _APPLICATION_DATA and size == 5 + data[3] * 256 + data[4]
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
            raise TLSFailed(_said(error)) from None
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def encrypt(self, data: bytes) -> bytes:
        """The records for ``data``, and whatever else is due.

        :raises TLSFailed: if TLS is broken already.
        """
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
        chain = [certificate.to_cryptography() for certificate in shown]
        verified = connection.get_verified_chain() or []
        valid = [certificate.to_cryptography() for certificate in verified] or chain
        facts: dict[str, Any] = {}
        if chain:
            leaf = chain[0]
            spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            try:
                names = tuple(extract_patterns(leaf))
            except (CertificateError, ValueError):
                names = ()
            facts = {
                "not_before": max(certificate.not_valid_before_utc.timestamp() for certificate in valid),
                "not_after": min(certificate.not_valid_after_utc.timestamp() for certificate in valid),
                "names": names,
                "certificate": hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest().upper(),
                "public_key": hashlib.sha256(spki).hexdigest().upper(),
            }
        chain_error = self.chain_error if chain else "the server showed no certificate"
        return Evidence(
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name(),
            servername=self._servername,
            chain_error=chain_error,
            **facts,
        )


def _said(error: SSL.Error) -> str:
    """OpenSSL's reason, without its function and library names."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[-1] for entry in queue if entry) or str(error) or "the connection broke"
