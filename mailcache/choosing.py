"""Where a session for a request is opened, the best of its route's candidates that may be tried now; and if there is
none, whether it may wait, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailcache.destination import Endpoint
from mailcache.members import LEASED, OPENING, Candidate, Request
from mailcache.places import Places
from mailcache.result import DeliveryError
from mailcache.routes import Routes
from mailcache.routing.health import Health

MAX_ADDRESSES = 5
"""Endpoints tried for one request (Postfix smtp_mx_address_limit)."""


def choose(
    request: Request,
    candidates: Sequence[Candidate],
    places: Places,
    health: Health,
    now: float,
) -> Candidate | list[Endpoint]:
    """The candidate to open for ``request``, or else the endpoints where one might be opened if they had a place left;
    none at all means that it is to wait for how the attempts of others end.

    :raises DeliveryError: if there is none; what it says is the last that has really gone wrong, if anything has.
    """
    busy = False
    crowded: list[Endpoint] = []
    lacks: list[DeliveryError] = []
    left_alone: DeliveryError | None = None
    for candidate in candidates if len(request.tried) < MAX_ADDRESSES else ():
        endpoint = candidate.endpoint
        if endpoint in request.avoid or endpoint in request.tried:
            continue
        lacking = candidate.lacks(request.needs, now)
        if lacking is not None:
            lacks.append(DeliveryError(lacking, phase="needs", retriable=False, endpoint=str(endpoint)))
            continue
        blocked = _left_alone(candidate, health, now)
        if blocked is not None:
            left_alone = left_alone or blocked
        elif not _may_attempt(candidate, places, health):
            busy = True
        elif places.room_at(endpoint):
            return candidate
        else:
            crowded.append(endpoint)
    if crowded or busy:
        return crowded
    raise (
        request.error
        or left_alone
        or (lacks[0] if len(lacks) == len(candidates) else None)
        or DeliveryError("no endpoint is left to try", phase="routing")
    )


def _may_attempt(candidate: Candidate, places: Places, health: Health) -> bool:
    for subject in (candidate.way, candidate.subject):
        allowed = health.attempts_allowed(subject)
        if allowed is not None and places.openings_by(subject) >= allowed:
            return False
    return True


def _left_alone(candidate: Candidate, health: Health, now: float) -> DeliveryError | None:
    for subject in (candidate.way, candidate.subject):
        pause = health.blocked(subject, now)
        if pause > 0:
            cause = health.last_error(subject)
            assert cause is not None
            error = DeliveryError(
                f"left alone for another {pause:.1f} s after repeated failures; the last: {cause}",
                phase=cause.phase,
                endpoint=str(candidate.endpoint),
                reply=cause.reply,
            )
            error.__cause__ = cause
            return error
    return None


def may_wait(request: Request, places: Places, routes: Routes, now: float, wall: Callable[[], float]) -> bool:
    """Whether a session that is at work, or on its way, may serve ``request`` later."""
    for member in places.members:
        if member.state not in (OPENING, LEASED) or member.candidate.endpoint in request.avoid:
            continue
        candidates = routes.with_session(member, request.destination, now)
        if member.state == OPENING:
            if candidates:
                return True
        elif candidates and not request.fresh:
            assert member.session is not None
            if request.needs.unmet_by(member.session.capabilities) is None and any(
                member.judged(candidate.requirement, wall).ok for candidate in candidates
            ):
                return True
    return False


def no_place(request: Request, candidates: Sequence[Candidate], health: Health, why: str) -> DeliveryError:
    """What ``request`` is told that gets no place: with the last real error, its own or others'."""
    cause = request.error
    for candidate in candidates:
        cause = cause or health.last_error(candidate.way) or health.last_error(candidate.subject)
    error = DeliveryError(
        f"no place for another session: {why}" + (f"; the last error was: {cause}" if cause else ""),
        phase="waiting",
    )
    error.__cause__ = cause
    return error
