"""How many sessions there are, and for how long."""

from __future__ import annotations

from mailcache import Limits
from mailcache.testing import CAPABILITIES
from tests.helpers import PORT, Bed, TableRouter, hop, verifying
from tests.session_cache.case import CacheCase


def spread(bed: Bed) -> list[int]:
    """How many messages each connection has carried."""
    return [record.transactions for record in bed.server.connections]


class LimitTests(CacheCase):
    def test_a_session_carries_so_many_messages_and_then_says_quit(self) -> None:
        bed = self.bed(limits=Limits(max_uses=3))
        self.one_after_the_other(bed, 8)
        self.assertEqual(spread(bed), [3, 3, 2])
        self.settle(bed)
        self.assertEqual([record.closed for record in bed.server.connections], ["quit", "quit", None])

    def test_a_server_that_announces_its_limit_is_left_before_it_has_to_complain(self) -> None:
        bed = self.bed(server={"capabilities": (*CAPABILITIES, "LIMITS MAILMAX=5")})
        self.one_after_the_other(bed, 8)
        self.assertEqual(spread(bed), [5, 3])
        self.settle(bed)
        self.assertTrue(bed.server.connections[0].quit_seen)

    def test_a_busy_session_ends_at_its_age_between_two_messages_and_never_in_one(self) -> None:
        bed = self.bed(latency=0.5, limits=Limits(max_age=10))
        self.one_after_the_other(bed, 30)
        self.assertGreater(bed.server.connection_count, 4)
        self.settle(bed)
        for record in bed.server.connections[:-1]:
            self.assertEqual(record.closed, "quit")
            self.assertEqual(len(record.messages), record.transactions)

    def test_sessions_opened_together_do_not_end_together(self) -> None:
        bed = self.bed(latency=0.01, limits=Limits(max_age=100, idle_timeout=1000))
        self.all_together(bed, 15)
        self.assertEqual(bed.server.open_count, 15)
        left = []
        while bed.server.open_count:
            bed.reactor.run_for(1)
            left.append(bed.server.open_count)
        self.assertLessEqual(max(before - after for before, after in zip([15, *left], left, strict=False)), 9)
        self.assertGreaterEqual(len(left), 79)
        self.assertLessEqual(len(left), 122)
        self.assertGreater(len(set(left)), 3)

    def test_a_session_that_nobody_uses_says_quit_on_its_own_and_in_time(self) -> None:
        for seconds in (1, 5, 60):
            bed = self.bed(limits=Limits(idle_timeout=seconds))
            self.sent(bed)
            took = bed.reactor.run_until(lambda bed=bed: bed.server.open_count == 0)
            self.assertTrue(bed.server.connections[0].quit_seen)
            self.assertGreaterEqual(took, seconds)
            self.assertLessEqual(took, seconds * 1.1 + 0.3)
            self.assert_counts(bed, 0, 0, 0, 0)

    def test_a_session_found_by_domain_is_kept_for_its_own_time(self) -> None:
        bed = self.bed(router=TableRouter(one=[hop()]), limits=Limits(idle_timeout=60, idle_timeout_mx=2))
        self.sent(bed, destination=bed.to("one.example"))
        took = bed.reactor.run_until(lambda: bed.server.open_count == 0)
        self.assertLessEqual(took, 2.5)

    def test_a_limit_of_all_sessions_is_kept_and_the_one_longest_unused_makes_room(self) -> None:
        bed = self.bed(limits=Limits(sessions=2))
        streams = [bed.to(f"[127.0.0.1]:{PORT}", namespace=name) for name in ("first", "second", "third")]
        for which in (0, 1, 0):
            self.sent(bed, destination=streams[which])
        self.settle(bed)
        self.sent(bed, destination=streams[2])
        self.assertEqual(bed.server.open_count, 2)
        self.sent(bed, destination=streams[0])
        self.assertEqual(bed.server.connection_count, 3)
        self.assertEqual(spread(bed), [3, 1, 1])
        self.assertEqual([record.closed for record in bed.server.connections], [None, "quit", None])

    def test_a_limit_of_one_server_counts_all_who_use_it(self) -> None:
        bed = self.bed(latency=0.01, limits=Limits(sessions_per_endpoint=2))
        streams = [bed.to(f"[127.0.0.1]:{PORT}", namespace=str(number)) for number in range(4)]
        outcomes = [bed.start(destination=stream) for stream in streams * 3]
        most = 0
        while not all(outcome.done for outcome in outcomes):
            bed.reactor.run_for(0.01)
            most = max(most, bed.server.open_count)
        for outcome in outcomes:
            self.success(outcome.value)
        self.assertEqual(most, 2)

    def test_no_number_of_streams_takes_more_than_the_limit(self) -> None:
        bed = self.bed(limits=Limits(sessions=5), tls=verifying())
        for number in range(60):
            self.sent(bed, destination=bed.to(f"[127.0.0.1]:{PORT}", namespace=str(number)))
            self.assertLessEqual(bed.server.open_count, 5)
        self.assertEqual(bed.server.connection_count, 60)
