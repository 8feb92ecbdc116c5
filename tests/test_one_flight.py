"""Deliveries in one flight: one round trip, each guard, and what is known when it breaks off."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryResult, UncertainDelivery
from mailcache.testing import Fault
from mailcache.wire.one_flight import FRESH, MAX_CONTENT
from tests.helpers import SMALL, Bed, keeper_cache, memory_cache

CACHES = {"memory": memory_cache, "keeper": keeper_cache}
ENDS_WITH_A_DOT = b"Subject: dots\r\n\r\n.\r\n..\r\n.hidden\r\n"


def says(**replies: bytes) -> Any:
    """A verdict with these replies, by point."""
    return lambda point, argument, record: replies.get(point)


class Case(SynchronousTestCase):
    make_cache = staticmethod(memory_cache)

    def bed(self, *faults: Fault, **more: Any) -> Bed:
        """A cache with a session that has just carried a message."""
        bed = Bed(faults=faults, make_cache=self.make_cache, one_flight=True, **more)
        self.sent(bed)
        return bed

    def sent(self, bed: Bed, content: Any = SMALL, **more: Any) -> DeliveryResult:
        result = bed.deliver(content, **more)
        self.assertIsInstance(result, DeliveryResult, result)
        return result  # type: ignore[no-any-return]

    def flights(self, bed: Bed, content: Any = SMALL, **more: Any) -> int:
        """How many flights this delivery takes on a session that is there."""
        record = bed.server.connections[-1]
        before = record.flights
        self.sent(bed, content, **more)
        self.assertEqual(bed.server.connections[-1], record)
        return record.flights - before

    def commands(self, bed: Bed) -> Sequence[str]:
        return bed.server.connections[-1].commands


class RoundTripTests(Case):
    def test_one_for_a_kept_session(self) -> None:
        bed = self.bed(latency=0.25)
        for content in (SMALL, ENDS_WITH_A_DOT, b"", b"no line end", b"x" * 10_000):
            for recipients in (["b@example.com"], ["b@example.com", "c@example.com"]):
                began = bed.reactor.seconds()
                flights = self.flights(bed, content, recipients=recipients)
                self.assertEqual((flights, bed.reactor.seconds() - began), (1, 0.5))
                message = bed.server.messages[-1]
                line_end = b"" if not content or content.endswith(b"\n") else b"\r\n"
                self.assertEqual(message.content, content + line_end)
        self.assertEqual((bed.server.connection_count, bed.server.violations), (1, []))

    def test_the_first_message_of_a_session_too(self) -> None:
        bed = Bed(latency=0.25, one_flight=True)
        self.sent(bed)
        self.assertEqual(bed.reactor.seconds(), 3.5)
        self.assertNotIn("DATA", self.commands(bed))

    def test_two_where_it_was_not_asked_for(self) -> None:
        bed = self.bed()
        self.assertEqual(self.flights(bed, destination=bed.to("[127.0.0.1]:2525")), 2)

    def test_through_a_keeper(self) -> None:
        """But for the first of a lease that comes from it: who knows what the server has said last."""
        bed = Bed(one_flight=True, make_cache=keeper_cache)
        self.sent(bed)
        self.assertEqual([self.flights(bed) for _ in range(3)], [1, 1, 1])
        bed.reactor.run_for(0.5)
        self.assertEqual(bed.counts(), (0, 1, 0, 0))
        self.assertEqual([self.flights(bed) for _ in range(2)], [1, 1], "nobody else has had it meanwhile")
        self.assertNotIn("RSET", self.commands(bed))


class GuardTests(Case):
    """Each of them by itself: two flights, and the message is there."""

    def test_a_server_without_one_of_the_extensions(self) -> None:
        offered = ("PIPELINING", "CHUNKING", "ENHANCEDSTATUSCODES", "8BITMIME")
        self.assertEqual(self.flights(self.bed(server={"capabilities": offered})), 1)
        for missing in offered[:3]:
            bed = self.bed(server={"capabilities": [name for name in offered if name != missing]})
            self.assertGreater(self.flights(bed), 1, missing)

    def test_content_that_is_large_or_not_at_hand(self) -> None:
        for content, allowed in (
            (b"x" * (MAX_CONTENT - 2), True), (b"x" * (MAX_CONTENT - 1), False), (io.BytesIO(SMALL), False)
        ):  # fmt: skip
            bed = self.bed()
            self.sent(bed, content)
            self.assertIs("DATA" not in self.commands(bed), allowed)

    def test_rset_is_due(self) -> None:
        bed = self.bed(Fault("rcpt", "5xx", transaction=2))
        bed.deliver()
        self.assertEqual(self.flights(bed), 2)
        self.assertEqual(self.flights(bed), 1)

    def test_the_server_was_silent_for_a_while(self) -> None:
        bed = self.bed()
        bed.reactor.advance(FRESH)
        self.assertEqual(self.flights(bed), 2)
        bed.reactor.advance(FRESH / 2)
        self.assertEqual(self.flights(bed), 1)

    def test_the_last_reply_was_of_another_kind(self) -> None:
        bed = Bed(make_cache=self.make_cache, server={"verdict": says(dot=b"250 2.1.5 ok\r\n")})
        self.sent(bed)
        self.assertEqual(self.flights(bed, destination=bed.to("[127.0.0.1]:2525", one_flight=True)), 2)

    def test_lmtp(self) -> None:
        bed = Bed(one_flight=True, protocol="lmtp", server={"lmtp": True})
        self.sent(bed)
        self.assertEqual(self.flights(bed), 2)


class EndingTests(Case):
    """What is said of a message that breaks off, and how often the server has it."""

    def check(self, outcome: Any, bed: Bed, kind: type, taken: int, connections: int) -> None:
        self.assertIsInstance(outcome, kind, outcome)
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (1 + taken, connections))
        self.assertEqual(bed.counts()[0], 0)

    def test_a_cut_leaves_doubt_wherever_it_comes(self) -> None:
        for point in ("mail", "rcpt", "after_dot"):
            for fault in ("rst", "fin", "silence", "garbage"):
                bed = self.bed(Fault(point, fault, transaction=2))
                outcome = bed.deliver()
                # Who knows; but not twice.
                self.check(outcome, bed, UncertainDelivery, min(1, bed.server.message_count - 1), 1)
                self.assertEqual((outcome.accepted, outcome.undecided), ((), ("b@example.com",)))

    def test_a_reply_too_many_leaves_doubt_about_everybody(self) -> None:
        """It shifts those behind it: what is said of one recipient was meant for another, and is no verdict."""
        everybody = ("b@example.com", "nobody@example.com")
        cases: dict[str, tuple[dict[str, bytes], int]] = {
            "taken": ({}, 1),
            "refused": ({"dot": b"554 5.6.0 no"}, 0),
        }
        for what, (replies, taken) in cases.items():
            for point in ("mail", "rcpt"):
                bed = self.bed(Fault(point, "unsolicited", transaction=2))

                def verdict(
                    point: str, argument: str, record: Any, replies: dict[str, bytes] = replies
                ) -> bytes | None:
                    return b"550 5.1.1 unknown" if argument.startswith("nobody") else replies.get(point)

                bed.server.verdict = verdict
                outcome = bed.deliver(recipients=everybody)
                with self.subTest(what=what, point=point):
                    self.check(outcome, bed, UncertainDelivery, taken, 1)
                    self.assertEqual((outcome.accepted, outcome.rejected, outcome.undecided), ((), {}, everybody))

    def test_a_refusal_that_crosses_the_message_is_none_of_it(self) -> None:
        """The server says something into the idle session, and then has the message: it may take that."""
        everybody = ("b@example.com", "c@example.com")
        for kind in ("4xx", "5xx"):
            for struck in (None, "mail", "rcpt", "after_dot"):
                for fault in ("rst", "silence", "garbage") if struck else ("",):
                    faults = [Fault("idle", kind)] + ([Fault(struck, fault, transaction=2)] if struck else [])
                    bed = self.bed(*faults, latency=0.1)
                    outcome = bed.start(recipients=everybody)
                    bed.server.strike_idle()
                    told = bed.finish(outcome)
                    with self.subTest(kind=kind, struck=struck, fault=fault):
                        self.check(told, bed, UncertainDelivery, min(1, bed.server.message_count - 1), 1)
                        self.assertEqual((told.accepted, told.rejected, told.undecided), ((), {}, everybody))

    def test_closing_replies_to_commands_leave_none(self) -> None:
        """421: the server reads no more. It goes once more, on a fresh session."""
        for point in ("mail", "rcpt"):
            bed = self.bed(Fault(point, "421", transaction=2))
            self.check(bed.deliver(), bed, DeliveryResult, 1, 2)

    def test_out_of_step(self) -> None:
        struck: list[str] = []

        def verdict(point: str, argument: str, record: Any) -> bytes | None:
            if point == "mail" and record.number == 1 and record.transactions == 2:
                struck.append(point)
                return b"503 5.5.1 nested MAIL\r\n"
            return None

        bed = self.bed(server={"verdict": verdict})
        self.check(bed.deliver(), bed, DeliveryResult, 1, 2)
        self.assertEqual(struck, ["mail"])

    def test_refusals_are_results(self) -> None:
        for point in ("mail", "rcpt", "after_dot"):
            for fault in ("4xx", "5xx"):
                bed = self.bed(Fault(point, fault, transaction=2))
                outcome = bed.deliver()
                self.check(outcome, bed, DeliveryResult, 0, 1)
                self.assertEqual((outcome.accepted, list(outcome.rejected)), ((), ["b@example.com"]))
                self.check(bed.deliver(), bed, DeliveryResult, 1, 1)

    def test_a_refusal_of_all_that_comes_late(self) -> None:
        """The content was on its way: nobody could know that there was no one for it."""
        bed = self.bed(Fault("rcpt", "slow", transaction=2))
        bed.server.verdict = says(rcpt=b"550 5.1.1 unknown")
        outcome = bed.deliver()
        self.check(outcome, bed, DeliveryResult, 0, 1)
        self.assertEqual((list(outcome.rejected), bed.server.violations), (["b@example.com"], []))

    def test_cancelled(self) -> None:
        bed = self.bed(latency=0.1)
        outcome = bed.start()
        bed.reactor.run_for(0.05)
        outcome.deferred.cancel()
        self.assertIsInstance(bed.finish(outcome), UncertainDelivery)
        self.assertEqual(bed.counts()[:2], (0, 0))

    def test_a_session_that_has_died_is_found_out_before(self) -> None:
        bed = self.bed()
        bed.server.abort_connections()
        bed.reactor.run_for(0.1)
        self.check(bed.deliver(), bed, DeliveryResult, 1, 2)


class KeptEndingTests(EndingTests):
    """The same through a keeper."""

    make_cache = staticmethod(keeper_cache)
