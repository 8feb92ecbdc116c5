"""The scripted server: what it answers, what it counts, and what it holds against a client."""

from __future__ import annotations

import base64
from typing import Any

from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import CAPABILITIES, Connection, MemoryReactor, SMTPServer
from tests.testing.lockstep import CERTIFICATE, HOST, PORT, Client, Scene

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


class Strictness(SynchronousTestCase):
    """What a client must not do."""

    def violations(self, *steps: bytes, ready: bool = True, tls: bool = False, **options: Any) -> list[str]:
        scene = Scene(**options)
        client = scene.ready(tls) if ready else scene.connect()
        for step in steps:
            scene.say(client, step)
        return [each.removeprefix("connection 1: ") for each in scene.server.violations]

    def test_each(self) -> None:
        """Each of these is noted, once."""
        lockstep = [each for each in CAPABILITIES if each != "PIPELINING"]
        plain = b"AUTH PLAIN " + b64(b"\0ann\0secret") + b"\r\n"
        secure: dict[str, Any] = {"certificate": CERTIFICATE, "users": {"ann": "secret"}}
        cases: list[tuple[str, tuple[bytes, ...], dict[str, Any]]] = [
            ("MAIL in a transaction", (MAIL, MAIL), {}),
            ("MAIL before EHLO", (MAIL,), {"ready": False}),
            ("RCPT without a transaction", (RCPT,), {}),
            ("DATA without a transaction", (DATA,), {}),
            ("DATA after BDAT", (ENVELOPE, b"BDAT 1\r\nx", DATA), {}),
            ("octets behind the end of content", (ENVELOPE + DATA, b"hi\r\n.\r\nQUIT\r\n"), {}),
            ("octets behind the end of content", (ENVELOPE + b"BDAT 1 LAST\r\nxRSET\r\n",), {}),
            ("octets behind DATA", (ENVELOPE + DATA + b"hi\r\n.\r\n",), {}),
            ("octets behind EHLO", (b"EHLO me\r\n" + MAIL,), {}),
            ("octets behind QUIT", (b"QUIT\r\nNOOP\r\n",), {}),
            ("pipelining without the capability", (ENVELOPE,), {"capabilities": lockstep}),
            ("bare LF in a command", (b"NOOP\n",), {}),
            ("bare CR in a command", (b"NOOP x\ry\r\n",), {}),
            ("bare LF in content", (ENVELOPE + DATA, b"a\nb\r\n.\r\n"), {}),
            ("bare LF in content", (ENVELOPE + DATA, b"a\n.\nb\n.\r\n\r\n.\r\n"), {}),
            ("bare CR in content", (ENVELOPE + DATA, b"a\rb\r\n.\r\n"), {}),
            ("command line too long", (b"x" * 3000,), {}),
            ("unknown command 'XYZZY'", (b"XYZZY 1\r\n",), {}),
            ("unknown command 'STARTTLS'", (b"STARTTLS\r\n",), {}),
            ("unknown command 'BDAT'", (ENVELOPE, b"BDAT 0 LAST\r\n"), {"capabilities": ["PIPELINING"]}),
            ("content for a refused transaction", (MAIL + DATA, b"Subject: hi\r\n"), {}),
            ("syntax of 'MAIL FROM: <a@x.test>'", (b"MAIL FROM: <a@x.test>\r\n",), {}),
            ("syntax of 'RCPT TO:b@y.test'", (MAIL, b"RCPT TO:b@y.test\r\n"), {}),
            ("syntax of 'BDAT x'", (ENVELOPE, b"BDAT x\r\n"), {}),
            ("parameter SIZE without the capability", (b"MAIL FROM:<> SIZE=1\r\n",), {"capabilities": []}),
            ("parameter AUTH without the capability", (b"MAIL FROM:<> AUTH=<>\r\n",), {}),
            ("address 'ä@x.test' without SMTPUTF8", ("MAIL FROM:<ä@x.test>\r\n".encode(),), {}),
            ("no name in 'EHLO'", (b"EHLO\r\n",), {}),
            ("second STARTTLS", (b"STARTTLS\r\n",), {"tls": True, **secure}),
            ("STARTTLS in a transaction", (MAIL, b"STARTTLS\r\n"), secure),
            ("octets behind STARTTLS", (b"STARTTLS\r\nEHLO me\r\n",), secure),
            ("clear text where TLS should begin", (b"STARTTLS\r\n", b"EHLO me\r\n"), secure),
            ("AUTH in clear", (plain,), secure),
            ("second AUTH", (plain, plain), {"tls": True, **secure}),
            ("AUTH out of place", (MAIL, plain), {"tls": True, **secure}),
        ]
        for expected, steps, options in cases:
            self.assertEqual(self.violations(*steps, **options), [expected], (steps, options))

    def test_none(self) -> None:
        """These are right."""
        secure: dict[str, Any] = {"certificate": CERTIFICATE, "users": {"ann": "secret"}}
        self.assertEqual(self.violations("MAIL FROM:<ä@x.test> SMTPUTF8\r\n".encode()), [])
        utf8 = (b"MAIL FROM:<> SMTPUTF8\r\n", "RCPT TO:<ö@y.test>\r\n".encode())
        self.assertEqual(self.violations(*utf8), [])
        self.assertEqual(self.violations(b'MAIL FROM:<"a>b"@x.test>\r\n'), [])
        self.assertEqual(self.violations(b"MAIL FROM:<> AUTH=<>\r\n", tls=True, **secure), [])
        self.assertEqual(self.violations(b"RSET\r\n" + ENVELOPE + DATA, b".\r\n"), [])

    def test_early_talker(self) -> None:
        """Nobody speaks before the greeting."""
        scene = Scene(slow_delay=5.0)
        from mailcache.testing import Fault

        scene.server.arm(Fault("banner", "slow"))
        client = scene.connect()
        scene.say(client, b"EHLO me\r\n", 10)
        self.assertEqual(scene.server.violations, ["connection 1: octets before the greeting was sent"])
        self.assertTrue(client.received.startswith(b"220 mx.test"))

    def test_impatience(self) -> None:
        """Without PIPELINING the next command waits for the reply."""
        from mailcache.testing import Fault

        lockstep = [each for each in CAPABILITIES if each != "PIPELINING"]
        scene = Scene([Fault("mail", "slow")], capabilities=lockstep)
        client = scene.ready()
        scene.say(client, MAIL)
        scene.say(client, RCPT, 10)
        self.assertEqual(scene.server.violations, ["connection 1: pipelining without the capability"])

    def test_after_starttls_everything_is_forgotten(self) -> None:
        """EHLO in clear does not count after STARTTLS."""
        scene = Scene(certificate=CERTIFICATE)
        client = scene.ready()
        scene.upgrade(client)
        self.assertTrue(scene.say(client, MAIL).startswith(b"503"))
        self.assertEqual(scene.server.violations, ["connection 1: MAIL before EHLO"])

    def test_injected_commands_are_thrown_away(self) -> None:
        """What came in clear behind STARTTLS is not executed over TLS."""
        scene = Scene(certificate=CERTIFICATE)
        client = scene.ready()
        self.assertEqual(scene.say(client, b"STARTTLS\r\nEHLO evil\r\nMAIL FROM:<e@e>\r\n")[:4], b"220 ")
        client.forget()
        client.start_tls()
        scene.reactor.run_for(1)
        self.assertEqual(client.received, b"")
        self.assertEqual(scene.server.connections[0].commands, ["EHLO me", "STARTTLS"])

    def test_where(self) -> None:
        """The address the scene listens at is the server's."""
        scene = Scene()
        self.assertEqual((scene.server.address.host, scene.server.port), (HOST, PORT))  # type: ignore[attr-defined]
