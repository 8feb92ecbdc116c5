"""What a world for whole caches sends to: three servers, each with ways of its own, and the destinations there."""

from __future__ import annotations

import datetime
from typing import Any

import attrs

from mailcache import Credentials, Destination, Timeouts, TLSPolicy
from mailcache.destination import Endpoint
from mailcache.envelope import Needs
from mailcache.routing.route import Hop
from mailcache.testing import MemoryReactor, SMTPServer
from mailcache.testing.server import CAPABILITIES
from tests.helpers import authority, verifying

HOUR = 3600.0
TIMEOUTS = Timeouts(
    connect=3, greeting=3, ehlo=3, starttls=3, auth=3, mail=3, rcpt=3, data=3, content=3, dot=4, rset=2, quit=1,
    first_reply=2,
)  # fmt: skip
HASTY = attrs.evolve(TIMEOUTS, mail=1, dot=2)
WAIT = 10.0
"""Seconds that one waits for a place who does not say."""

LATE = 0.3
"""Seconds by which a time limit may be passed: two looks of a ticker, and what is under way."""

LONGEST = 600.0
"""Seconds in which whatever is asked for has come to its end: a delivery has at most 3 parts with 2 attempts each; an
attempt waits for at most 2 openings (7 replies of 3 s) and as often for a place (10 s), and has 8 replies itself."""

SECURE, PLAIN, LOCAL = (
    Endpoint("smtp", "192.0.2.1", 25),
    Endpoint("smtp", "192.0.2.2", 25),
    Endpoint("lmtp", "192.0.2.3", 24),
)
ENDPOINTS = (SECURE, PLAIN, LOCAL)
USERS = {"ann": "secret", "bert": "secret, too"}
UTF8 = Needs(smtputf8=True)
ROUTES = {
    "192.0.2.1": (Hop(SECURE, "192.0.2.1"),),
    "192.0.2.2": (Hop(PLAIN, "192.0.2.2"),),
    "192.0.2.3": (Hop(LOCAL, "192.0.2.3"),),
    "one.example": (Hop(SECURE, "mx.test"), Hop(PLAIN, "mx.example.com")),
    "two.example": (Hop(SECURE, "mx.test"),),
}
SIZES = (0, 1, 300, 10_000, 400_000)
"""Octets of content: one TLS record, or much more than transports hold. In between all of it may have been handed over
when the server has the first of it, and one that answers 250 then, and takes nothing, can't be seen through (rule R3).
"""


def destinations() -> dict[str, Destination]:
    clear, encrypted = TLSPolicy("none"), TLSPolicy("encrypt", ca_file=verifying().ca_file)
    return {
        "plain": Destination("[192.0.2.2]:25", tls=clear),
        "other stream": Destination("[192.0.2.2]:25", tls=clear, namespace="other"),
        "one": Destination("one.example", tls=TLSPolicy("may", ca_file=verifying().ca_file)),
        "two": Destination("two.example", tls=verifying()),
        "ann": Destination("[192.0.2.1]:25", tls=encrypted, credentials=Credentials("ann", USERS["ann"])),
        "bert": Destination("[192.0.2.1]:25", tls=encrypted, credentials=Credentials("bert", USERS["bert"])),
        "local": Destination("[192.0.2.3]:24", protocol="lmtp", tls=clear),
        "quick": Destination("[192.0.2.1]:25", tls=clear, one_flight=True),
        "nowhere": Destination("nowhere.example", tls=clear),
    }


def make_servers(reactor: MemoryReactor, slow_delay: float, restart_seconds: float) -> dict[Endpoint, SMTPServer]:
    """One with TLS and users, a poor one, and one that speaks LMTP and does not like to be hurried."""
    # It expires in three quarters of an hour, so that wall-clock jumps make it good or bad.
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=45)
    certificate = _certificate(expiry.replace(second=0, microsecond=0))
    script: dict[str, Any] = {"slow_delay": slow_delay, "restart_seconds": restart_seconds, "drip_interval": 2.0}
    poor = [word for word in CAPABILITIES if word not in ("SMTPUTF8", "CHUNKING")] + ["LIMITS MAILMAX=6 RCPTMAX=2"]
    slow = [word for word in CAPABILITIES if word != "PIPELINING"]
    servers = {
        SECURE: SMTPServer(reactor, certificate=certificate, users=USERS, **script),
        PLAIN: SMTPServer(reactor, capabilities=poor, **script),
        LOCAL: SMTPServer(reactor, lmtp=True, capabilities=slow, **script),
    }
    for endpoint, server in servers.items():
        server.listen(endpoint.port or 0, endpoint.address)
    return servers


_issued: dict[Any, Any] = {}


def _certificate(expiry: datetime.datetime) -> Any:
    """The servers' certificate with this end; the same one for a minute."""
    if expiry not in _issued:
        _issued.clear()
        _issued[expiry] = authority().issue(("mx.test", "mx.example.com"), ("192.0.2.1",), not_after=expiry)
    return _issued[expiry]
