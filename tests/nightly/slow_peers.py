"""``python -m tests.nightly.slow_peers``: hundreds of servers that answer an octet at a time, beside some good ones.

All is sent by one cache: to the good servers as fast as they take it, alone and beside the slow ones, in turns. How
much is taken must hardly change.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.nightly.balance import read_sent
from tests.nightly.figures import Report, percentile
from tests.nightly.stage import Stage, Told, addresses, command

PROMISED_SHARE = 0.9
"""Of what the good servers take where there are no slow ones."""

DRIP = 10.0
"""Seconds between two octets of a slow server: the whole of a reply takes minutes."""

LIMITS = {"sessions": 5000, "waiters": 5000}


async def run(reactor: Any, options: argparse.Namespace, report: Report) -> None:
    async with Stage(reactor) as stage:
        await _run(options, report, stage)


async def _run(options: argparse.Namespace, report: Report, stage: Stage) -> None:
    keeper = await stage.keeper(LIMITS) if options.keeper else None
    good, where = await stage.servers(addresses(0, options.good))
    dripping = [{"point": "mail", "kind": "drip", "times": 10**9}]
    slow, dull = await stage.servers(addresses(1, options.slow), faults=dripping, drip_interval=DRIP)
    path = None if keeper is None else stage.socket
    sender = await stage.senders([*where, *dull], "letter", keeper=path, limits=LIMITS)
    rates: dict[bool, list[float]] = {False: [], True: []}
    times: dict[bool, list[float]] = {False: [], True: []}
    await sender.do("for", seconds=options.seconds / 4, at_once=options.at_once, among=options.good)  # all are opened
    for turn in range(options.turns):
        for beside in (False, True):
            label = f"{turn}, {'beside slow ones' if beside else 'alone'}"
            if beside:
                await sender.do("begin", first=options.good, number=options.slow)
            file = stage.folder / f"{label}.good"
            await sender.do("note", outcomes=str(file))
            counts = await sender.do("for", seconds=options.seconds, at_once=options.at_once, among=options.good)
            rates[beside].append(counts.get("sent", 0) / options.seconds)
            times[beside] += await _times(sender, file)
            report.exactly(f"messages that good servers did not take (turn {label})", _rest(counts), {})
            if beside:
                waiting = await sender.do("abandon")
                report.exactly(f"messages that waited at slow servers to the end (turn {label})", waiting, options.slow)
    alone, loaded = median(rates[False]), median(rates[True])
    report.say("messages a second to good servers alone", alone)
    report.say("messages a second to good servers beside slow ones", loaded)
    report.at_least("share of that", loaded / alone, options.share)
    for beside, name in ((False, "alone"), (True, "beside slow ones")):
        for share in (0.5, 0.99):
            report.say(f"delivery {name}, p{100 * share:.0f} in ms", 1000 * percentile(times[beside], share))
    for server in (good, slow):
        report.exactly("violations of the protocol", (await server.do("counts"))["violations"], [])
    if keeper is not None:
        await stage.end_keeper(keeper)
        report.exactly("lines that the keeper has complained with", keeper.complaints, [])


async def _times(sender: Told, file: Path) -> list[float]:
    await sender.do("note", outcomes=None)
    return [each.took for each in read_sent([file])]


def _rest(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name != "sent"}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.slow_peers", description=__doc__)
    parser.add_argument("--slow", type=int, default=500)
    parser.add_argument("--good", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=50, help="messages to good servers under way")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--share", type=float, default=PROMISED_SHARE, help="of it that is promised beside slow ones")
    parser.add_argument("--keeper", action="store_true", help="the cache is a keeper's, not in memory")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(run, parse())
