"""``python -m tests.nightly.idle_sessions``: thousands of idle sessions in a keeper; what they cost, and do they live?

They are opened by one borrower. While it is there it has a pair of sockets for each; then it leaves, so that what is
measured is of kept sessions alone. After a time without a message another borrower sends one on each of them: on the
same connections, without a second try.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from twisted.internet.task import deferLater

from mailcache.demo.processes import cpu_seconds_of
from tests.nightly.figures import Report
from tests.nightly.stage import Stage, Told, command, memory_of
from tests.remote.processes import descriptors

PROMISED_KIB = {"starttls": 64.0, "none": 12.0}
"""KiB for an idle session, all of the keeper's included."""

PROMISED_CPU = 0.1
"""Percent of a processor for 1,000 of them."""

FOREVER = 86_400
"""Seconds, longer than any run."""

WAVE = 40
"""Sessions that are opened at once: fewer than the connections that may wait to be accepted."""


async def hold(borrower: Told, sessions: int) -> None:
    """Have it lease so many."""
    held = 0
    while held < sessions:
        held = await borrower.do("hold", sessions=min(WAVE, sessions - held))


async def run(reactor: Any, options: argparse.Namespace, report: Report) -> None:
    for tls in ("starttls", "none") if options.tls is None else (options.tls,):
        async with Stage(reactor) as stage:
            await _run(reactor, options, report, stage, tls)


async def _run(reactor: Any, options: argparse.Namespace, report: Report, stage: Stage, tls: str) -> None:
    kind = "plain" if tls == "none" else "TLS"
    sessions = options.sessions
    most = sessions + WAVE
    limits = dict.fromkeys(("sessions", "sessions_per_destination", "sessions_per_endpoint"), most)
    keeper = await stage.keeper({**limits, "idle_timeout": FOREVER, "max_age": FOREVER})
    server, where = await stage.servers(["127.0.0.1"], tls=tls)
    # The first sessions bring what is there once: modules, the context of TLS, arenas.
    first = await stage.senders(where, "first", keeper=stage.socket)
    await hold(first, WAVE)
    await first.do("free")
    before, had = memory_of(keeper.pid), WAVE

    opener = await stage.senders(where, "opener", keeper=stage.socket)
    await hold(opener, sessions)
    await opener.do("free")
    with_pairs = memory_of(keeper.pid)
    for borrower in (first, opener):
        await borrower.do("close")
        await borrower.finish()
    counts = await stage.ask_keeper()
    report.exactly(f"{kind} sessions that are idle", counts["idle"], sessions)
    alone = memory_of(keeper.pid)
    report.say(f"descriptors of the keeper with {kind}", descriptors(keeper.pid))
    report.at_most(f"KiB for an idle {kind} session", (alone.rss - before.rss) / (sessions - had), PROMISED_KIB[tls])
    more = (with_pairs.rss - before.rss) / (sessions - had)
    report.say(f"KiB for an idle {kind} session and a borrower's pair", more)

    used = cpu_seconds_of(keeper.pid)
    await deferLater(reactor, options.seconds)
    share = 100 * (cpu_seconds_of(keeper.pid) - used) / options.seconds
    report.at_most(f"percent of CPU for 1,000 idle {kind} sessions", share * 1000 / sessions, PROMISED_CPU)

    connections = (await server.do("counts"))["connections"]
    user = await stage.senders(where, "user", keeper=stage.socket)
    await hold(user, sessions)
    report.exactly(f"messages that idle {kind} sessions took", await user.do("use", label="use", at_once=50), sessions)
    after = await server.do("counts")
    report.exactly(f"messages that the {kind} server has taken", after["messages"], sessions)
    report.exactly(f"connections of {kind} made for that", after["connections"] - connections, 0)
    report.exactly(f"violations of the protocol with {kind}", after["violations"], [])
    await user.do("free")
    await stage.end_keeper(keeper)
    report.exactly("lines that the keeper has complained with", keeper.complaints, [])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.idle_sessions", description=__doc__)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which CPU is measured")
    parser.add_argument("--tls", choices=tuple(PROMISED_KIB), help="default: one after the other")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(run, parse())
