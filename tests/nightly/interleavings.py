"""Random interleavings of deliveries, cancels, time limits and late replies: whose verdict is it that a caller hears?

    python -m tests.nightly.interleavings --runs 100000

The server numbers what it takes, ``250 2.0.0 <m3>``, so that a success for m3 with a reply that names another message
shows a session that was out of step. Each run is a world of its own, of 1 to 5 sessions and 2 to 8 messages.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mailcache import (
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    Limits,
    Timeouts,
    TLSPolicy,
    UncertainDelivery,
)
from mailcache import deliver as begin_delivery
from mailcache.testing import Chaos, MemoryReactor, SMTPServer
from tests.helpers import keeper_cache, memory_cache
from tests.nightly.figures import Report

POINTS = ("mail", "rcpt", "data", "dot", "after_dot", "rset", "quit", "banner", "ehlo")
LATE = ("slow", "slow", "slow", "drip", "split", "silence")
ODD = ("early", "dup", "unsolicited", "multi", "4xx", "5xx", "421", "rst", "fin")
"""Kinds of faults: replies that are late, and replies that are too many, or refuse."""

GUARDED = tuple(kind for kind in ODD if kind != "unsolicited")
"""The same where there is one flight, which no 354 guards: a made-up 250 behind the reply to RCPT can't be told from
the reply to the content, if that is late as well."""

TIMEOUTS = Timeouts(
    connect=1, greeting=1, ehlo=1, mail=1, rcpt=1, data=1, content=1, dot=1.5, rset=0.7, quit=0.5, first_reply=0.8
)
SPAN = 3.0
"""Seconds within which deliveries of a run begin."""

LONGEST = 300.0
"""Seconds in which every one has come to its end."""

WITH_KEEPER = 0.2
"""What part of the runs has a keeper in between."""

NAMED = re.compile(r"<(m\d+)>")


@attrs.define
class Figures:
    """What was seen in all runs."""

    runs: int = 0
    messages: int = 0
    cancels: int = 0
    successes: int = 0
    refusals: int = 0
    failures: int = 0
    uncertain: int = 0
    taken: int = 0
    taken_in_doubt: int = 0
    mismatches: int = 0
    lost: int = 0
    doubles: int = 0
    faults: int = 0
    broken: list[str] = attrs.Factory(list)
    """Which run was the first to break a promise, and what else must not be."""

    @property
    def kept(self) -> bool:
        """Whether all promises were kept."""
        return not (self.mismatches or self.lost or self.doubles or self.broken)

    def tell(self, report: Report) -> None:
        """One line for each figure."""
        report.say("runs", self.runs)
        report.say("messages", self.messages)
        report.say("cancels", self.cancels)
        report.say("faults", self.faults)
        report.say("told taken", self.successes)
        report.say("told refused", self.refusals)
        report.say("told not delivered", self.failures)
        report.say("told uncertain", self.uncertain)
        report.exactly("taken by the server", self.taken, self.successes + self.taken_in_doubt)
        report.say("of these told taken", self.successes)
        report.say("of these told uncertain", self.taken_in_doubt)
        report.exactly("successes with a reply that does not name the message", self.mismatches, 0)
        report.exactly("told taken and not taken", self.lost, 0)
        report.exactly("taken twice, or taken and told otherwise", self.doubles, 0)
        report.exactly("first runs that broke a promise, and outcomes of another kind", len(self.broken), 0)
        for line in self.broken:
            report.say("look at", line)


class Run:
    """One interleaving."""

    def __init__(self, chance: random.Random, figures: Figures) -> None:
        self.chance = chance
        self.figures = figures
        self.reactor = MemoryReactor(latency=chance.choice((0.0, 0.0, 0.01, 0.1)))
        lmtp = chance.random() < 0.2
        rate = chance.choice((0.0, 0.1, 0.3))
        one_flight = chance.random() < 0.3
        kinds = LATE if chance.random() < 0.5 else LATE + (GUARDED if one_flight else ODD)
        chaos = Chaos(dict.fromkeys(POINTS, rate), seed=chance.randrange(10**9), kinds=kinds)
        capabilities = ["PIPELINING", "CHUNKING", "ENHANCEDSTATUSCODES"]
        if chance.random() < 0.3:
            capabilities.remove("PIPELINING")
        self.server = SMTPServer(
            self.reactor,
            lmtp=lmtp,
            capabilities=capabilities,
            chaos=chaos,
            slow_delay=chance.choice((0.05, 0.6, 1.2, 3.0)),
            drip_interval=0.05,
            verdict=self._numbered,
        )
        self.server.listen(25, "192.0.2.1")
        sessions = chance.randint(1, 5)
        limits = Limits(sessions=sessions, sessions_per_destination=sessions, max_age=chance.choice((1, 300)))
        make = keeper_cache if chance.random() < WITH_KEEPER else memory_cache
        self.cache = make(self.reactor, limits, TIMEOUTS, None)
        self.destination = Destination(
            "[192.0.2.1]:25",
            protocol="lmtp" if lmtp else "smtp",
            tls=TLSPolicy("none"),
            one_flight=one_flight,
        )
        self.told: dict[str, Any] = {}
        self.deferreds: dict[str, Deferred[Any]] = {}

    def _numbered(self, point: str, argument: str, record: Any) -> bytes | None:
        return b"250 2.0.0 <%s>" % argument.partition("@")[0].encode() if point == "dot" else None

    def begin(self, label: str) -> None:
        """One more delivery, which may be cancelled at any moment."""
        chance = self.chance
        envelope = Envelope(f"{label}@from.test", [f"{label}@to.test"])
        deadline = chance.uniform(0.01, 2) if chance.random() < 0.15 else None
        content = f"Subject: {label}\r\n\r\n{label}\r\n".encode() * chance.choice((1, 1, 1, 3000))
        delivering = begin_delivery(self.cache, self.destination, envelope, content, deadline)
        self.deferreds[label] = delivering
        delivering.addBoth(self._end, label)
        if chance.random() < 0.4:
            moment = chance.choice((0.0, chance.uniform(0, 0.4), chance.uniform(0, 3)))
            self.reactor.callLater(moment, self._cancel, label)

    def _cancel(self, label: str) -> None:
        if label not in self.told:
            self.figures.cancels += 1
            self.deferreds[label].cancel()

    def _end(self, outcome: Any, label: str) -> None:
        self.told[label] = outcome.value if isinstance(outcome, Failure) else outcome
        others = [other for other in self.deferreds if other not in self.told]
        if others and self.chance.random() < 0.1:
            self._cancel(self.chance.choice(others))

    def play(self) -> None:
        """All of it, and the count."""
        labels = [f"m{number}" for number in range(self.chance.randint(2, 8))]
        for label in labels:
            self.reactor.callLater(self.chance.choice((0.0, self.chance.uniform(0, SPAN))), self.begin, label)
        self.reactor.run_for(SPAN)
        self.reactor.run_until(lambda: len(self.told) == len(labels), LONGEST)
        closed: list[Any] = []
        self.cache.close().addBoth(closed.append)
        self.reactor.run_until(lambda: closed, LONGEST)
        for label in labels:
            self._count(label)
        self.figures.runs += 1
        self.figures.messages += len(labels)
        self.figures.faults += len(self.server.fired)

    def _count(self, label: str) -> None:
        figures, told = self.figures, self.told[label]
        taken = sum(message.committed for message in self.server.messages if message.sender == f"{label}@from.test")
        success = isinstance(told, DeliveryResult) and not told.rejected
        figures.taken += taken
        if success:
            figures.successes += 1
            figures.mismatches += NAMED.findall(str(told.reply)) != [label]
            figures.lost += not taken
            figures.doubles += taken > 1
        elif isinstance(told, UncertainDelivery):
            figures.uncertain += 1
            figures.taken_in_doubt += taken
            figures.doubles += taken > 1
        elif isinstance(told, DeliveryResult):
            figures.refusals += 1
            figures.doubles += taken
        elif isinstance(told, (DeliveryError, CancelledError)):
            figures.failures += 1
            figures.doubles += taken
        else:
            figures.broken.append(f"{label} has come to {told!r}")


def interleave(runs: int, seed: int, first: int = 0) -> Figures:
    """So many runs, each with a chance of its own made of ``seed`` and its number."""
    figures = Figures()
    for number in range(first, first + runs):
        kept = figures.kept
        # The cache spreads ages by chance.
        random.seed(f"{seed}-{number}")
        Run(random.Random(f"{seed}-{number}"), figures).play()
        if kept and not figures.kept:
            figures.broken.append(f"the first run that broke a promise: --seed {seed} --first {number} --runs 1")
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.interleavings", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    report = Report()
    report.say("seed", str(seed))
    interleave(options.runs, seed, options.first).tell(report)
    return report.status


if __name__ == "__main__":
    sys.exit(main())
