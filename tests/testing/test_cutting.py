"""A connection in memory is cut at the octet that was asked for, in the way that was asked for."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing.cutting import WAYS
from tests.testing.lockstep import Client, Pair


class Answering(Client):
    """Answers each segment."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.under.write(b"answer")


class CutTests(SynchronousTestCase):
    def cut(self, how: str, octets: int = 4, *writes: bytes, at_next: bool = False) -> Pair:
        """Some octets of "one", "two", "three" arrive, each of them a segment of its own."""
        pair = Pair(latency=0.05, far=Answering())
        pair.near_transport.cut_after(octets, how, at_next=at_next)
        for data in writes or (b"one", b"two", b"three"):
            pair.near_transport.write(data)
            pair.reactor.run_for(1)
        return pair

    def test_so_many_octets_arrive(self) -> None:
        """In whichever way, and at whichever place of a segment."""
        for how in WAYS:
            for octets in range(12):
                pair = self.cut(how, octets)
                self.assertEqual(pair.far.received, b"onetwothree"[:octets], (how, octets))

    def test_a_reset_reaches_both_ends_at_once(self) -> None:
        """What was said in answer to the last octet is lost, what was said before has come."""
        pair = self.cut("rst")
        self.assertEqual(pair.near.received, b"answer")
        for end in (pair.near, pair.far):
            assert end.lost is not None
            self.assertTrue(end.lost.check(ConnectionLost))

    def test_the_end_that_has_sent_closes(self) -> None:
        pair = self.cut("fin")
        self.assertEqual(pair.near.received, b"answer")
        for end in (pair.near, pair.far):
            assert end.lost is not None
            self.assertTrue(end.lost.check(ConnectionDone))

    def test_the_end_that_has_received_closes_behind_its_answer(self) -> None:
        pair = self.cut("close")
        self.assertEqual(pair.near.received, b"answer" * 2)
        for end in (pair.near, pair.far):
            assert end.lost is not None
            self.assertTrue(end.lost.check(ConnectionDone))

    def test_nobody_is_told_of_silence(self) -> None:
        pair = self.cut("silence")
        pair.far_transport.write(b"are you there?")
        pair.reactor.run_for(1)
        self.assertEqual(pair.near.received, b"answer")
        self.assertEqual((pair.near.lost, pair.far.lost), (None, None))
        for transport, other in ((pair.near_transport, pair.far), (pair.far_transport, pair.near)):
            transport.abortConnection()
            pair.reactor.run_for(1)
            if transport is pair.near_transport:
                self.assertIsNone(other.lost)
        self.assertEqual(pair.reactor.connections, [])

    def test_at_the_end_of_a_segment_or_at_the_beginning_of_the_next(self) -> None:
        self.assertEqual(self.cut("rst", 3).near.received, b"")
        self.assertEqual(self.cut("rst", 3, at_next=True).near.received, b"answer")
        self.assertIsNone(self.cut("rst", 3, b"one", at_next=True).near.lost, "until it comes, nothing happens")
        self.assertIsNone(self.cut("rst", 4, b"one").near.lost)

    def test_what_is_no_cut(self) -> None:
        transport = Pair().near_transport
        error = self.assertRaises(ValueError, transport.cut_after, 1, "scissors")
        self.assertIn("rst, fin, close, silence", str(error))
        self.assertRaises(ValueError, transport.cut_after, -1, "rst")
