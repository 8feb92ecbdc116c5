"""Nothing of one message, and nothing that goes wrong with it, is left for the next: others' mistakes, one by one.

The server names in its replies the sender of the message that each is for, so that a reply which reaches the wrong one
is seen as that.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError

from mailcache import DeliveryResult, UncertainDelivery
from mailcache.testing import Connection, Fault
from tests.helpers import LARGE, SMALL, Outcome
from tests.security.callers import BORROWERS, MEMORY, SENDERS, SETTLED, WAYS, Callers, SharingCase, to

WHERE = to()


def named(point: str, argument: str, _: Connection) -> bytes | None:
    """Takes each message with its sender's name."""
    return f"250 2.0.0 taken from <{argument}>\r\n".encode() if point == "dot" else None


class LeftoverCase(SharingCase):
    """Callers to whom the server answers with their names."""

    def naming(self, way: str, *faults: Fault, **server: Any) -> Any:
        return self.callers(way, server={"verdict": named, **server}, faults=faults)

    def assert_own(self, value: Any, sender: str) -> None:
        """It was taken, and the reply says that it is this one's."""
        self.assertIn(f"<{sender}>", str(self.sent(value).reply))

    def deliver_own(self, callers: Callers, which: int, **more: Any) -> DeliveryResult:
        value = callers.deliver(which, WHERE, **more)
        self.assert_own(value, more.get("sender", SENDERS[which]))
        return value  # type: ignore[no-any-return]

    def begin(self, callers: Callers, which: int, content: Any = SMALL) -> Outcome:
        callers.who(which)
        return callers.bed.start(content, sender=SENDERS[which], destination=WHERE)


class Messages(LeftoverCase):
    def test_a_message_has_nothing_of_the_one_before_it(self) -> None:
        """CVE-2022-32221, CVE-2023-28322 (curl): what was set for one transfer is used for the next."""
        for way in WAYS:
            with self.about(way), self.naming(way) as callers:
                self.deliver_own(
                    callers, 0, content=LARGE, recipients=("x@example.com", "y@example.com"),
                )  # fmt: skip
                self.deliver_own(callers, 1, recipients=("z@example.com",))
                (record,) = callers.connections
                first, second = record.messages
                self.assertEqual(
                    (first.recipients, second.recipients), (("x@example.com", "y@example.com"), ("z@example.com",))
                )
                self.assertEqual((first.content, second.content), (LARGE, SMALL))
                self.assertEqual(second.parameters, (f"SIZE={len(SMALL)}",))

    def test_a_long_message_leaves_no_room_that_a_short_one_is_written_into(self) -> None:
        """CVE-2018-0500 (curl): dots are added in a buffer that was made for less."""
        dots = b"." * 997 + b"\r\n"
        for way in (MEMORY, BORROWERS):
            with self.about(way), self.naming(way) as callers:
                for size in (500, 1, 70, 0, 3):
                    self.deliver_own(callers, 0, content=dots * size)
                    self.assertEqual(callers.connections[0].messages[-1].content, dots * size)
                self.assertEqual(len(callers.connections), 1)

    def test_a_refused_message_is_wiped_before_the_next(self) -> None:
        """Postfix 20260803: state is left behind a refused end of content."""
        for point in ("mail", "rcpt", "data", "dot"):
            for way in WAYS:
                with self.about(point, way), self.naming(way, Fault(point, "5xx", transaction=1)) as callers:
                    value = callers.deliver(0, WHERE, recipients=("x@example.com",))
                    self.assertEqual(list(value.rejected), ["x@example.com"])
                    self.deliver_own(callers, 1, recipients=("z@example.com",))
                    (record,) = callers.connections
                    self.assertEqual(record.messages[-1].recipients, ("z@example.com",))
                    self.assertEqual(record.commands.count("RSET"), 1)

    def test_tls_is_begun_once(self) -> None:
        """Exim 2104: the next message over a connection is not told that it has TLS, and begins it again."""
        for way in WAYS:
            with self.about(way), self.naming(way) as callers:
                for which in (0, 1, 0):
                    self.deliver_own(callers, which)
                (record,) = callers.connections
                self.assertEqual((record.commands.count("STARTTLS"), record.handshakes), (1, 1))
                self.assertEqual(sum(command.startswith("EHLO ") for command in record.commands), 2)


