"""``python -m tests.nightly.conservation``: what callers were told, and what servers have, over a network of accidents.

Rounds of a few hundred deliveries each have a cache and servers of their own, on a network in memory: STARTTLS, clear
text, TLS from the first byte with AUTH, LMTP, one flight, no PIPELINING, and few recipients at a time. Everything that
can happen happens by chance: faults at every point, on idle sessions too, restarts, cancels, deadlines, content that
can't be read, limits that are too small, borrowers that release and discard, a cache that is closed in the middle. At
the end of a round all is over: nobody waits, no socket and no timer is left, and both sides are compared.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from mailcache import Destination, Envelope, Limits, Timeouts, TLSPolicy, deliver
from mailcache.testing import APPLICABLE, Chaos, Connection, MemoryReactor, SMTPServer
from tests.helpers import CREDENTIALS, Failing, Outcome, Unseekable, certificate, keeper_cache, memory_cache, verifying
from tests.nightly.figures import Report
from tests.nightly.ledger import Ledger, say_all, told_by
from tests.nightly.letters import Letter, letter, verdict

ROUND = 250
"""Deliveries of a round: what is open at a time, and what has to be repeated to see a failure again."""

SHORT = Timeouts(
    connect=5, greeting=10, ehlo=10, starttls=10, auth=10, mail=10, rcpt=10, data=10, content=10, dot=30,
    rset=5, quit=2, first_reply=5,
)  # fmt: skip
"""Seconds, of which no real one passes; each look at what is late takes some, though."""

SLOW, DRIP, RESTART = 1.0, 0.5, 3.0
"""Seconds: of a reply that is late, of an octet that drips in, of a server that restarts."""

SETTLED = 60.0
"""Seconds until the last of those who wait has lost patience, and the last of those who have a session gave it back."""

CACHES: dict[str, Callable[..., Any]] = {"memory": memory_cache, "keeper": keeper_cache}
"""What can be proved; the keeper is in memory too, with one borrower."""

ONE_FLIGHT = "one flight"
CLEAR = TLSPolicy("none")
BARE = ("SIZE 52428800", "8BITMIME")
FEW = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=2")


@attrs.frozen
class Place:
    """Where letters go.

    :ivar often: how often, among all places.
    :ivar listens: addresses and a port, or a path, of a server each.
    """

    often: int
    listens: tuple[tuple[str, int] | str, ...]
    destination: Callable[[], Destination]
    server: Callable[[], dict[str, Any]] = dict


PLACES = {
    "STARTTLS, two addresses": Place(
        3,
        (("192.0.2.1", 25), ("192.0.2.2", 25)),
        lambda: Destination("[mx.test]", tls=verifying()),
        lambda: {"certificate": certificate()},
    ),
    "clear text": Place(4, (("192.0.2.3", 25),), lambda: Destination("[192.0.2.3]", tls=CLEAR)),
    "TLS and AUTH": Place(
        1,
        (("192.0.2.4", 465),),
        lambda: Destination("[mx.example.com]", protocol="smtps", credentials=CREDENTIALS, tls=verifying()),
        lambda: {"certificate": certificate(), "implicit_tls": True, "users": {"user": CREDENTIALS.password}},
    ),
    "LMTP": Place(
        3,
        ("/run/lmtp",),
        lambda: Destination("unix:/run/lmtp", protocol="lmtp", tls=CLEAR),
        lambda: {"lmtp": True},
    ),
    ONE_FLIGHT: Place(4, (("192.0.2.5", 25),), lambda: Destination("[192.0.2.5]", tls=CLEAR, one_flight=True)),
    "no PIPELINING": Place(
        1,
        (("192.0.2.6", 25),),
        lambda: Destination("[192.0.2.6]", tls=CLEAR),
        lambda: {"capabilities": BARE},
    ),
    "two recipients at a time": Place(
        2,
        (("192.0.2.7", 25),),
        lambda: Destination("[192.0.2.7]", tls=CLEAR),
        lambda: {"capabilities": FEW},
    ),
}
HOSTS = {"mx.test": ("192.0.2.1", "192.0.2.2"), "mx.example.com": ("192.0.2.4",)}


@attrs.frozen
class Weather:
    """How bad it is.

    :ivar rate: how probable a fault is at each point that a conversation reaches.
    :ivar idle: how probable one is on an idle session each time that something happens.
    :ivar kinds: of faults; ``None`` is all.
    :ivar impatience: how probable it is that a caller cancels, or has a deadline, or content that can't be read.
    :ivar events: how many seconds it takes on average until something happens to idle sessions, or a server restarts.
    :ivar everywhere: whether callers ask for what leaves doubt or can't be repeated: one flight, and content that is
        read once only; and whether idle sessions die that have not carried a message yet.
    :ivar narrow: how probable it is that the limits of a round are small, down to one session and two who may wait.
    """

    rate: float = 0.02
    idle: float = 0.2
    kinds: tuple[str, ...] | None = None
    impatience: float = 0.06
    events: float = 2.0
    restarts: bool = True
    everywhere: bool = True
    narrow: float = 0.4

    @property
    def rates(self) -> dict[str, float]:
        """By point."""
        return {**dict.fromkeys(APPLICABLE, self.rate), "idle": self.idle}


FAIR = Weather(rate=0.0, idle=0.0, impatience=0.0, restarts=False, everywhere=False, narrow=0.0)
"""No fault at all: nothing may go wrong."""

IDLE_DEATHS = attrs.evolve(FAIR, idle=0.5, kinds=("fin", "rst"), events=0.3)
"""Every few moments half of the idle sessions die: that is the cache's affair, and nobody else may notice."""


