"""Those who have to wait: in their order, for so long, and not for nothing."""

from __future__ import annotations

from itertools import pairwise

from mailcache import DeliveryError, Limits
from mailcache.testing import Fault
from tests.helpers import CREDENTIALS, PORT, TableRouter, hop
from tests.session_cache.case import CacheCase

ONE = Limits(sessions_per_destination=1)


class WaitingTests(CacheCase):
    def test_those_who_wait_are_served_in_the_order_in_which_they_came(self) -> None:
        bed = self.bed(latency=0.01, limits=ONE)
        senders = [f"s{number}@example.com" for number in range(8)]
        outcomes = [bed.start(sender=sender) for sender in senders]
        for outcome in outcomes:
            self.success(bed.finish(outcome))
        self.assertEqual([message.sender for message in bed.server.messages], senders)
        self.assertEqual(bed.server.connection_count, 1)

    def test_a_busy_stream_does_not_starve_another(self) -> None:
        bed = self.bed(latency=0.01, limits=Limits(sessions=1))
        quiet = bed.to(f"[127.0.0.1]:{PORT}", namespace="quiet")
        busy = [bed.start() for _ in range(5)]
        waiting = bed.start(destination=quiet)
        began = bed.reactor.seconds()
        while not waiting.done:
            bed.reactor.run_for(0.02)
            busy = [bed.start() if sender.done else sender for sender in busy]
        self.success(waiting.value)
        self.assertLess(bed.reactor.seconds() - began, 5)
        for sender in busy:
            self.success(bed.finish(sender))
        self.assertLess(bed.server.connection_count, 6)

    def test_who_waits_too_long_hears_why(self) -> None:
        bed = self.bed(limits=ONE)
        lease = self.lease(bed)
        waiting = bed.acquire(timeout=10)
        bed.reactor.run_for(9)
        self.assertFalse(waiting.done)
        error = bed.finish(waiting, 2)
        self.assertIsInstance(error, DeliveryError)
        self.assertEqual((error.phase, error.retriable), ("waiting", True))
        self.assert_counts(bed, 1, 0, 0, 0)
        lease.release()

    def test_who_will_not_wait_hears_so_at_once(self) -> None:
        bed = self.bed(limits=ONE)
        lease = self.lease(bed)
        error = bed.finish(bed.acquire(timeout=0), 0.5)
        self.assertEqual(error.phase, "waiting")
        lease.release()

    def test_the_patience_of_who_names_none_is_the_limits(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_destination=1, wait_timeout=2))
        lease = self.lease(bed)
        self.assertEqual(bed.finish(bed.start(), 3).phase, "waiting")
        lease.release()

    def test_a_patience_that_is_no_time_is_refused(self) -> None:
        bed = self.bed()
        for timeout in (-1, float("nan"), "soon"):
            with self.assertRaises(ValueError):
                bed.acquire(timeout=timeout)

    def test_no_more_may_wait_than_the_limit(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_destination=1, waiters=2))
        lease = self.lease(bed)
        waiting = [bed.start() for _ in range(2)]
        error = bed.finish(bed.start(), 1)
        self.assertEqual((error.phase, error.retriable), ("waiting", True))
        lease.release()
        for outcome in waiting:
            self.success(bed.finish(outcome))

    def test_the_error_of_one_who_waited_carries_the_last_real_one(self) -> None:
        faults = [Fault("banner", "5xx", times=2)]
        router = TableRouter(one=[hop(), hop(port=PORT + 1)], two=[hop(port=PORT + 1)])
        bed = self.bed(faults=faults, router=router, limits=Limits(sessions_per_endpoint=1))
        bed.add_server(PORT + 1)
        lease = self.lease(bed, bed.to("two.example", namespace="another"))
        error = bed.finish(bed.acquire(bed.to("one.example"), timeout=5), 6)
        self.assertEqual(error.phase, "waiting")
        self.assertIn("554", str(error))
        lease.release()

    def test_a_refused_connection_takes_no_place(self) -> None:
        bed = self.bed(limits=ONE)
        bed.server.stop_listening()
        for _ in range(2):
            error = bed.deliver()
            self.assertEqual((error.phase, error.retriable), ("connect", True))
            self.assert_counts(bed, 0, 0, 0, 0)
        bed.server.listen(PORT)
        self.sent(bed)

    def test_a_refused_log_in_takes_no_place(self) -> None:
        bed = self.bed(limits=ONE, credentials=CREDENTIALS, server={"users": {"user": "another"}})
        for _ in range(2):
            error = bed.deliver()
            self.assertEqual((error.phase, error.retriable, error.reply.code), ("auth", False, 535))
            self.assert_counts(bed, 0, 0, 0, 0)
        bed.server.users = {"user": CREDENTIALS.password}
        self.sent(bed)

    def test_a_place_that_is_given_up_by_a_failure_wakes_the_next(self) -> None:
        bed = self.bed(latency=0.1, limits=ONE, faults=[Fault("banner", "5xx")])
        first, second = bed.start(), bed.start()
        self.assertEqual(bed.finish(first).phase, "greeting")
        self.success(bed.finish(second))

    def test_a_server_that_turns_everybody_away_is_left_alone(self) -> None:
        bed = self.bed(latency=0.001, faults=[Fault("banner", "421", times=1000)])
        senders = [bed.start() for _ in range(20)]
        for _ in range(1200):
            bed.reactor.run_for(0.1)
            senders = [bed.start() if sender.done else sender for sender in senders]
            self.assertLessEqual(bed.server.open_count, 5)
        opened = [seconds for seconds, _, text in bed.server.log if text.startswith("connection from")]
        gaps = [after - before for before, after in pairwise(opened[4:])]
        self.assertGreater(len(gaps), 3)
        self.assertGreaterEqual(min(gaps), 1.0)
        self.assertLess(len(opened), 20)
        bed.server.disarm()
        bed.reactor.run_for(61)
        self.sent(bed)
