"""A lease is one borrower's, and ends once."""

from __future__ import annotations

import gc

from twisted.logger import capturedLogs

from mailcache import DeliveryError, Envelope
from tests.helpers import SMALL
from tests.session_cache.case import CacheCase

ENVELOPE = Envelope("a@example.com", ["b@example.com"])


class LeaseTests(CacheCase):
    def test_a_lease_ends_once_however_often_and_in_whatever_way_it_is_ended(self) -> None:
        for ways in (("release", "release"), ("discard", "discard"), ("release", "discard"), ("discard", "release")):
            with self.subTest(ways):
                bed = self.bed()
                lease = self.lease(bed)
                for way in ways:
                    getattr(lease, way)()
                kept = int(ways[0] == "release")
                self.assert_counts(bed, 0, kept, 0, 0)
                other = self.lease(bed)
                getattr(lease, ways[1])()
                self.assert_counts(bed, 1, 0, 0, 0)
                self.success(bed.finish(bed.send(other)))
                other.release()

    def test_an_ended_lease_is_dead_to_its_holder(self) -> None:
        bed = self.bed()
        lease = self.lease(bed)
        lease.release()
        with self.assertRaises(RuntimeError):
            lease.send(ENVELOPE, SMALL)
        self.assertEqual(bed.server.connections[0].transactions, 0)

    def test_one_message_at_a_time(self) -> None:
        bed = self.bed(latency=0.1)
        lease = self.lease(bed)
        first = bed.send(lease)
        with self.assertRaises(RuntimeError):
            lease.send(ENVELOPE, SMALL)
        self.success(bed.finish(first))
        self.success(bed.finish(bed.send(lease)))
        lease.release()
        self.assertEqual(bed.server.connection_count, 1)

    def test_a_discarded_session_is_not_kept(self) -> None:
        bed = self.bed()
        lease = self.lease(bed)
        self.success(bed.finish(bed.send(lease)))
        lease.discard()
        self.assert_counts(bed, 0, 0, 0, 0)
        self.assertIsNotNone(bed.server.connections[0].closed)

    def test_a_lease_that_is_released_in_mid_transaction_takes_the_session_with_it(self) -> None:
        bed = self.bed(latency=0.1)
        lease = self.lease(bed)
        sending = bed.send(lease)
        lease.release()
        error = bed.finish(sending)
        self.assertIsInstance(error, DeliveryError)
        self.assert_counts(bed, 0, 0, 0, 0)
        self.assertEqual(bed.server.message_count, 0)
        bed.server.violations.clear()

    def test_a_lease_that_is_dropped_is_reclaimed_and_logged(self) -> None:
        bed = self.bed()
        lease = self.lease(bed)
        self.success(bed.finish(bed.send(lease)))
        self.assert_counts(bed, 1, 0, 0, 0)
        with capturedLogs() as events:
            del lease
            gc.collect()
            self.assert_counts(bed, 0, 0, 0, 0)
        (event,) = [event for event in events if event["log_level"].name == "error"]
        self.assertIn("session", event)
        self.sent(bed)

    def test_a_lease_whose_message_is_under_way_is_in_use_although_nobody_holds_it(self) -> None:
        bed = self.bed(latency=0.1)
        lease = self.lease(bed)
        sending = bed.send(lease)
        del lease
        gc.collect()
        self.success(bed.finish(sending))

    def test_a_grant_that_nobody_looks_at_is_reclaimed(self) -> None:
        bed = self.bed()
        bed.finish(bed.acquire())
        gc.collect()
        self.assert_counts(bed, 0, 0, 0, 0)

    def test_who_asks_for_a_fresh_session_gets_one_that_carried_nothing(self) -> None:
        bed = self.bed()
        self.sent(bed)
        lease = self.lease(bed, fresh=True)
        self.assertEqual(lease.uses, 0)
        self.assertEqual(bed.server.connection_count, 2)
        lease.release()

    def test_who_avoids_an_endpoint_gets_another_or_none(self) -> None:
        bed = self.bed()
        lease = self.lease(bed)
        lease.release()
        error = bed.finish(bed.acquire(avoid=frozenset({lease.endpoint})))
        self.assertEqual(error.phase, "routing")
        self.assertEqual(bed.server.connection_count, 1)

    def test_only_a_destination_is_a_destination(self) -> None:
        bed = self.bed()
        with self.assertRaises(ValueError):
            bed.cache.acquire("example.com")

    def test_statistics_say_what_there_is(self) -> None:
        bed = self.bed()
        self.one_after_the_other(bed, 3)
        lease = self.lease(bed)
        self.settle(bed)
        now = bed.statistics()
        self.assertEqual((now["leased"], now["idle"], now["opening"], now["waiting"]), (1, 0, 0, 0))
        self.assertEqual((now["hits"], now["handshakes"], now["fallbacks"]), (3, 1, 0))
        self.assertEqual(sum(now["misses"].values()), 1)
        self.assertEqual(now["evictions"], {})
        lease.release()
