"""Why no kept session served: the reason for which a miss is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from mailcache.destination import SessionKey
from mailcache.members import Candidate, Member, Request


def miss_reason(
    request: Request,
    candidates: Iterable[Candidate] | None,
    idle: Mapping[SessionKey, Sequence[Member]],
    wall: Callable[[], float],
) -> str:
    """Why none of ``idle`` serves ``request``, in a word.

    :param candidates: those of its route; ``None`` if it is not known.
    :param wall: gives seconds since 1970.
    :return: "fresh", "route", "avoided", "needs", "trust", "limit"; the field in which the key of an idle session
        with the same endpoint differs; or "none idle".
    """
    if request.fresh:
        return "fresh"
    if candidates is None:
        return "route"
    for candidate in candidates:
        for member in idle.get(candidate.key, ()):
            assert member.session is not None
            if candidate.endpoint in request.avoid:
                return "avoided"
            if request.needs.unmet_by(member.session.capabilities) is not None:
                return "needs"
            return "limit" if member.judged(candidate.requirement, wall).ok else "trust"
        for key in idle:
            if key.endpoint == candidate.endpoint:
                return difference(key, candidate.key)
    return "none idle"


def difference(key: SessionKey, other: SessionKey) -> str:
    """Which field makes two keys of one endpoint differ: "identity.credentials", "tls_class.ciphers", ..."""
    if (key.tls_class is None) != (other.tls_class is None):
        return "tls_class"
    for name in ("identity", "tls_class"):
        ours, theirs = getattr(key, name), getattr(other, name)
        if ours is None or ours == theirs:
            continue
        for field in attrs.fields(type(ours)):
            if getattr(ours, field.name) != getattr(theirs, field.name):
                return f"{name}.{field.name}"
    return "endpoint"
