"""The scripted server on real sockets, with a client that knows nothing of it: Python's smtplib, in a thread."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from mailcache.testing import APPLICABLE, Authority, Fault, SMTPServer

AUTHORITY = Authority()
CERTIFICATE = AUTHORITY.issue(("localhost",), ("127.0.0.1",))
CONTENT = "Subject: hi\r\n\r\nhello\r\n.dots\r\n"


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=AUTHORITY.certificate_pem.decode())


def send(client: smtplib.SMTP) -> None:
    client.sendmail("a@x.test", ["b@y.test", "c@y.test"], CONTENT)
    client.sendmail("a@x.test", ["b@y.test"], CONTENT)
    client.quit()


class Sockets(TestCase):
    """Two messages over one connection, and QUIT."""

    def serve(self, **options: Any) -> SMTPServer:
        server = SMTPServer(reactor, **options)
        server.listen()
        self.addCleanup(server.close)
        return server

    async def check(self, server: SMTPServer, talk: Callable[[], None], handshakes: int) -> None:
        await deferToThread(talk)
        self.assertEqual(server.violations, [])
        self.assertEqual([message.content.decode() for message in server.messages], [CONTENT] * 2)
        self.assertTrue(all(message.reply_sent for message in server.messages))
        self.assertEqual((server.connection_count, server.handshake_count), (1, handshakes))
        self.assertTrue(server.connections[0].quit_seen)

    async def test_plain(self) -> None:
        """In clear."""
        server = self.serve()

        def talk() -> None:
            client = smtplib.SMTP("127.0.0.1", server.port, timeout=10)
            send(client)

        await self.check(server, talk, 0)

    async def test_starttls(self) -> None:
        """STARTTLS and AUTH."""
        server = self.serve(certificate=CERTIFICATE, users={"ann": "secret"})

        def talk() -> None:
            client = smtplib.SMTP("127.0.0.1", server.port, timeout=10)
            client._host = "localhost"  # type: ignore[attr-defined]
            client.starttls(context=trusting())
            client.login("ann", "secret")
            send(client)

        await self.check(server, talk, 1)
        self.assertEqual((server.connections[0].user, server.connections[0].sni), ("ann", "localhost"))

    async def test_implicit_tls(self) -> None:
        """TLS from the first octet."""
        server = self.serve(certificate=CERTIFICATE, implicit_tls=True)

        def talk() -> None:
            client = smtplib.SMTP_SSL("127.0.0.1", server.port, timeout=10, context=trusting())
            send(client)

        await self.check(server, talk, 1)

    async def test_breaks(self) -> None:
        """Faults reach a real peer too: a reset is an error, a split reply is none, a FIN is an end."""
        for kind, expected in (
            ("rst", (ConnectionResetError, smtplib.SMTPServerDisconnected)),
            ("fin", (smtplib.SMTPServerDisconnected,)),
            ("halfclose", (smtplib.SMTPServerDisconnected,)),
            ("restart", (ConnectionResetError, smtplib.SMTPServerDisconnected)),
            ("split", ()),
        ):
            server = self.serve(faults=[Fault("mail", kind)])
            caught: list[Exception] = []

            def talk(server: SMTPServer = server, caught: list[Exception] = caught) -> None:
                client = smtplib.SMTP("127.0.0.1", server.port, timeout=10)
                try:
                    send(client)
                except (OSError, smtplib.SMTPException) as error:
                    caught.append(error)  # noqa: B023 - it is the error of this call
                finally:
                    client.close()

            await deferToThread(talk)
            self.assertEqual([isinstance(error, expected) for error in caught], [True] * bool(expected), caught)
            await server.close()
            self.assertEqual(server.open_count, 0)

    async def test_restart(self) -> None:
        """It refuses for a while, and says all the time where it will be, then is there again."""
        server = self.serve(restart_seconds=3600)
        port = server.port

        def connect() -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                return client.recv(4096)

        server.restart()
        await deferLater(reactor, 0)  # only then the port is closed
        with self.assertRaises(ConnectionRefusedError):
            await deferToThread(connect)
        self.assertEqual(server.port, port)
        server.restart_over()
        self.assertEqual((await deferToThread(connect))[:4], b"220 ")
        self.assertEqual(server.port, port)

    async def test_every_kind_under_tls(self) -> None:
        """Whatever strikes under TLS on a real socket, the client's close ends it and nothing is logged."""
        secure = trusting()
        for kind in sorted(APPLICABLE["mail"]):
            server = self.serve(
                certificate=CERTIFICATE, faults=[Fault("mail", kind)], slow_delay=0.01, drip_interval=0.001
            )

            def talk(server: SMTPServer = server) -> bytes:
                with socket.create_connection(("127.0.0.1", server.port), timeout=5) as clear:
                    for line in (b"", b"EHLO me\r\n", b"STARTTLS\r\n"):
                        clear.sendall(line)
                        clear.recv(4096)
                    with secure.wrap_socket(clear, server_hostname="localhost") as connection:
                        for line in (b"EHLO me\r\n", b"MAIL FROM:<a@x.test>\r\n"):
                            connection.sendall(line)
                            connection.settimeout(5 if line.startswith(b"EHLO") else 0.2)
                            try:
                                heard = connection.recv(4096)
                            except (OSError, TimeoutError):
                                heard = b""
                return heard

            heard = await deferToThread(talk)
            quiet = {"silence", "rst", "fin", "halfclose", "notify", "badrecord", "restart"}
            self.assertEqual(heard == b"", kind in quiet, kind)
            self.assertEqual([fault.kind for fault, _ in server.fired], [kind])
            self.assertEqual(server.violations, [])
            await server.close()
            self.assertEqual(server.open_count, 0)
        self.assertEqual(self.flushLoggedErrors(), [])
