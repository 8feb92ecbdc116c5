"""Injection: no value that a caller, a borrower or a server gives becomes a command, a parameter, a reply or a line.

Each command's encoder is tested for itself in `tests.wire.test_commands`; here it is every field of the public
interface, of what a borrower sends, and of what a server says.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory
from twisted.mail.smtp import AddressError, ESMTPSenderFactory
from twisted.trial.unittest import SynchronousTestCase

from mailcache import (
    Credentials,
    Destination,
    Envelope,
    SessionConnector,
    SessionEndpoint,
    TLSPolicy,
    deliver,
    sendmail,
)
from mailcache.envelope import NO_NEEDS
from mailcache.remote import codec, commands
from mailcache.remote.commands import KeeperFault
from mailcache.remote.packed import Granted, Wanted
from mailcache.wire.commands import parse
from tests.helpers import CREDENTIALS, PORT, SMALL, Bed, KeeperBed, Outcome, verifying
from tests.remote.test_keeper import RawCase
from tests.senders import MESSAGE, ONE, SENDER
from tests.test_front import FrontCase
from tests.wire.test_commands import PAYLOADS

EVIL = "\r\nRCPT TO:<evil@example.com>"
"""What would be one more recipient."""

ATTACKS = (*PAYLOADS, EVIL, EVIL.replace("\r", ""), EVIL.replace("\n", ""), "> NOTIFY=NEVER", "\u760d\u760aRSET")

LINE_ENDS = ("\r\n", "\n", "\r", "\0", EVIL)

USUAL = ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "DATA"]
"""What a server hears of one message, and nothing else."""

ONLY_A_PATH = re.compile(r"(?:MAIL FROM|RCPT TO):<[^ <>]*>(?: BODY=8BITMIME)?")
"""What a server reads in one way only, whatever the path is worth."""

OWN_PARAMETERS = {"SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "NOTIFY", "ORCPT"}

TOKEN = "ya29.a0AfH6SMBx"
MECHANISMS = ("PLAIN", "OAUTHBEARER")


def destination(field: str) -> Callable[[Bed, str], None]:
    """A field of `Destination`."""
    return lambda bed, value: send(bed, **{field: value})


def credentials(**fields: Any) -> Callable[[Bed, str], None]:
    """A field of `Credentials`: where there is ``None``."""

    def given(bed: Bed, value: str) -> None:
        values = {name: value if each is None else each for name, each in fields.items()}
        made = Credentials(values.pop("username"), values.pop("password", None), **values)
        bed.server.users = {made.username: made.secret}
        send(bed, credentials=made)

    return given


def policy(field: str, **more: Any) -> Callable[[Bed, str], None]:
    """A field of `TLSPolicy`."""
    return lambda bed, value: send(bed, tls=TLSPolicy(**{"level": "verify", **more, field: value}))


def envelope(field: str, shape: Callable[[str], Any] = lambda value: value) -> Callable[[Bed, str], None]:
    """A field of `Envelope`, where ``shape`` puts the value."""
    return lambda bed, value: send(bed, message={field: shape(value)})


def send(bed: Bed, message: dict[str, Any] | None = None, **fields: Any) -> None:
    """One delivery, whose outcome is none of this module's business."""
    fields = {"next_hop": f"[127.0.0.1]:{PORT}", "tls": verifying(), "credentials": CREDENTIALS, **fields}
    values = {"sender": SENDER, "recipients": [ONE], **(message or {})}
    where, said = Destination(**fields), Envelope(values.pop("sender"), values.pop("recipients"), **values)
    bed.finish(Outcome(deliver(bed.cache, where, said, SMALL)))


