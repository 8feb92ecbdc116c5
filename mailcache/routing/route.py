"""A route: the endpoints of a destination, best first, and how long that may be believed."""

from __future__ import annotations

import attrs

from mailcache.destination import Endpoint


@attrs.frozen(slots=True)
class Hop:
    """One endpoint and the host that it was found for: SNI and certificate names are about the host."""

    endpoint: Endpoint
    host: str


@attrs.frozen(slots=True)
class Route:
    """Where to go, best first; ``ttl`` is the seconds that it may be kept, infinite where nothing was looked up."""

    hops: tuple[Hop, ...]
    ttl: float
