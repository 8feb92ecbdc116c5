"""The scripted server: what it answers, what it counts, and what it holds against a client."""

from __future__ import annotations

import base64
from typing import Any

from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import Connection, MemoryReactor, SMTPServer
from tests.testing.lockstep import CERTIFICATE, Client, Scene

MAIL, RCPT, DATA = b"MAIL FROM:<a@x.test>\r\n", b"RCPT TO:<b@y.test>\r\n", b"DATA\r\n"
ENVELOPE = MAIL + RCPT
QUEUED = b"250 2.0.0 ok: queued\r\n"


def b64(text: bytes) -> bytes:
    return base64.b64encode(text)


class Service(SynchronousTestCase):
    """A conversation without faults."""

    def test_offers(self) -> None:
        """What EHLO offers depends on the certificate, on TLS, and on users."""
        scene = Scene(certificate=CERTIFICATE, users={}, capabilities=["SIZE 1000", "DSN"])
        client = scene.connect()
        clear = scene.say(client, b"EHLO me\r\n")
        self.assertEqual(clear, b"250-mx.test\r\n250-SIZE 1000\r\n250-DSN\r\n250 STARTTLS\r\n")
        self.assertEqual(scene.say(client, b"HELO me\r\n"), b"250 mx.test\r\n")
        scene.upgrade(client)
        secret = scene.say(client, b"EHLO me\r\n")
        self.assertEqual(secret, b"250-mx.test\r\n250-SIZE 1000\r\n250-DSN\r\n250 AUTH PLAIN LOGIN\r\n")
        self.assertEqual(scene.server.violations, [])

    def test_flights(self) -> None:
        """Connect, greeting, EHLO, STARTTLS, handshake, EHLO, then two for each message, and QUIT."""
        scene = Scene(certificate=CERTIFICATE, latency=0.01)
        client = scene.ready(tls=True)
        record = scene.server.connections[0]
        self.assertEqual(record.flights, 6)
        scene.deliver(client)
        self.assertEqual(record.flights, 8)
        scene.deliver(client)
        self.assertEqual(record.flights, 10)
        scene.say(client, b"QUIT\r\n")
        self.assertEqual(record.flights, 11)
        self.assertEqual((record.closed, record.quit_seen, record.tls), ("quit", True, True))
        self.assertEqual((record.handshakes, record.transactions, record.helo_name), (1, 2, "me"))
        self.assertEqual((record.number, record.sni), (1, "mx.test"))

    def test_records(self) -> None:
        """Commands in order, messages with all that came with them, totals."""
        scene = Scene()
        client = scene.ready()
        mail = b"MAIL FROM:<a@x.test> SIZE=100 BODY=8BITMIME\r\n"
        scene.say(client, mail + b"RCPT TO:<b@y.test> NOTIFY=NEVER\r\nRCPT TO:<c@y.test>\r\nDATA\r\n")
        scene.say(client, b"..a\r\n.b\r\n\r\n.\r\n")
        (message,) = scene.server.messages
        self.assertEqual(message.content, b".a\r\nb\r\n\r\n")
        self.assertEqual(message.sender, "a@x.test")
        self.assertEqual(message.recipients, ("b@y.test", "c@y.test"))
        self.assertEqual(message.parameters, ("SIZE=100", "BODY=8BITMIME"))
        self.assertEqual(message.recipient_parameters, {"b@y.test": ("NOTIFY=NEVER",), "c@y.test": ()})
        self.assertEqual((message.committed, message.reply_sent, message.reply), (True, True, QUEUED))
        self.assertEqual(message.accepted, ["b@y.test", "c@y.test"])
        self.assertEqual((message.transaction, message.connection), (1, scene.server.connections[0]))
        self.assertEqual(scene.server.connections[0].messages, [message])
        commands = scene.server.connections[0].commands
        self.assertEqual([command.split()[0] for command in commands], ["EHLO", "MAIL", "RCPT", "RCPT", "DATA"])
        self.assertEqual(commands[1], mail.decode().strip())
        scene.deliver(client)
        server = scene.server
        self.assertEqual((server.message_count, server.connection_count, server.handshake_count), (2, 1, 0))
        self.assertEqual((server.transactions_seen("a@x.test"), server.transactions_seen("z")), (2, 0))
        self.assertIn("octets", repr(message))
        self.assertIn("messages=2", repr(server.connections[0]))
        self.assertEqual({number for _, number, _ in server.log}, {1})

    def test_endings(self) -> None:
        """Who ended a connection, and how."""
        for tls in (False, True):
            scene = Scene(certificate=CERTIFICATE)
            clients: list[Any] = [scene.ready(tls) for _ in range(4)]
            scene.say(clients[0], b"QUIT\r\n")
            clients[1].transport.loseConnection()
            clients[2].transport.abortConnection()
            scene.reactor.run_for(1)
            self.successResultOf(self.closing(scene))
            closed = [record.closed for record in scene.server.connections]
            self.assertEqual(closed, ["quit", "fin", "reset", "server"])
            self.assertEqual(scene.server.connections[1].close_notify, tls)
            self.assertEqual(scene.reactor.connections, [])

    def closing(self, scene: Scene) -> Any:
        closing = scene.server.close()
        scene.reactor.run_for(1)
        return closing

    def test_quit_under_tls(self) -> None:
        """The server says close_notify, then FIN; the client hears of an orderly end."""
        scene = Scene(certificate=CERTIFICATE)
        client = scene.ready(tls=True)
        self.assertEqual(scene.say(client, b"QUIT\r\n"), b"221 2.0.0 bye\r\n")
        assert client.lost is not None
        self.assertEqual(client.lost.type.__name__, "ConnectionDone")

    def test_implicit_tls(self) -> None:
        """TLS from the first octet; the greeting comes over it, and STARTTLS isn't offered."""
        scene = Scene(certificate=CERTIFICATE, implicit_tls=True)
        client = scene.connect()
        self.assertEqual(client.received, b"")
        client.start_tls()
        scene.reactor.run_for(1)
        self.assertEqual(client.received, b"220 mx.test ESMTP ready\r\n")
        self.assertNotIn(b"STARTTLS", scene.say(client, b"EHLO me\r\n"))
        self.assertEqual(scene.deliver(client), QUEUED)
        self.assertEqual(scene.server.connections[0].flights, 6)

    def test_auth(self) -> None:
        """PLAIN and LOGIN, at once and in steps; passwords leave no trace."""
        plain, wrong = b64(b"\0ann\0secret"), b64(b"\0ann\0guess")
        ways: list[tuple[list[bytes], bytes]] = [
            ([b"AUTH PLAIN " + plain], b"235 2.7.0 welcome\r\n"),
            ([b"AUTH PLAIN", plain], b"235 2.7.0 welcome\r\n"),
            ([b"auth login", b64(b"ann"), b64(b"secret")], b"235 2.7.0 welcome\r\n"),
            ([b"AUTH LOGIN " + b64(b"ann"), b64(b"secret")], b"235 2.7.0 welcome\r\n"),
            ([b"AUTH PLAIN " + wrong], b"535 5.7.8 credentials not accepted\r\n"),
            ([b"AUTH LOGIN", b64(b"bob"), b64(b"secret")], b"535 5.7.8 credentials not accepted\r\n"),
            ([b"AUTH PLAIN ="], b"501 5.5.2 not base64\r\n"),
            ([b"AUTH PLAIN", b"*"], b"501 5.0.0 cancelled\r\n"),
            ([b"AUTH PLAIN", b"%%%"], b"501 5.5.2 not base64\r\n"),
            ([b"AUTH CRAM-MD5"], b"504 5.5.4 mechanism not known\r\n"),
        ]
        for lines, expected in ways:
            scene = Scene(certificate=CERTIFICATE, users={"ann": "secret"})
            client = scene.ready(tls=True)
            for line in lines[:-1]:
                self.assertTrue(scene.say(client, line + b"\r\n").startswith(b"334 "))
            self.assertEqual(scene.say(client, lines[-1] + b"\r\n"), expected)
            record = scene.server.connections[0]
            self.assertEqual(record.user, "ann" if expected.startswith(b"235") else None)
            self.assertRegex(record.commands[-1], "^(?i:AUTH [A-Z0-9-]+)$")
            self.assertNotIn(plain.decode(), repr(scene.server.log))
            self.assertEqual(scene.server.violations, [])

    def test_chunks(self) -> None:
        """BDAT: several chunks, an empty last one, one flight for all; nothing is unstuffed."""
        scene = Scene()
        client = scene.ready()
        scene.say(client, ENVELOPE)
        self.assertEqual(scene.say(client, b"BDAT 6\r\n..a\r\nb"), b"250 2.0.0 6 octets\r\n")
        self.assertEqual(scene.say(client, b"BDAT 0 LAST\r\n"), QUEUED)
        flights = scene.server.connections[0].flights
        heard = scene.say(client, ENVELOPE + b"BDAT 3 LAST\r\nx\r\n")
        self.assertEqual(heard, b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n" + QUEUED)
        self.assertEqual(scene.server.connections[0].flights, flights + 1)
        self.assertEqual([message.content for message in scene.server.messages], [b"..a\r\nb", b"x\r\n"])
        self.assertEqual(scene.server.violations, [])

    def test_chunks_for_a_refused_transaction(self) -> None:
        """In one flight nobody could know: the chunk is swallowed and refused, and that is no violation."""
        scene = Scene(verdict=lambda point, argument, connection: b"550 no" if point == "rcpt" else None)
        client = scene.ready()
        heard = scene.say(client, ENVELOPE + b"BDAT 6 LAST\r\nQUIT\r\n")
        self.assertEqual(heard, b"250 2.1.0 ok\r\n550 no\r\n554 5.5.1 no valid recipients\r\n")
        self.assertEqual(scene.server.violations, [])
        self.assertEqual(scene.say(client, ENVELOPE)[:4], b"250 ")
        self.assertEqual(scene.say(client, b"BDAT 1 LAST\r\nx")[:4], b"554 ")
        self.assertEqual(scene.server.violations, ["connection 1: content for a refused transaction"])

    def test_lmtp(self) -> None:
        """LHLO, and a reply for each recipient, which the verdict can choose."""

        def verdict(point: str, argument: str, connection: Connection) -> bytes | None:
            return b"452 4.2.2 full\r\n" if (point, argument) == ("dot", "c@y.test") else None

        scene = Scene(lmtp=True, verdict=verdict)
        client = scene.connect()
        self.assertEqual(scene.say(client, b"EHLO me\r\n"), b"500 5.5.2 unknown command\r\n")
        scene.server.violations.clear()
        self.assertTrue(scene.say(client, b"LHLO me\r\n").startswith(b"250-"))
        scene.say(client, ENVELOPE + b"RCPT TO:<c@y.test>\r\n" + DATA)
        self.assertEqual(scene.say(client, b"hi\r\n.\r\n"), QUEUED + b"452 4.2.2 full\r\n")
        (message,) = scene.server.messages
        self.assertEqual((message.accepted, message.answered), (["b@y.test"], ["b@y.test", "c@y.test"]))
        self.assertTrue(message.committed and message.reply_sent)
        self.assertEqual(message.reply, QUEUED + b"452 4.2.2 full\r\n")
        self.assertEqual(scene.server.violations, [])

    def test_unix(self) -> None:
        """A server at a path."""
        reactor = MemoryReactor()
        server = SMTPServer(reactor, lmtp=True)
        server.listen_unix("/run/lmtp")
        client = Client()
        client.clock = reactor
        UNIXClientEndpoint(reactor, "/run/lmtp").connect(Factory.forProtocol(lambda: client))
        reactor.run_for(1)
        self.assertEqual(client.received, b"220 mx.test ESMTP ready\r\n")
        self.assertRaises(ValueError, lambda: server.port)

    def test_verdicts(self) -> None:
        """A test can choose any reply; refused things are not done, accepted ones are."""
        asked: list[tuple[str, str]] = []
        chosen: dict[tuple[str, str], bytes] = {}

        def verdict(point: str, argument: str, connection: Connection) -> bytes | None:
            asked.append((point, argument))
            return chosen.get((point, argument))

        scene = Scene(certificate=CERTIFICATE, users={"ann": "secret"}, verdict=verdict)
        client = scene.ready(tls=True)
        scene.say(client, b"AUTH PLAIN " + b64(b"\0ann\0secret") + b"\r\n")
        chosen["rcpt", "b@y.test"] = b"550 5.1.1 who?"
        heard = scene.say(client, ENVELOPE + b"RCPT TO:<c@y.test>\r\n" + DATA)
        self.assertIn(b"550 5.1.1 who?\r\n", heard)
        chosen["dot", "a@x.test"] = b"554 5.7.1 spam"
        self.assertEqual(scene.say(client, b"hi\r\n.\r\n"), b"554 5.7.1 spam\r\n")
        (message,) = scene.server.messages
        self.assertEqual(message.recipients, ("c@y.test",))
        self.assertEqual((message.committed, message.reply_sent), (False, True))
        chosen["mail", "a@x.test"] = b"451 4.7.1 later"
        self.assertEqual(scene.say(client, MAIL), b"451 4.7.1 later\r\n")
        scene.say(client, b"RSET\r\n")
        chosen["quit", ""] = b"500 5.5.1 stay"
        self.assertEqual(scene.say(client, b"QUIT\r\n"), b"500 5.5.1 stay\r\n")
        self.assertIsNone(client.lost)
        points = ["banner", "ehlo", "starttls", "ehlo2", "auth", "mail", "rcpt", "rcpt", "data", "dot", "mail"]
        self.assertEqual([point for point, _ in asked], [*points, "rset", "quit"])
        self.assertEqual(asked[1], ("ehlo", "EHLO me"))
        self.assertEqual(asked[4], ("auth", "ann"))

    def test_354_for_nobody(self) -> None:
        """A server may say 354 with all recipients refused (RFC 2920 3.1): the lone dot is the way out."""
        replies = {"rcpt": b"550 no", "data": b"354 well"}
        scene = Scene(verdict=lambda point, argument, connection: replies.get(point))
        client = scene.ready()
        scene.say(client, ENVELOPE + DATA)
        self.assertEqual(scene.say(client, b".\r\n"), b"554 5.5.1 no valid recipients\r\n")
        self.assertEqual(scene.server.violations, [])
        scene.say(client, ENVELOPE + DATA)
        scene.say(client, b"hi\r\n.\r\n")
        self.assertEqual(scene.server.violations, ["connection 1: content for a refused transaction"])
        self.assertEqual(scene.server.messages, [])

    def test_refusing_to_serve(self) -> None:
        """After a refusal for a greeting there is only QUIT."""
        scene = Scene(verdict=lambda point, argument, connection: b"554 no" if point == "banner" else None)
        client = scene.connect()
        self.assertEqual(client.received, b"554 no\r\n")
        self.assertTrue(scene.say(client, b"EHLO me\r\n").startswith(b"503"))
        self.assertTrue(scene.say(client, b"QUIT\r\n").startswith(b"221"))
        self.assertIsNotNone(client.lost)

    def test_limits(self) -> None:
        """A message announced too big is refused."""
        scene = Scene(capabilities=["SIZE 1000", "PIPELINING"])
        client = scene.ready()
        self.assertTrue(scene.say(client, b"MAIL FROM:<a@x.test> SIZE=1001\r\n").startswith(b"552"))
        self.assertTrue(scene.say(client, b"MAIL FROM:<> SIZE=1000\r\n").startswith(b"250"))
        self.assertEqual(scene.server.violations, [])

    def test_listening(self) -> None:
        """By itself, by an endpoint, by its factory; closing is over when all connections are."""
        reactor = MemoryReactor()
        server = SMTPServer(reactor)
        self.assertNotEqual(server.listen().getHost(), None)
        self.assertGreater(server.port, 0)
        self.assertEqual(server.address.host, "127.0.0.1")  # type: ignore[attr-defined]
        self.successResultOf(server.listen_on(TCP4ServerEndpoint(reactor, 26, interface="127.0.0.1")))
        reactor.listenTCP(27, server.factory)
        self.successResultOf(server.close())
        scene = Scene()
        scene.connect()
        closing = scene.server.close()
        self.assertNoResult(closing)
        scene.reactor.pump()
        self.successResultOf(closing)
        self.assertEqual(scene.server.open_count, 0)
        scene.connect()
        self.assertIsNotNone(scene.failed)

    def test_close_during_restart(self) -> None:
        """Closing ends the restart: nothing is left to happen."""
        scene = Scene(restart_seconds=5.0)
        scene.server.restart()
        self.successResultOf(scene.server.close())
        self.assertEqual(scene.reactor.getDelayedCalls(), [])

    def test_other_commands(self) -> None:
        """NOOP, VRFY, EHLO in a transaction (it resets), and commands in any case."""
        scene = Scene()
        client = scene.ready()
        self.assertEqual(scene.say(client, b"noop\r\n"), b"250 2.0.0 ok\r\n")
        self.assertTrue(scene.say(client, b"VRFY x\r\n").startswith(b"252"))
        scene.say(client, b"mail from:<a@x.test>\r\n")
        scene.say(client, b"ehlo me\r\n")
        self.assertEqual(scene.say(client, ENVELOPE), b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n")
        self.assertEqual(scene.say(client, b"RSET\r\n"), b"250 2.0.0 ok\r\n")
        self.assertEqual(scene.server.violations, [])
