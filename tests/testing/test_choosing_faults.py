"""Which faults there are, when they strike, and what they do to what is around them."""

from __future__ import annotations

import csv

from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import APPLICABLE, KINDS, Fault, MemoryReactor, SMTPServer
from tests.testing.lockstep import CERTIFICATE, MAIL, MATRIX, QUEUED, RCPT, Scene


class Choosing(SynchronousTestCase):
    """Which faults there are, and when they strike."""

    def test_the_matrix(self) -> None:
        """The pairs are those of the matrix, no more and no less."""
        with MATRIX.open(newline="") as table:
            rows = list(csv.DictReader(table, delimiter="\t"))
        right = {(row["point"], row["fault"]) for row in rows if row["applicable"] == "yes"}
        self.assertEqual({(point, kind) for point, kinds in APPLICABLE.items() for kind in kinds}, right)
        self.assertEqual({row["fault"] for row in rows}, set(KINDS))

    def test_wrong_faults(self) -> None:
        """Each mistake is a ValueError that says what would be right."""
        for arguments, hint in (
            (("nowhere", "rst"), "after_dot"),
            (("mail", "bang"), "halfclose"),
            (("connect", "slow"), "silence, rst, fin, restart"),
            (("mail", "rst", 0), "counted from 1"),
            (("mail", "rst", 1, -1), "counted from 1"),
            (("mail", "rst", 1, 1, 0), "at least once"),
        ):
            with self.assertRaises(ValueError) as caught:
                Fault(*arguments)  # type: ignore[arg-type]
            self.assertIn(hint, str(caught.exception))

    def test_faults_that_need_something(self) -> None:
        """TLS's faults need a certificate, those of AUTH users, implicit TLS a certificate."""
        for fault in (Fault("mail", "notify"), Fault("handshake", "rst"), Fault("auth", "rst")):
            self.assertRaises(ValueError, SMTPServer, MemoryReactor(), faults=[fault])
        self.assertRaises(ValueError, SMTPServer, MemoryReactor(), implicit_tls=True)

    def test_without_tls(self) -> None:
        """A fault of TLS does not strike in clear, and is not used up."""
        scene = Scene([Fault("mail", "notify")], certificate=CERTIFICATE)
        client = scene.ready()
        self.assertEqual(scene.say(client, MAIL), b"250 2.1.0 ok\r\n")
        self.assertEqual(scene.server.fired, [])

    def test_which(self) -> None:
        """A fault strikes at its connection, its transaction, and so often."""
        scene = Scene([Fault("after_dot", "4xx", connection=2, transaction=2), Fault("rcpt", "5xx", times=2)])
        first, second = scene.ready(), scene.ready()
        for client in (first, second):
            self.assertTrue(scene.say(client, MAIL + RCPT).endswith(b"550 5.7.1 refused\r\n"))
            scene.say(client, b"RSET\r\n")
        replies = [[scene.deliver(client)[:3] for _ in range(3)] for client in (first, second)]
        self.assertEqual(replies, [[b"250"] * 3, [b"451", b"250", b"250"]])
        self.assertEqual([number for _, number in scene.server.fired], [1, 2, 2])

    def test_idle_strikes_all(self) -> None:
        """One idle fault strikes all parked connections at once, and no others."""
        scene = Scene([Fault("idle", "421")])
        parked = [scene.ready() for _ in range(3)]
        busy, new = scene.ready(), scene.connect()
        scene.say(busy, MAIL)
        self.assertEqual(scene.server.strike_idle(), 3)
        scene.reactor.pump()
        self.assertEqual([client.lost is None for client in (*parked, busy, new)], [False] * 3 + [True] * 2)
        self.assertEqual(scene.server.strike_idle(), 0)

    def test_small_content(self) -> None:
        """Content that comes whole in one segment has no middle where a fault could strike."""
        scene = Scene([Fault("content", "5xx")])
        client = scene.ready()
        self.assertEqual(scene.deliver(client), QUEUED)
        self.assertEqual(scene.server.fired, [])

    def test_content_421_while_the_client_writes(self) -> None:
        """The client hears the 421, then the FIN, whatever it goes on writing."""
        scene = Scene([Fault("content", "421")], latency=0.01)
        client = scene.ready()
        scene.say(client, MAIL + RCPT + b"DATA\r\n")
        heard = scene.say(client, b"x" * 1_000_000)
        self.assertTrue(heard.startswith(b"421 "))
        self.assertIsNotNone(client.lost)
        self.assertEqual(scene.reactor.connections, [])

    def test_chunks(self) -> None:
        """A fault in the content strikes in the middle of a chunk too."""
        scene = Scene([Fault("content", "5xx")])
        client = scene.ready()
        scene.say(client, MAIL + RCPT)
        self.assertEqual(scene.say(client, b"BDAT 10 LAST\r\n12345"), b"552 5.3.4 message too big\r\n")
        self.assertEqual(scene.say(client, b"67890"), b"")
        self.assertEqual(scene.server.messages, [])

    def test_stalled_pipeline(self) -> None:
        """What was sent behind a slow command is answered after it, in order."""
        scene = Scene([Fault("mail", "slow")], slow_delay=2.0)
        client = scene.ready()
        heard = scene.say(client, MAIL + RCPT + b"DATA\r\n", 1.9)
        self.assertEqual(heard, b"")
        scene.reactor.run_for(0.2)
        self.assertEqual(client.received, b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n")

    def test_replies_before_a_break(self) -> None:
        """The replies to what came before it in the segment are written, then it breaks."""
        for kind in ("rst", "fin", "halfclose", "restart"):
            scene = Scene([Fault("rcpt", kind)])
            client = scene.ready()
            self.assertEqual(scene.say(client, MAIL + RCPT), b"250 2.1.0 ok\r\n")
            self.assertIsNotNone(client.lost)

    def test_restart_refuses(self) -> None:
        """After a restart new connections are refused so long, then accepted at the same place."""
        scene = Scene([Fault("mail", "restart")], restart_seconds=3.0)
        client = scene.ready()
        scene.say(client, MAIL)
        scene.connect()
        self.assertIsNotNone(scene.failed)
        scene.reactor.run_for(3)
        self.assertTrue(scene.connect().received.startswith(b"220"))

    def test_restart_over(self) -> None:
        """A test can end the restart itself."""
        scene = Scene([Fault("connect", "restart")], restart_seconds=3600.0)
        scene.server.listen_unix("/run/smtp")
        scene.connect()
        scene.connect()
        self.assertIsNotNone(scene.failed)
        scene.server.restart_over()
        scene.server.restart_over()
        self.assertTrue(scene.connect().received.startswith(b"220"))
        self.assertEqual(scene.reactor.getDelayedCalls(), [])

    def test_lmtp(self) -> None:
        """In LMTP after_dot strikes at the last recipient's reply, dot at all of them."""
        for point, kind, accepted, heard in (
            ("after_dot", "rst", 2, QUEUED),
            ("after_dot", "5xx", 1, QUEUED + b"554 5.6.0 content refused\r\n"),
            ("dot", "rst", 0, b""),
            ("dot", "garbage", 0, b"%$#@! this is not SMTP\r\n"),
        ):
            scene = Scene([Fault(point, kind)], lmtp=True)
            client = scene.connect()
            scene.say(client, b"LHLO me\r\n" + MAIL + RCPT + b"RCPT TO:<c@y.test>\r\nDATA\r\n")
            scene.server.violations.clear()
            self.assertEqual(scene.say(client, b"hi\r\n.\r\n"), heard)
            (message,) = scene.server.messages
            self.assertEqual(len(message.accepted), accepted)
            self.assertEqual(message.reply_sent, kind == "5xx")
