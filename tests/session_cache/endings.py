"""Sessions that die, and transactions that go wrong: what the fault matrix does not ask."""

from __future__ import annotations

from typing import Any

from mailcache import DeliveryError, Limits, UncertainDelivery
from mailcache.testing import Connection, Fault
from tests.helpers import PORT, Bed, TableRouter, eventually, hop
from tests.session_cache.case import CacheCase


class DeadSessionTests(CacheCase):
    def test_a_session_that_the_server_ends_while_idle_is_gone_and_counted_by_its_reason(self) -> None:
        for kind, reason in (
            ("421", "421"),
            ("4xx", "451"),
            ("unsolicited", "250"),
            ("fin", "closed"),
            ("rst", "reset"),
            ("notify", "closed"),
            ("badrecord", "tls"),
            ("garbage", "malformed"),
        ):
            with self.subTest(kind):
                bed = self.bed(faults=[Fault("idle", kind)])
                self.sent(bed)
                self.assert_counts(bed, 0, 1, 0, 0)
                bed.server.strike_idle()
                self.assert_counts(bed, 0, 0, 0, 0)
                self.assertEqual(bed.statistics()["evictions"], {reason: 1})
                self.sent(bed)
                self.assertEqual(bed.server.connection_count, 2)

    def test_a_session_that_was_dropped_without_a_word_costs_the_next_message_seconds_and_not_minutes(self) -> None:
        bed = self.bed(latency=0.01, faults=[Fault("mail", "silence", connection=1, transaction=2)])
        self.sent(bed)
        before = bed.reactor.seconds()
        self.sent(bed)
        self.assertLess(bed.reactor.seconds() - before, 21)
        self.assertEqual(bed.server.connection_count, 2)

    def test_fifty_sessions_that_died_together_cost_the_next_message_one_connection(self) -> None:
        bed = self.bed(latency=0.01, limits=Limits(sessions_per_destination=50, sessions_per_endpoint=50))
        self.all_together(bed, 50)
        before = bed.server.connection_count
        bed.server.restart()
        self.sent(bed)
        self.assertEqual(bed.server.connection_count, before + 1)
        self.assert_counts(bed, 0, 1, 0, 0)

    def test_a_session_lent_for_hours_that_the_server_has_ended_fails_like_any_other(self) -> None:
        bed = self.bed(faults=[Fault("idle", "421")])
        lease = self.lease(bed)
        bed.reactor.run_for(3600)
        bed.server.strike_idle()
        bed.reactor.run_for(3600)
        error = bed.finish(bed.send(lease))
        self.assertIsInstance(error, DeliveryError)
        self.assertTrue(error.retriable)
        lease.release()
        self.assert_counts(bed, 0, 0, 0, 0)
        self.sent(bed)

    def test_a_reply_that_is_cut_in_the_middle_is_no_reply(self) -> None:
        def half_a_reply(point: str, _: str, record: Connection) -> None:
            if point == "dot" and record.number == 1:
                (conversation,) = bed.server._live
                conversation.transport.write(b"250 2.0")

        bed = self.bed(faults=[Fault("after_dot", "fin", connection=1)], server={"verdict": half_a_reply})
        self.assertIsInstance(bed.deliver(), UncertainDelivery)
        self.assert_counts(bed, 0, 0, 0, 0)
        self.sent(bed)

    def test_where_the_first_server_is_dead_the_second_message_goes_straight_to_the_live_session(self) -> None:
        router = TableRouter(one=[hop(port=PORT + 1), hop()])
        bed = self.bed(latency=0.01, router=router)
        bed.reactor.black_holes.add(("127.0.0.1", PORT + 1))
        one = bed.to("one.example")
        self.sent(bed, destination=one)
        before = bed.reactor.seconds()
        self.assertGreater(before, 29)
        self.sent(bed, destination=one)
        self.assertLess(bed.reactor.seconds() - before, 0.1)
        self.assertEqual(bed.server.connection_count, 1)

    def test_the_next_server_is_tried_where_the_first_refuses(self) -> None:
        router = TableRouter(one=[hop(port=PORT + 1), hop()])
        for kind in ("4xx", "5xx", "421", "rst"):
            bed = self.bed(router=router)
            first = bed.add_server(PORT + 1, faults=[Fault("banner", kind)])
            self.sent(bed, destination=bed.to("one.example"))
            self.assertEqual((first.connection_count, bed.server.connection_count), (1, 1))


