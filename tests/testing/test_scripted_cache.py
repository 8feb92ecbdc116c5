"""The double of a session cache: what is sent is there to be looked at, and comes to what the test wants."""

from __future__ import annotations

import gc
import io
from email.message import EmailMessage
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mailcache import DeliveryError, Destination, Envelope, MemorySessionCache, UncertainDelivery, deliver
from mailcache.envelope import Needs
from mailcache.interfaces import ISession, ISessionCache
from mailcache.testing import MemoryReactor, ScriptedSessionCache
from tests.helpers import SMALL, Failing, Outcome

WHERE = Destination("[mail.example.com]:587")
TO_TWO = Envelope("a@example.com", ["b@example.com", "c@example.com"])


class ScriptedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.cache = ScriptedSessionCache(self.clock)

    def deliver(self, content: Any = SMALL, envelope: Envelope = TO_TWO, **more: Any) -> Any:
        return Outcome(deliver(self.cache, WHERE, envelope, content, **more)).value

    def lease(self, **more: Any) -> Any:
        return Outcome(self.cache.acquire(WHERE, **more)).value

    def counts(self) -> dict[str, Any]:
        return dict(Outcome(self.cache.statistics()).value)


class DeliveryTests(ScriptedCase):
    """What `deliver` makes of it."""

    def test_what_is_sent_is_there_to_be_looked_at(self) -> None:
        result = self.deliver(b"Subject: hi\n\n.dot\nno end")
        (message,) = self.cache.sent
        self.assertEqual(message.content, b"Subject: hi\r\n\r\n.dot\r\nno end\r\n")
        self.assertEqual((message.destination, message.envelope, message.outcome), (WHERE, TO_TWO, result))
        self.assertEqual(result.accepted, TO_TWO.recipients)
        self.assertEqual(result.reply.code, 250)
        self.assertEqual(self.cache.leased, 0)

    def test_files_and_messages_are_read(self) -> None:
        message = EmailMessage()
        message["Subject"] = "hi"
        message["Bcc"] = "secret@example.com"
        message.set_content("grüße")
        self.deliver(message)
        self.deliver(io.BytesIO(SMALL * 5000))
        self.assertIn(b"Subject: hi\r\n", self.cache.sent[0].content)
        self.assertNotIn(b"secret", self.cache.sent[0].content)
        self.assertEqual(self.cache.sent[1].content, SMALL * 5000)

    def test_a_reply_is_the_verdict_on_all(self) -> None:
        self.cache.script = lambda message: b"550 5.1.1 nobody"
        result = self.deliver()
        self.assertEqual(result.accepted, ())
        self.assertEqual({each: str(reply) for each, reply in result.rejected.items()}, dict.fromkeys(
            TO_TWO.recipients, "550 5.1.1 nobody"
        ))  # fmt: skip

    def test_each_recipient_can_have_a_reply(self) -> None:
        self.cache.script = lambda message: {"c@example.com": b"452 4.2.2 full"}
        result = self.deliver()
        self.assertEqual(result.accepted, ("b@example.com",))
        self.assertEqual(result.rejected["c@example.com"].code, 452)

    def test_an_exception_is_what_the_delivery_fails_with_and_nothing_is_sent_twice(self) -> None:
        for error in (
            DeliveryError("cut", phase="data"),
            DeliveryError("too big", phase="needs", retriable=False),
            UncertainDelivery("cut after the end of content"),
        ):
            for _ in range(2):  # on a new session, and on one after a failure
                self.cache.script = lambda message, error=error: error
                before = len(self.cache.sent)
                self.assertIs(self.deliver(), error)
                self.assertEqual(len(self.cache.sent), before + 1)
                self.cache.script = lambda message: None
                self.deliver()
        self.assertEqual(self.cache.leased, 0)

    def test_no_connection_at_all(self) -> None:
        self.cache.unavailable = DeliveryError("refused", phase="connect")
        self.assertIs(self.deliver(), self.cache.unavailable)
        self.assertEqual(self.cache.sent, [])
        self.cache.unavailable = None
        self.assertTrue(self.deliver().accepted)

    def test_an_answer_that_takes_its_time(self) -> None:
        answer: Deferred[None] = Deferred()
        self.cache.script = lambda message: answer
        waiting = Outcome(deliver(self.cache, WHERE, TO_TWO, SMALL))
        self.assertEqual((waiting.done, self.cache.leased, self.cache.sent[0].outcome), (False, 1, None))
        answer.callback(None)
        self.assertTrue(waiting.value.accepted)
        self.assertEqual(self.cache.leased, 0)

    def test_a_deadline_and_a_cancel_end_it(self) -> None:
        late: list[Deferred[Any]] = []

        def never(message: object) -> Deferred[Any]:
            late.append(Deferred())
            return late[-1]

        self.cache.script = never
        timed = Outcome(deliver(self.cache, WHERE, TO_TWO, SMALL, deadline=5))
        cancelled = Outcome(deliver(self.cache, WHERE, TO_TWO, SMALL))
        cancelled.deferred.cancel()
        self.assertIsInstance(cancelled.value, CancelledError)
        self.clock.advance(6)
        self.assertEqual(timed.value.phase, "deadline")
        for each in late:
            each.callback(b"250 too late")
        self.assertEqual((len(timed.fired), len(cancelled.fired), self.cache.leased), (1, 1, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_the_server_does_not_offer_is_refused(self) -> None:
        self.cache = ScriptedSessionCache(self.clock, capabilities=("SIZE 100000",))
        self.assertEqual(self.deliver(SMALL * 5000).phase, "needs")
        self.assertEqual(self.deliver("Grüße\r\n".encode()).phase, "needs")
        self.assertTrue(self.deliver().accepted)

    def test_a_file_that_fails(self) -> None:
        error = self.deliver(Failing(SMALL, 0, OSError("disk")))
        self.assertEqual((error.phase, error.retriable), ("content", False))
        self.assertEqual((self.cache.sent, self.cache.leased), ([], 0))

    def test_a_script_that_is_wrong_says_so(self) -> None:
        for answer, hint in (
            (b"fine", "550 5.1.1 nobody"),
            (b"354 go ahead", "550 5.1.1 nobody"),
            ({"x@example.com": b"250 ok"}, "x@example.com"),
        ):
            self.cache.script = lambda message, answer=answer: answer
            error = self.deliver()
            self.assertIsInstance(error, ValueError)
            self.assertIn(hint, str(error))
        self.assertEqual(self.cache.leased, 0)


class CacheTests(ScriptedCase):
    """It does what is promised of a cache."""

    def test_the_interfaces(self) -> None:
        verifyObject(ISessionCache, self.cache)
        lease = self.lease()
        verifyObject(ISession, lease)
        lease.release()

    def test_its_statistics_are_those_of_a_real_one(self) -> None:
        real = Outcome(MemorySessionCache(MemoryReactor()).statistics()).value
        self.assertEqual(self.counts().keys(), real.keys())

    def test_sessions_are_kept(self) -> None:
        results = [self.deliver() for _ in range(3)]
        self.assertEqual([result.session.reused for result in results], [False, True, True])
        self.assertEqual([result.session.uses for result in results], [1, 2, 3])
        self.assertFalse(Outcome(deliver(self.cache, Destination("[other.test]"), TO_TWO, SMALL)).value.session.reused)
        counts = self.counts()
        self.assertEqual((counts["hits"], counts["idle"], counts["leased"], counts["transactions"]), (2, 2, 0, 4))

    def test_a_lease_ends_once(self) -> None:
        lease = self.lease()
        self.assertEqual(self.cache.leased, 1)
        lease.release()
        lease.release()
        lease.discard()
        self.assertEqual((self.cache.leased, self.counts()["idle"]), (0, 1))
        with self.assertRaises(RuntimeError):
            lease.send(TO_TWO, SMALL)

    def test_a_lease_that_ends_in_the_middle_takes_its_message_along(self) -> None:
        self.cache.script = lambda message: Deferred()
        lease = self.lease()
        sending = Outcome(lease.send(TO_TWO, SMALL))
        with self.assertRaises(RuntimeError):
            lease.send(TO_TWO, SMALL)
        lease.release()
        self.assertIsInstance(sending.value, DeliveryError)
        self.assertEqual((self.cache.leased, self.counts()["idle"]), (0, 0))

    def test_a_lease_that_is_dropped_is_reclaimed(self) -> None:
        self.lease()
        self.assertEqual(self.cache.leased, 1)
        gc.collect()
        self.clock.advance(0)
        self.assertEqual((self.cache.leased, self.counts()["idle"]), (0, 0))

    def test_wrong_input(self) -> None:
        for wrong in (lambda: self.cache.acquire("x"), lambda: self.cache.acquire(WHERE, timeout=-1)):  # type: ignore[arg-type]
            with self.assertRaises(ValueError):
                wrong()
        self.assertEqual(self.lease(needs=Needs(requiretls=True)).phase, "needs")

    def test_closing_waits_for_leases(self) -> None:
        lease = self.lease()
        closed = Outcome(self.cache.close())
        self.assertFalse(closed.done)
        self.assertEqual(self.lease().phase, "waiting")
        lease.release()
        self.assertTrue(closed.done)
        self.assertTrue(Outcome(self.cache.close()).done)
        self.assertEqual(self.counts()["idle"], 0)
