"""Whatever is cancelled at whatever moment: all counts return, and the next delivery works."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError

from mailcache import Limits, UncertainDelivery
from mailcache.testing import Fault
from tests.helpers import CREDENTIALS, LARGE, PORT, SMALL, Bed, TableRouter
from tests.session_cache.case import CacheCase

WHILE_OPENING = ("connect", "banner", "ehlo", "starttls", "handshake", "ehlo2", "auth")
IN_TRANSACTION = ("mail", "rcpt", "data", "content", "dot", "after_dot")


class CancelTests(CacheCase):
    def silent_at(self, point: str, transaction: int | None = None) -> Bed:
        """A bed whose server falls silent at this point of its first connection."""
        settings: dict[str, Any] = {}
        if point == "auth":
            settings = {"credentials": CREDENTIALS, "server": {"users": {"user": CREDENTIALS.password}}}
        return self.bed(faults=[Fault(point, "silence", connection=1, transaction=transaction)], **settings)

    def check_all_is_well(self, bed: Bed, idle: int = 0) -> None:
        self.assert_counts(bed, 0, idle, 0, 0)
        self.assertEqual(bed.server.open_count, idle)
        self.sent(bed)

    def test_while_a_session_is_opened(self) -> None:
        for point in WHILE_OPENING:
            for begin in ("start", "acquire"):
                with self.subTest(point=point, begin=begin):
                    bed = self.silent_at(point)
                    outcome = getattr(bed, begin)()
                    bed.reactor.run_for(1)
                    self.assertEqual(bed.counts(), (0, 0, 1, 1))
                    outcome.deferred.cancel()
                    self.assertIsInstance(bed.finish(outcome, 1), CancelledError)
                    self.check_all_is_well(bed)

    def test_while_the_network_is_silent(self) -> None:
        bed = self.bed()
        bed.reactor.black_holes.add(("127.0.0.1", PORT))
        outcome = bed.acquire()
        bed.reactor.run_for(1)
        outcome.deferred.cancel()
        self.assertIsInstance(bed.finish(outcome, 1), CancelledError)
        bed.reactor.black_holes.clear()
        self.check_all_is_well(bed)

    def test_while_the_route_is_looked_for(self) -> None:
        router = TableRouter(one=[])
        router.silent.add("one.example")
        bed = self.bed(router=router, limits=Limits(sessions=1))
        outcome = bed.acquire(bed.to("one.example"))
        bed.reactor.run_for(1)
        self.assertEqual(bed.counts(), (0, 0, 0, 1))
        outcome.deferred.cancel()
        self.assertIsInstance(bed.finish(outcome, 1), CancelledError)
        self.assert_counts(bed, 0, 0, 0, 0)

    def test_while_waiting_for_a_place(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_destination=1))
        lease = self.lease(bed)
        first, second, third = (bed.acquire() for _ in range(3))
        bed.reactor.run_for(1)
        second.deferred.cancel()
        self.assertIsInstance(bed.finish(second, 1), CancelledError)
        self.assert_counts(bed, 1, 0, 0, 2)
        for waiting in (first, third):
            lease.release()
            lease = bed.finish(waiting, 1)
        lease.release()
        self.check_all_is_well(bed, idle=1)

    def test_on_loan(self) -> None:
        bed = self.bed()
        outcome = bed.acquire()
        bed.finish(outcome)
        outcome.deferred.cancel()
        self.assert_counts(bed, 1, 0, 0, 0)
        outcome.value.release()
        self.check_all_is_well(bed, idle=1)

    def test_in_each_phase_of_a_transaction(self) -> None:
        for reused in (False, True):
            for point in IN_TRANSACTION:
                with self.subTest(point=point, reused=reused):
                    bed = self.silent_at(point, transaction=2 if reused else 1)
                    if reused:
                        self.sent(bed)
                    outcome = bed.start(LARGE if point == "content" else SMALL)
                    bed.reactor.run_for(1)
                    outcome.deferred.cancel()
                    value = bed.finish(outcome, 1)
                    doubtful = point in ("dot", "after_dot")
                    self.assertIsInstance(value, UncertainDelivery if doubtful else CancelledError)
                    self.check_all_is_well(bed)

    def test_while_the_retry_opens_its_session(self) -> None:
        faults = [Fault("mail", "rst", connection=1, transaction=2), Fault("banner", "silence", connection=2)]
        bed = self.bed(faults=faults)
        self.sent(bed)
        outcome = bed.start()
        bed.reactor.run_for(1)
        outcome.deferred.cancel()
        self.assertIsInstance(bed.finish(outcome, 1), CancelledError)
        self.check_all_is_well(bed)

    def test_the_deadline_of_a_delivery_is_a_cancel_that_says_so(self) -> None:
        for point in (*WHILE_OPENING, "mail"):
            bed = self.silent_at(point)
            outcome = bed.start(deadline=5)
            error = bed.finish(outcome, 6)
            self.assertEqual(error.phase, "deadline")
            self.check_all_is_well(bed)

    def test_what_one_cancels_another_may_still_need(self) -> None:
        bed = self.bed(latency=0.1, limits=Limits(sessions_per_destination=1))
        first, second = bed.start(), bed.start()
        bed.reactor.run_for(0.35)
        first.deferred.cancel()
        self.success(bed.finish(second))
        self.assertEqual(bed.server.connection_count, 1)

    def test_a_hundred_cancels_leave_nothing_behind(self) -> None:
        bed = self.bed(latency=0.05, limits=Limits(sessions=3, waiters=1000))
        for number in range(100):
            outcome = bed.start()
            bed.reactor.run_for(0.013 * (number % 60))
            outcome.deferred.cancel()
        bed.reactor.run_for(3)
        leased, idle, opening, waiting = bed.counts()
        self.assertEqual((leased, opening, waiting), (0, 0, 0))
        self.assertEqual(bed.server.open_count, idle)
        self.sent(bed)
        bed.server.violations.clear()