class HygieneTests(CacheCase):
    def commands(self, bed: Bed) -> list[str]:
        """The verbs that the first connection has seen after its opening."""
        return [command.split(" ")[0] for command in bed.server.connections[0].commands[3:]]

    def script(self, **replies: Any) -> Any:
        """A verdict that gives each point's reply once, at the first transaction."""

        def verdict(point: str, argument: str, record: Connection) -> bytes | None:
            return replies.pop(point, None)

        return verdict

    def test_a_refused_recipient_does_not_cost_the_session(self) -> None:
        bed = self.bed(server={"verdict": self.script(rcpt=b"550 5.1.1 unknown")})
        result = bed.deliver(recipients=("unknown@example.com", "b@example.com"))
        self.assertEqual((result.accepted, list(result.rejected)), (("b@example.com",), ["unknown@example.com"]))
        self.sent(bed)
        self.assertEqual(self.commands(bed), ["MAIL", "RCPT", "RCPT", "DATA", "MAIL", "RCPT", "DATA"])

    def test_a_message_that_nobody_may_have_leaves_the_session_behind_a_rset(self) -> None:
        bed = self.bed(server={"verdict": self.script(rcpt=b"550 5.1.1 unknown")})
        self.assertEqual(list(bed.deliver().rejected), ["b@example.com"])
        self.sent(bed)
        self.assertEqual(self.commands(bed), ["MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA"])

    def test_a_server_that_wants_content_for_nobody_gets_a_lone_dot(self) -> None:
        bed = self.bed(server={"verdict": self.script(rcpt=b"550 5.1.1 unknown", data=b"354 go ahead")})
        self.assertEqual(list(bed.deliver().rejected), ["b@example.com"])
        self.sent(bed)
        self.assertEqual((bed.server.connection_count, bed.server.message_count), (1, 1))

    def test_a_mail_command_refused_as_out_of_sequence_on_a_kept_session_is_said_again_on_a_new_one(self) -> None:
        def out_of_step(point: str, _: str, record: Connection) -> bytes | None:
            return b"503 5.5.1 nested MAIL" if point == "mail" and record.transactions == 2 else None

        bed = self.bed(server={"verdict": out_of_step})
        self.one_after_the_other(bed, 2)
        self.assertEqual(bed.server.connection_count, 2)

    def test_a_hundred_messages_take_at_most_one_other_command_each(self) -> None:
        bed = self.bed(server={"verdict": lambda point, name, _: b"550 no" if name.startswith("no") else None})
        for number in range(100):
            bed.deliver(recipients=("no@example.com" if number % 3 else "yes@example.com",))
        self.assertEqual(bed.server.connection_count, 1)
        others = [verb for verb in self.commands(bed) if verb not in ("MAIL", "RCPT", "DATA")]
        self.assertLessEqual(len(others), 100)
        self.assertEqual(set(others), {"RSET"})

    def test_a_session_that_did_not_answer_in_time_is_never_used_again(self) -> None:
        bed = self.bed(faults=[Fault("after_dot", "silence", connection=1)])
        self.assertIsInstance(bed.deliver(), UncertainDelivery)
        self.assert_counts(bed, 0, 0, 0, 0)
        eventually(bed.reactor, lambda: bed.server.connections[0].closed)
        self.sent(bed)
        self.assertEqual(bed.server.connection_count, 2)
