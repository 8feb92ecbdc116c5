"""What crosses between a borrower and its keeper now and then, as JSON: destinations, facts of sessions, errors.

All of it is checked when it comes in: a keeper trusts no borrower. A destination is one value of strict, versioned
JSON: a field that is not known refuses it, so that a keeper never drops a demand it does not understand. No path
crosses; a borrower reads its files and sends what is in them.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import attrs
from service_identity import CertificateError
from service_identity.hazmat import DNSPattern, IPAddressPattern

from mailcache.destination import Credentials, Destination, Endpoint
from mailcache.result import DeliveryError
from mailcache.trust.evidence import Evidence
from mailcache.trust.policy import TLSPolicy
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply

VERSION = 1
"""The version of everything here and of the commands."""

MAX_DESTINATION = 32_768
"""Bytes of a destination: half of what an AMP value holds; room for some trust anchors, not for a platform's."""

MAX_ANSWER = 0xFFFF
"""Bytes of facts or of an error: what an AMP value holds. Longer ones must be found before a descriptor is queued."""

MAX_TEXT = 4_000
"""Characters of an error's message, or of the reply in it."""


class MalformedError(ValueError):
    """What came in is not what it should be. The text names the field."""


def _object(data: bytes, limit: int, what: str) -> dict[str, Any]:
    if len(data) > limit:
        raise MalformedError(f"{what}: {len(data)} bytes, {limit} at most are taken")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what}: no JSON") from error
    if not isinstance(value, dict):
        raise MalformedError(f"{what}: a JSON object is wanted")
    return value


def _take(fields: dict[str, Any], what: str, **types: Any) -> dict[str, Any]:
    unknown = fields.keys() - types.keys()
    if unknown:
        raise MalformedError(f"{what}: the field {sorted(unknown)[0]!r} is not known here")
    for name, kind in types.items():
        if name not in fields:
            raise MalformedError(f"{what}: the field {name!r} is missing")
        if not isinstance(fields[name], kind) or (isinstance(fields[name], bool) and kind is not bool):
            raise MalformedError(f"{what}: the field {name!r} has a wrong type")
    return fields


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


_TEXT = (str, type(None))


def encode_destination(destination: Destination) -> bytes:
    """``destination`` with the content of its files.

    :raises DeliveryError: if that is more than a keeper takes.
    """
    policy = destination.tls
    credentials = destination.credentials
    data = _dump(
        {
            "version": VERSION,
            "next_hop": destination.next_hop,
            "protocol": destination.protocol,
            "namespace": destination.namespace,
            "bind_address": destination.bind_address,
            "helo_name": destination.helo_name,
            "proxy": destination.proxy,
            "credentials": None if credentials is None else _credentials_fields(credentials),
            "tls": {
                "level": policy.level,
                "match": policy.match,
                "fingerprints": policy.fingerprints,
                "servername": policy.servername,
                "min_version": policy.min_version,
                "ciphers": policy.ciphers,
            },
            "trust_anchors": _text(destination.trust_anchors),
            "client_certificate": _text(destination.client_pem),
            "one_flight": destination.one_flight,
        }
    )
    if len(data) > MAX_DESTINATION:
        raise DeliveryError(
            f"the destination has {len(data)} bytes with its files, and a keeper takes {MAX_DESTINATION}: "
            "use a ca_file with fewer certificates",
            phase="waiting",
            retriable=False,
        )
    return data


def _credentials_fields(credentials: Credentials) -> dict[str, Any]:
    assert credentials.supplier is None, "the borrower asks the supplier of a token"
    return attrs.asdict(credentials)


def _text(pem: bytes | None) -> str | None:
    return None if pem is None else pem.decode("latin-1")


def decode_destination(data: bytes, uid: int | None) -> Destination:
    """The destination in ``data``, on behalf of the user ``uid``.

    :raises MalformedError: for anything that is not exactly what `encode_destination` gives.
    """
    what = "destination"
    fields = _object(data, MAX_DESTINATION, what)
    if fields.get("version") != VERSION:
        raise MalformedError(f"{what}: version {fields.get('version')!r} is not {VERSION}")
    _take(
        fields, what, version=int, next_hop=str, protocol=str, namespace=str, bind_address=_TEXT, helo_name=_TEXT,
        proxy=_TEXT, credentials=(dict, type(None)), tls=dict, trust_anchors=_TEXT, client_certificate=_TEXT,
        one_flight=bool,
    )  # fmt: skip
    tls = _take(
        fields["tls"], what, level=str, match=list, fingerprints=list, servername=_TEXT, min_version=str, ciphers=_TEXT
    )
    credentials = fields["credentials"]
    if credentials is not None:
        _take(
            credentials, f"{what}: credentials", username=str, password=_TEXT, token=_TEXT, external=bool,
            mechanisms=(list, type(None)),
        )  # fmt: skip
    try:
        policy = TLSPolicy(
            tls["level"],
            match=tuple(tls["match"]),
            fingerprints=tuple(tls["fingerprints"]),
            servername=tls["servername"],
            min_version=tls["min_version"],
            ciphers=tls["ciphers"],
        )
        destination = Destination(
            fields["next_hop"],
            protocol=fields["protocol"],
            namespace=fields["namespace"],
            bind_address=fields["bind_address"],
            helo_name=fields["helo_name"],
            proxy=fields["proxy"],
            tls=policy,
            one_flight=fields["one_flight"],
        )
        destination = destination.on_behalf(uid, _bytes(fields["trust_anchors"]), _bytes(fields["client_certificate"]))
        return destination if credentials is None else destination.with_credentials(Credentials(**credentials))
    except (ValueError, TypeError, AttributeError) as error:
        raise MalformedError(f"{what}: {error}") from error


