"""The cache in memory in random worlds: whatever happens, in whatever order, its promises hold."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits
from tests.cache_worlds.machine import LIMITS, SETTINGS, CacheMachine
from tests.cache_worlds.servers import HASTY, TIMEOUTS

EXAMPLES = 150


class MemoryMachine(CacheMachine):
    """What can only happen to a cache in memory is here."""

    @rule(limits=LIMITS, timeouts=st.sampled_from([TIMEOUTS, HASTY]), which=st.booleans())
    def reload(self, limits: Limits, timeouts: Any, which: bool) -> None:
        world: Any = self.world
        world.check()
        world.cache.retire(lambda destination: (destination.namespace == "default") == which, "configuration")
        world.cache.reconfigure(limits, timeouts)
        world.set_ceilings()


class ModelTests(SynchronousTestCase):
    def test_the_promises_hold_in_random_worlds(self) -> None:
        run_state_machine_as_test(MemoryMachine, settings=settings(SETTINGS, max_examples=EXAMPLES))
