"""``python -m tests.nightly.leaks``: ten thousand times a cache is made, used, broken and closed; is anything left?

Each cycle is a cache of its own, with real sockets: it connects, delivers to servers of another process which have
faults by chance, and is closed. First it is a cache in memory in the process that is looked at; then it is a
borrower's, and the process that is looked at is the keeper. Some cycles without faults come first and last: behind
them there must be as many descriptors as before, and no object of ours and no timer more.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tests.nightly.figures import Report
from tests.nightly.stage import Stage, Told, addresses, command, memory_of
from tests.remote.processes import descriptors, until

TIMEOUTS = {"connect": 2, "greeting": 1, "ehlo": 1, "starttls": 1, "mail": 1, "rcpt": 1, "data": 1, "content": 1,
            "dot": 1, "rset": 1, "first_reply": 1, "quit": 1}  # fmt: skip
"""Seconds that servers may take; what falls silent must not hold up ten thousand cycles."""

LIMITS = {"idle_timeout": 1, "max_uses": 3}
"""The keeper's: its sessions end, too."""

WARM_UP = 100
"""Cycles before the first look: modules are loaded then, and every server is known."""

SERVERS = 10
"""Addresses that the cycles go to in turn."""

CHECKS = 10
"""How often it is looked meanwhile."""

SETTLED = 15.0
"""Seconds for the last connections to end."""


async def run(reactor: Any, options: argparse.Namespace, report: Report) -> None:
    report.say("seed", options.seed)
    for keeper in (False, True):
        async with Stage(reactor) as stage:
            await _run(options, report, stage, keeper)


async def _run(options: argparse.Namespace, report: Report, stage: Stage, with_keeper: bool) -> None:
    what = "keeper" if with_keeper else "cache in memory"
    server, where = await stage.servers(addresses(0, SERVERS), slow_delay=0.05, drip_interval=0.005)
    keeper = await stage.keeper(LIMITS, TIMEOUTS) if with_keeper else None
    path = None if keeper is None else stage.socket
    cycler = await stage.senders(where, "cycle", keeper=path, timeouts=TIMEOUTS)
    looked_at = cycler if keeper is None else keeper
    await cycler.do("cycles", cycles=WARM_UP, at_once=1)
    before = await _settled(looked_at)
    timers, objects = await looked_at.do("timers"), await looked_at.do("objects")
    memory = memory_of(looked_at.pid)

    await server.do("chaos", rate=options.chaos, seed=options.seed)
    began = time.monotonic()
    counts: dict[str, int] = {}
    for _ in range(CHECKS):
        found = await cycler.do("cycles", cycles=options.cycles // CHECKS, at_once=5)
        counts = {name: counts.get(name, 0) + found.get(name, 0) for name in {*counts, *found}}
    report.say(f"cycles ({what})", options.cycles // CHECKS * CHECKS)
    report.say(f"seconds ({what})", time.monotonic() - began)
    for outcome, count in sorted(counts.items()):
        report.say(f"messages that were {outcome} ({what})", count)
    await server.do("calm")
    # Whoever has failed is forgiven when it works again, and what is remembered of it goes.
    report.exactly(f"servers that work at the end ({what})", await cycler.do("visit", at_once=5, limit=90.0), SERVERS)
    await cycler.do("renew")
    await cycler.do("cycles", cycles=WARM_UP, at_once=1)
    now = await _settled(looked_at, before)
    report.exactly(f"descriptors ({what})", now, before)
    report.exactly(f"timers ({what})", await looked_at.do("timers"), timers)
    has = await looked_at.do("objects")
    more = {kind: count - objects.get(kind, 0) for kind, count in has.items() if count > objects.get(kind, 0)}
    report.exactly(f"objects of ours more than before ({what})", more, {})
    report.say(f"resident memory more than before, KiB ({what})", memory_of(looked_at.pid).rss - memory.rss)
    seen = await server.do("counts")
    report.say(f"faults that have struck ({what})", sum(seen["faults"].values()))
    report.say(f"connections that servers have accepted ({what})", seen["connections"])
    report.exactly(f"violations of the protocol ({what})", seen["violations"], [])


async def _settled(process: Told, expected: int | None = None) -> int:
    """How many descriptors it has once that does not change any more, or is what is ``expected``."""
    seen: list[int] = []

    def look() -> bool:
        seen.append(descriptors(process.pid))
        return len(seen) > 100 and len(set(seen[-100:])) == 1 and expected in {None, seen[-1]}

    with suppress(AssertionError):  # what it is then says the figure
        await until(look, SETTLED)
    return seen[-1]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.leaks", description=__doc__)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--chaos", type=float, default=0.05, help="probability of a fault at each point")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(run, parse())