class Dying(Chaos):
    """Only sessions die that have carried a message: a new one that dies under its first is the server's affair."""

    def choose(self, point: str, record: Connection, only: str | None = None) -> str | None:
        return super().choose(point, record, only) if record.transactions else None


class Round:
    """So many deliveries, and all that happens meanwhile.

    :param seed: makes it happen again.
    :ivar faults: how many there were, by point.
    :ivar counts: of connections, handshakes, and messages on kept sessions.
    """

    def __init__(self, ledger: Ledger, seed: str, deliveries: int, weather: Weather, cache: str = "memory") -> None:
        self._chance = random.Random(seed)
        self._ledger = ledger
        self._seed = seed
        self._weather = weather
        self._left = deliveries
        self._begun = 0
        self._out = 0
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        chance = self._chance
        self.reactor = MemoryReactor(latency=chance.choice((0.0, 0.001, 0.03)), hosts=HOSTS)
        self.servers = {
            f"{name}, {where}": self._serve(where, place.server())
            for name, place in PLACES.items()
            for where in place.listens
        }
        self._destinations = [place.destination() for place in PLACES.values()]
        self._often = [
            place.often if self._weather.everywhere or name != ONE_FLIGHT else 0 for name, place in PLACES.items()
        ]
        self._cache = CACHES[cache](self.reactor, self._limits(), SHORT, None)
        self._closed: Outcome | None = None

    def _chaos(self) -> Chaos:
        make = Chaos if self._weather.everywhere else Dying
        return make(self._weather.rates, kinds=self._weather.kinds, seed=self._chance.randrange(1 << 30))

    def _serve(self, where: tuple[str, int] | str, settings: dict[str, Any]) -> SMTPServer:
        server = SMTPServer(
            self.reactor,
            verdict=verdict,
            chaos=self._chaos(),
            slow_delay=SLOW,
            drip_interval=DRIP,
            restart_seconds=self._chance.choice((0.0, RESTART)),
            **settings,
        )
        if isinstance(where, str):
            server.listen_unix(where)
        else:
            server.listen(where[1], where[0])
        return server

    def _limits(self) -> Limits:
        chance = self._chance
        if chance.random() >= self._weather.narrow:
            return Limits()
        return Limits(
            sessions=chance.choice((3, 10, 1000)),
            sessions_per_destination=chance.choice((1, 3, 20)),
            sessions_per_endpoint=chance.choice((1, 3, 20)),
            waiters=chance.choice((2, 1000, 1000)),
            wait_timeout=chance.choice((1, 30)),
            idle_timeout=chance.choice((0.5, 30)),
            max_age=chance.choice((2, 300)),
            max_uses=chance.choice((None, None, 1, 5)),
            keep=chance.choice(("always", "always", "busy")),
        )

    # -- what happens

    def run(self) -> None:
        """Let it all happen, until all is over; then compare."""
        for _ in range(self._chance.randrange(2, 25)):
            self._next()
        self._something()
        early = self._chance.randrange(10) if self._weather.impatience and self._chance.random() < 0.3 else 0
        self.reactor.run_until(lambda: not self._left and self._out <= early, 1e6)
        if not early:
            self.reactor.run_for(SETTLED)  # closing at last would end what is leased, too
            self._check_counts("leased", "opening", "waiting")
        self._closed = Outcome(self._cache.close())
        self.reactor.run_until(lambda: not self._out and self._closed.done, 1e4)
        self.reactor.run_for(2 * SETTLED)  # servers that stand still or are slow have their time limits too
        self._check_nothing_is_left()
        self._count()

    def _next(self) -> None:
        """The next delivery of one of those who send one after another."""
        if not self._left:
            return
        self._left -= 1
        self._begun += 1
        self._out += 1
        chance = self._chance
        label = f"{self._seed}-{self._begun}"
        self._ledger.begin(label)
        what = letter(label)
        (where,) = chance.choices(self._destinations, self._often)
        impatient = chance.random() < self._weather.impatience
        soon = 10 ** chance.uniform(-3, 1.3)
        deadline = soon if impatient and chance.random() < 0.5 else None
        content = self._content(what)
        delivering = deliver(self._cache, where, Envelope(what.sender, what.recipients), content, deadline)
        delivering.addBoth(self._told, label)
        if impatient and deadline is None:
            self.reactor.callLater(soon, delivering.cancel)

    def _content(self, what: Letter) -> Any:
        chance = self._chance.random()
        if chance < self._weather.impatience / 4:
            return Failing(what.content, len(what.content) // 2, OSError("the disk has failed"))
        if chance < 0.1:
            return io.BytesIO(what.content)
        if chance < 0.15 and self._weather.everywhere:
            return Unseekable(what.content)
        return what.content

    def _told(self, outcome: Any, label: str) -> None:
        self._out -= 1
        self._ledger.hear(label, told_by(getattr(outcome, "value", outcome)))
        session = getattr(outcome, "session", None)
        self.counts["messages answered on kept sessions"] += bool(session and session.reused)
        pause = self._chance.choice((0.0, 0.0, 0.01, 0.5, 3.0))
        self.reactor.callLater(pause, self._next)

    def _something(self) -> None:
        """Things that happen to nobody's delivery in particular, again and again."""
        if not self._left:
            return
        chance = self._chance
        self.reactor.callLater(chance.expovariate(1 / self._weather.events), self._something)
        happens = chance.random()
        if happens < 0.7 or not self._weather.restarts:
            for server in self.servers.values():
                server.strike_idle()
        elif happens < 0.8:
            chance.choice(list(self.servers.values())).restart()
        else:
            self._hold(chance.choice(self._destinations))

    def _hold(self, where: Destination) -> None:
        """Somebody has a session for a while, and sends nothing."""
        acquiring: Deferred[Any] = self._cache.acquire(where, fresh=self._chance.random() < 0.3)

        def held(lease: Any) -> None:
            end = lease.release if self._chance.random() < 0.7 else lease.discard
            self.reactor.callLater(self._chance.choice((0.0, 0.1, 5.0)), end)

        acquiring.addCallbacks(held, lambda _: None)
        if self._chance.random() < 0.3:
            self.reactor.callLater(self._chance.choice((0.0, 0.01, 1.0)), acquiring.cancel)

    # -- afterwards

    def _check_counts(self, *names: str, **more: int) -> None:
        asked = Outcome(self._cache.statistics())
        self.reactor.run_until(lambda: asked.done, SETTLED)
        counts = {name: asked.value[name] for name in names} | more
        left = {name: count for name, count in counts.items() if count}
        if left:
            self._ledger.wrong.append(f"round {self._seed}: left when all is over: {left}")

    def _check_nothing_is_left(self) -> None:
        more = {f"connections to {name}": server.open_count for name, server in self.servers.items()}
        more |= {"sockets": len(self.reactor.connections), "descriptors": len(self.reactor.descriptors)}
        for server in self.servers.values():
            Outcome(server.close())
        more["timers"] = len(self.reactor.getDelayedCalls())
        self._check_counts("leased", "idle", "opening", "waiting", **more)

    def _count(self) -> None:
        for name, server in self.servers.items():
            self._ledger.read(server, f"round {self._seed}: {name}")
            assert server.chaos is not None
            for (point, _), times in server.chaos.struck.items():
                self.faults[point] += times
            self.counts["connections"] += server.connection_count
            self.counts["TLS handshakes"] += server.handshake_count
        self._ledger.settle()


@attrs.define
class Proof:
    """What rounds have come to."""

    ledger: Ledger = attrs.field(factory=Ledger)
    faults: Counter[str] = attrs.field(factory=Counter)
    counts: Counter[str] = attrs.field(factory=Counter)

    def tell(self, report: Report) -> None:
        say_all(report, "faults that have struck", self.faults)
        for name in sorted(self.counts):
            report.say(name, self.counts[name])
        self.ledger.tell(report)


def prove(
    deliveries: int,
    seed: str,
    weather: Weather,
    cache: str = "memory",
    progress: Callable[[int], object] = lambda _: None,
    first: int = 0,
    enough: Callable[[], bool] = lambda: False,
) -> Proof:
    """Round after round, from that of number ``first``, until there are so many deliveries, or it is ``enough``."""
    proof = Proof()
    for number, begun in enumerate(range(0, deliveries, ROUND), first):
        if enough():
            break
        each = Round(proof.ledger, f"{seed}-{number}", min(ROUND, deliveries - begun), weather, cache)
        each.run()
        proof.faults += each.faults
        proof.counts += each.counts
        progress(min(deliveries, begun + ROUND))
    return proof


def tell_fair(report: Report, proof: Proof) -> None:
    """Where the cache alone may be to blame every letter has a verdict, and is there once."""
    deliveries = proof.ledger.deliveries
    report.exactly("deliveries without a verdict", sum(deliveries.values()) - deliveries["result"], 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.conservation", description=__doc__)
    parser.add_argument("--deliveries", type=int, default=100_000)
    parser.add_argument("--seed", default=None, help="what makes it happen again (default: by chance)")
    parser.add_argument("--rate", type=float, default=Weather().rate, help="of faults at each point (default: 0.02)")
    parser.add_argument("--cache", choices=sorted(CACHES), default="memory")
    parser.add_argument("--first", type=int, default=0, help="the number of the first round of 250")
    parser.add_argument("--weather", choices=("foul", "fair", "idle-deaths"), default="foul")
    options = parser.parse_args(arguments)
    seed = options.seed or str(random.SystemRandom().randrange(1 << 30))
    weather = {"foul": Weather(rate=options.rate), "fair": FAIR, "idle-deaths": IDLE_DEATHS}[options.weather]
    print(f"seed {seed}, {options.weather} weather, {options.cache}")
    began = time.monotonic()

    def progress(done: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done:,} of {options.deliveries:,}")

    proof = prove(options.deliveries, seed, weather, options.cache, progress, options.first)
    report = Report()
    proof.tell(report)
    if options.weather != "foul":
        tell_fair(report, proof)
    report.say("seconds", time.monotonic() - began)
    return report.status


if __name__ == "__main__":
    sys.exit(main())
