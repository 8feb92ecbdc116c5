"""The drop-ins: stock factories over an endpoint and over a connector, and sendmail()."""

from __future__ import annotations

import email.message
import inspect
import io
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    DNSLookupError,
    NoProtocol,
    NotConnectingError,
    TimeoutError,  # noqa: A004  (what reactors give)
    UserError,
)
from twisted.internet.interfaces import IConnector, IReactorCore
from twisted.internet.ssl import optionsForClientTLS
from twisted.mail import smtp
from twisted.mail.smtp import ESMTPSenderFactory
from twisted.protocols.policies import TimeoutMixin
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import directlyProvides, providedBy
from zope.interface.verify import verifyObject

from mailcache import (
    Destination,
    Limits,
    SessionConnector,
    SessionEndpoint,
    TLSPolicy,
    UncertainDelivery,
    dropin,
    sendmail,
)
from mailcache.testing import Fault
from tests.helpers import CREDENTIALS, PORT, Bed, Failing, Outcome, verifying
from tests.senders import (
    AS_SENT,
    DOUBT,
    MESSAGE,
    ONE,
    SENDER,
    TWO,
    ResultTests,
    SenderCase,
    SenderTests,
    over_all_caches,
    refusing,
)


def factory(to: Any, message: Any, password: str | None = CREDENTIALS.password, **more: Any) -> ESMTPSenderFactory:
    """The stock factory as Synapse makes it, its five retries as they are; it has the ``outcome`` of the message."""
    sent: Deferred[Any] = Deferred()
    settings: dict[str, Any] = {
        "heloFallback": True,
        "requireAuthentication": password is not None,
        "requireTransportSecurity": True,
        **more,
    }
    file = message if hasattr(message, "read") else io.BytesIO(message)
    username = None if password is None else CREDENTIALS.username.encode()
    secret = None if password is None else password.encode()
    made = ESMTPSenderFactory(username, secret, SENDER, to, file, sent, **settings)
    made.outcome = Outcome(sent)
    return made


class EndpointCase(SenderCase):
    def endpoint(self, bed: Bed) -> SessionEndpoint:
        return SessionEndpoint(bed.cache, bed.destination)

    def send(self, bed: Bed, to: list[str], message: bytes, password: str) -> Outcome:
        made = factory(to, message, password)
        # Who cannot connect hears it from the endpoint, as Synapse does.
        self.endpoint(bed).connect(made).addErrback(made.result.errback)
        return made.outcome  # type: ignore[no-any-return]

    def assert_not_had(self, value: Any) -> None:
        self.assertIsInstance(value, ConnectError)


class EndpointTests(EndpointCase, SenderTests, ResultTests):
    """The stock factory over `SessionEndpoint`."""


class ConnectorTests(SenderTests, ResultTests):
    """The stock factory over `SessionConnector`."""

    def send(self, bed: Bed, to: list[str], message: bytes, password: str) -> Outcome:
        made = factory(to, message, password)
        SessionConnector(bed.cache, verifying()).connectTCP("127.0.0.1", PORT, made)
        return made.outcome  # type: ignore[no-any-return]


class SendmailTests(SenderTests, ResultTests):
    """`sendmail`."""

    def send(self, bed: Bed, to: list[str], message: bytes, password: str) -> Outcome:
        sending = sendmail(
            "127.0.0.1",
            SENDER,
            to,
            message,
            port=PORT,
            reactor=bed.reactor,
            username=CREDENTIALS.username,
            password=password,
            requireAuthentication=True,
            requireTransportSecurity=True,
            cache=bed.cache,
            tls=verifying(),
        )
        return Outcome(sending)


over_all_caches(globals(), EndpointTests, ConnectorTests, SendmailTests)


