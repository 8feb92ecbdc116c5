"""PEM as it is given by callers: trust anchors, and a client's key with its certificate chain."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto


def certificates(pem: bytes) -> list[crypto.X509]:
    """The certificates in ``pem``, in their order.

    :raises ValueError: if there is none, or one that can't be parsed.
    """
    return [crypto.X509.from_cryptography(certificate) for certificate in x509.load_pem_x509_certificates(pem)]


def use_client_certificate(context: SSL.Context, pem: bytes) -> None:
    """Make ``context`` show the certificate chain in ``pem``, leaf first, and use its key.

    :raises ValueError: if there is no certificate or no unencrypted key.
    :raises SSL.Error: if they do not fit each other.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ValueError("the private key is encrypted") from error
    leaf, *chain = certificates(pem)
    context.use_certificate(leaf)
    for certificate in chain:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(crypto.PKey.from_cryptography_key(key))  # type: ignore[arg-type]
    context.check_privatekey()
