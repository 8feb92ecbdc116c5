"""What crosses between a borrower and its keeper, value by value: it is what it must be, or a `MalformedError`."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from mailcache import Credentials, DeliveryError, Destination, TLSPolicy
from mailcache.destination import Endpoint
from mailcache.envelope import Needs
from mailcache.remote import codec
from mailcache.remote.codec import MAX_DESTINATION, Facts, MalformedError
from mailcache.remote.packed import Granted, Released, Wanted
from mailcache.result import DeliveryError as Error
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply
from tests.fuzz.choices import Choices, expanded
from tests.fuzz.target import Target


def _error_again(error: DeliveryError) -> tuple[Any, ...]:
    reply = error.reply and (error.reply.code, error.reply.text)
    return error.args[0][: codec.MAX_TEXT], error.phase, error.retriable, error.endpoint, reply


def _destination(data: bytes) -> Destination:
    return codec.decode_destination(data, 1_000)


def _destination_again(found: Destination) -> bytes:
    try:
        return codec.encode_destination(found)
    except DeliveryError:
        # What fits in one way of writing may not in another, which escapes more.
        return b""


_KINDS: tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes], Callable[[Any], Any]], ...] = (
    (_destination, _destination_again, lambda found: found),
    (codec.decode_facts, codec.encode_facts, lambda found: found),
    (codec.decode_error, codec.encode_error, _error_again),
    (Wanted.decode, Wanted.encode, lambda found: found),
    (Granted.decode, Granted.encode, lambda found: found),
    (Released.decode, Released.encode, lambda found: found),
)
"""How each is read, how it is written, and what is compared."""


def check(data: bytes) -> None:
    """What can be read can be written, and that is read as the same."""
    choices = Choices(data)
    decode, encode, compared = _KINDS[choices.below(len(_KINDS))]
    octets = expanded(choices.rest())
    try:
        found = decode(octets)
    except MalformedError as error:
        said = str(error)
        assert said and len(said) < MAX_DESTINATION + 1_000, said
        return
    try:
        again = encode(found)
    except MalformedError:
        return
    if again:
        assert compared(decode(again)) == compared(found)
        hash(found)


_FACTS = codec.encode_facts(
    Facts("1f", Endpoint("smtp", "192.0.2.1", 25), "mx.test", Capabilities({"SIZE": ("5",)}), CLEAR, "clear", 0.5)
)
_ERROR = codec.encode_error(
    Error("no", phase="auth", retriable=False, endpoint="smtp:[192.0.2.1]:25", reply=Reply.make(535, "no"))
)
_DESTINATIONS = tuple(
    codec.encode_destination(where)
    for where in (
        Destination("[192.0.2.1]:587", credentials=Credentials("u", "p"), helo_name="x.test"),
        Destination("example.com", bind_address="192.0.2.1", tls=TLSPolicy("secure", match=("a.test",))),
        Destination("unix:/x", protocol="lmtp", tls=TLSPolicy("fingerprint", fingerprints=("AB" * 32,))),
        Destination("a.test", proxy="p", one_flight=True, credentials=Credentials("u", token="t")),
    )
)
_ENDPOINTS = frozenset({Endpoint("smtp", "192.0.2.1", 25), Endpoint("lmtp", "/x", None)})
_NO_TIMES = tuple(struct.pack("!d", time) for time in (float("nan"), float("inf"), -1.0, 1e9))

TARGET = Target(
    "codec",
    check,
    (
        *(b"\0" + text for text in _DESTINATIONS),
        *(b"\0" + json.dumps({**json.loads(_DESTINATIONS[0]), "version": value}).encode() for value in (2, True, None)),
        b"\1" + _FACTS,
        b"\1" + _FACTS.replace(b'"names":[]', b'"names":[["dns","*.a.test"],["ip","::1"],["x","y"]]'),
        b"\1" + _FACTS.replace(b'"setup_seconds":0.5', b'"setup_seconds":1' + b"0" * 400),
        b"\2" + _ERROR,
        b"\2" + _ERROR.replace(b"535", b"Infinity"),
        b"\2" + _ERROR.replace(b"535", b"1e5"),
        b"\2" + b"[\xfd\xff",
        b"\3" + Wanted(1, Needs(smtputf8=True, size=5), True, _ENDPOINTS, 30.0).encode(),
        b"\3" + Wanted(1, Needs(), False, frozenset(), 30.0).encode(),
        *(b"\3" + Wanted(1, Needs(), False, frozenset(), 1.0).encode()[:8] + time + bytes(9) for time in _NO_TIMES),
        b"\4" + Granted(1, 2, 3, None, True).encode(),
        b"\5" + Released(1, 2, 3, 4, False).encode(),
    ),
    (
        b"null", b"true", b"false", b"Infinity", b"NaN", b"1e999", b'"', b"[", b"]", b"{", b"}", b"\\ud800", b"\\u0000",
        b'"next_hop":', b'"credentials":', b'"tls":', b'"level":', b'"match":', b'"keywords":', b'"evidence":',
        b'"reply":', b'"setup_seconds":', b'["dns","', b'["ip","', b"\x7f\xf0\0\0\0\0\0\0", b"\xfd\xff", b"\xff" * 8,
    ),
)  # fmt: skip
