"""Where mail should go and on whose behalf: the values of which every key is made."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from OpenSSL import SSL

from mailcache.credentials import TOKEN
from mailcache.credentials import Credentials as Credentials
from mailcache.trust.evidence import TLSClass
from mailcache.trust.names import host_name, ip_address
from mailcache.trust.pem import certificates, use_client_certificate
from mailcache.trust.policy import TLSPolicy
from mailcache.wire import commands

PORTS = {"smtp": 25, "smtps": 465, "lmtp": 24}
"""The protocols and their default ports; "smtps" is TLS from the first byte."""

MAX_PEM = 4 * 1024 * 1024
"""Bytes of a PEM file: the bundles that systems ship are below 300 KB; a log file named by mistake is not read."""

SETTLED_NS = 1_000_000_000
"""Nanoseconds after which a second change of a file shows in its times: file systems tick in milliseconds, some in
whole seconds."""

_FORMS = "example.com, example.com:587, [mail.example.com], [192.0.2.1]:587, [2001:db8::1]:25 or unix:/path"


@attrs.frozen(slots=True, cache_hash=True)
class NextHop:
    """A next hop, parsed: "domain" (found through DNS), "host" (used as it is) or "unix" (a socket's path)."""

    kind: str
    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str, default_port: int) -> NextHop:
        """Parse Postfix's next-hop forms.

        :raises ValueError: that says what was wrong and which forms there are.
        """
        if not isinstance(text, str):
            raise ValueError(f"next hop: a string such as {_FORMS} is wanted, not {type(text).__name__}")
        if text.startswith("unix:"):
            return cls("unix", _socket_path(text), None)
        bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text, re.DOTALL)
        if bracketed:
            name, port = bracketed.groups()
            host = _literal(name[5:], text) if name[:5].lower() == "ipv6:" else ip_address(name)
            return cls("host", host or _name(name, text), _port(port, default_port, text))
        if ip_address(text):
            raise ValueError(f"next hop: {text!r} is an address: write it in brackets, [{text}]")
        name, colon, port = text.partition(":")
        if ip_address(name):
            raise ValueError(f"next hop: {name!r} is an address: write it in brackets, [{name}]:{port}")
        domain = _name(name, text)
        if domain == "unix":
            # With a port it would be read as a socket: "unix:25".
            raise ValueError(f"next hop: {text!r}: for a socket a path is wanted, unix:/path; a host's name is [unix]")
        return cls("domain", domain, _port(port if colon else None, default_port, text))

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.name}"
        return f"[{self.name}]:{self.port}" if self.kind == "host" else f"{self.name}:{self.port}"


@attrs.frozen(slots=True, cache_hash=True)
class Endpoint:
    """One server address: what can be connected to. Host name and SNI are no part of it.

    ``address`` is an IP address in its canonical form, with its scope ("fe80::1%eth0"), or a socket's path; where a
    proxy connects, it may be a host name;
    ``port`` is ``None`` for a socket.
    """

    protocol: str
    address: str
    port: int | None

    def __str__(self) -> str:
        where = f"unix:{self.address}" if self.port is None else f"[{self.address}]:{self.port}"
        return f"{self.protocol}:{where}"


@attrs.frozen(slots=True, cache_hash=True)
class Identity:
    """All that makes mail streams distinct: sessions of different identities are never shared.

    ``client_certificate`` is the SHA-256 digest of the PEM; ``uid`` is the borrower's user in a keeper.
    """

    namespace: str
    bind_address: str | None
    helo_name: str | None
    credentials: Credentials | None
    client_certificate: str | None
    proxy: str | None = None
    uid: int | None = None


@attrs.frozen(slots=True, cache_hash=True)
class SessionKey:
    """What must be equal for a session to be handed out: the one key for saving and finding."""

    endpoint: Endpoint
    identity: Identity
    tls_class: TLSClass | None