class FactoryTests(EndpointCase):
    """What a stock factory can demand, and what can befall it."""

    def outcome(self, bed: Bed, made: Any, endpoint: SessionEndpoint | None = None) -> Any:
        """What came of the message of ``made``: its result, or the exception, not raised."""
        (endpoint or self.endpoint(bed)).connect(made).addErrback(made.result.errback)
        return bed.finish(made.outcome)

    def test_synapses_way_with_a_password_needs_no_policy(self) -> None:
        """A destination that says nothing of TLS, a factory with a password that demands TLS: it is verified."""
        bed = self.bed()
        endpoint = SessionEndpoint(bed.cache, Destination(f"[127.0.0.1]:{PORT}"))
        value = self.outcome(bed, factory([ONE], MESSAGE), endpoint)
        self.assert_not_had(value)
        self.assertIn("certificate is not trusted", str(value))

    def test_tls_that_is_demanded_and_not_guaranteed_fails_closed(self) -> None:
        for level in ("may", "none"):
            bed = self.bed(server={"users": None})
            endpoint = SessionEndpoint(bed.cache, bed.to(f"[127.0.0.1]:{PORT}", tls=TLSPolicy(level)))
            value = self.outcome(bed, factory([ONE], MESSAGE, None), endpoint)
            self.assertIsInstance(value, smtp.TLSRequiredError)
            self.assertEqual(bed.server.message_count, 0)
            self.assertIsInstance(
                self.outcome(bed, factory([ONE], MESSAGE, None, requireTransportSecurity=False), endpoint), tuple
            )

    def test_a_login_that_is_demanded_without_a_password_fails(self) -> None:
        bed = self.bed(server={"users": None})
        value = self.outcome(bed, factory([ONE], MESSAGE, None, requireAuthentication=True))
        self.assertIsInstance(value, smtp.AUTHRequiredError)

    def test_credentials_of_the_destination_serve_a_factory_without(self) -> None:
        bed = self.bed(credentials=CREDENTIALS)
        self.assert_delivered(self.outcome(bed, factory([ONE], MESSAGE, None)))
        self.assert_delivered(self.outcome(bed, factory([ONE], MESSAGE)))
        self.assertEqual((bed.server.connections[0].user, self.logins(bed)), ("user", 1))

    def test_credentials_that_are_not_the_destinations_are_refused(self) -> None:
        bed = self.bed(credentials=CREDENTIALS)
        value = self.outcome(bed, factory([ONE], MESSAGE, "another"))
        self.assertIsInstance(value, smtp.AUTHDeclinedError)
        self.assertEqual((value.code, bed.server.connection_count), (535, 0))

    def test_implicit_tls_of_the_factory_is_left_to_the_sessions(self) -> None:
        """Synapse's force_tls, and GlobaLeaks: a factory in a `TLSMemoryBIOFactory`."""
        bed = self.bed(server={"implicit_tls": True}, protocol="smtps")
        made = factory([ONE], MESSAGE)
        wrapped = TLSMemoryBIOFactory(optionsForClientTLS("mx.test"), True, made)
        client = bed.finish(Outcome(self.endpoint(bed).connect(wrapped)))
        self.assertIsInstance(client, smtp.ESMTPSender)
        self.assert_delivered(bed.finish(made.outcome))

        lax = SessionEndpoint(bed.cache, bed.to(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("may")))
        again = TLSMemoryBIOFactory(optionsForClientTLS("mx.test"), True, factory([ONE], MESSAGE, None))
        value = bed.finish(Outcome(lax.connect(again)))
        self.assertIsInstance(value, ConnectError)
        self.assertIn("demands TLS", str(value))

    def test_the_simple_sender(self) -> None:
        bed = self.bed(server={"users": None})
        sent: Deferred[Any] = Deferred()
        made = smtp.SMTPSenderFactory(SENDER, ONE, io.BytesIO(MESSAGE), sent)
        self.endpoint(bed).connect(made)
        self.assertEqual(bed.finish(Outcome(sent))[0], 1)

    def test_a_message_that_cannot_be_read_is_reported_and_not_sent(self) -> None:
        bed = self.bed()
        for failing in (Failing(MESSAGE, 0, OSError("gone")), Failing(MESSAGE * 5_000, 40_000, OSError("gone"))):
            value = self.outcome(bed, factory([ONE], failing))
            self.assert_refused(value, 554, "could not be read")
            self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assert_delivered(self.sent(bed))
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (1, 1))

    def test_an_attempt_to_connect_can_be_cancelled(self) -> None:
        bed = self.bed(faults=[Fault("banner", "silence")])
        made = factory([ONE], MESSAGE)
        started = []
        self.patch(made, "doStart", lambda: started.append(1))
        self.patch(made, "doStop", lambda: started.append(-1))
        connecting = self.endpoint(bed).connect(made)
        outcome = Outcome(connecting)
        bed.reactor.run_for(1)
        connecting.cancel()
        self.assertIsInstance(outcome.value, ConnectingCancelledError)
        bed.reactor.run_for(10)
        self.assertEqual((bed.counts(), started), ((0, 0, 0, 0), [1, -1]))

    def test_a_socket_and_a_name_that_is_not_known(self) -> None:
        bed = self.bed(server={"users": None})
        bed.server.listen_unix("/run/mta")
        in_clear = SessionEndpoint(bed.cache, bed.to("unix:/run/mta", tls=TLSPolicy("none")))
        made = factory([ONE], MESSAGE, None, requireTransportSecurity=False)
        self.assert_delivered(self.outcome(bed, made, in_clear))
        unknown = SessionEndpoint(bed.cache, bed.to("[nowhere.example.com]"))
        value = self.outcome(bed, factory([ONE], MESSAGE), unknown)
        self.assertIsInstance(value, DNSLookupError)
        self.assertIn("nowhere.example.com", str(value))

    def test_a_name_and_password_that_nobody_could_have(self) -> None:
        bed = self.bed()
        value = self.outcome(bed, factory([ONE], MESSAGE, "a\0b"))
        self.assertIsInstance(value, smtp.AUTHDeclinedError)
        self.assertEqual((value.code, bed.server.connection_count), (535, 0))

    def test_a_factory_that_wants_no_protocol_gets_its_session_back(self) -> None:
        bed = self.bed()
        made = factory([ONE], MESSAGE)
        self.patch(made, "buildProtocol", lambda _: None)
        self.assertIsInstance(bed.finish(Outcome(self.endpoint(bed).connect(made))), NoProtocol)
        bed.reactor.run_for(1)
        self.assertEqual(bed.counts()[0], 0)

    def test_a_factory_is_stopped_once(self) -> None:
        bed = self.bed()
        made = factory([ONE], MESSAGE)
        self.assert_delivered(self.outcome(bed, made))
        bed.reactor.run_for(1)
        self.assertEqual(made.numPorts, 0)

    def test_limits_make_clients_wait_in_turn_and_then_tell_them_why(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_destination=2))
        sending = [self.send(bed, [ONE], MESSAGE, CREDENTIALS.password) for _ in range(10)]
        for each in sending:
            self.assert_delivered(bed.finish(each))
        self.assertEqual((bed.server.message_count, bed.server.connection_count), (10, 2))

        bed = self.bed(limits=Limits(sessions_per_destination=1, wait_timeout=5), faults=[Fault("mail", "silence")])
        first, second = (self.send(bed, [ONE], MESSAGE, CREDENTIALS.password) for _ in range(2))
        value = bed.finish(second, 20)
        self.assertIsInstance(value, ConnectError)
        self.assertIn("waiting", str(value))
        bed.finish(first)


