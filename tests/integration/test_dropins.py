"""Synapse's and Buildbot's own mail code over kept sessions, each with one name replaced: see docs/dropins.md.

They come with the extra ``dropins``. Where they are not installed the tests are skipped, unless ``CI`` is set.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.trial.unittest import SkipTest

from mailcache import Destination, SessionConnector, SessionEndpoint
from tests.helpers import CREDENTIALS, PORT, Bed, Outcome, verifying
from tests.senders import MESSAGE, ONE, SENDER, ResultTests, SenderTests, over_all_caches


def installed(name: str) -> Any:
    """The module ``name``, if it can be had."""
    try:
        return import_module(name)
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        raise SkipTest(f"not installed, see the extra dropins: {error}") from error


class SynapseTests(SenderTests):
    """`synapse.handlers.send_email`, whose ``HostnameEndpoint`` is replaced."""

    def setUp(self) -> None:
        super().setUp()
        self.module = installed("synapse.handlers.send_email")

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
        self.module = installed("buildbot.reporters.mail")

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

    def test_tls_from_the_first_byte(self) -> None:
        self.protocol = "smtps"
        bed = self.bed(server={"implicit_tls": True})
        for _ in range(3):
            self.assert_delivered(self.sent(bed, message=MESSAGE))
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (3, 1))


over_all_caches(globals(), SynapseTests, BuildbotTests)
