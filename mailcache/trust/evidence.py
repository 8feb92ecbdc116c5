"""Evidence: what TLS has shown of a peer, to be judged for each borrower anew."""

from __future__ import annotations

import attrs
from service_identity.hazmat import DNSPattern, IPAddressPattern


@attrs.frozen(slots=True)
class TLSClass:
    """All of a TLS set-up that can't be judged afterwards, so that it must be equal for a session to be shared.

    Files are compared by what is in them. ``trust_anchors`` and ``client_certificate`` are SHA-256 digests (hex)
    of the PEM given, ``None`` for the platform's anchors and for no client certificate.
    """

    trust_anchors: str | None
    min_version: str
    ciphers: str | None
    client_certificate: str | None


@attrs.frozen(slots=True)
class Evidence:
    """What a handshake has shown; ``CLEAR`` for a session without TLS.

    ``chain_error`` is ``None`` where the chain led to a trust anchor of the TLS class, else why it did not.
    ``not_before`` and ``not_after`` (seconds since 1970) bound the validity of the whole chain.
    ``certificate`` and ``public_key`` are SHA-256 digests of the leaf and its SubjectPublicKeyInfo, upper-case hex.
    """

    version: str | None = None
    cipher: str | None = None
    servername: str | None = None
    chain_error: str | None = "no chain was seen"
    not_before: float = 0.0
    not_after: float = 0.0
    names: tuple[DNSPattern | IPAddressPattern, ...] = ()
    certificate: str = ""
    public_key: str = ""

    @property
    def summary(self) -> str | None:
        """ "TLSv1.3 TLS_AES_256_GCM_SHA384", or ``None`` in clear text."""
        return None if self.version is None else f"{self.version} {self.cipher}"


CLEAR = Evidence()
