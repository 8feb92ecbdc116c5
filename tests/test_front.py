"""The front, by what a client that knows the protocol sees of it, and the parts behind it."""

from __future__ import annotations

import base64
import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IConsumer, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mailcache import Credentials, DeliveryError, Destination, SessionEndpoint, TLSPolicy, UncertainDelivery
from mailcache.contents import FileContent
from mailcache.front import IDLE_LIMIT
from mailcache.fronting import replies
from mailcache.fronting.incoming import MAX_IN_MEMORY, IncomingContent
from mailcache.fronting.relaying import MailCommand
from mailcache.testing import Fault
from mailcache.wire.replies import Reply
from tests.helpers import CREDENTIALS, PORT, Bed, Outcome, verifying
from tests.senders import ONE, TWO, SenderCase, over_all_caches, refusing

HELLO = ["EHLO client.example.com"]
MAIL = "MAIL FROM:<a@example.com>"
TRANSACTION = [*HELLO, MAIL, f"RCPT TO:<{ONE}>", "DATA"]
CONTENT = b"Subject: hi\r\n\r\n..dot\r\n"


class Client(Protocol):
    """Notes what it reads and how its connection ends."""

    def __init__(self) -> None:
        self.read = b""
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.read += data

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.lost.append(reason)


class FrontCase(SenderCase):
    """A client of no known kind, with a conversation of its own."""

    def connect(self, bed: Bed, destination: Destination | None = None) -> Client:
        """A client that has read the greeting."""
        endpoint = SessionEndpoint(bed.cache, destination if destination is not None else bed.destination)
        client: Client = bed.finish(Outcome(endpoint.connect(Factory.forProtocol(Client))))
        bed.reactor.run_until(lambda: client.read)
        client.read = b""
        return client

    def say(self, bed: Bed, client: Client, *lines: str | bytes) -> list[str]:
        """Say each line when the one before is answered; gives the answers."""
        answers = []
        for line in lines:
            client.read = b""
            assert client.transport is not None
            client.transport.write((line if isinstance(line, bytes) else line.encode()) + b"\r\n")
            bed.reactor.run_until(lambda: client.read or client.lost)
            answers.append(client.read.decode().removesuffix("\r\n"))
        return answers

    def codes(self, bed: Bed, client: Client, *lines: str | bytes) -> list[int]:
        return [int(answer[:3]) for answer in self.say(bed, client, *lines)]

    def leave(self, bed: Bed, client: Client) -> None:
        """The client hangs up."""
        assert client.transport is not None
        client.transport.loseConnection()
        bed.reactor.run_for(1)
        self.assertEqual((len(client.lost), bed.counts()[0]), (1, 0))


