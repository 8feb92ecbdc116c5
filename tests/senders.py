"""What a program finds that sends mail with Twisted's own calls over kept sessions: the same for each of its ways.

A test case is bound to one of them by `SenderCase.send`, and to a cache by `SenderCase.bed_class`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.mail import smtp

from mailcache.testing import Authority, Connection, Fault
from tests.helpers import CREDENTIALS, Bed, KeeperBed, Outcome

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as Base
else:
    # A mixin: test loaders take whatever is a test case for one.
    Base = object

SENDER, ONE, TWO = "a@example.com", "b@example.com", "c@example.com"
MESSAGE = b"Subject: hello\n\nThis is small.\n"
AS_SENT = MESSAGE.replace(b"\n", b"\r\n")
DOUBT = "nobody can know"


def refusing(point: str, reply: bytes, *arguments: str, first: int = 1) -> Any:
    """A server's verdict: ``reply`` at ``point``, for these arguments only, from its transaction ``first`` on."""

    def verdict(where: str, argument: str, connection: Connection) -> bytes | None:
        meant = where == point and (not arguments or argument in arguments)
        return reply if meant and connection.transactions >= first else None

    return verdict


class SenderCase(Base):
    """Sends messages to a server with TLS and users, logged in as one of them."""

    bed_class: type[Bed] = Bed

    def send(self, bed: Bed, to: list[str], message: bytes, password: str) -> Outcome:
        """Begin to send a message of `SENDER`."""
        raise NotImplementedError

    def bed(self, *, server: dict[str, Any] | None = None, **settings: Any) -> Bed:
        """A test bed; when the test is over nothing of it may be left, and the server may not have had to complain."""
        users = {CREDENTIALS.username: CREDENTIALS.password}
        bed = self.bed_class(server={"users": users, **(server or {})}, **settings)
        self.addCleanup(self.check_end, bed)
        return bed

    def check_end(self, bed: Bed) -> None:
        bed.close()
        bed.reactor.run_for(700)
        self.assertEqual([server.violations for server in bed.servers], [[]] * len(bed.servers))
        self.assertEqual(bed.reactor.getDelayedCalls(), [])
        self.assertEqual(bed.reactor.connections, [])

    def sent(self, bed: Bed, to: tuple[str, ...] = (ONE,), message: bytes = MESSAGE, password: str = "") -> Any:
        """Send a message: gives the result, or the exception, not raised."""
        return bed.finish(self.send(bed, list(to), message, password or CREDENTIALS.password))

    def logins(self, bed: Bed) -> int:
        return sum(command.startswith("AUTH") for each in bed.server.connections for command in each.commands)

    def assert_delivered(self, value: Any) -> None:
        self.assertFalse(isinstance(value, Exception), value)

    def assert_refused(self, value: Any, code: int, text: str) -> None:
        """It is what Twisted reports where a server has refused a message."""
        self.assertIsInstance(value, smtp.SMTPDeliveryError, repr(value))
        self.assertEqual((value.code, text in value.resp.decode()), (code, True), value.resp)

    def assert_not_had(self, value: Any) -> None:
        """It is what Twisted reports where there is no connection."""
        self.assertIsInstance(value, smtp.SMTPConnectError, repr(value))
        self.assertEqual(value.code, -1)


