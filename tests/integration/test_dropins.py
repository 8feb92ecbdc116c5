"""Synapse's and Buildbot's own mail code over kept sessions, each with one name replaced as in docs/dropins.md, and the
stock senders with a real Postfix.

Both come with the extra ``test``.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.mail.smtp import ESMTPSenderFactory

from mailcache import Destination, MemorySessionCache, SessionConnector, SessionEndpoint, TLSPolicy, sendmail
from tests.helpers import CREDENTIALS, PORT, Bed, Outcome, verifying
from tests.integration.case import ServerTestCase
from tests.integration.corpus import everything
from tests.integration.debian_postfix import PostfixServer
from tests.integration.servers import DOMAIN
from tests.senders import MESSAGE, ONE, SENDER, ResultTests, SenderTests, over_all_caches

PAGE = (Path(__file__).parents[2] / "docs" / "dropins.md").read_text()


class SynapseTests(SenderTests):
    """`synapse.handlers.send_email`, whose ``HostnameEndpoint`` is replaced."""

    def setUp(self) -> None:
        super().setUp()
        self.module = import_module("synapse.handlers.send_email")

    def kept(self, bed: Bed) -> None:
        """Replace the endpoint."""

        def endpoint(_: Any, host: str, port: int, **__: Any) -> SessionEndpoint:
            return SessionEndpoint(bed.cache, Destination(f"[{host}]:{port}", tls=verifying()))

        self.patch(self.module, "HostnameEndpoint", endpoint)

    def send(self, bed: Bed, to: list[str], message: bytes, password: str) -> Outcome:
        self.kept(bed)
        (recipient,) = to
        sending = self.module._sendmail(
            bed.reactor,
            "127.0.0.1",
            PORT,
            SENDER,
            recipient,
            message,
            username=CREDENTIALS.username.encode(),
            password=password.encode(),
            require_auth=True,
            require_tls=True,
        )
        return Outcome(Deferred.fromCoroutine(sending))

    def assert_not_had(self, value: Any) -> None:
        self.assertIsInstance(value, ConnectError)

    def test_the_page_replaces_lines_that_are_there(self) -> None:
        removed, added = [], []
        for line in re.search(r"(?ms)^```diff\n(.*?)^```$", PAGE)[1].splitlines():  # type: ignore[index]
            (removed if line[0] == "-" else added).append(line[1:])
        self.assertIn("\n".join(removed), inspect.getsource(self.module._sendmail))
        self.assertEqual([line.split("(")[0] for line in added], ["    endpoint = SessionEndpoint"])

    def test_the_whole_handler(self) -> None:
        bed = self.bed()
        self.kept(bed)
        settings = SimpleNamespace(
            email_notif_from="%(app)s <a@example.com>",
            email_smtp_host="127.0.0.1",
            email_smtp_port=PORT,
            email_smtp_user=CREDENTIALS.username,
            email_smtp_pass=CREDENTIALS.password,
            require_transport_security=True,
            enable_smtp_tls=True,
            force_tls=False,
            email_tlsname=None,
        )
        server = SimpleNamespace(get_reactor=lambda: bed.reactor, config=SimpleNamespace(email=settings))
        handler = self.module.SendEmailHandler(server)
        for number in range(3):
            sending = handler.send_email(f"Bob <{ONE}>", f"Message {number}", "Matrix", "<p>ü</p>", "ü")
            self.assert_delivered(bed.finish(Outcome(Deferred.fromCoroutine(sending))))
        self.assertEqual((bed.server.message_count, bed.server.connection_count, self.logins(bed)), (3, 1, 1))
        self.assertIn(b"\r\nSubject: Message 2\r\nFrom: Matrix <a@example.com>\r\n", bed.server.messages[2].content)


class BuildbotTests(SenderTests, ResultTests):
    """`buildbot.reporters.mail`, whose ``reactor`` is replaced."""

    protocol = "smtp"

    def setUp(self) -> None:
        super().setUp()
        self.module = import_module("buildbot.reporters.mail")

    def send(self, bed: Bed, to: list[str], message: bytes, password: str) -> Outcome:
        self.patch(self.module, "reactor", SessionConnector(bed.cache, verifying()))
        notifier = self.module.MailNotifier("Bot <a@example.com>", generators=[])
        # What `reconfigService` makes of the settings, without a master.
        notifier.relayhost, notifier.smtpPort = "127.0.0.1", PORT
        notifier.smtpUser, notifier.smtpPassword = CREDENTIALS.username, password
        notifier.fromaddr, notifier.dumpMailsToLog = "Bot <a@example.com>", False
        notifier.useTls, notifier.useSmtps = self.protocol == "smtp", self.protocol == "smtps"
        built = SimpleNamespace(as_string=lambda: message.decode())
        return Outcome(notifier.sendMail(built, to))

    def test_the_page_replaces_the_reactor(self) -> None:
        (example,) = re.findall(r"(?ms)^```python\n(from buildbot.*?)^```$", PAGE)
        self.patch(self.module, "reactor", None)
        exec(example, {})
        self.assertIsInstance(self.module.reactor, SessionConnector)

    def test_tls_from_the_first_byte(self) -> None:
        self.protocol = "smtps"
        bed = self.bed(server={"implicit_tls": True})
        for _ in range(3):
            self.assert_delivered(self.sent(bed, message=MESSAGE))
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (3, 1))


class PostfixTests(ServerTestCase):
    """Twisted's own senders and a real server."""

    kind = PostfixServer

    async def test_every_message_arrives_unchanged_and_once(self) -> None:
        """The corpus by the stock factory and by `sendmail`, one after another: one connection, one handshake."""
        cache, server = MemorySessionCache(reactor), self.server
        self.addCleanup(cache.close)
        tls = TLSPolicy("verify", ca_file=str(server.ca_file))
        endpoint = SessionEndpoint(cache, Destination(f"[{server.address}]:{server.port}", tls=tls))
        messages = everything(2)
        for number, (label, message) in enumerate(messages.items()):
            sent: Deferred[Any] = Deferred()
            recipient = f"{label}@{DOMAIN}"
            if number % 2:
                sent = sendmail(server.address, SENDER, recipient, message, port=server.port, cache=cache, tls=tls)
            else:
                file = BytesIO(message)
                factory = ESMTPSenderFactory(None, None, SENDER, recipient, file, sent, requireAuthentication=False)
                await endpoint.connect(factory)
            accepted, _ = await sent
            self.assertEqual(accepted, 1, label)
        await cache.close()
        await self.check_stored(messages)
        await server.wait_closed(10)
        self.assertEqual((server.connections(), server.handshakes()), (1, 1))


over_all_caches(globals(), SynapseTests, BuildbotTests)