class ConversationTests(FrontCase):
    """Commands and replies."""

    def open(self, **settings: Any) -> Bed:
        """A bed whose server wants no login."""
        return self.bed(**{**settings, "server": {"users": None, **settings.get("server", {})}})

    def test_a_message(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.assertEqual(self.codes(bed, client, *TRANSACTION), [250, 250, 250, 354])
        self.assertEqual(self.say(bed, client, CONTENT + b"."), ["250 2.0.0 ok: queued"])
        self.assertEqual(bed.counts()[:2], (0, 1))
        self.assertEqual(self.codes(bed, client, "QUIT"), [221])
        bed.reactor.run_for(1)
        self.assertEqual(len(client.lost), 1)
        self.assertEqual(bed.server.messages[0].content, b"Subject: hi\r\n\r\n.dot\r\n")
        self.assertFalse(bed.server.connections[0].quit_seen)

    def test_messages_of_one_client_have_a_lease_each(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        for _ in range(3):
            self.assertEqual(self.codes(bed, client, *TRANSACTION[1:] if bed.server.messages else TRANSACTION)[-1], 354)
            self.assertEqual(self.codes(bed, client, CONTENT + b"."), [250])
            self.assertEqual(bed.counts()[:2], (0, 1))
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (3, 1))
        self.leave(bed, client)

    def test_what_is_sent_together_is_answered_in_turn(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        (answer,) = self.say(bed, client, "\r\n".join([*TRANSACTION[:-1], "NOOP", "RSET", MAIL, "QUIT"]))
        bed.reactor.run_until(lambda: client.lost)
        self.assertIn("AUTH PLAIN LOGIN", answer)
        codes = [line[:3] for line in client.read.decode().splitlines() if line[3] == " "]
        self.assertEqual(codes, ["250", "250", "250", "250", "250", "250", "221"])
        self.assertEqual(bed.server.connections[0].commands[-2:], ["RSET", MAIL + " BODY=8BITMIME"])

    def test_replies_are_the_servers_own(self) -> None:
        answers = {
            "mail": b"250 2.1.0 a sender <a@example.com> of ours\r\n",
            "rcpt": b"251-2.1.5 not here\r\n251 2.1.5 but there\r\n",
            "dot": b"250-2.0.0 taken\r\n250 as 12345\r\n",
        }
        bed = self.open(server={"verdict": lambda point, *_: answers.get(point)})
        client = self.connect(bed)
        _, *said = self.say(bed, client, *TRANSACTION, CONTENT + b".")
        self.assertEqual([said[index].encode() + b"\r\n" for index in (0, 1, 3)], list(answers.values()))
        self.leave(bed, client)

    def test_offers_what_the_server_does_where_that_is_known(self) -> None:
        bed = self.bed(credentials=CREDENTIALS)
        client = self.connect(bed)
        (answer,) = self.say(bed, client, *HELLO)
        offered = {line[4:] for line in answer.split("\r\n")[1:]}
        self.assertEqual(offered, {"AUTH PLAIN LOGIN", "8BITMIME", "SMTPUTF8", "SIZE 52428800", "ENHANCEDSTATUSCODES"})
        self.leave(bed, client)

    def test_commands_out_of_place(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.assertEqual(self.codes(bed, client, "AUTH PLAIN", MAIL, f"RCPT TO:<{ONE}>", "DATA"), [503] * 4)
        self.assertEqual(self.codes(bed, client, "HELO me", f"RCPT TO:<{ONE}>", "DATA"), [250, 503, 503])
        self.assertEqual(self.codes(bed, client, MAIL, MAIL, "AUTH PLAIN", "DATA"), [250, 503, 503, 554])
        self.assertEqual(self.codes(bed, client, "STARTTLS", "VRFY x", "BDAT 3", "", "\x01"), [502, 252, 502, 500, 500])
        self.assertEqual(self.codes(bed, client, "MAIL FROM", "EHLO again"), [501, 250])
        self.assertEqual(bed.counts()[:2], (0, 1))
        self.leave(bed, client)

    def test_a_line_that_is_too_long_is_no_command_to_its_end(self) -> None:
        """However it is cut: what comes behind is the next command, and no part of it is one."""
        line = b"x" * 12_280 + b"y" * 8 + b"\r" + b"z\n" * 100 + b"\r\nRSET\r\nMAIL FROM:<a@example.com>\r\nNOOP\r\n"
        for cut in (len(line), 12_287, 12_288, 12_289, 12_290, 12_291, 12_400, 12_489, 12_490, 12_491):
            bed = self.open()
            client = self.connect(bed)
            assert client.transport is not None
            for piece in (line[:cut], line[cut:]):
                client.transport.write(piece)
                bed.reactor.pump()
            codes = [answer[:3] for answer in client.read.split(b"\r\n")[:-1]]
            self.assertEqual(codes, [b"500", b"250", b"503", b"250"], cut)
            self.leave(bed, client)

    def test_a_line_without_an_end(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        assert client.transport is not None
        client.transport.write(b"x" * 20_000)
        bed.reactor.run_until(lambda: client.read)
        self.assertEqual(client.read, b"500 5.5.2 Line too long\r\n")
        self.leave(bed, client)

    def test_parameters(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.say(bed, client, *HELLO)
        for parameters in ("RET=FULL", "BODY=BINARYMIME", "SIZE=x", "SMTPUTF8=1", "AUTH=<>"):
            self.assertEqual(self.codes(bed, client, f"{MAIL} {parameters}"), [555], parameters)
        self.assertEqual(self.codes(bed, client, "MAIL FROM:<ü@example.com>"), [553])
        self.assertEqual(self.codes(bed, client, f"{MAIL} SIZE=100 BODY=7BIT"), [250])
        self.assertEqual(
            self.codes(bed, client, f"RCPT TO:<{ONE}> NOTIFY=NEVER", "RCPT TO:<ü@example.com>", "RSET"), [555, 553, 250]
        )
        self.assertEqual(
            self.codes(bed, client, "MAIL FROM:<ü@example.com> SMTPUTF8", "RCPT TO:<ä@example.com>", "DATA", "."),
            [250, 250, 354, 250],
        )
        (message,) = bed.server.messages
        self.assertEqual((message.sender, message.recipients), ("ü@example.com", ("ä@example.com",)))
        seen = [line for line in bed.server.connections[0].commands if line.startswith("MAIL")]
        self.assertEqual(seen[0], MAIL + " SIZE=100")
        self.leave(bed, client)

    def test_what_the_server_lacks_is_told_at_mail(self) -> None:
        bed = self.open(server={"capabilities": ("SIZE 100000",)})
        client = self.connect(bed)
        self.say(bed, client, *HELLO)
        for parameter in ("SMTPUTF8", "BODY=8BITMIME", "SIZE=100001"):
            (answer,) = self.say(bed, client, f"{MAIL} {parameter}")
            self.assertRegex(answer, r"^(451 4|554 5)\.6\.3 ", parameter)
        self.leave(bed, client)

    def test_an_address_that_we_would_not_write_is_judged_by_the_server(self) -> None:
        bed = self.open(server={"verdict": refusing("rcpt", b"550 5.1.1 who?\r\n", "b@@example.com")})
        client = self.connect(bed)
        said = self.say(bed, client, *HELLO, "MAIL FROM:<root>", "RCPT TO:<root>", "RCPT TO:<b@@example.com>")
        self.assertEqual([each[:3] for each in said[1:]], ["250", "250", "550"])
        self.assertEqual(self.codes(bed, client, "DATA", "."), [354, 250])
        self.assertEqual(bed.server.messages[0].recipients, ("root",))
        self.leave(bed, client)

    def test_a_source_route_goes_no_further(self) -> None:
        """RFC 5321 appendix C; and what is in it nobody has looked at."""
        bed = self.open()
        client = self.connect(bed)
        for route in ("@relay.example:", "@\x1b(B\x7f:", "@a,@b:"):
            said = self.codes(bed, client, *HELLO, MAIL.replace("<", f"<{route}"), f"RCPT TO:<{route}{ONE}>", "RSET")
            self.assertEqual(said, [250] * 4)
        commands = set(bed.server.connections[0].commands[3:]) - {"RSET"}
        self.assertEqual(commands, {MAIL + " BODY=8BITMIME", f"RCPT TO:<{ONE}>"})
        self.leave(bed, client)

    def test_rset_ends_a_transaction_and_is_due_to_the_server(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.assertEqual(self.codes(bed, client, "RSET", *TRANSACTION[:-1], "RSET", "RSET"), [250] * 6)
        self.assertEqual(bed.counts()[:2], (0, 1))
        self.assertEqual(self.codes(bed, client, *TRANSACTION[1:], ".", "RSET"), [250, 250, 354, 250, 250])
        self.assertEqual(bed.server.connections[0].commands.count("RSET"), 1)
        self.leave(bed, client)

    def test_a_client_that_hangs_up_anywhere_leaves_nothing_behind(self) -> None:
        for point in ("mail", "rcpt", "data", "dot"):
            for answered in (True, False):
                bed = self.open(faults=[] if answered else [Fault(point, "silence")])
                client = self.connect(bed)
                steps: list[str | bytes] = [*TRANSACTION, "."]
                last = {"mail": 1, "rcpt": 2, "data": 3, "dot": 4}[point]
                if point == "data" and not answered:
                    last = 4  # The server hears of it with the content.
                self.say(bed, client, *steps[:last])
                assert client.transport is not None
                client.transport.write(bytes(f"{steps[last]}\r\n", "ascii"))
                bed.reactor.run_for(1)
                self.leave(bed, client)
                self.assertEqual(bed.counts()[1], int(answered), point)

    def test_a_client_that_says_nothing_keeps_no_session(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.say(bed, client, *HELLO, MAIL)
        bed.reactor.run_for(IDLE_LIMIT - 1)
        self.assertEqual(client.lost, [])
        bed.reactor.run_for(2)
        self.assertEqual((len(client.lost), bed.counts()[0]), (1, 0))
        self.assertIn(b"421 4.4.2", client.read)

    def test_a_recipient_that_is_refused_on_the_second_session_refuses_the_message(self) -> None:
        bed = self.open(faults=[Fault("data", "rst", connection=1, transaction=2)])
        bed.server.verdict = lambda point, who, connection: (
            b"450 4.2.0 not now\r\n" if (point, who, connection.number) == ("rcpt", TWO, 2) else None
        )
        client = self.connect(bed)
        self.say(bed, client, *TRANSACTION, ".")
        said = self.say(bed, client, MAIL, f"RCPT TO:<{ONE}>", f"RCPT TO:<{TWO}>", "DATA", ".")
        self.assertEqual([each[:3] for each in said], ["250", "250", "250", "354", "451"])
        self.assertIn("not now", said[-1])
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (1, 2))
        self.assertEqual(bed.counts()[0], 0)
        self.leave(bed, client)

    def test_mail_that_is_refused_on_the_second_session_refuses_the_message(self) -> None:
        bed = self.open(faults=[Fault("rcpt", "rst", connection=1, transaction=2)])
        client = self.connect(bed)
        self.say(bed, client, *TRANSACTION, ".")
        bed.server.verdict = lambda point, _, connection: (
            b"550 5.7.1 not you\r\n" if (point, connection.number) == ("mail", 2) else None
        )
        said = self.say(bed, client, MAIL, f"RCPT TO:<{ONE}>", f"RCPT TO:<{TWO}>", "DATA")
        self.assertEqual(said[1:], ["550 5.7.1 not you"] * 3)
        self.leave(bed, client)

    def test_a_session_that_ends_while_the_client_thinks(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.say(bed, client, *TRANSACTION, ".", MAIL, f"RCPT TO:<{ONE}>")
        bed.server.abort_connections()
        bed.reactor.run_for(1)
        self.assertEqual(self.codes(bed, client, f"RCPT TO:<{TWO}>", "DATA", "."), [250, 354, 250])
        self.assertEqual([message.recipients for message in bed.server.messages], [(ONE,), (ONE, TWO)])
        self.leave(bed, client)

    def test_a_server_that_is_gone_when_it_is_asked_again(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.say(bed, client, *TRANSACTION, ".", MAIL)
        bed.server.abort_connections()
        bed.server.stop_listening()
        (answer,) = self.say(bed, client, f"RCPT TO:<{ONE}>")
        self.assertRegex(answer, r"^451 4\.4\.1 .*refused")
        self.assertEqual(self.codes(bed, client, "RSET", MAIL), [250, 451])
        self.leave(bed, client)

    def test_content_that_cannot_be_kept(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.patch(IncomingContent, "_keep", lambda incoming, _: setattr(incoming, "failed", "no space left"))
        self.assertEqual(self.say(bed, client, *TRANSACTION, ".")[-1], "452 4.3.1 no space left")
        self.leave(bed, client)
        self.assertEqual(bed.server.message_count, 0)

    def test_content_that_cannot_be_read_again(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.patch(FileContent, "rewind", lambda _: False)
        answers = self.say(bed, client, *TRANSACTION, b"a line\r\n" * 20_000 + b".")
        self.assertEqual(answers[-1], "451 4.6.0 the content can't be read again")
        self.leave(bed, client)
        self.assertEqual(bed.server.message_count, 0)

    def test_a_defect_is_logged_and_the_message_refused(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.patch(MailCommand, "line", lambda *_: 1 / 0)
        (_, answer) = self.say(bed, client, *HELLO, MAIL)
        self.assertEqual(answer[:9], "451 4.3.0")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.leave(bed, client)

    def test_a_cache_that_is_closed_meanwhile(self) -> None:
        bed = self.open()
        client = self.connect(bed)
        self.say(bed, client, *HELLO, MAIL)
        closing = Outcome(bed.end())
        bed.reactor.run_for(100)
        self.assertTrue(closing.done)
        (answer,) = self.say(bed, client, f"RCPT TO:<{ONE}>")
        self.assertRegex(answer, r"^451 4\.")
        self.leave(bed, client)

    def test_a_producer_of_the_clients_own(self) -> None:
        """It writes what goes over the wire, dots doubled, and is asked for it as by a socket."""
        bed = self.open()
        client = self.connect(bed)
        self.say(bed, client, *TRANSACTION)
        transport: Any = client.transport
        client.read = b""
        sender = FileSender()
        file = io.BytesIO(b"Subject: x\r\n\r\n" + b"..line\r\n" * 50_000)
        sending = sender.beginFileTransfer(file, transport, lambda chunk: chunk)
        sending.addCallback(lambda _: transport.writeSequence([b".", b"\r\n"]))
        bed.reactor.run_until(lambda: client.read)
        self.assertEqual(bed.server.messages[0].content, b"Subject: x\r\n\r\n" + b".line\r\n" * 50_000)
        self.leave(bed, client)


class AuthTests(FrontCase):
    """AUTH, of a client of which nobody can know whether it will log in."""

    RIGHT = base64.b64encode(b"\0user\0" + CREDENTIALS.password.encode()).decode()
    WRONG = base64.b64encode(b"\0user\0wrong").decode()

    def encoded(self, *texts: str) -> list[str]:
        return [base64.b64encode(text.encode()).decode() for text in texts]

    def test_ways_to_log_in(self) -> None:
        user, password, twice = self.encoded("user", CREDENTIALS.password, f"user\0user\0{CREDENTIALS.password}")
        ways = [
            ([f"AUTH PLAIN {self.RIGHT}"], [235]),
            (["AUTH plain", twice], [334, 235]),
            (["AUTH LOGIN", user, password], [334, 334, 235]),
            ([f"AUTH LOGIN {user}", password], [334, 235]),
        ]
        bed = self.bed()
        for lines, expected in ways:
            client = self.connect(bed)
            self.assertEqual(self.codes(bed, client, *HELLO, *lines)[1:], expected)
            self.assertEqual(self.codes(bed, client, *TRANSACTION[1:], "."), [250, 250, 354, 250])
            self.assertEqual(self.codes(bed, client, f"AUTH PLAIN {self.RIGHT}"), [503])
            self.leave(bed, client)
        self.assertEqual((bed.server.connection_count, self.logins(bed)), (1, 1))

    def test_ways_not_to(self) -> None:
        other, nul, nobody = self.encoded("root\0user\0x", "user\0x", "\0\0x")
        ways = [
            (["AUTH CRAM-MD5"], 504),
            (["AUTH"], 504),
            (["AUTH PLAIN", "*"], 501),
            (["AUTH PLAIN ="], 501),
            (["AUTH PLAIN !"], 501),
            ([f"AUTH PLAIN {nul}"], 501),
            ([f"AUTH PLAIN {other}"], 535),
            ([f"AUTH PLAIN {nobody}"], 535),
        ]
        bed = self.bed()
        client = self.connect(bed)
        self.say(bed, client, *HELLO)
        for lines, expected in ways:
            self.assertEqual(self.codes(bed, client, *lines)[-1], expected, lines)
        self.assertEqual(bed.server.connection_count, 0)
        self.leave(bed, client)

    def test_the_servers_refusal_is_handed_back(self) -> None:
        bed = self.bed()
        client = self.connect(bed)
        said = self.say(bed, client, *HELLO, f"AUTH PLAIN {self.WRONG}")
        self.assertEqual(said[1], "535 5.7.8 credentials not accepted")
        self.leave(bed, client)

    def test_a_refusal_for_now_is_the_answer_to_mail(self) -> None:
        """Where the sender takes it for what it is: the message may be tried again later."""
        bed = self.bed(faults=[Fault("auth", "4xx", times=9)])
        client = self.connect(bed)
        codes = self.codes(bed, client, *HELLO, f"AUTH PLAIN {self.RIGHT}", MAIL)
        self.assertEqual(codes[1:], [235, 454])
        self.leave(bed, client)

    def test_a_server_without_auth(self) -> None:
        bed = self.bed(server={"users": None})
        client = self.connect(bed)
        (_, answer) = self.say(bed, client, *HELLO, f"AUTH PLAIN {self.RIGHT}")
        self.assertRegex(answer, r"^554 5\.7\.4 .*mechanism")
        self.leave(bed, client)

    def test_a_destinations_credentials_and_no_others(self) -> None:
        bed = self.bed(credentials=CREDENTIALS)
        client = self.connect(bed)
        self.assertEqual(self.codes(bed, client, *HELLO, f"AUTH PLAIN {self.WRONG}")[1], 535)
        self.assertEqual(self.codes(bed, client, f"AUTH PLAIN {self.RIGHT}"), [235])
        self.assertEqual(self.codes(bed, client, *TRANSACTION[1:], "."), [250, 250, 354, 250])
        self.assertEqual(self.logins(bed), 1)
        self.leave(bed, client)

    def test_no_password_goes_out_in_clear(self) -> None:
        """Where the destination's level says nothing of TLS, a password makes it "verify"."""
        bed = self.bed(server={"certificate": None})
        client = self.connect(bed, Destination(f"[127.0.0.1]:{PORT}"))
        codes = self.codes(bed, client, *HELLO, f"AUTH PLAIN {self.RIGHT}", MAIL)
        self.assertEqual(codes[1:], [235, 451])
        self.assertEqual(self.logins(bed), 0)
        self.leave(bed, client)


class TransportTests(FrontCase):
    """What the client has for a transport."""

    def test_interfaces(self) -> None:
        bed = self.bed()
        for policy, secure in (
            (verifying(), True),
            (TLSPolicy("encrypt"), True),
            (TLSPolicy("may"), False),
            (TLSPolicy("none"), False),
        ):
            client = self.connect(bed, bed.to(f"[127.0.0.1]:{PORT}", tls=policy))
            transport: Any = client.transport
            self.assertEqual(ISSLTransport.providedBy(transport), secure)
            verifyObject(ISSLTransport if secure else ITCPTransport, transport)
            verifyObject(IConsumer, transport)
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
            self.assertTrue(transport.getTcpNoDelay() and transport.getTcpKeepAlive())
            self.assertIsNone(transport.getPeerCertificate())
            self.assertEqual((transport.getPeer().port, transport.getHost().port), (PORT, PORT))
            transport.loseWriteConnection()
            transport.write(b"NOOP\r\n")
            bed.reactor.run_for(1)
            self.assertEqual((len(client.lost), transport.connected), (1, False))

    def test_a_client_that_fails_over_a_reply_is_cut_off(self) -> None:
        bed = self.bed()
        client = self.connect(bed)
        client.dataReceived = lambda _: 1 / 0  # type: ignore[assignment, return-value]
        assert client.transport is not None
        client.transport.write(b"NOOP\r\n")
        bed.reactor.run_until(lambda: client.lost)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_producers(self) -> None:
        class Producer:
            stopped = 0

            def stopProducing(self) -> None:
                self.stopped += 1

        bed = self.bed()
        client, producer = self.connect(bed), Producer()
        transport: Any = client.transport
        transport.registerProducer(producer, True)
        self.assertRaises(RuntimeError, transport.registerProducer, Producer(), True)
        transport.abortConnection()
        bed.reactor.run_for(1)
        transport.registerProducer(producer, True)
        self.assertEqual(producer.stopped, 2)


class IncomingContentTests(SynchronousTestCase):
    """Content on its way in."""

    def content(self, incoming: IncomingContent) -> bytes:
        self.addCleanup(incoming.close)
        return b"".join(incoming.source().chunks())

    @given(st.lists(st.sampled_from([b".", b"\r\n", b"\r", b"\n", b"a", b"..", b"\r\n."]), max_size=12), st.data())
    def test_wherever_it_is_cut(self, pieces: list[bytes], data: st.DataObject) -> None:
        meant = b"".join(pieces)
        lines = meant.split(b"\r\n")
        stuffed = b"\r\n".join([b"." + line if line.startswith(b".") else line for line in lines]) + b"\r\n.\r\n"
        rest = stuffed + b"RSET\r\n"
        incoming = IncomingContent()
        behind = None
        while behind is None:
            cut = data.draw(st.integers(1, len(rest)))
            behind = incoming.feed(rest[:cut])
            rest = rest[cut:]
        self.assertEqual(behind + rest, b"RSET\r\n")
        incoming._file.seek(0)
        self.assertEqual(incoming._file.read(), meant + b"\r\n")
        incoming.close()

    @given(st.lists(st.sampled_from([b".", b"\r\n", b"\n", b"a"]), max_size=8))
    def test_a_file_as_it_is(self, pieces: list[bytes]) -> None:
        meant = b"".join(pieces)
        incoming = IncomingContent()
        for piece in pieces:
            incoming.add(piece)
        self.assertEqual(
            incoming.feed(b".\r\nQUIT\r\n" if meant.endswith(b"\n") else b"\r\n.\r\nQUIT\r\n"), b"QUIT\r\n"
        )
        incoming._file.seek(0)
        self.assertEqual(incoming._file.read(), meant if meant.endswith(b"\n") else meant + b"\r\n")
        incoming.close()

    def test_what_is_long_goes_to_a_file_and_can_be_read_again(self) -> None:
        incoming = IncomingContent()
        line = b"a line\r\n"
        for _ in range(20):
            incoming.add(line * (MAX_IN_MEMORY // 100))
        incoming.feed(b".\r\n")
        self.assertTrue(incoming._file._rolled)  # type: ignore[attr-defined]
        source = incoming.source()
        for _ in range(2):
            self.assertTrue(source.rewind())
            self.assertEqual(b"".join(source.chunks()), line * (MAX_IN_MEMORY // 100) * 20 + b".\r\n")
        incoming.close()

    def test_a_disk_that_is_full(self) -> None:
        class Full(io.BytesIO):
            def write(self, _: Any) -> int:
                raise OSError(28, "No space left on device")

        incoming = IncomingContent()
        incoming._file = Full()  # type: ignore[assignment]
        self.assertIsNone(incoming.feed(b"abc\r\n"))
        self.assertEqual(incoming.feed(b".\r\n"), b"")
        self.assertEqual(incoming.failed, "the content can't be kept: No space left on device")


class ReplyTests(SynchronousTestCase):
    """What a client is told."""

    def test_codes(self) -> None:
        for phase, retriable, expected in (
            ("connect", True, "451 4.4.1 "),
            ("trust", True, "451 4.7.5 "),
            ("needs", False, "554 5.6.3 "),
            ("auth", True, "554 5.7.4 "),
            ("mail", True, "451 4.4.2 "),
        ):
            reply = replies.refusal(DeliveryError("why\nnot", phase=phase, retriable=retriable))
            self.assertTrue(str(reply).startswith(expected), reply)
            self.assertIn("why?not", str(reply))

    def test_only_a_refusal_of_the_servers_is_handed_on(self) -> None:
        no, yes = Reply.make(421, "4.3.2 busy"), Reply.make(250, "ok")
        self.assertIs(replies.refusal(DeliveryError("", phase="mail", reply=no)), no)
        self.assertEqual(replies.refusal(DeliveryError("", phase="mail", reply=yes)).code, 451)

    def test_doubt_asks_for_nothing_again(self) -> None:
        self.assertTrue(replies.doubt(UncertainDelivery("cut")).permanent)

    def test_a_flawed_reply_is_one_clean_line(self) -> None:
        flawed = Reply(250, b"250-a\0\r\n250 b\n", "NUL")
        self.assertEqual(replies.encoded(flawed), b"250 a\\x00; b\r\n")
        self.assertEqual(replies.encoded(Reply.make(250, "a", "b")), b"250-a\r\n250 b\r\n")


class ArgumentTests(SynchronousTestCase):
    def test_destinations_that_are_none(self) -> None:
        for wrong in ("[127.0.0.1]", Destination("[127.0.0.1]", protocol="lmtp"), None):
            self.assertRaises(ValueError, SessionEndpoint, None, wrong)

    def test_nothing_tells_a_password(self) -> None:
        endpoint = SessionEndpoint(None, Destination("[127.0.0.1]", credentials=Credentials("ann", "sesame")))
        self.assertEqual(repr(endpoint), "<SessionEndpoint to smtp:[127.0.0.1]:25>")


over_all_caches(globals(), ConversationTests, AuthTests, TransportTests)