SLOTS: dict[str, Callable[[Bed, str], None]] = {
    "next hop": destination("next_hop"),
    "host": lambda bed, value: send(bed, next_hop=f"[mx{value}.test]:{PORT}"),
    "domain": lambda bed, value: send(bed, next_hop=f"mx{value}.test:{PORT}"),
    "port": lambda bed, value: send(bed, next_hop=f"[127.0.0.1]:{PORT}{value}"),
    "socket": lambda bed, value: send(bed, next_hop=f"unix:/run/{value}"),
    "protocol": destination("protocol"),
    "namespace": destination("namespace"),
    "HELO name": destination("helo_name"),
    "HELO name's literal": lambda bed, value: send(bed, helo_name=f"[IPv6:::1{value}]"),
    "bind address": destination("bind_address"),
    "proxy": destination("proxy"),
    "client certificate": destination("client_certificate"),
    "user": credentials(username=None, password="secret"),
    "password": credentials(username="user", password=None),
    "mechanism": credentials(username="user", password="secret", mechanisms=(None,)),
    "mechanisms": credentials(username="user", password="secret", mechanisms=None),
    "token": credentials(username="user", token=None),
    "token's user": credentials(username=None, token=TOKEN),
    "TLS level": policy("level"),
    "server name": policy("servername"),
    "name to match": lambda bed, value: send(bed, tls=TLSPolicy("verify", match=(f"mx{value}.test",))),
    "fingerprint": lambda bed, value: send(bed, tls=TLSPolicy("fingerprint", fingerprints=("ab" * 32 + value,))),
    "TLS version": policy("min_version"),
    "ciphers": policy("ciphers"),
    "CA file": policy("ca_file"),
    "sender": envelope("sender"),
    "sender's local part": envelope("sender", lambda value: f"a{value}b@example.com"),
    "sender's domain": envelope("sender", lambda value: f"a@b{value}c.example"),
    "quoted sender": envelope("sender", lambda value: f'"a{value}b"@example.com'),
    "recipient": envelope("recipients", lambda value: [value]),
    "recipient's local part": envelope("recipients", lambda value: [f"a{value}b@example.com"]),
    "recipient's domain": envelope("recipients", lambda value: [f"a@b{value}c.example"]),
    "body": envelope("body"),
    "RET": envelope("ret"),
    "ENVID": envelope("envid"),
    "NOTIFY": envelope("notify"),
    "one of NOTIFY": envelope("notify", lambda value: ["DELAY", value]),
    "NOTIFY of one": envelope("notify", lambda value: {ONE: value}),
    "ORCPT": envelope("orcpt", lambda value: {ONE: value}),
    "ORCPT's type": envelope("orcpt", lambda value: {ONE: f"rfc822{value};a@example.com"}),
    "ORCPT's address": envelope("orcpt", lambda value: {ONE: f"rfc822;a{value}b@example.com"}),
    "ORCPT's UTF-8 address": envelope("orcpt", lambda value: {ONE: f"utf-8;a{value}b@example.com"}),
}
"""Every field that a caller can give, and how it comes to be sent."""

IN_BASE64 = {"password", "user", "token's user"}
"""Slots that may have a line end in them."""


def verbs(bed: Bed) -> list[str]:
    """What all connections have said."""
    return [command.partition(" ")[0] for each in bed.server.connections for command in each.commands]


class InjectionCase(SynchronousTestCase):
    def check_heard(self, bed: Bed, what: object) -> None:
        """The server has heard of one message at most, in the usual words, with the usual parameters."""
        heard = verbs(bed)
        self.assertEqual(heard, USUAL[: len(heard)], what)
        self.assertEqual(bed.server.violations, [], what)
        for connection in bed.server.connections:
            for command in connection.commands:
                self.assertFalse(any(each < " " or each == "\x7f" for each in command), (what, command))
                if command.startswith(("MAIL", "RCPT")) and not ONLY_A_PATH.fullmatch(command):
                    parameters = parse(command.encode()).parameters
                    self.assertTrue(parameters.keys() <= OWN_PARAMETERS, (what, command))
                    self.assertNotEqual(parameters.get("NOTIFY"), "NEVER", (what, command))
        for message in bed.server.messages:
            self.assertEqual(len(message.recipients), 1, what)

    def check_line(self, text: str, limit: int, what: object) -> None:
        self.assertTrue(text.isprintable(), (what, text[:200]))
        self.assertLessEqual(len(text), limit, what)


class CallerTests(InjectionCase):
    """What a caller gives: refused before any byte is written, or written so that it stays what it is."""

    def check_slots(self, kind: type[Bed], attacks: tuple[str, ...], slots: tuple[str, ...]) -> int:
        refused = 0
        for slot in slots:
            for attack in attacks:
                bed = kind(server={"users": {CREDENTIALS.username: CREDENTIALS.password}, "mechanisms": MECHANISMS})
                try:
                    SLOTS[slot](bed, attack)
                except (ValueError, TypeError) as error:
                    refused += 1
                    self.assertEqual(bed.server.connections, [], (slot, attack[:20]))
                    self.assertTrue(str(error).isprintable(), (slot, attack[:20]))
                else:
                    self.assertFalse(attack in LINE_ENDS and slot not in IN_BASE64, (slot, attack[:20]))
                    self.check_heard(bed, (slot, attack[:20]))
                bed.close()
        return refused

    def test_every_field(self) -> None:
        cells = len(SLOTS) * len(ATTACKS)
        refused = self.check_slots(Bed, ATTACKS, tuple(SLOTS))
        self.assertGreater(refused, cells * 0.8)

    def test_through_a_keeper(self) -> None:
        few = (EVIL, "> NOTIFY=NEVER", "\u760a\u760d", "\x85", "x" * 513)
        self.check_slots(KeeperBed, few, tuple(SLOTS))


