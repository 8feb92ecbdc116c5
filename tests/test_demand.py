"""Sessions kept on demand: only while deliveries come back to back, or wait."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits
from mailcache import demand as module
from mailcache.demand import BACK_TO_BACK, Demand
from mailcache.members import Member
from tests.helpers import Bed
from tests.pool_world import ENDPOINTS, World, to

A, B = ENDPOINTS[:2]
ONE, TWO = to("one.example"), to("two.example")
SOON, LATER = BACK_TO_BACK / 2, BACK_TO_BACK * 2


class DemandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.demand = Demand()
        self.now = 100.0

    def lease(self, after: float = 0.0, seconds: float = 0.0) -> bool:
        """One lease; gives whether its session is kept at its end."""
        self.now += after
        self.demand.began(ONE, self.now)
        self.now += seconds
        self.demand.ended(ONE, self.now)
        return self.demand.busy(ONE)

    def test_a_destination_nobody_has_asked_for_is_not_busy(self) -> None:
        self.assertFalse(self.demand.busy(ONE))

    def test_busy_from_the_second_back_to_back_until_a_pause(self) -> None:
        for pause, kept in ((0, False), (SOON, True), (SOON, True), (LATER, False), (SOON, True)):
            self.assertIs(self.lease(pause), kept, f"after {pause} s")

    def test_the_pause_is_from_the_end_of_one_to_the_beginning_of_the_next(self) -> None:
        self.lease(seconds=LATER)
        self.assertTrue(self.lease(SOON, seconds=LATER))

    def test_a_burst_alone_does_not_make_it_busy(self) -> None:
        """As many as there are may begin at one time, and then no more."""
        for _ in range(5):
            self.demand.began(ONE, self.now)
        self.assertFalse(self.demand.busy(ONE))

    def test_it_stays_busy_beside_others(self) -> None:
        self.lease()
        self.demand.began(ONE, self.now + SOON)
        self.demand.began(ONE, self.now + 10 * LATER)
        self.assertTrue(self.demand.busy(ONE))

    def test_one_is_busy_and_the_other_is_not(self) -> None:
        self.lease()
        self.lease()
        self.assertTrue(self.demand.busy(ONE))
        self.assertFalse(self.demand.busy(TWO))

    def test_no_more_than_so_many_are_remembered(self) -> None:
        self.patch(module, "MAX_REMEMBERED", 2)
        self.lease()
        self.lease()
        for name in ("two.example", "three.example"):
            self.demand.began(to(name), self.now)
        self.assertFalse(self.demand.busy(ONE))
        self.demand.ended(ONE, self.now)
        self.assertFalse(self.lease())


class PoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(keep="busy", sessions_per_destination=2)

    def use(self) -> Member:
        member = self.world.serve(ONE, A)
        self.world.release(member)
        return member

    def test_what_nobody_wants_is_closed_after_its_message(self) -> None:
        member = self.use()
        self.assertEqual(self.world.closed_for, {member: "demand"})
        self.assertEqual(self.world.pool.evictions, {"demand": 1})

    def test_what_is_wanted_back_to_back_is_kept(self) -> None:
        self.world.vanish(self.use())
        self.world.now += SOON
        kept = self.use()
        self.assertEqual(self.world.idle, [kept])
        self.world.now += SOON
        self.assertIs(self.use(), kept)

    def test_what_was_kept_serves_after_a_pause_and_is_closed_then(self) -> None:
        self.world.vanish(self.use())
        kept = self.use()
        self.world.now += LATER
        self.assertIs(self.use(), kept)
        self.assertEqual(self.world.closed_for[kept], "demand")

    def test_who_waits_has_it(self) -> None:
        members = [self.world.serve(ONE, A) for _ in range(2)]
        waiting = self.world.ask(ONE)
        self.world.release(members[0])
        self.assertIs(self.world.got(waiting), members[0])


class CacheTests(SynchronousTestCase):
    def test_a_message_now_and_then_leaves_no_connection_behind(self) -> None:
        bed = Bed(limits=Limits(keep="busy"))
        for _ in range(3):
            self.assertEqual(bed.deliver().rejected, {})
            bed.reactor.advance(LATER)
            self.assertEqual(bed.server.open_count, 0)
        self.assertEqual([record.closed for record in bed.server.connections], ["quit"] * 3)

    def test_messages_back_to_back_share_a_session_from_the_second_on(self) -> None:
        bed = Bed(limits=Limits(keep="busy"))
        for _ in range(5):
            self.assertEqual(bed.deliver().rejected, {})
        self.assertEqual(len(bed.server.connections), 2)

    def test_wrong_values(self) -> None:
        for wrong in ("sometimes", None, True):
            with self.assertRaises(ValueError) as caught:
                Limits(keep=wrong)
            self.assertIn("keep", str(caught.exception))