@attrs.frozen(init=False)
class Destination:
    """Where mail should go and on whose behalf. A value: equal ones are the same destination.

    :param next_hop: one of Postfix's forms: "example.com" (a domain), "[mail.example.com]" (a host),
        "[192.0.2.1]:587", "[2001:db8::1]:25", "unix:/path".
    :param protocol: "smtp", "smtps" (TLS from the first byte) or "lmtp"; default ports 25, 465 and 24.
    :param namespace: equal namespaces share sessions, others never do.
    :param bind_address: the local IP address to connect from; ``None`` is whatever the system picks.
    :param helo_name: the name for EHLO; ``None`` is the host's full name if it has one, else its address.
    :param client_certificate: path of a PEM file with a private key and its certificate chain.
    :param credentials: whom to log in as.
    :param tls: a policy; ``None`` is "verify" where there are credentials, else "may".
    :param one_flight: allow the whole message in one flight where the server can take it so; in no session's key.
    :param proxy: the name of a proxy that connections are made through: one of those that the cache was given. The
        name of the host goes to the proxy as it is; nothing is looked up here.
    :raises ValueError: that names the field, what was wrong with it and what would be right. The files that are
        named are read now: the destination stands for their content.
    """

    next_hop: str
    protocol: str
    namespace: str
    bind_address: str | None
    helo_name: str | None
    proxy: str | None
    client_certificate: str | None
    credentials: Credentials | None
    tls: TLSPolicy
    one_flight: bool
    hop: NextHop = attrs.field(repr=False)
    identity: Identity = attrs.field(repr=False)
    tls_class: TLSClass | None = attrs.field(repr=False)
    trust_anchors: bytes | None = attrs.field(repr=False, eq=False)
    client_pem: bytes | None = attrs.field(repr=False, eq=False)
    _hash: int = attrs.field(repr=False, eq=False)
    lineage: Hashable = attrs.field(
        default=attrs.Factory(lambda self: _lineage(self), takes_self=True), init=False, repr=False, eq=False
    )
    """Where credentials have a token, all that stays the same when there is another token; else ``None``."""

    def __init__(
        self,
        next_hop: str,
        *,
        protocol: str = "smtp",
        namespace: str = "default",
        bind_address: str | None = None,
        helo_name: str | None = None,
        proxy: str | None = None,
        client_certificate: str | None = None,
        credentials: Credentials | None = None,
        tls: TLSPolicy | None = None,
        one_flight: bool = False,
    ) -> None:
        if not isinstance(protocol, str) or protocol not in PORTS:
            raise ValueError(f"protocol: {protocol!r} is not one of {', '.join(PORTS)}")
        _check_label("namespace", namespace)
        if credentials is not None and not isinstance(credentials, Credentials):
            raise ValueError(f"credentials: a Credentials object is wanted, not {type(credentials).__name__}")
        if tls is not None and not isinstance(tls, TLSPolicy):
            raise ValueError(f'tls: a TLSPolicy is wanted, as in TLSPolicy("verify"), not {type(tls).__name__}')
        if helo_name is not None:
            _check_helo_name(helo_name)
        hop = NextHop.parse(next_hop, PORTS[protocol])
        if proxy is not None:
            _check_label("proxy", proxy)
            if hop.kind == "unix":
                raise ValueError(f"proxy: {next_hop!r} is a socket of this host, which no proxy can reach")
            if bind_address is not None:
                raise ValueError("proxy: it is the proxy that connects, so that a bind_address would mean nothing")
        policy = tls if tls is not None else TLSPolicy("verify" if credentials is not None else "may")
        if protocol == "smtps" and policy.level in ("none", "may"):
            raise ValueError(
                f'tls: "smtps" is TLS from the first byte, and level "{policy.level}" does not demand TLS: '
                'give TLSPolicy("verify"), or "encrypt" for TLS without proof'
            )
        anchors = None if policy.ca_file is None else _pem("ca_file", policy.ca_file, b"CERTIFICATE-----")
        client = (
            None if client_certificate is None else _pem("client_certificate", client_certificate, b"PRIVATE KEY-----")
        )
        _check_credentials(credentials, client, policy)
        bound = None if bind_address is None else ip_address(bind_address)
        if bind_address is not None and bound is None:
            raise ValueError(f"bind_address: {bind_address!r} is not an IP address such as 192.0.2.1 or 2001:db8::1")
        identity = Identity(namespace, bound, helo_name, credentials, _digest(client), proxy)
        tls_class = (
            TLSClass(_digest(anchors), policy.min_version, policy.ciphers, identity.client_certificate)
            if policy.level != "none"
            else None
        )
        self.__attrs_init__(
            str(hop), protocol, namespace, bound, helo_name, proxy, client_certificate, credentials, policy,
            bool(one_flight), hop, identity, tls_class, anchors, client,
            hash((hop, protocol, identity, tls_class, policy, bool(one_flight))),
        )  # fmt: skip

    def __hash__(self) -> int:
        return self._hash

    def on_behalf(self, uid: int | None, trust_anchors: bytes | None, client_pem: bytes | None) -> Destination:
        """This destination for the user ``uid``, with the content (PEM) of files that only the user can read.

        :raises ValueError: for PEM that can't be used.
        """
        for content, with_key in ((trust_anchors, False), (client_pem, True)):
            problem = None if content is None else _problem(content, with_key)
            if problem is not None:
                raise ValueError(f"PEM that can't be used: {problem}")
        identity = attrs.evolve(self.identity, uid=uid, client_certificate=_digest(client_pem))
        tls_class = self.tls_class and attrs.evolve(
            self.tls_class, trust_anchors=_digest(trust_anchors), client_certificate=identity.client_certificate
        )
        other = object.__new__(Destination)
        other.__attrs_init__(
            self.next_hop, self.protocol, self.namespace, self.bind_address, self.helo_name, self.proxy, None,
            self.credentials, self.tls, self.one_flight, self.hop, identity, tls_class, trust_anchors, client_pem,
            hash((self.hop, self.protocol, identity, tls_class, self.tls, self.one_flight)),
        )  # fmt: skip
        return other

    @property
    def supplied(self) -> bool:
        """Whether a supplier has to be asked for the token of its credentials."""
        return self.credentials is not None and self.credentials.supplier is not None

    def with_credentials(self, credentials: Credentials) -> Destination:
        """This destination for who logs in with ``credentials``; no file is read again.

        :raises ValueError: for credentials that can't be used with it.
        """
        _check_credentials(credentials, self.client_pem, self.tls)
        identity = attrs.evolve(self.identity, credentials=credentials)
        fields = [field for field in attrs.fields(Destination) if field.init]
        values: dict[str, Any] = {str(field.alias): getattr(self, field.name) for field in fields}
        values |= {"credentials": credentials, "identity": identity}
        values["hash"] = hash((self.hop, self.protocol, identity, self.tls_class, self.tls, self.one_flight))
        other = object.__new__(Destination)
        other.__attrs_init__(**values)
        return other

    def key(self, endpoint: Endpoint) -> SessionKey:
        """The key of this destination's sessions with ``endpoint``."""
        return SessionKey(endpoint, self.identity, self.tls_class)

    def __str__(self) -> str:
        return f"{self.protocol}:{self.next_hop}"


