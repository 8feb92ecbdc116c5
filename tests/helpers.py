"""What tests of several modules share: a cache and a scripted server on a network in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache as once
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mailcache import (
    Credentials,
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    Limits,
    MemorySessionCache,
    Timeouts,
    TLSPolicy,
    UncertainDelivery,
    deliver,
)
from mailcache.testing import Authority, Fault, Issued, MemoryReactor, SMTPServer

PORT = 2525
SMALL = b"Subject: hello\r\n\r\nThis is small.\r\n"
LARGE = b"Subject: hello\r\n\r\n" + b"This is one line of many that make a large message.\r\n" * 20_000
CREDENTIALS = Credentials("user", "correct horse")


@once
def authority() -> Authority:
    """The certificate authority of the whole run."""
    return Authority()


@once
def certificate() -> Issued:
    """The servers' certificate, for localhost, mx.test and 127.0.0.1."""
    return authority().issue(names=("localhost", "mx.test", "mx.example.com"), addresses=("127.0.0.1",))


@once
def ca_file() -> str:
    """The path of the authority's certificate."""
    handle, path = tempfile.mkstemp(".pem")
    with os.fdopen(handle, "wb") as file:
        file.write(authority().certificate_pem)
    return path


def verifying(**more: Any) -> TLSPolicy:
    """Level "verify" with the run's authority."""
    return TLSPolicy("verify", ca_file=ca_file(), **more)


class Outcome:
    """What a Deferred has fired, and how often."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.deferred = deferred
        self.fired: list[Any] = []
        deferred.addBoth(self.fired.append)

    @property
    def done(self) -> bool:
        return bool(self.fired)

    @property
    def value(self) -> Any:
        """The result, or the exception, not raised."""
        (value,) = self.fired
        return value.value if isinstance(value, Failure) else value


class Bed:
    """A cache and a scripted server with STARTTLS on a network in memory; deliveries go to it at level "verify"."""

    def __init__(
        self,
        *,
        faults: Sequence[Fault] = (),
        latency: float = 0.0,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        router: Any = None,
        tls: TLSPolicy | None = None,
        server: dict[str, Any] | None = None,
        **destination: Any,
    ) -> None:
        self.reactor = MemoryReactor(latency=latency)
        settings: dict[str, Any] = {"certificate": certificate(), **(server or {})}
        self.server = SMTPServer(self.reactor, faults=faults, **settings)
        self.server.listen(PORT)
        self.cache = MemorySessionCache(self.reactor, limits, timeouts, router, clock=self.reactor.seconds)
        self.destination = self.to(f"[127.0.0.1]:{PORT}", tls=tls, **destination)

    def to(self, next_hop: str, *, tls: TLSPolicy | None = None, **more: Any) -> Destination:
        return Destination(next_hop, tls=tls if tls is not None else verifying(), **more)

    def start(
        self,
        content: Any = SMALL,
        *,
        sender: str = "a@example.com",
        recipients: Sequence[str] = ("b@example.com",),
        destination: Destination | None = None,
        deadline: float | None = None,
        **envelope: Any,
    ) -> Outcome:
        """Begin a delivery."""
        where = destination if destination is not None else self.destination
        return Outcome(deliver(self.cache, where, Envelope(sender, recipients, **envelope), content, deadline))

    def deliver(self, content: Any = SMALL, **more: Any) -> Any:
        """Deliver and wait: gives the result, or the exception, not raised."""
        return self.finish(self.start(content, **more))

    def finish(self, outcome: Outcome, limit: float = 3600.0) -> Any:
        """Let time pass until ``outcome`` is there; an `AssertionError` if that takes more than ``limit`` seconds."""
        self.reactor.run_until(lambda: outcome.done, limit)
        return outcome.value

    def acquire(self, destination: Destination | None = None, **more: Any) -> Outcome:
        return Outcome(self.cache.acquire(destination if destination is not None else self.destination, **more))

    def statistics(self) -> dict[str, Any]:
        return dict(self.finish(Outcome(self.cache.statistics())))

    def counts(self) -> tuple[int, int, int, int]:
        """Leased, idle, opening, waiting."""
        now = self.statistics()
        return now["leased"], now["idle"], now["opening"], now["waiting"]

    def close(self) -> None:
        """Close the cache; nothing may be left of it."""
        self.finish(Outcome(self.cache.close()), 60.0)
        assert self.counts() == (0, 0, 0, 0), self.counts()


def verdict_of(value: Any) -> str:
    """The fault matrix's word for what came of a delivery."""
    if isinstance(value, UncertainDelivery):
        return "UNKNOWN"
    if isinstance(value, DeliveryError):
        return "NEXT"
    if isinstance(value, DeliveryResult):
        if not value.rejected:
            return "SENT"
        return "TEMP" if all(reply.transient for reply in value.rejected.values()) else "PERM"
    return repr(value)


def eventually(reactor: MemoryReactor, reached: Callable[[], object], limit: float = 60.0) -> None:
    """Let time pass until ``reached``."""
    reactor.run_until(reached, limit)
