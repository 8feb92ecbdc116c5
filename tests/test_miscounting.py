"""What is known of a message where the server's replies are one too many, and what is not."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryResult, UncertainDelivery
from tests.helpers import PORT
from tests.miscounting import EXTRA, REFUSED, REPLIES, SIDES, TAKEN, bed_for, groups, repetitions


class MiscountingTests(SynchronousTestCase):
    def test_as_many_are_tried_as_there_are(self) -> None:
        """102 replies in two flights, 101 in one, 1 missing or 1 of 3 too many, 2 ends, 2 sessions; and later ones."""
        self.assertEqual(sum(1 for _ in groups()), (102 + 101 + 101) * 4 * 2 * 2)
        self.assertEqual(sum(1 for _ in repetitions()), 2 * 2 * 5 * 3 * 4)

    def test_a_reply_too_many_in_one_flight_is_nobodys_verdict(self) -> None:
        """Neither of who was accepted nor of who was refused: all of them may have been meant for somebody else."""
        for side in SIDES:
            for final in (TAKEN, REFUSED):
                for extra in EXTRA.values():
                    bed = bed_for(side, one_flight=True)
                    bed.deliver(sender="first@example.com")
                    replies = {**REPLIES, "rcpt": REPLIES["rcpt"] + extra, "dot": final}
                    bed.server.verdict = lambda point, argument, connection, replies=replies: replies.get(point)
                    value = bed.deliver(recipients=["b@example.com", "c@example.com"])
                    self.assertIsInstance(value, UncertainDelivery)
                    self.assertEqual((value.accepted, value.rejected), ((), {}))
                    self.assertEqual(value.undecided, ("b@example.com", "c@example.com"))
                    self.assertEqual(bed.server.connection_count, 1, "never sent again")

    def test_what_is_said_where_it_is_due_is_believed(self) -> None:
        """A second 250, while the reply to the next content is due: nobody can tell, but the session is not kept."""
        for side in SIDES:
            bed = bed_for(side, one_flight=False, latency=0.02)
            bed.deliver(sender="first@example.com")
            (end,) = [
                end
                for end in bed.reactor.connections
                if isinstance(end.getHost(), IPv4Address) and end.getHost().port == PORT
            ]
            bed.server.verdict = lambda point, argument, connection: REFUSED if point == "dot" else None
            outcome = bed.start(sender="second@example.com")
            bed.reactor.run_for(0.05)
            end.write(TAKEN)
            self.assertIsInstance(bed.finish(outcome), DeliveryResult)
            bed.reactor.run_for(0.1)
            self.assertEqual(bed.counts(), (0, 0, 0, 0))