class ConnectorOnlyTests(SenderCase):
    """What a connector is besides."""

    def connect(self, bed: Bed, made: Any, tls: TLSPolicy | None = None, **more: Any) -> Any:
        return SessionConnector(bed.cache, tls or verifying()).connectTCP("127.0.0.1", PORT, made, **more)

    def test_it_is_a_connector(self) -> None:
        bed = self.bed()
        made = factory([ONE], MESSAGE)
        calls = []
        for name in ("doStart", "startedConnecting", "clientConnectionFailed", "clientConnectionLost", "doStop"):
            self.patch(made, name, lambda *_, name=name: calls.append(name))
        connector = self.connect(bed, made)
        verifyObject(IConnector, connector)
        self.assertEqual((connector.state, connector.getDestination().port), ("connecting", PORT))
        self.assertRaises(RuntimeError, connector.connect)
        made.outcome.deferred.addCallback(lambda _: calls.append(connector.state))
        bed.reactor.run_for(1)
        self.assert_delivered(made.outcome.value)
        self.assertRaises(NotConnectingError, connector.stopConnecting)
        self.assertEqual(connector.state, "disconnected")
        self.assertEqual(calls, ["doStart", "startedConnecting", "connected", "clientConnectionLost", "doStop"])
        self.assertIn("127.0.0.1", repr(connector))
        connector.disconnect()

    def test_an_attempt_ends_when_it_is_stopped_or_takes_too_long(self) -> None:
        for stop, expected in (("stopConnecting", UserError), ("disconnect", UserError), (None, TimeoutError)):
            bed = self.bed(faults=[Fault("banner", "silence")])
            made = factory([ONE], MESSAGE, retries=0)
            failed: list[Any] = []
            self.patch(made, "clientConnectionFailed", lambda _, reason, failed=failed: failed.append(reason.value))
            connector = self.connect(bed, made, timeout=7)
            bed.reactor.run_for(6.5)
            if stop is not None:
                getattr(connector, stop)()
            bed.reactor.run_for(1)
            self.assertIsInstance(failed[0], expected)
            self.assertEqual((connector.state, len(failed)), ("disconnected", 1))
            bed.reactor.run_for(20)

    def test_disconnect_ends_a_message_that_is_under_way(self) -> None:
        bed = self.bed(faults=[Fault("rcpt", "silence")])
        made = factory([ONE], MESSAGE, retries=0)
        connector = self.connect(bed, made)
        bed.reactor.run_for(1)
        connector.disconnect()
        self.assertIsInstance(bed.finish(made.outcome), smtp.SMTPConnectError)
        self.assertEqual(bed.server.message_count, 0)

    def test_retries_begin_anew(self) -> None:
        bed = self.bed()
        bed.server.stop_listening()
        made = factory([ONE], MESSAGE)
        lost: list[Any] = []
        original = made.clientConnectionFailed

        def failed(connector: Any, reason: Any) -> None:
            lost.append(reason)
            if len(lost) == 2:
                bed.server.listen(PORT)
            original(connector, reason)

        self.patch(made, "clientConnectionFailed", failed)
        self.connect(bed, made)
        self.assert_delivered(bed.finish(made.outcome))
        self.assertEqual((len(lost), bed.server.message_count), (2, 1))

    def test_a_client_that_gives_up_behind_the_end_of_content_does_not_send_again(self) -> None:
        """Its own time limit passes while the server makes up its mind."""
        bed = self.bed(faults=[Fault("after_dot", "slow")], server={"slow_delay": 50.0})
        self.patch(TimeoutMixin, "callLater", lambda _, seconds, late: bed.reactor.callLater(seconds, late))
        made = factory([ONE], MESSAGE, timeout=20)
        self.connect(bed, made)
        self.assert_refused(bed.finish(made.outcome), 554, DOUBT)
        bed.reactor.run_for(1000)
        self.assertEqual((bed.server.message_count, bed.server.transactions_seen(SENDER)), (1, 1))

    def test_policies(self) -> None:
        """Without one: verified where there is a password or TLS is demanded, else as it comes."""
        bed = self.bed()
        for made in (factory([ONE], MESSAGE), factory([ONE], MESSAGE, None)):
            SessionConnector(bed.cache).connectTCP("127.0.0.1", PORT, made)
            self.assertIn("not trusted", str(bed.finish(made.outcome)))
        bed = self.bed(server={"users": None})
        made = factory([ONE], MESSAGE, None, requireTransportSecurity=False)
        SessionConnector(bed.cache).connectTCP("127.0.0.1", PORT, made)
        self.assert_delivered(bed.finish(made.outcome))
        self.assertRaises(ValueError, SessionConnector(bed.cache).connectTCP, "no host", PORT, made)

    def test_tls_from_the_first_byte(self) -> None:
        bed = self.bed(server={"implicit_tls": True})
        made = factory([ONE], MESSAGE)
        SessionConnector(bed.cache, verifying()).connectSSL("127.0.0.1", PORT, made, None, bindAddress=("127.0.0.1", 0))
        self.assert_delivered(bed.finish(made.outcome))
        made = factory([ONE], MESSAGE)
        SessionConnector(bed.cache).connectSSL("127.0.0.1", PORT, made, None)
        self.assertIn("not trusted", str(bed.finish(made.outcome)))