BORROWED: dict[str, tuple[str | int, ...]] = {
    **{name: (name,) for name in (
        "next_hop", "protocol", "namespace", "bind_address", "helo_name", "proxy", "trust_anchors",
        "client_certificate",
    )},
    **{name: ("credentials", name) for name in ("username", "password", "token")},
    "mechanism": ("credentials", "mechanisms", 0),
    **{name: ("tls", name) for name in ("level", "servername", "min_version", "ciphers")},
    "match": ("tls", "match", 0),
    "fingerprint": ("tls", "fingerprints", 0),
    "unknown field": ("",),
    "unknown field of credentials": ("credentials", ""),
}  # fmt: skip
"""Every field of a destination as a borrower sends it: the way there. An empty name is the value itself."""

SENDABLE = tuple(attack for attack in ATTACKS if len(attack) < 10_000)
"""What fits: ten megabytes fit no value of AMP's."""


def hostile(fields: dict[str, Any], way: tuple[str | int, ...], value: str) -> bytes:
    """A destination's bytes with ``value`` there, unchecked."""
    *outer, last = way
    place: Any = fields
    for name in outer:
        place = place[name]
    place[last if last != "" else value] = value
    return json.dumps(fields).encode()


class BorrowerTests(RawCase, InjectionCase):
    """What a hostile borrower sends as a destination, with no library between it and the keeper."""

    def test_every_field(self) -> None:
        bed = self.bed(server={"users": {CREDENTIALS.username: CREDENTIALS.password}})
        refused = granted = 0
        for slot, way in BORROWED.items():
            for attack in SENDABLE:
                data = hostile(self.fields(bed, slot), way, attack)
                value = bed.finish(bed.ask(refused + granted, destination=data))
                what = (slot, attack[:20])
                self.assertTrue(bed.linked, what)
                if isinstance(value, KeeperFault):
                    refused += 1
                    self.check_line(str(value), 4_000, what)
                    continue
                granted += 1
                self.assertFalse(attack in LINE_ENDS and slot not in ("username", "password"), what)
                if value["error"] is not None:
                    self.check_line(str(codec.decode_error(value["error"])), 1_500, what)
                else:
                    self.give_back(bed, value)
                for connection in bed.server.connections:
                    heard = [command.partition(" ")[0] for command in connection.commands]
                    self.assertEqual(heard, [*USUAL[:4], "QUIT"][: len(heard)], what)
        self.assertEqual(bed.server.violations, [])
        self.assertGreater(refused, 3 * granted)

    def fields(self, bed: Any, slot: str) -> dict[str, Any]:
        """A right destination."""
        fields: dict[str, Any] = json.loads(codec.encode_destination(bed.destination))
        fields["credentials"] = {
            "username": "user", "password": CREDENTIALS.password, "token": None, "external": False,
            "mechanisms": ["PLAIN"],
        }  # fmt: skip
        if slot == "token":
            fields["credentials"] |= {"password": None, "mechanisms": None}
        fields["tls"] |= {"match": [""]} if slot == "match" else {}
        if slot == "fingerprint":
            fields["tls"] |= {"level": "fingerprint", "fingerprints": [""]}
        return fields

    def give_back(self, bed: Any, answer: dict[str, Any]) -> None:
        if answer["descriptor"] is not None:
            bed.pairs.close(answer["descriptor"])
        bed.release(Granted.decode(answer["granted"]), discard=True)

    def test_endpoints_to_avoid(self) -> None:
        """They are compared, and nothing else."""
        bed = self.bed()
        for attack in SENDABLE:
            for avoided in ([attack, "127.0.0.1", 25], ["smtp", attack, 25], ["smtp", "127.0.0.1", attack]):
                wanted = Wanted(1, NO_NEEDS, False, frozenset(), 5.0).encode() + json.dumps([avoided]).encode()
                call = bed.link.callRemote(
                    commands.Acquire, destination=codec.encode_destination(bed.destination), wanted=wanted
                )
                value = bed.finish(Outcome(call))
                if isinstance(value, KeeperFault):
                    self.check_line(str(value), 200, attack)
                    continue
                self.give_back(bed, value)
        self.assertEqual(bed.server.violations, [])


