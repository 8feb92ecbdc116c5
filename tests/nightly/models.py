"""The random worlds of whole caches, many more of them than each change is tried in.

    python -m tests.nightly.models --examples 20000

In each world up to 40 things happen to a cache in memory, or to a keeper and three borrowers, and after each of them
all that is promised is compared with what servers and callers have seen. A world that breaks a promise is made as
small as can be, and printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import traceback
from collections import Counter

from hypothesis import seed as seeded
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from mailcache import DeliveryError, DeliveryResult, UncertainDelivery
from tests.cache_worlds.machine import SETTINGS, CacheMachine
from tests.cache_worlds.world import World
from tests.nightly.figures import Report
from tests.remote.test_keeper_model import KeeperMachine
from tests.test_cache_model import MemoryMachine

MACHINES: dict[str, type[CacheMachine]] = {"memory": MemoryMachine, "keeper": KeeperMachine}


def counted(world: World, figures: Counter[str]) -> None:
    """Add what has happened in ``world`` to ``figures``."""
    figures["worlds"] += 1
    for message in world.messages.values():
        told = message.told
        if isinstance(told, DeliveryResult):
            figures["told a verdict"] += 1
        elif isinstance(told, UncertainDelivery):
            figures["told uncertain"] += 1
        elif isinstance(told, DeliveryError):
            figures["told not delivered"] += 1
        else:
            figures["cancelled"] += 1
    for server in world.servers.values():
        figures["connections"] += server.connection_count
        figures["taken by servers"] += server.message_count
        figures["faults"] += len(server.fired)
    figures["leases dropped"] += world.dropped


def try_worlds(which: str, examples: int, seed: int) -> tuple[Counter[str], str | None]:
    """What has happened in so many worlds, and the account of the smallest that breaks a promise, if one does."""
    figures: Counter[str] = Counter()

    class Counting(MACHINES[which]):  # type: ignore[misc]
        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "world"):
                counted(self.world, figures)

    try:
        run_state_machine_as_test(
            seeded(seed)(Counting), settings=settings(SETTINGS, derandomize=False, max_examples=examples)
        )
    except Exception:  # noqa: BLE001 - whatever it is, it is what was looked for
        return figures, traceback.format_exc()
    return figures, None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.models", description=__doc__)
    parser.add_argument("--examples", type=int, default=5_000, help="worlds of each kind")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=sorted(MACHINES), default=None)
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    report = Report()
    report.say("seed", str(seed))
    for which in [options.only] if options.only else MACHINES:
        figures, account = try_worlds(which, options.examples, seed)
        for what, count in figures.items():
            report.say(f"{which}, {what}", count)
        report.exactly(f"{which}, worlds that broke a promise", int(account is not None), 0)
        if account is not None:
            report.say("the smallest of them", account)
    return report.status


if __name__ == "__main__":
    sys.exit(main())
