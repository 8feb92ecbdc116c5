"""
The real servers themselves: what they are sent they store, byte for byte, and their counts are right. The
client is smtplib, which shares nothing with mailcache.
"""

from __future__ import annotations

import smtplib
import ssl
from collections import Counter

from twisted.internet.threads import deferToThread

from tests.integration.case import RealServerCase, ServerTestCase
from tests.integration.corpus import as_sent, everything
from tests.integration.debian_dovecot import DovecotServer
from tests.integration.debian_exim import EximServer
from tests.integration.debian_postfix import PostfixServer
from tests.integration.servers import DOMAIN, AiosmtpdServer, ServerError, StoringSMTPServer

SENDER = "sender@example.test"


def connect(server: StoringSMTPServer) -> smtplib.SMTP:
    """A session over verified TLS."""
    client = smtplib.SMTP(server.address, server.port, timeout=30)
    client.starttls(context=ssl.create_default_context(cafile=str(server.ca_file)))
    return client


def send(server: StoringSMTPServer, messages: dict[str, bytes]) -> None:
    """All the messages in one session."""
    with connect(server) as client:
        for label, message in messages.items():
            client.sendmail(SENDER, [f"{label}@{DOMAIN}"], as_sent(message))


def talk(server: StoringSMTPServer) -> None:
    """Two sessions, with commands that are refused too."""
    with connect(server) as client:
        client.sendmail(SENDER, [f"one@{DOMAIN}", f"two@{DOMAIN}"], b"Subject: 1\r\n\r\n")
        client.noop()
        client.rset()
        client.rcpt(f"early@{DOMAIN}")  # refused: no MAIL was given
    with smtplib.SMTP(server.address, server.port, timeout=30) as client:
        client.ehlo()


class Tests(ServerTestCase):
    """What holds for each server."""

    async def test_arrival(self) -> None:
        """All messages of the corpus are stored byte for byte."""
        messages = everything()
        await deferToThread(send, self.server, messages)
        await self.check_stored(messages)

    async def test_counts(self) -> None:
        """Connections, handshakes and commands are counted over all sessions, refused commands too."""
        self.assertEqual((self.server.connections(), self.server.handshakes()), (0, 0))
        await deferToThread(talk, self.server)
        await self.server.wait_closed(10)
        self.assertEqual((self.server.connections(), self.server.handshakes()), (2, 1))
        commands = {"starttls": 1, "mail": 1, "rcpt": 3, "data": 1, "noop": 1, "rset": 1, "quit": 2}
        expected = {name: count for name, count in commands.items() if name not in self.server.silent_on}
        self.assertEqual(self.server.command_counts(), Counter(ehlo=3, **expected))

    async def test_stop(self) -> None:
        """A stopped server refuses connections, has left no process, and leaves its log behind."""
        await deferToThread(talk, self.server)
        await self.server.wait_closed(10)
        await self.server.stop()
        self.assertFalse(self.server.is_alive())
        self.assertEqual(self.server.pids(), set())
        self.assertRegex(self.server.log_text(), "disconnect|closed by QUIT")
        with self.assertRaises(ConnectionRefusedError):
            await deferToThread(smtplib.SMTP, self.server.address, self.server.port)

    async def test_waitingEnds(self) -> None:
        """Waiting for mail that does not come fails when its time is over, and says how things stand."""
        with self.assertRaisesRegex(ServerError, "0 of 1 messages stored after 0.1 s"):
            await self.server.wait_for(1, 0.1)


class PostfixTests(Tests):
    """Postfix."""

    kind = PostfixServer


class EximTests(Tests):
    """Exim, which has a process for each session and for each message."""

    kind = EximServer


class DovecotTests(RealServerCase):
    """Dovecot, which takes LMTP at a UNIX socket."""

    async def setUp(self) -> None:
        super().setUp()
        self.server = await self.run_server(DovecotServer, users={"alice": "secret", "bob": "secret"})

    def send(self, messages: dict[str, bytes]) -> None:
        """All the messages in one session."""
        with smtplib.LMTP(str(self.server.lmtp_path)) as client:
            for message in messages.values():
                client.sendmail(SENDER, [f"alice@{DOMAIN}"], as_sent(message))

    async def test_arrival(self) -> None:
        """All messages of the corpus are stored byte for byte, but for NUL, which Dovecot does not store."""
        messages = {label: message.replace(b"\0", b"") for label, message in everything().items()}
        await deferToThread(self.send, messages)
        await self.check_stored_by(self.server, messages)
        self.assertEqual((len(self.server.mailbox("alice")), self.server.mailbox("bob")), (len(messages), []))
        await self.server.wait_closed(10)
        self.assertEqual((self.server.connections(), self.server.closed()), (1, 1))

    async def test_stop(self) -> None:
        """Stopped, it has left no process, no socket, and its log behind."""
        await deferToThread(self.send, {"one": b"Subject: 1\n\n"})
        await self.server.wait_closed(10)
        path = self.server.lmtp_path
        await self.server.stop()
        self.assertFalse(self.server.is_alive())
        self.assertEqual(self.server.pids(), set())
        self.assertFalse(path.exists())
        self.assertIn("saved mail to INBOX", self.server.log_text())


class AiosmtpdTests(Tests):
    """aiosmtpd."""

    kind = AiosmtpdServer


del Tests  # has no server: not to be collected