class SendmailOnlyTests(SenderCase):
    """What `sendmail` is besides."""

    def begin(self, bed: Bed, to: Any = ONE, msg: Any = MESSAGE, sender: Any = SENDER, **more: Any) -> Outcome:
        settings = {"port": PORT, "reactor": bed.reactor, "cache": bed.cache, "tls": verifying(), **more}
        return Outcome(sendmail("127.0.0.1", sender, to, msg, **settings))

    def open(self, **settings: Any) -> Bed:
        """A bed whose server wants no login."""
        return self.bed(**{**settings, "server": {"users": None, **settings.get("server", {})}})

    def test_a_signature_that_is_twisteds(self) -> None:
        ours, theirs = inspect.signature(sendmail).parameters, inspect.signature(smtp.sendmail).parameters
        self.assertEqual(list(ours)[: len(theirs)], list(theirs))
        for name, parameter in theirs.items():
            if name != "reactor":
                self.assertEqual(ours[name].default, parameter.default, name)
            self.assertEqual(ours[name].kind, parameter.kind, name)

    def test_messages(self) -> None:
        bed = self.open()
        text = email.message.EmailMessage()
        text["Subject"] = "ü"
        text.set_content("hello\n")
        stored_message = self.mktemp()
        with open(stored_message, "wb") as file:
            file.write(MESSAGE)
        half_read = io.BytesIO(b"not this" + MESSAGE)
        half_read.seek(8)
        with open(stored_message, "rb") as file:
            for msg in (MESSAGE, bytearray(MESSAGE), MESSAGE.decode(), io.BytesIO(MESSAGE), half_read, file, text):
                self.assert_delivered(bed.finish(self.begin(bed, msg=msg)))
        contents = [message.content for message in bed.server.messages]
        self.assertEqual(contents[:-1], [AS_SENT] * 6)
        self.assertTrue(contents[-1].startswith(b"Subject: =?utf-8?"), contents[-1])
        self.assertRaises(ValueError, self.begin, bed, msg=file)

    def test_addresses(self) -> None:
        bed = self.open()
        value = bed.finish(
            self.begin(bed, [b"b@example.com", "Cee <c@example.com>", ONE], sender=b"Ann <a@example.com>")
        )
        self.assertEqual(value[0], 3)
        self.assertEqual([address for address, _, _ in value[1]], [ONE.encode(), TWO.encode(), ONE.encode()])
        self.assert_delivered(bed.finish(self.begin(bed, sender="")))
        self.assert_delivered(bed.finish(self.begin(bed, sender=smtp.Address("a@example.com"))))
        seen = [(message.sender, message.recipients) for message in bed.server.messages]
        self.assertEqual(seen, [(SENDER, (ONE, TWO)), ("", (ONE,)), (SENDER, (ONE,))])
        for wrong in ("nobody", "a b@example.com", "a@example.com\r\nDATA", []):
            self.assertRaises(smtp.AddressError, self.begin, bed, wrong)
        self.assertRaises(smtp.AddressError, self.begin, bed, sender="nobody at all")

    def test_a_name_for_ehlo(self) -> None:
        bed = self.open()
        self.assert_delivered(bed.finish(self.begin(bed, senderDomainName="client.example.com")))
        self.assertEqual(bed.server.connections[0].helo_name, "client.example.com")

    def test_two_round_trips_on_a_kept_session(self) -> None:
        bed = self.open()
        bed.finish(self.begin(bed))
        before = bed.server.connections[0].flights
        bed.finish(self.begin(bed, [ONE, TWO]))
        self.assertEqual(bed.server.connections[0].flights - before, 2)

    def test_it_can_be_cancelled(self) -> None:
        for point, expected in (
            ("banner", CancelledError),
            ("mail", CancelledError),
            ("data", CancelledError),
            ("dot", smtp.SMTPDeliveryError),
        ):
            bed = self.open(faults=[Fault(point, "silence")])
            outcome = self.begin(bed)
            bed.reactor.run_for(1)
            outcome.deferred.cancel()
            self.assertIsInstance(outcome.value, expected, point)
            bed.reactor.run_for(10)
            self.assertEqual((bed.server.message_count, bed.counts()), (0, (0, 0, 0, 0)), point)
        self.assertIn(DOUBT, str(outcome.value))
        self.assertEqual([each[:2] for each in outcome.value.addresses], [(ONE.encode(), 554)])
        self.assertIsInstance(outcome.value.__cause__, UncertainDelivery)

    def test_what_is_demanded_and_can_not_be_had(self) -> None:
        in_clear = {"certificate": None}
        for server, more, expected, code in (
            ({}, {"requireAuthentication": True}, smtp.AUTHRequiredError, 502),
            ({}, {"requireTransportSecurity": True, "tls": TLSPolicy("may")}, smtp.TLSRequiredError, 502),
            (in_clear, {"requireTransportSecurity": True}, smtp.TLSRequiredError, 502),
            ({}, {"username": "user", "password": "x"}, smtp.AUTHRequiredError, 502),
            ({"verdict": refusing("starttls", b"454 4.7.0 not now\r\n", first=0)}, {}, smtp.TLSError, 454),
            ({"verdict": refusing("ehlo", b"550 5.7.1 not you\r\n", first=0)}, {}, smtp.EHLORequiredError, 550),
            ({"verdict": refusing("banner", b"554 5.3.2 closed\r\n", first=0)}, {}, smtp.SMTPConnectError, 554),
            ({"capabilities": ("SIZE 70000",)}, {"msg": MESSAGE * 5_000}, smtp.SMTPDeliveryError, 554),
            ({"certificate": None}, {"username": b"user", "password": b"x", "tls": None}, smtp.TLSRequiredError, 502),
        ):
            bed = self.open(server=server)
            value = bed.finish(self.begin(bed, **more))
            self.assertIsInstance(value, expected, more)
            self.assertEqual((value.code, bed.server.message_count), (code, 0), value)

    def test_a_file_that_fails(self) -> None:
        bed = self.open()
        value = bed.finish(self.begin(bed, msg=Failing(MESSAGE * 5_000, 100_000, OSError("gone"))))
        self.assert_refused(value, 554, "gone")
        self.assertEqual(bed.server.message_count, 0)

    def test_without_a_cache_there_is_one_for_each_reactor_until_that_shuts_down(self) -> None:
        bed = self.open()
        triggers: list[Any] = []
        directlyProvides(bed.reactor, IReactorCore, providedBy(bed.reactor))
        bed.reactor.addSystemEventTrigger = lambda *trigger: triggers.append(trigger)  # type: ignore[attr-defined]
        for _ in range(3):
            self.assert_delivered(bed.finish(self.begin(bed, cache=None, tls=None)))
        self.assertEqual(bed.server.connection_count, 1)
        ((phase, event, close),) = triggers
        self.assertEqual((phase, event), ("before", "shutdown"))
        bed.finish(Outcome(close()))
        self.assertEqual(bed.server.open_count, 0)
        self.assertNotIn(bed.reactor, dropin._caches)


over_all_caches(globals(), FactoryTests, ConnectorOnlyTests, SendmailOnlyTests)
