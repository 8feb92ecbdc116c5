"""
Deliveries as real servers differ: logins, LMTP with its reply for each recipient, certificates of both sides. Each
test is done with a cache in memory and with the sessions of a keeper.
"""

from __future__ import annotations

import signal
from itertools import islice
from typing import Any

from twisted.internet import reactor

from mailcache import (
    Credentials,
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    MemorySessionCache,
    RemoteSessionCache,
    TLSPolicy,
    deliver,
)
from mailcache.testing import Authority
from tests.helpers import stored
from tests.integration.case import RealServerCase
from tests.integration.corpus import everything, labelled
from tests.integration.debian_dovecot import DovecotServer
from tests.integration.debian_exim import EximServer
from tests.integration.debian_postfix import PostfixServer
from tests.integration.servers import DOMAIN, StoringSMTPServer
from tests.remote.processes import ProcessCase

SENDER = "sender@example.test"
USER, PASSWORD = "alice", "correct horse"
MESSAGES = 100


def some(count: int = MESSAGES) -> dict[str, bytes]:
    """So many messages of the corpus, by their labels."""
    times = -(-count // len(everything()))
    return dict(islice(everything(times).items(), count))


def verified(server: StoringSMTPServer, **more: Any) -> Destination:
    """The server, with verified TLS."""
    return Destination(where(server), tls=TLSPolicy("verify", ca_file=str(server.ca_file)), **more)


def where(server: StoringSMTPServer) -> str:
    return f"[{server.address}]:{server.port}"


class Tests(RealServerCase):
    """What holds with each kind of cache."""

    cache: Any

    async def end_sessions(self) -> None:
        """Have what is kept ended in good order."""
        await self.cache.close()

    async def send(self, destination: Destination, message: bytes, *users: str) -> DeliveryResult:
        recipients = [f"{user}@{DOMAIN}" for user in users or (USER,)]
        return await deliver(self.cache, destination, Envelope(SENDER, recipients), message)

    async def send_all(self, destination: Destination, messages: dict[str, bytes]) -> None:
        """One after another, on one session: nobody is refused."""
        for number, (label, message) in enumerate(messages.items(), 1):
            result = await self.send(destination, message)
            self.assertEqual((len(result.accepted), dict(result.rejected)), (1, {}), label)
            self.assertEqual(result.session.uses, number)

    # AUTH

    async def check_logins(self, server: StoringSMTPServer, refusal: str) -> None:
        """100 messages take one login. A wrong password is refused, for good, in the server's words."""
        messages = some()
        await self.send_all(verified(server, credentials=Credentials(USER, PASSWORD)), messages)
        error = await self.failed(
            self.send(verified(server, credentials=Credentials(USER, "wrong horse")), b"never sent\r\n")
        )
        self.assertEqual((error.phase, error.retriable), ("auth", False))
        assert error.reply is not None
        self.assertEqual(error.reply.code, 535)
        self.assertIn(refusal, str(error.reply))
        self.assertIn(refusal, str(error))
        self.assertNotIn("horse", str(error))
        await self.end_sessions()
        await self.check_stored_by(server, messages)
        await server.wait_closed(10)
        self.assertEqual((server.connections(), server.handshakes()), (2, 2))
        self.assertEqual(server.command_counts()["auth"], 2)
        self.assertEqual(server.command_counts()["mail"], MESSAGES)

    async def failed(self, delivery: Any) -> DeliveryError:
        try:
            result = await delivery
        except DeliveryError as error:
            return error
        raise self.failureException(f"delivered: {result}")

    async def check_exim(self, mechanism: str) -> None:
        exim = await self.run_server(EximServer, users={USER: PASSWORD}, mechanisms=[mechanism])
        await self.check_logins(exim, "Incorrect authentication data")
        self.assertEqual(exim.log_text().count(f"A={mechanism.lower()}:{USER} "), MESSAGES)

    async def test_eximPlain(self) -> None:
        """AUTH PLAIN to Exim."""
        await self.check_exim("PLAIN")

    async def test_eximLogin(self) -> None:
        """AUTH LOGIN to Exim."""
        await self.check_exim("LOGIN")

    async def check_postfix(self, mechanism: str) -> None:
        dovecot = await self.run_server(DovecotServer, users={USER: PASSWORD}, mechanisms=[mechanism])
        parameters = {
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "dovecot",
            "smtpd_sasl_path": str(dovecot.auth_path),
            "smtpd_tls_auth_only": "yes",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
            "soft_bounce": "no",  # it makes 435 of a 535
        }
        postfix = await self.run_server(PostfixServer, parameters=parameters)
        await self.check_logins(postfix, "5.7.8 Error: authentication failed")
        self.assertEqual(postfix.log_text().count(f"sasl_method={mechanism}, sasl_username={USER}\n"), MESSAGES)

    async def test_postfixPlain(self) -> None:
        """AUTH PLAIN to Postfix."""
        await self.check_postfix("PLAIN")

    async def test_postfixLogin(self) -> None:
        """AUTH LOGIN to Postfix."""
        await self.check_postfix("LOGIN")

    # LMTP

    async def run_dovecot(self) -> tuple[DovecotServer, Destination]:
        users = ("alice", "bob", "shut", "full")
        dovecot = await self.run_server(
            DovecotServer, users=dict.fromkeys(users, PASSWORD), shut=["shut"], full=["full"]
        )
        return dovecot, Destination(f"unix:{dovecot.lmtp_path}", protocol="lmtp")

    async def test_lmtp(self) -> None:
        """100 messages over LMTP take one connection."""
        dovecot, destination = await self.run_dovecot()
        # Dovecot stores another character in the place of NUL.
        messages = {label: message.replace(b"\0", b"") for label, message in some().items()}
        await self.send_all(destination, messages)
        await self.end_sessions()
        await self.check_stored_by(dovecot, messages)
        await dovecot.wait_closed(10)
        self.assertEqual(dovecot.connections(), 1)

    async def test_lmtpUnknown(self) -> None:
        """A recipient that the server does not know is refused with its reply, the two others have the message."""
        dovecot, destination = await self.run_dovecot()
        message = labelled("three", b"Subject: for three\n\nbody\n")
        result = await self.send(destination, message, "alice", "nobody", "bob")
        self.assertEqual(result.accepted, (f"alice@{DOMAIN}", f"bob@{DOMAIN}"))
        (refused,) = result.rejected
        self.assertEqual(refused, f"nobody@{DOMAIN}")
        self.assertEqual(
            str(result.rejected[refused]), f"550 5.1.1 <nobody@{DOMAIN}> User doesn't exist: nobody@{DOMAIN}"
        )
        for user in ("alice", "bob"):
            self.assertEqual(dovecot.mailbox(user), [dovecot.as_stored(message)])

    async def test_lmtpAfterTheContent(self) -> None:
        """What becomes of each recipient when the content has come is told apart, and the session is kept."""
        dovecot, destination = await self.run_dovecot()
        message = labelled("five", b"Subject: for five\n\nbody\n")
        result = await self.send(destination, message, "shut", "alice", "nobody", "full", "bob")
        self.assertEqual(result.accepted, (f"alice@{DOMAIN}", f"bob@{DOMAIN}"))
        replies = {user.removesuffix(f"@{DOMAIN}"): reply for user, reply in result.rejected.items()}
        self.assertEqual(
            {user: reply.code for user, reply in replies.items()}, {"shut": 451, "nobody": 550, "full": 552}
        )
        self.assertIn("4.2.0 <shut@", str(replies["shut"]))
        self.assertIn("5.2.2 <full@", str(replies["full"]))
        self.assertEqual(dovecot.stored(), 2)

        nobody_has_it = await self.send(destination, message, "full", "shut")
        self.assertEqual(nobody_has_it.accepted, ())
        self.assertEqual([reply.code for reply in nobody_has_it.rejected.values()], [552, 451])
        again = await self.send(destination, message, "alice")
        self.assertEqual((again.accepted, again.session.uses), ((f"alice@{DOMAIN}",), 3))
        self.assertEqual(dovecot.mailbox("alice"), [dovecot.as_stored(message)] * 2)
        await self.end_sessions()
        await dovecot.wait_closed(10)
        self.assertEqual(dovecot.connections(), 1)

    # certificates

    async def check_fingerprints(self, server: StoringSMTPServer) -> None:
        """The certificate that the server has will do, by its digest alone, and no other."""
        right, wrong = server.certificate.digest().hex(), Authority().issue().digest().hex()
        pinned = Destination(where(server), tls=TLSPolicy("fingerprint", fingerprints=(wrong, right)))
        self.assertEqual(len((await self.send(pinned, b"Subject: one\r\n\r\n")).accepted), 1)
        other = Destination(where(server), tls=TLSPolicy("fingerprint", fingerprints=(wrong,)))
        error = await self.failed(self.send(other, b"never sent\r\n"))
        self.assertEqual((error.phase, error.reply), ("trust", None))
        self.assertTrue((await self.send(pinned, b"Subject: two\r\n\r\n")).session.reused)
        await self.end_sessions()
        await server.wait_for(2, 60)
        await server.wait_closed(10)
        self.assertEqual(server.stored(), 2)
        self.assertEqual(server.command_counts()["mail"], 2)

    async def test_eximFingerprint(self) -> None:
        """Exim's certificate by its fingerprint."""
        await self.check_fingerprints(await self.run_server(EximServer))

    async def test_postfixFingerprint(self) -> None:
        """Postfix's certificate by its fingerprint."""
        await self.check_fingerprints(await self.run_server(PostfixServer))

    async def test_clientCertificate(self) -> None:
        """Postfix takes mail from one certificate only, and sessions with it and without it are not mixed up."""
        known, unknown = Authority().issue(("client.test",), (), client=True), Authority().issue((), (), client=True)
        fingerprint = known.digest().hex(":").upper()
        parameters = {
            "smtpd_tls_ask_ccert": "yes",
            "relay_clientcerts": f"inline:{{{fingerprint}=client}}",
            "smtpd_relay_restrictions": "permit_tls_clientcerts, reject",
            "soft_bounce": "no",
        }
        postfix = await self.run_server(PostfixServer, parameters=parameters)
        known_file, unknown_file = stored(self, known.private_pem), stored(self, unknown.private_pem)
        messages = some(5)  # refused ones are errors, of which Postfix takes 20 in a session
        for number, (label, message) in enumerate(messages.items(), 1):
            result = await self.send(verified(postfix, client_certificate=known_file), message)
            self.assertEqual((len(result.accepted), result.session.uses), (1, number), label)
            for certificate in (None, unknown_file):
                result = await self.send(verified(postfix, client_certificate=certificate), message)
                self.assertEqual((result.accepted, result.session.uses), ((), number), label)
                (reply,) = result.rejected.values()
                self.assertEqual((reply.code, "Access denied" in str(reply)), (554, True), reply)
        await self.end_sessions()
        await self.check_stored_by(postfix, messages)
        await postfix.wait_closed(10)
        self.assertEqual((postfix.connections(), postfix.handshakes()), (3, 3))
        # Nobody vouches for these certificates: they are known by their digests.
        for shown, count in (("Untrusted", 2), ("Anonymous", 1)):
            self.assertEqual(postfix.log_text().count(f"{shown} TLS connection established from"), count, shown)


class MemoryTests(Tests):
    """With a cache in memory."""

    async def setUp(self) -> None:
        super().setUp()
        self.cache = MemorySessionCache(reactor)
        self.addCleanup(self.cache.close)


class KeeperTests(Tests, ProcessCase):
    """With a keeper, which is a process of its own, and without a fallback."""

    timeout = 600

    async def setUp(self) -> None:
        super().setUp()
        self.process = await self.keeper()
        self.cache = RemoteSessionCache(reactor, f"unix:{self.socket}", fallback=None)
        self.addCleanup(self.cache.close)

    async def end_sessions(self) -> None:
        """The keeper has them for the next borrower until it ends."""
        await super().end_sessions()
        self.process.kill(signal.SIGTERM)
        await self.process.ended


del Tests  # has no kind of cache: not to be collected