def _bytes(pem: str | None) -> bytes | None:
    return None if pem is None else pem.encode("latin-1")


def endpoint_of(entry: Any) -> Endpoint:
    """The endpoint in a JSON array of its fields.

    :raises TypeError, ValueError: for anything else.
    """
    protocol, address, port = entry
    if not (isinstance(protocol, str) and isinstance(address, str) and (port is None or type(port) is int)):
        raise ValueError("no endpoint")
    return Endpoint(protocol, address, port)


# -- facts of a session ----------------------------------------------------------------------------------------------


@attrs.frozen
class Facts:
    """What a borrower is told of a session once, with its descriptor."""

    identifier: str
    endpoint: Endpoint
    host: str
    capabilities: Capabilities
    evidence: Evidence
    verdict: str
    setup_seconds: float


def encode_facts(facts: Facts) -> bytes:
    """``facts`` as bytes.

    :raises MalformedError: if there are more than an answer holds: a certificate may have thousands of names.
    """
    evidence = attrs.asdict(facts.evidence, recurse=False)
    evidence["names"] = [
        ["dns", name.pattern.decode("ascii")] if isinstance(name, DNSPattern) else ["ip", str(name.pattern)]
        for name in facts.evidence.names
        if isinstance(name, (DNSPattern, IPAddressPattern))
    ]
    data = _dump(
        {
            "identifier": facts.identifier,
            "endpoint": attrs.astuple(facts.endpoint),
            "host": facts.host,
            "keywords": {name: list(words) for name, words in facts.capabilities.keywords.items()},
            "evidence": evidence,
            "verdict": facts.verdict,
            "setup_seconds": facts.setup_seconds,
        }
    )
    if len(data) > MAX_ANSWER:
        raise MalformedError(f"facts: {len(data)} bytes, {MAX_ANSWER} at most fit an answer")
    return data


def decode_facts(data: bytes) -> Facts:
    """What `encode_facts` was given.

    :raises MalformedError: for anything else.
    """
    what = "facts"
    fields = _take(
        _object(data, MAX_ANSWER, what), what, identifier=str, endpoint=list, host=str, keywords=dict, evidence=dict,
        verdict=str, setup_seconds=(int, float),
    )  # fmt: skip
    try:
        keywords = {name: _words(words) for name, words in fields["keywords"].items()}
        evidence = _take(
            fields["evidence"], f"{what}: evidence", version=_TEXT, cipher=_TEXT, servername=_TEXT, chain_error=_TEXT,
            not_before=(int, float), not_after=(int, float), names=list, certificate=str, public_key=str,
        )  # fmt: skip
        evidence["names"] = tuple(
            DNSPattern.from_bytes(value.encode("ascii"))
            if kind == "dns"
            else IPAddressPattern(ipaddress.ip_address(value))
            for kind, value in evidence["names"]
        )
        return Facts(
            fields["identifier"],
            endpoint_of(fields["endpoint"]),
            fields["host"],
            Capabilities(keywords),
            Evidence(**evidence),
            fields["verdict"],
            float(fields["setup_seconds"]),
        )
    except MalformedError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError, CertificateError) as error:
        raise MalformedError(f"{what}: {error}") from error


def _words(words: object) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("parameters of a keyword are text")
    return tuple(words)


# -- errors -----------------------------------------------------------------------------------------------------------


def encode_error(error: DeliveryError) -> bytes:
    """``error`` as bytes: what a server or a limit said, which is no fault of the keeper."""
    reply = error.reply
    return _dump(
        {
            "message": str(error.args[0])[:MAX_TEXT],
            "phase": error.phase,
            "retriable": error.retriable,
            "endpoint": error.endpoint,
            "reply": None if reply is None else [reply.code, reply.text],
        }
    )


def decode_error(data: bytes) -> DeliveryError:
    """What `encode_error` was given.

    :raises MalformedError: for anything else.
    """
    what = "error"
    fields = _take(
        _object(data, MAX_ANSWER, what), what, message=str, phase=str, retriable=bool, endpoint=_TEXT,
        reply=(list, type(None)),
    )  # fmt: skip
    try:
        reply = None if fields["reply"] is None else _reply(*fields["reply"])
    except (TypeError, ValueError) as error:
        raise MalformedError(f"{what}: {error}") from error
    endpoint = fields["endpoint"]
    return DeliveryError(
        _line(fields["message"]),
        phase=_line(fields["phase"]),
        retriable=fields["retriable"],
        endpoint=None if endpoint is None else _line(endpoint),
        reply=reply,
    )


def _reply(code: object, text: object) -> Reply:
    if type(code) is not int or not isinstance(text, str):
        raise ValueError("a reply is a code and a text")
    return Reply.make(code, text)


def _line(text: str) -> str:
    """``text`` as it may stand in an error, and so in a log: one printable line."""
    text = text[:MAX_TEXT]
    return text if text.isprintable() else "".join([each if each.isprintable() else "?" for each in text])


# -- counts -----------------------------------------------------------------------------------------------------------


def decode_counts(data: bytes) -> dict[str, Any]:
    """The keeper's statistics: numbers, and tables of numbers.

    :raises MalformedError: for anything else.
    """
    what = "counts"
    counts = _object(data, MAX_ANSWER, what)
    for count in counts.values():
        for number in count.values() if isinstance(count, dict) else (count,):
            if not isinstance(number, (int, float)):
                raise MalformedError(f"{what}: not all of them are numbers")
    return counts