class SenderTests(SenderCase):
    """What holds for all of them."""

    def test_100_messages_take_one_connection_one_handshake_and_one_login(self) -> None:
        bed = self.bed()
        for _ in range(100):
            self.assert_delivered(self.sent(bed))
        self.assertEqual((bed.server.connection_count, bed.server.handshake_count, self.logins(bed)), (1, 1, 1))
        self.assertEqual([(each.sender, each.recipients) for each in bed.server.messages], [(SENDER, (ONE,))] * 100)

    def test_messages_at_the_same_time_have_a_session_each(self) -> None:
        bed = self.bed()
        sending = [self.send(bed, [ONE], MESSAGE, CREDENTIALS.password) for _ in range(5)]
        for each in sending:
            self.assert_delivered(bed.finish(each))
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (5, 5))

    def test_content_arrives_as_it_is(self) -> None:
        bed = self.bed()
        dots = b"Subject: dots\n\n.\n..\n.a\n\n.\nQUIT\n.\n" + b"x" * (2**14 - 1) + b"\n.\n.b\n"
        large = b"Subject: large\n\n" + b".a line of a large message\n" * 60_000
        for message in (dots, b".", b"no end", large):
            self.assert_delivered(self.sent(bed, message=message))
            expected = message.replace(b"\n", b"\r\n")
            expected += b"" if expected.endswith(b"\r\n") else b"\r\n"
            self.assertEqual(bed.server.messages[-1].content, expected)
        self.assertEqual(bed.server.connection_count, 1)

    def test_8_bit_content_is_declared_where_the_server_offers_it_and_sent_where_it_does_not(self) -> None:
        message = "Subject: ü\n\nä\n".encode()
        for offered in (("8BITMIME",), ()):
            bed = self.bed(server={"capabilities": offered})
            self.assert_delivered(self.sent(bed, message=message))
            (seen,) = bed.server.messages
            self.assertEqual(seen.content, message.replace(b"\n", b"\r\n"))
            self.assertEqual(seen.parameters, ("BODY=8BITMIME",) if offered else ())

    def test_all_recipients_refused_is_told_and_the_session_stays(self) -> None:
        bed = self.bed(server={"verdict": refusing("rcpt", b"550 5.1.1 no such user\r\n", "nobody@example.com")})
        for _ in range(3):
            value = self.sent(bed, ("nobody@example.com",))
            self.assert_refused(value, 550, "")
            self.assertIn("no such user", str(value))
        self.assert_delivered(self.sent(bed))
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (1, 1))

    def test_a_refusal_is_told_with_the_servers_own_text_and_the_session_stays(self) -> None:
        for point in ("mail", "data", "dot"):
            for reply in (b"452 4.3.1 later\r\n", b"554-5.7.1 no\r\n554 5.7.1 and never\r\n"):
                bed = self.bed(server={"verdict": refusing(point, reply, first=2)})
                self.assert_delivered(self.sent(bed))
                for _ in range(2):
                    self.assert_refused(self.sent(bed), int(reply[:3]), reply[4:13].decode().rstrip())
                bed.server.verdict = None
                self.assert_delivered(self.sent(bed))
                self.assertEqual((bed.server.message_count, bed.server.connection_count), (2, 1), (point, reply))

    def test_a_kept_session_that_ends_before_the_end_of_content_costs_one_silent_attempt(self) -> None:
        large = b"Subject: large\n\n" + b"a line of a large message\n" * 40_000
        for point in ("idle", "mail", "rcpt", "data", "content"):
            for kind in ("rst", "fin", "421", "silence"):
                if (point, kind) == ("idle", "silence"):
                    continue  # It does nothing then.
                bed = self.bed(faults=[Fault(point, kind, connection=1, transaction=1 if point == "idle" else 2)])
                self.assert_delivered(self.sent(bed))
                bed.server.strike_idle()
                value = self.sent(bed, message=large)
                if (point, kind) == ("content", "421"):
                    # A refusal while content is being written is a verdict.
                    self.assert_refused(value, 421, "")
                    continue
                self.assert_delivered(value)
                self.assertEqual((bed.server.message_count, bed.server.connection_count), (2, 2), (point, kind))

    def test_a_session_that_ends_behind_the_end_of_content_is_reported_and_nothing_is_sent_again(self) -> None:
        for point, taken in (("dot", 1), ("after_dot", 2)):
            for kind in ("rst", "fin", "garbage", "silence"):
                bed = self.bed(faults=[Fault(point, kind, connection=1, transaction=2)])
                self.assert_delivered(self.sent(bed))
                self.assert_refused(self.sent(bed), 554, DOUBT)
                bed.reactor.run_for(1000)
                self.assertEqual(bed.server.transactions_seen(SENDER), 2, (point, kind))
                self.assertEqual(bed.server.message_count, taken, (point, kind))

    def test_a_server_that_is_out_of_order_twice_is_reported(self) -> None:
        bed = self.bed(faults=[Fault("mail", "rst", times=20)])
        self.assertIsInstance(self.sent(bed), Exception)
        self.assertEqual(bed.server.message_count, 0)

    def test_a_wrong_password_is_told_in_the_servers_own_words_after_one_attempt(self) -> None:
        bed = self.bed()
        value = self.sent(bed, password="wrong")
        self.assertIsInstance(value, smtp.AUTHDeclinedError, value)
        self.assertEqual((value.code, value.resp), (535, b"5.7.8 credentials not accepted"))
        self.assertNotIn("wrong", str(value))
        self.assertEqual(self.logins(bed), 1)

    def test_who_logs_in_otherwise_has_another_session(self) -> None:
        bed = self.bed(server={"users": {"user": "new"}})
        self.assert_delivered(self.sent(bed, password="new"))
        self.assertIsInstance(self.sent(bed, password="old"), Exception)
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (1, 2))

    def test_nobody_listens(self) -> None:
        bed = self.bed()
        bed.server.stop_listening()
        self.assert_not_had(self.sent(bed))

    def test_a_certificate_that_is_not_trusted_is_as_no_connection(self) -> None:
        stranger = Authority().issue(addresses=("127.0.0.1",))
        bed = self.bed(server={"certificate": stranger})
        self.assert_not_had(self.sent(bed))
        self.assertEqual(self.logins(bed), 0)

    def test_a_server_that_does_not_serve_is_reported(self) -> None:
        for reply in (b"421 4.3.2 too busy\r\n", b"554 5.3.2 go away\r\n"):
            bed = self.bed(server={"verdict": lambda point, *_, reply=reply: reply if point == "banner" else None})
            value = self.sent(bed)
            self.assertIsInstance(value, Exception)
            self.assertIn(reply[4:].decode().strip(), str(value))