class Replies(LeftoverCase):
    def test_the_reply_to_who_has_gone_reaches_nobody(self) -> None:
        """CVE-2023-28858, CVE-2023-28859 (redis-py): a cancelled command leaves its reply for the next user."""
        for point in ("mail", "rcpt", "data", "after_dot"):
            for way in WAYS:
                fault = Fault(point, "slow", connection=1)
                with self.about(point, way), self.naming(way, fault, slow_delay=2.0) as callers:
                    going = self.begin(callers, 0)
                    callers.bed.reactor.run_for(1)
                    going.deferred.cancel()
                    callers.bed.reactor.run_for(0)
                    self.deliver_own(callers, 1)
                    callers.bed.reactor.run_for(5)
                    self.deliver_own(callers, 1)
                    expected = UncertainDelivery if point == "after_dot" else CancelledError
                    self.assertIsInstance(going.value, expected)
                    (record,) = callers.of(1)
                    self.assertEqual(record.number, 2)

    def test_a_reply_that_is_late_shifts_no_other(self) -> None:
        """Postfix 20061203: the reply to RSET comes late, and each later one is taken for another's."""
        for kind in ("slow", "dup", "early", "unsolicited", "silence", "drip"):
            for way in WAYS:
                faults = (Fault("dot", "4xx", transaction=1, connection=1), Fault("rset", kind, connection=1))
                with self.about(kind, way), self.naming(way, *faults, slow_delay=1.0) as callers:
                    self.assertTrue(callers.deliver(0, WHERE).rejected)
                    for which in (1, 0, 1):
                        self.deliver_own(callers, which)
                    self.assertFalse(callers.connections[0].messages[0].committed)

    def test_a_session_whose_rset_was_refused_is_not_used(self) -> None:
        """Postfix 20051201: a session is reused after a negative reply to RSET."""
        for kind in ("4xx", "5xx", "421"):
            for way in WAYS:
                faults = (Fault("dot", "4xx", transaction=1, connection=1), Fault("rset", kind, connection=1))
                with self.about(kind, way), self.naming(way, *faults) as callers:
                    callers.deliver(0, WHERE)
                    for which in (1, 0):
                        self.deliver_own(callers, which)
                    self.assertEqual([len(record.messages) for record in callers.connections], [1, 2])

    def test_a_session_that_broke_the_protocol_is_not_kept(self) -> None:
        """Postfix 20190621: a session is cached after a protocol error; the message itself is as good as delivered."""
        for kind in ("dup", "unsolicited", "nul", "longline", "barelf", "early"):
            for way in WAYS:
                fault = Fault("after_dot", kind, connection=1)
                with self.about(kind, way), self.naming(way, fault) as callers:
                    self.sent(callers.deliver(0, WHERE))
                    self.deliver_own(callers, 1)
                    self.assertEqual([len(record.messages) for record in callers.connections], [1, 1])

    def test_a_message_on_a_connection_that_ends_is_not_lost(self) -> None:
        """Exim 1874: the message after the first on a connection is lost with it."""
        for point in ("mail", "rcpt", "data", "content", "dot"):
            for kind in ("421", "fin", "rst"):
                for way in WAYS:
                    fault = Fault(point, kind, connection=1, transaction=2)
                    with self.about(point, kind, way), self.naming(way, fault) as callers:
                        self.deliver_own(callers, 0)
                        value = callers.deliver(1, WHERE)
                        taken = [message for message in callers.messages(1) if message.committed]
                        if isinstance(value, DeliveryResult):
                            refused = (point, kind) == ("dot", "421")
                            self.assertEqual((len(taken), bool(value.rejected)), (not refused, refused))
                        else:
                            self.assertIsInstance(value, UncertainDelivery)
                            self.assertEqual(point, "dot")

    def test_out_of_sequence_on_a_kept_session_bounces_nothing(self) -> None:
        """Haraka 1852: 503 to MAIL on a session from the pool is taken for a verdict on the message."""

        def out_of_step(point: str, argument: str, record: Connection) -> bytes | None:
            if point == "mail" and record.transactions == 2:
                return b"503 5.5.1 out of sequence\r\n"
            return named(point, argument, record)

        for way in WAYS:
            with self.about(way), self.naming(way, verdict=out_of_step) as callers:
                for which in (0, 1):
                    self.deliver_own(callers, which)
                self.assertEqual(len(callers.connections), 2)


class Leases(LeftoverCase):
    def test_what_one_does_with_a_lease_that_has_ended_never_hits_the_next(self) -> None:
        """PgBouncer 1.18: a request to cancel one client's query cancels another's on the same connection."""
        for way in WAYS:
            with self.about(way), self.naming(way, Fault("after_dot", "slow"), slow_delay=1.0) as callers:
                callers.who(0)
                lease = callers.bed.finish(callers.bed.acquire(WHERE))
                lease.release()
                callers.bed.reactor.run_for(SETTLED)
                sending = self.begin(callers, 1)
                callers.bed.reactor.run_for(0.5)
                lease.discard()
                lease.release()
                self.assertRaises(RuntimeError, callers.bed.send, lease)
                self.assert_own(callers.bed.finish(sending), SENDERS[1])
                (record,) = callers.connections
                self.assertEqual(record.transactions, 1)

    def test_a_cancel_that_comes_too_late_hits_nobody(self) -> None:
        for way in WAYS:
            with (
                self.about(way),
                self.naming(way, Fault("after_dot", "slow", transaction=2), slow_delay=1.0) as callers,
            ):
                first = self.begin(callers, 0)
                self.assert_own(callers.bed.finish(first), SENDERS[0])
                callers.bed.reactor.run_for(SETTLED)
                second = self.begin(callers, 1)
                callers.bed.reactor.run_for(0.5)
                first.deferred.cancel()
                self.assert_own(callers.bed.finish(second), SENDERS[1])
                self.assertEqual(len(callers.connections), 1)
