"""A keeper and its borrowers in random worlds: whatever happens to whom, the promises of a cache hold."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits
from mailcache.remote.borrowed import LINGER
from mailcache.remote.configuration import Configuration
from tests.cache_worlds.machine import FAVOURITES, LATENCY, LIMITS, SETTINGS, WHO, CacheMachine
from tests.cache_worlds.servers import HASTY, TIMEOUTS
from tests.remote.keeper_world import ADMITTED, ANN, BOB, KeeperWorld

EXAMPLES = 120


class KeeperMachine(CacheMachine):
    """What can only happen where there is a keeper is here."""

    world: KeeperWorld

    @initialize(
        limits=LIMITS,
        latency=LATENCY,
        slow_delay=st.sampled_from([0.5, 5.0]),
        favourites=FAVOURITES,
        abrupt=st.booleans(),
        linger=st.sampled_from([0.0, LINGER]),
    )
    def begin(
        self, limits: Limits, latency: float, slow_delay: float, favourites: list[str], abrupt: bool, linger: float
    ) -> None:
        self.favourites = favourites
        self.abrupt = abrupt
        self.world = KeeperWorld(limits, latency, slow_delay, 0.0, linger)

    @rule(who=WHO, side=st.sampled_from(["borrower", "keeper"]))
    def cut_link(self, who: int, side: str) -> None:
        self.world.cut_link(who, side)

    @rule(how=st.sampled_from(["in order", "killed"]), another=st.sampled_from([True, True, False]))
    def end_keeper(self, how: str, another: bool) -> None:
        if not self.world.keeper.closing:
            self.world.end_keeper(how, another)

    @rule()
    def begin_another(self) -> None:
        self.world.begin_another()

    @rule(
        limits=LIMITS,
        timeouts=st.sampled_from([TIMEOUTS, HASTY]),
        shared=st.booleans(),
        most=st.sampled_from([None, None, 2]),
    )
    def reload(self, limits: Limits, timeouts: Any, shared: bool, most: int | None) -> None:
        users = (frozenset((ANN, BOB)),) if shared else ()
        self.world.reload(Configuration(limits, timeouts, access=ADMITTED, shared=users, leases_per_user=most))

    @rule(who=WHO, really=st.sampled_from([False] * 9 + [True]))
    def close_one(self, who: int, really: bool) -> None:
        if really:
            self.world.close_one(who)


class ModelTests(SynchronousTestCase):
    def test_the_promises_hold_in_random_worlds(self) -> None:
        run_state_machine_as_test(KeeperMachine, settings=settings(SETTINGS, max_examples=EXAMPLES))