class StockSenderTests(FrontCase, InjectionCase):
    """What a program gives to Twisted's own senders, with a front behind them, and to `sendmail`."""

    def check_attacks(self, start: Callable[[Bed, str], Outcome], kind: type[Bed] = Bed) -> int:
        """Gives how many were sent."""
        sent = 0
        for attack in ATTACKS:
            if len(attack) > 10_000:
                continue
            bed = kind(credentials=CREDENTIALS, server={"users": {CREDENTIALS.username: CREDENTIALS.password}})
            try:
                bed.finish(start(bed, attack), 100)
            except (ValueError, TypeError, AddressError):
                self.assertEqual(bed.server.connections, [], attack)
            bed.reactor.run_for(1)
            self.check_heard(bed, attack)
            sent += bed.server.message_count
            bed.close()
        return sent

    def stock(self, bed: Bed, sender: str = SENDER, to: str = ONE, user: str = CREDENTIALS.username) -> Outcome:
        sent: Deferred[Any] = Deferred()
        factory = ESMTPSenderFactory(
            user.encode("utf-8", "surrogatepass"), CREDENTIALS.password.encode(), sender, to, io.BytesIO(MESSAGE), sent,
            retries=0, requireTransportSecurity=True,
        )  # fmt: skip
        SessionEndpoint(bed.cache, bed.destination).connect(factory).addErrback(sent.errback)
        return Outcome(sent)

    def test_addresses(self) -> None:
        self.check_attacks(lambda bed, value: self.stock(bed, sender=f"a{value}b@example.com"))
        self.check_attacks(lambda bed, value: self.stock(bed, to=f"a{value}b@example.com"))
        self.check_attacks(lambda bed, value: self.stock(bed, to=f"a@b{value}c.example"), KeeperBed)

    def test_user(self) -> None:
        self.assertEqual(self.check_attacks(lambda bed, value: self.stock(bed, user=value)), 0)

    def test_sendmail(self) -> None:
        def sent(bed: Bed, **values: Any) -> Outcome:
            fields = {"from_addr": SENDER, "to_addrs": ONE, **values}
            return Outcome(
                sendmail("127.0.0.1", msg=MESSAGE, port=PORT, reactor=bed.reactor, cache=bed.cache, tls=verifying(),
                         username=CREDENTIALS.username, password=CREDENTIALS.password, **fields)
            )  # fmt: skip

        self.check_attacks(lambda bed, value: sent(bed, from_addr=f"a{value}b@example.com"))
        self.check_attacks(lambda bed, value: sent(bed, to_addrs=[f"a{value}b@example.com"]))
        self.check_attacks(lambda bed, value: sent(bed, senderDomainName=f"a{value}b.example"))

    def test_hosts(self) -> None:
        bed = Bed()
        for attack in ATTACKS:
            connector = SessionConnector(bed.cache)
            self.assertRaises(ValueError, connector.connectTCP, f"mx{attack}.test", PORT, ClientFactory())
        self.assertEqual(bed.server.connections, [])
        bed.close()

    def test_lines_of_a_client_that_checks_nothing(self) -> None:
        """What has no CRLF in it is one command; whatever is in it, the server hears one as well, or none."""
        attacks = [each for each in ATTACKS if "\r\n" not in each and len(each) < 10_000]
        for start in ("MAIL FROM:<a{}b@example.com>", "MAIL FROM:<{}>", "MAIL FROM:<a@example.com> SIZE={}",
                      "MAIL FROM:<a@example.com> BODY=8BITMIME{}", "RCPT TO:<a{}b@example.com>", "RCPT TO:<{}>",
                      "RCPT TO:<\"{}\"@example.com>", "RCPT TO:<@{}:a@example.com>", "RCPT{} TO:<a@example.com>",
                      "DATA{}", "EHLO {}"):  # fmt: skip
            bed = self.bed(server={"users": None})
            client = self.connect(bed)
            self.say(bed, client, "EHLO client.example.com", f"MAIL FROM:<{SENDER}>", "RSET")
            for attack in attacks:
                what = (start, attack[:20])
                if not start.startswith(("MAIL", "EHLO")):
                    self.say(bed, client, f"MAIL FROM:<{SENDER}>")
                before = len(verbs(bed))
                (answer,) = self.say(bed, client, start.format(attack).encode("utf-8", "surrogatepass"))
                self.assertEqual(len(answer.split("\r\n")), 1 if not answer.startswith("250-") else 3, what)
                self.assertLessEqual(len(verbs(bed)) - before, 2 if "RSET" in verbs(bed)[before:] else 1, what)
                self.say(bed, client, "RSET")
            for connection in bed.server.connections:
                for command in connection.commands:
                    self.assertFalse(any(each < " " or each == "\x7f" for each in command), command)
            self.assertLessEqual(set(verbs(bed)), {"EHLO", "STARTTLS", "MAIL", "RCPT", "RSET"})
            self.leave(bed, client)
