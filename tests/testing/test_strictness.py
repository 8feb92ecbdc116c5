"""What the scripted server holds against a client."""

from __future__ import annotations

import base64
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import CAPABILITIES, Fault
from tests.testing.lockstep import CERTIFICATE, Scene

MAIL, RCPT, DATA = b"MAIL FROM:<a@x.test>\r\n", b"RCPT TO:<b@y.test>\r\n", b"DATA\r\n"
ENVELOPE = MAIL + RCPT
QUEUED = b"250 2.0.0 ok: queued\r\n"


def b64(text: bytes) -> bytes:
    return base64.b64encode(text)


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
        scene.server.arm(Fault("banner", "slow"))
        client = scene.connect()
        scene.say(client, b"EHLO me\r\n", 10)
        self.assertEqual(scene.server.violations, ["connection 1: octets before the greeting was sent"])
        self.assertTrue(client.received.startswith(b"220 mx.test"))

    def test_impatience(self) -> None:
        """Without PIPELINING the next command waits for the reply."""
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
