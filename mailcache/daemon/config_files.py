"""The files that a configuration names: passwords, trust anchors, client certificates."""

from __future__ import annotations

import os
import stat

from cryptography.exceptions import UnsupportedAlgorithm
from OpenSSL import SSL

from mailcache.destination import MAX_PEM
from mailcache.trust.pem import certificates, use_client_certificate

MAX_PASSWORD = 4_096
"""Bytes of a file with a password: a token of some length; a log file named by mistake is not read."""


def read(path: str, limit: int, *, secret: bool) -> bytes:
    """The content of a file.

    :param secret: it may be read by its owner only.
    :raises ValueError: that says why it can't be had, and what would help.
    """
    if "\0" in path:
        raise ValueError("there is a NUL in the path; give the path of a file")
    try:
        # Without waiting for the other end of a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is no file; give the path of one")
            if secret and status.st_mode & 0o077:
                raise ValueError(f"{path} is open to its group or to others; chmod 600 {path}")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}; give a file that the keeper can read") from None
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit} bytes; it is not what is wanted here")
    return content


def password(path: str) -> str:
    """The password in a file, without the newline at its end.

    :raises ValueError: for a file that can't be read, that others can read, or that holds none.
    """
    content = read(path, MAX_PASSWORD, secret=True)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        # The text of the error itself would quote the bytes.
        raise ValueError(f"{path} is not in UTF-8; write the password as UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f"{path} is empty; write the password into it")
    return text


def trust_anchors(path: str) -> bytes:
    """The PEM certificates in a file.

    :raises ValueError: for a file that can't be read or holds none that can be used.
    """
    content = read(path, MAX_PEM, secret=False)
    try:
        certificates(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} holds no PEM certificates that can be used; give the CA's certificates") from error
    return content


def client_certificate(path: str) -> bytes:
    """The PEM key and certificate chain in a file.

    :raises ValueError: for a file that can't be read, that others can read, or that holds none that can be used.
    """
    content = read(path, MAX_PEM, secret=True)
    try:
        use_client_certificate(SSL.Context(SSL.TLS_CLIENT_METHOD), content)
    except (ValueError, UnsupportedAlgorithm, SSL.Error) as error:
        raise ValueError(
            f"{path} holds no PEM that can be used; give an unencrypted private key and its certificate chain"
        ) from error
    return content
