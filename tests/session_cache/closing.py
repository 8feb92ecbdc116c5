"""The end of a cache."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from mailcache import DeliveryError, Limits, UncertainDelivery
from mailcache.testing import Fault
from tests.helpers import PORT, Bed, Outcome, TableRouter
from tests.session_cache.case import CacheCase


class CloseTests(CacheCase):
    def closing(self, bed: Bed) -> Outcome:
        return Outcome(bed.cache.close())

    def test_an_empty_cache_is_closed_at_once(self) -> None:
        bed = self.bed()
        self.assertIsNone(bed.finish(self.closing(bed), 0.5))

    def test_idle_sessions_say_quit_and_it_fires_when_their_sockets_are_gone(self) -> None:
        bed = self.bed(latency=0.1)
        self.all_together(bed, 3)
        closing = self.closing(bed)
        self.assertFalse(closing.done)
        bed.finish(closing, 2)
        self.assertEqual([end for end in bed.reactor.connections if end.getHost().port != PORT], [])
        self.assertTrue(all(record.quit_seen for record in bed.server.connections))

    def test_a_server_that_does_not_answer_quit_holds_it_up_for_seconds_only(self) -> None:
        bed = self.bed(faults=[Fault("quit", "silence")])
        self.sent(bed)
        bed.finish(self.closing(bed), 6)

    def test_a_message_under_way_is_finished_first(self) -> None:
        bed = self.bed(latency=0.1)
        outcome = bed.start()
        bed.reactor.run_until(lambda: bed.server.connections and bed.server.connections[0].transactions)
        closing = self.closing(bed)
        self.success(bed.finish(outcome))
        self.assertFalse(closing.done)
        bed.finish(closing, 2)
        self.assertTrue(bed.server.connections[0].quit_seen)

    def test_a_message_that_does_not_come_to_its_end_is_cut_off_after_half_a_minute(self) -> None:
        for point, expected in (("data", DeliveryError), ("after_dot", UncertainDelivery)):
            bed = self.bed(faults=[Fault(point, "silence")])
            outcome = bed.start()
            bed.reactor.run_for(1)
            closing = self.closing(bed)
            bed.reactor.run_for(29)
            self.assertFalse(closing.done)
            bed.finish(closing, 2)
            self.assertIsInstance(bed.finish(outcome, 1), expected)

    def test_a_lease_without_a_message_may_still_send_its_own(self) -> None:
        bed = self.bed()
        lease = self.lease(bed)
        closing = self.closing(bed)
        bed.reactor.run_for(5)
        self.assertFalse(closing.done)
        self.success(bed.finish(bed.send(lease)))
        lease.release()
        bed.finish(closing, 2)
        self.assertTrue(bed.server.connections[0].quit_seen)

    def test_a_lease_that_is_not_given_back_is_taken_after_half_a_minute(self) -> None:
        bed = self.bed()
        lease = self.lease(bed)
        bed.finish(self.closing(bed), 31)
        error = bed.finish(bed.send(lease))
        self.assertIsInstance(error, DeliveryError)
        lease.release()

    def test_those_who_wait_and_those_whose_session_is_being_opened_hear_that_it_is_closed(self) -> None:
        bed = self.bed(latency=0.1, limits=Limits(sessions_per_destination=1))
        outcomes = [bed.start() for _ in range(3)]
        bed.reactor.run_for(0.5)
        closing = self.closing(bed)
        for outcome in outcomes:
            self.assertEqual((bed.finish(outcome, 1).phase, outcome.value.retriable), ("waiting", True))
        bed.finish(closing, 2)

    def test_who_hears_that_it_is_closed_may_cancel_others_that_wait(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_destination=1))
        lease = self.lease(bed)
        first, second, third = (bed.acquire() for _ in range(3))
        first.deferred.addCallback(lambda _: second.deferred.cancel())
        closing = self.closing(bed)
        self.assertEqual([bed.finish(outcome, 1).phase for outcome in (first, third)], ["waiting", "waiting"])
        self.assertIsInstance(bed.finish(second, 1), CancelledError)
        lease.release()
        bed.finish(closing, 2)

    def test_those_whose_route_is_looked_for_hear_that_it_is_closed(self) -> None:
        router = TableRouter(one=[])
        router.silent.add("one.example")
        bed = self.bed(router=router)
        outcome = bed.acquire(bed.to("one.example"))
        bed.reactor.run_for(1)
        bed.finish(self.closing(bed), 1)
        self.assertEqual(outcome.value.phase, "waiting")

    def test_nobody_gets_a_session_of_a_closed_cache(self) -> None:
        bed = self.bed()
        self.sent(bed)
        self.closing(bed)
        error = bed.deliver()
        self.assertEqual((error.phase, error.retriable), ("waiting", True))
        self.assertIn("closed", str(error))

    def test_it_may_be_closed_again_while_it_closes_and_after(self) -> None:
        bed = self.bed(latency=0.1)
        self.sent(bed)
        first, second = self.closing(bed), self.closing(bed)
        bed.finish(first, 2)
        self.assertTrue(second.done)
        bed.finish(self.closing(bed), 0.5)
        self.assertEqual(bed.server.connections[0].closed, "quit")

    def test_who_no_longer_waits_for_the_end_does_not_prevent_it(self) -> None:
        bed = self.bed(latency=0.1)
        self.sent(bed)
        first = self.closing(bed)
        first.deferred.cancel()
        bed.finish(self.closing(bed), 2)