class ResultTests(SenderCase):
    """For ways that tell of each recipient."""

    def test_a_result_has_the_servers_reply_to_each_recipient(self) -> None:
        bed = self.bed(server={"verdict": refusing("rcpt", b"550 5.1.1 no such user\r\n", TWO)})
        number, answers = self.sent(bed, (ONE, TWO, "d@example.com"))
        self.assertEqual(number, 2)
        self.assertEqual([address for address, _, _ in answers], [b"b@example.com", b"c@example.com", b"d@example.com"])
        self.assertEqual([code for _, code, _ in answers], [250, 550, 250])
        self.assertEqual(answers[1][2], b"5.1.1 no such user")
        (message,) = bed.server.messages
        self.assertEqual(message.recipients, (ONE, "d@example.com"))

    def test_an_error_has_the_servers_reply_to_each_recipient(self) -> None:
        replies = {ONE: b"550 5.1.1 no such user\r\n", TWO: b"450 4.2.2 full\r\n"}
        bed = self.bed(server={"verdict": lambda point, who, _: replies.get(who) if point == "rcpt" else None})
        value = self.sent(bed, (ONE, TWO))
        self.assert_refused(value, 450, "")
        self.assertEqual(
            value.addresses,
            [(ONE.encode(), 550, b"5.1.1 no such user"), (TWO.encode(), 450, b"4.2.2 full")],
        )


def over_all_caches(namespace: dict[str, Any], *cases: type[SenderCase]) -> None:
    """Put each of these cases into a module, with the cache in memory and with a keeper."""
    from twisted.trial.unittest import SynchronousTestCase

    for case in cases:
        for bed_class, where in ((Bed, "Memory"), (KeeperBed, "Keeper")):
            name = f"{where}{case.__name__}"
            body = {"bed_class": bed_class, "__module__": namespace["__name__"], "__doc__": case.__doc__}
            namespace[name] = type(name, (case, SynchronousTestCase), body)
