"""A session serves one message after another."""

from __future__ import annotations

from zope.interface.verify import verifyObject

from mailcache import Limits
from mailcache.interfaces import ISession, ISessionCache
from mailcache.testing import CAPABILITIES, Fault
from mailcache.wire.capabilities import Capabilities
from tests.helpers import PORT, Bed
from tests.session_cache.case import CacheCase


class ReuseTests(CacheCase):
    def test_it_is_a_session_cache_and_what_it_lends_are_sessions(self) -> None:
        bed = self.bed()
        verifyObject(ISessionCache, bed.cache)
        lease = self.lease(bed)
        verifyObject(ISession, lease)
        lease.release()

    def test_many_messages_for_one_destination_take_one_connection_and_one_handshake(self) -> None:
        bed = self.bed(limits=Limits(idle_timeout=10))
        results = self.one_after_the_other(bed, 10)
        self.assertEqual([result.session.uses for result in results], list(range(1, 11)))
        self.assertEqual([result.session.reused for result in results], [False] + [True] * 9)
        self.assertEqual(len({result.session.id for result in results}), 1)
        self.assertEqual((bed.server.connection_count, bed.server.handshake_count), (1, 1))
        (connection,) = bed.server.connections
        self.assertEqual(connection.transactions, 10)
        self.assertFalse(connection.quit_seen)
        bed.reactor.run_for(12)
        self.assertEqual(connection.closed, "quit")

    def test_messages_for_two_destinations_in_turn_take_two_connections(self) -> None:
        bed = self.bed()
        other = bed.add_server(PORT + 1)
        elsewhere = bed.to(f"[127.0.0.1]:{PORT + 1}")
        for _ in range(5):
            self.sent(bed)
            self.sent(bed, destination=elsewhere)
        for server in (bed.server, other):
            self.assertEqual((server.connection_count, server.message_count), (1, 5))

    def test_many_senders_together_share_as_many_sessions_as_there_may_be(self) -> None:
        bed = self.bed(latency=0.01, limits=Limits(sessions_per_destination=3))
        for value in self.all_together(bed, 30):
            self.success(value)
        self.assertEqual(bed.server.connection_count, 3)
        self.assertEqual([record.transactions for record in bed.server.connections], [10, 10, 10])

    def test_a_sender_who_sends_again_from_his_callback_finds_the_session(self) -> None:
        bed = self.bed(latency=0.01)
        again: list[object] = []
        bed.start().deferred.addCallback(lambda _: again.append(bed.start()))
        bed.reactor.run_until(lambda: bed.server.message_count == 2)
        self.assertEqual(bed.server.connection_count, 1)

    def test_no_capability_is_lost_between_one_borrower_and_the_next(self) -> None:
        offers = (*CAPABILITIES, "LIMITS MAILMAX=50 RCPTMAX=100", "XCLIENT NAME ADDR")
        bed = self.bed(server={"capabilities": offers})
        seen: list[tuple[Capabilities, object, str, int]] = []
        for _ in range(2):
            lease = self.lease(bed)
            seen.append((lease.capabilities, lease.evidence, lease.peer, lease.uses))
            self.success(bed.finish(bed.send(lease)))
            lease.release()
        self.assertEqual(seen[0][0].mail_max, 50)
        self.assertTrue(seen[0][0].has("XCLIENT"))
        self.assertEqual(seen[0][:3], seen[1][:3])
        self.assertEqual([uses for *_, uses in seen], [0, 1])
        self.assertEqual(bed.server.connection_count, 1)

    def test_a_session_that_was_kept_without_a_use_may_be_as_dead_as_any(self) -> None:
        for kind in ("rst", "fin", "421", "silence"):
            with self.subTest(kind=kind):
                bed = self.bed(faults=[Fault("mail", kind, connection=1)])
                lease = self.lease(bed)
                self.assertFalse(lease.reused)
                lease.release()
                self.settle(bed)
                self.sent(bed)
                self.assertEqual(bed.server.connection_count, 2)

    def test_so_may_one_whose_borrower_has_handed_it_on_without_a_use(self) -> None:
        bed = self.bed(faults=[Fault("mail", "rst", connection=1)], limits=Limits(sessions_per_destination=1))
        lease = self.lease(bed)
        waiting = bed.start()
        self.settle(bed)
        lease.release()
        self.success(bed.finish(waiting))
        self.assertEqual(bed.server.connection_count, 2)

    def test_no_rset_goes_before_the_first_message_nor_after_one_that_was_taken(self) -> None:
        bed = self.bed()
        self.one_after_the_other(bed, 3)
        self.assertEqual([word for word in self.verbs(bed) if word not in ("MAIL", "RCPT", "DATA")], OPENING)

    def test_a_kept_session_costs_two_round_trips_a_message(self) -> None:
        bed = self.bed(latency=0.01)
        self.sent(bed)
        before = bed.server.connections[0].flights
        self.one_after_the_other(bed, 5)
        self.assertEqual(bed.server.connections[0].flights - before, 10)

    @staticmethod
    def verbs(bed: Bed) -> list[str]:
        return [command.split(" ")[0] for command in bed.server.connections[0].commands]


OPENING = ["EHLO", "STARTTLS", "EHLO"]