def _check_credentials(credentials: Credentials | None, client_pem: bytes | None, policy: TLSPolicy) -> None:
    problem = credentials and credentials.problem(certificate=client_pem is not None, tls_level=policy.level)
    if problem is not None:
        raise ValueError(f"credentials: {problem}")


def _lineage(destination: Destination) -> Hashable:
    credentials = destination.credentials
    if credentials is None or credentials.kind != TOKEN:
        return None
    rest = attrs.evolve(destination.identity, credentials=None)
    # The next hop is in it, for there may be accounts of one name with two providers.
    return destination.hop, destination.protocol, rest, credentials.account()


@lru_cache(maxsize=64)
def _digest(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _check_label(field: str, label: object) -> None:
    if not isinstance(label, str) or not label or not label.isprintable():
        raise ValueError(f"{field}: {label!r} is not a printable string of at least one character")


def _check_helo_name(name: object) -> None:
    if not isinstance(name, str):
        raise ValueError(f"helo_name: a host name or address literal is wanted, not {type(name).__name__}")
    try:
        commands.ehlo(name)
    except ValueError as error:
        raise ValueError(f"helo_name: {error}") from None


def _literal(address: str, text: str) -> str:
    canonical = ip_address(address)
    if canonical is None or ":" not in canonical:
        raise ValueError(f"next hop: {text!r}: {address!r} is no IPv6 address")
    return canonical


def _name(name: str, text: str) -> str:
    if not name.isascii():
        raise ValueError(f"next hop: {text!r}: write an international name in its ASCII form, xn--...")
    canonical = host_name(name)
    if canonical is None:
        raise ValueError(f"next hop: {text!r} is none of {_FORMS}")
    return canonical


def _port(port: str | None, default: int, text: str) -> int:
    if port is None:
        return default
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"next hop: {text!r}: the port {port!r} is not a number from 1 to 65535")
    return int(port)


def _socket_path(text: str) -> str:
    path = text.removeprefix("unix:")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b""
    # 107 bytes is what sockaddr_un holds with its final NUL on Linux (unix(7)). A path stands in errors and in logs, a
    # keeper's too, whose lines no borrower is to write.
    if not encoded.startswith(b"/") or not path.isprintable() or len(encoded) > 107:
        raise ValueError(f"next hop: {text!r}: an absolute path of at most 107 bytes is wanted after unix:, printable")
    return path


def _pem(field: str, path: object, wanted: bytes) -> bytes:
    """The content of a PEM file, which can be used as what ``field`` says."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"{field}: the path of a PEM file is wanted, as a string, not {path!r}")
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: {path!r} can't be read: {getattr(error, 'strerror', error)}") from error
    if len(content) > MAX_PEM:
        raise ValueError(f"{field}: {path!r} has more than {MAX_PEM} bytes: it is no PEM file")
    if wanted not in content:
        raise ValueError(f"{field}: {path!r} holds no PEM {wanted.rstrip(b'-').decode().lower()}")
    problem = _problem(content, field == "client_certificate")
    if problem:
        raise ValueError(f"{field}: {path!r} holds PEM that can't be used: {problem}")
    return content


def _content(path: str) -> bytes:
    status = os.stat(path)
    # What has just been written may be written again without a sign of it.
    read = _read.__wrapped__ if time.time_ns() - status.st_mtime_ns < SETTLED_NS else _read
    return read(path, status.st_mtime_ns, status.st_dev, status.st_ino, status.st_size)


@lru_cache(maxsize=64)
def _read(path: str, *_status: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_PEM + 1)


@lru_cache(maxsize=64)
def _problem(content: bytes, with_key: bool) -> str | None:
    """What is wrong with PEM for trust anchors, or for a client's key and certificate."""
    try:
        if with_key:
            use_client_certificate(SSL.Context(SSL.TLS_CLIENT_METHOD), content)
        else:
            certificates(content)
    except SSL.Error:
        return "the private key is not that of the first certificate"
    except (ValueError, UnsupportedAlgorithm) as error:
        return str(error) or "it is broken"
    return None


def field_names(of: Any) -> tuple[str, ...]:
    """The names of the compared fields of a value class: what a key is made of."""
    return tuple(field.name for field in attrs.fields(of) if field.eq)
