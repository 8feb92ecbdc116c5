"""The cache in memory in random worlds: whatever happens, in whatever order, its promises hold."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits
from mailcache.testing.faults import Fault
from tests.cache_worlds.machine import LIMITS, SETTINGS, CacheMachine
from tests.cache_worlds.servers import HASTY, PLAIN, TIMEOUTS
from tests.cache_worlds.world import World
from tests.helpers import BEHIND_REFUSED_RSET

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


class RefusedResetTests(SynchronousTestCase):
    """RSET, MAIL, RCPT and DATA go out together: where RSET is refused, they meet with the old transaction."""

    def test_the_message_goes_over_another_session_and_nothing_into_the_old_transaction(self) -> None:
        for kind in ("4xx", "5xx"):
            with self.subTest(kind):
                world = World(Limits(), 0.0, 0.5, 0.0)
                server = world.servers[PLAIN]
                world.deliver(0, "plain", refused=1)
                world.pass_time(1.0)
                server.arm(Fault("rset", kind))
                world.deliver(0, "plain")
                world.pass_time(1.0)
                world.check()
                self.assertEqual(server.violations, [f"connection 1: {BEHIND_REFUSED_RSET}"])
                self.assertEqual([each.recipients for each in server.messages], [("to0.m2@to.test",)])
                world.finish(abrupt=False)
