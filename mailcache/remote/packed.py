"""What crosses between a borrower and its keeper for each lease, packed: what is wanted, granted, released.

It is as small as it can be, since it is what a lease costs: AMP takes its time for each key of a box.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import attrs

from mailcache.destination import Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.remote.codec import MalformedError, endpoint_of

MAX_AVOIDED = 64
"""Endpoints that one request may avoid: more than are ever tried."""

MAX_TIMEOUT = 86_400.0
"""Seconds that a request may wait: longer than anybody means."""

MAX_WANTED = 32_768
"""Bytes of a request: 64 endpoints with their scopes or paths, and half of what an AMP value holds."""

_WANTED = struct.Struct("!QdQB")
_GRANTED = struct.Struct("!QQIIB")
_RELEASED = struct.Struct("!QQQQB")
_NO_LIMIT = 0xFFFFFFFF
_FRESH, _SMTPUTF8, _EIGHTBITMIME, _REQUIRETLS, _SIZE = 1, 2, 4, 8, 16
_NEEDS = _SMTPUTF8 | _EIGHTBITMIME | _REQUIRETLS | _SIZE
_FLAGS = _FRESH | _NEEDS


@attrs.frozen
class Wanted:
    """A request for a session: its number, and what `mailcache.interfaces.ISessionCache.acquire` was asked for but the
    destination; ``timeout`` in seconds."""

    number: int
    needs: Needs
    fresh: bool
    avoid: frozenset[Endpoint]
    timeout: float

    def encode(self) -> bytes:
        """More avoided endpoints, or a longer time, than a keeper takes are cut."""
        needs = self.needs
        flags = _FRESH if self.fresh else 0
        if needs is not NO_NEEDS:
            flags |= (
                (_SMTPUTF8 if needs.smtputf8 else 0)
                | (_EIGHTBITMIME if needs.eightbitmime else 0)
                | (_REQUIRETLS if needs.requiretls else 0)
                | (0 if needs.size is None else _SIZE)
            )
        data = _WANTED.pack(self.number, min(self.timeout, MAX_TIMEOUT), needs.size or 0, flags)
        if not self.avoid:
            return data
        avoided = [attrs.astuple(endpoint) for endpoint in self.avoid]
        return data + json.dumps(avoided[:MAX_AVOIDED]).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Wanted:
        """:raises MalformedError: for anything that `encode` does not give."""
        what = "request"
        if len(data) > MAX_WANTED:
            raise MalformedError(f"{what}: {len(data)} bytes, {MAX_WANTED} at most are taken")
        number, timeout, size, flags = _unpack(_WANTED, data[: _WANTED.size], what)
        if not (math.isfinite(timeout) and 0 <= timeout <= MAX_TIMEOUT):
            raise MalformedError(f"{what}: a time that is not within 0 and {MAX_TIMEOUT:g} s")
        if flags & ~_FLAGS or (size and not flags & _SIZE):
            raise MalformedError(f"{what}: a flag that is not known here")
        needs = NO_NEEDS
        if flags & _NEEDS:
            needs = Needs(
                smtputf8=bool(flags & _SMTPUTF8),
                eightbitmime=bool(flags & _EIGHTBITMIME),
                size=size if flags & _SIZE else None,
                requiretls=bool(flags & _REQUIRETLS),
            )
        avoid = _avoided(data[_WANTED.size :]) if len(data) > _WANTED.size else frozenset()
        return cls(number, needs, bool(flags & _FRESH), avoid, timeout)


def _avoided(data: bytes) -> frozenset[Endpoint]:
    what = "request: the endpoints to avoid"
    try:
        entries = json.loads(data)
        if not isinstance(entries, list) or len(entries) > MAX_AVOIDED:
            raise MalformedError(f"{what}: an array of at most {MAX_AVOIDED} is wanted")
        return frozenset(endpoint_of(entry) for entry in entries)
    except MalformedError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedError(f"{what}: no endpoints") from error


@attrs.frozen
class Granted:
    """A lease: its number, the pair it is to be used on, how many uses the session has had and has left (``None`` for
    no limit), and whether RSET is due."""

    lease: int
    pair: int
    uses: int
    uses_left: int | None
    rset_due: bool

    def encode(self) -> bytes:
        left = _NO_LIMIT if self.uses_left is None else self.uses_left
        return _GRANTED.pack(self.lease, self.pair, self.uses, left, self.rset_due)

    @classmethod
    def decode(cls, data: bytes) -> Granted:
        """:raises MalformedError: for bytes of another form."""
        lease, pair, uses, left, rset_due = _unpack(_GRANTED, data, "grant")
        return cls(lease, pair, uses, None if left == _NO_LIMIT else left, _truth(rset_due, "grant"))


@attrs.frozen
class Released:
    """The end of a lease: the bytes that the borrower has sent and received in it, and whether it is done with the
    session. How it leaves the session its keeper knows better."""

    lease: int
    pair: int
    sent: int
    received: int
    discard: bool

    def encode(self) -> bytes:
        return _RELEASED.pack(self.lease, self.pair, self.sent, self.received, self.discard)

    @classmethod
    def decode(cls, data: bytes) -> Released:
        """:raises MalformedError: for bytes of another form."""
        lease, pair, sent, received, discard = _unpack(_RELEASED, data, "release")
        return cls(lease, pair, sent, received, _truth(discard, "release"))


def _unpack(form: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    try:
        return form.unpack(data)
    except struct.error as error:
        raise MalformedError(f"{what}: {form.size} bytes are wanted, not {len(data)}") from error


def _truth(value: int, what: str) -> bool:
    if value > 1:
        raise MalformedError(f"{what}: its last byte is 0 or 1")
    return bool(value)
