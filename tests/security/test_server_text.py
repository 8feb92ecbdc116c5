"""What a server says stays one printable line in exceptions, results and logs, and one reply for the front's client."""

from __future__ import annotations

import re
from typing import Any

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryError, DeliveryResult, Timeouts, UncertainDelivery, sendmail
from mailcache.testing.server import CAPABILITIES
from tests.helpers import CREDENTIALS, PORT, SMALL, Bed, KeeperBed, Outcome, verifying
from tests.senders import ONE, SENDER
from tests.test_front import FrontCase

LONGEST = 1_500
"""Characters of a text of ours about what a server has said: its 512, and what there is to say of it."""

TEXTS = {
    "colours": b"550 5.7.1 \x1b[31mred\x1b[0m\r\n",
    "a NUL": b"550 5.7.1 a\0b\r\n",
    "a bare CR": b"550 5.7.1 a\r250 2.0.0 taken\r\n",
    "a bare LF": b"550 5.7.1 a\n",
    "bare LFs": b"550-5.7.1 a\n550 5.7.1 b\r\n",
    "tabs": b"550 5.7.1 a\tb\r\n",
    "other controls": b"550 5.7.1 \a\b\x0b\x7f\t\r\n",
    "no UTF-8": b"550 5.7.1 \xff\xfe\x85\xa0\r\n",
    "separators": "550 5.7.1 \x85\u2028\u2029\x9b31m\r\n".encode(),
    "directions": "550 5.7.1 \u202egnp.exe\u2066\r\n".encode(),
    "much": b"550 5.7.1 " + b"x" * 2_000 + b"\r\n",
    "much beyond ASCII": b"550 5.7.1 " + b"\xf0\x9f\x90\x8d" * 450 + b"\r\n",
    "lines like other replies": b"550-5.7.1 354 go\r\n550-250 2.0.0 ok\r\n550 5.7.1 .\r\n",
    "many lines": b"550-5.7.1 " + b"y" * 600 + b"\r\n" + b"550-\x1b]0;title\a\r\n" * 50 + b"550 5.7.1 z\r\n",
    "a change of mind": b"550-5.7.1 a\n354 go\r\n",
    "no reply": b"\x1b[2J\r\n",
}
"""Refusals with more in them than a text."""

CODES = {"banner": b"554", "ehlo": b"550", "ehlo2": b"550", "starttls": b"454", "auth": b"535"}
"""The code of a refusal at points where 550 has no place."""

POINTS = ("banner", "ehlo", "ehlo2", "starttls", "auth", "mail", "rcpt", "data", "dot")

BRIEF = Timeouts(dot=2, data=2, mail=2, rcpt=2, ehlo=2, auth=2, greeting=2)


def saying(point: str, reply: bytes) -> Any:
    """A server that says this there."""
    return lambda where, *_: reply if where == point else None


def accepting(refusal: bytes) -> bytes:
    """The same text with a code that accepts."""
    return re.sub(rb"(?m)^550([ -])5", rb"250\g<1>2", refusal).replace(b"550", b"250")


class Observed(SynchronousTestCase):
    """Notes every line of ours that is logged."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith("mailcache"):
            self.lines.append(formatEvent(event))

    def check_line(self, text: str, what: object) -> None:
        self.assertTrue(text.isprintable(), (what, text[:300]))
        self.assertLessEqual(len(text), LONGEST, what)

    def check_lines(self, what: object) -> None:
        for line in self.lines:
            self.check_line(line, what)
        self.assertTrue(self.lines, what)
        self.lines.clear()


class OutcomeTests(Observed):
    """What a caller is told, and what is logged meanwhile, at each level."""

    def check_value(self, value: Any, what: object) -> None:
        replies = []
        if isinstance(value, DeliveryResult):
            replies = [value.reply, *value.rejected.values()]
        else:
            self.assertIsInstance(value, (DeliveryError, UncertainDelivery), what)
            self.check_line(str(value), what)
            self.check_line(str(value.args[0]), what)
            reply = getattr(value, "reply", None)
            replies = [] if reply is None else [reply]
            if value.__cause__ is not None:
                self.check_line(str(value.__cause__), what)
        for reply in replies:
            self.check_line(str(reply), what)
            self.check_line(repr(reply), what)

    def check_points(self, kind: type[Bed]) -> None:
        for point in POINTS:
            for name, said in TEXTS.items():
                reply = re.sub(rb"(?m)^550", CODES.get(point, b"550"), said)
                bed = kind(
                    credentials=CREDENTIALS,
                    timeouts=BRIEF,
                    server={"verdict": saying(point, reply), "users": {CREDENTIALS.username: CREDENTIALS.password}},
                )
                self.check_value(bed.deliver(), (point, name))
                bed.close()
                self.check_lines((point, name))

    def test_in_memory(self) -> None:
        self.check_points(Bed)

    def test_with_a_keeper(self) -> None:
        self.check_points(KeeperBed)

    def test_taken_with_such_a_text(self) -> None:
        """A verdict that is strange is one all the same."""
        for name, said in TEXTS.items():
            for kind in (Bed, KeeperBed):
                bed = kind(timeouts=BRIEF, server={"verdict": saying("dot", accepting(said))})
                value = bed.deliver()
                self.check_value(value, name)
                self.assertIsInstance(value, (DeliveryResult, UncertainDelivery), name)
                bed.close()
                self.check_lines(name)

    def test_what_a_server_offers(self) -> None:
        """The names of mechanisms stand in an error where none of them will do."""
        for words in ("\x1b[31m", "\x85\u2028", "GSSAPI \x07 X\x7f", "M" * 400, "a\u202eb"):
            for offer in (f"AUTH {words}", words, f"{words} AUTH", f"SIZE {words}", f"LIMITS RCPTMAX={words}"):
                lines = ["mx.test", *CAPABILITIES, "AUTH NONE", offer]
                reply = "".join(f"250-{line}\r\n" for line in lines).encode() + b"250 HELP\r\n"
                for point in ("ehlo", "ehlo2"):
                    bed = Bed(credentials=CREDENTIALS, timeouts=BRIEF, server={"verdict": saying(point, reply)})
                    self.check_value(bed.deliver(), offer)
                    bed.close()
                    self.check_lines(offer)


class SendmailTests(Observed):
    """The drop-in for Twisted's own call, whose errors and results have the server's text in bytes."""

    def test_replies(self) -> None:
        for point in POINTS:
            for name, said in TEXTS.items():
                reply = re.sub(rb"(?m)^550", CODES.get(point, b"550"), said)
                bed = Bed(timeouts=BRIEF, server={"verdict": saying(point, reply), "users": {"user": "secret"}})
                outcome = Outcome(
                    sendmail(
                        "127.0.0.1", SENDER, ONE, SMALL, port=PORT, reactor=bed.reactor, cache=bed.cache,
                        tls=verifying(), username="user", password="secret",
                    )
                )  # fmt: skip
                value = bed.finish(outcome)
                texts = [value.resp, *(told[2] for told in getattr(value, "addresses", None) or ())]
                for text in texts:
                    for line in text.split(b"\n"):
                        self.assertTrue(line.replace(b"\t", b"").decode().isprintable(), (point, name, line[:100]))
                        self.assertLessEqual(len(line), 2_048)
                bed.close()


class FrontTests(FrontCase, SynchronousTestCase):
    """What a client of the front reads: one reply for each command, whatever the server has put into it."""

    def check_reply(self, answer: bytes, what: object) -> None:
        lines = answer.split(b"\r\n")
        self.assertEqual(lines.pop(), b"", what)
        code = lines[-1][:3]
        for number, line in enumerate(lines, 1):
            self.assertEqual(line[:4], code + (b" " if number == len(lines) else b"-"), what)
            self.assertTrue(line.replace(b"\t", b"").decode().isprintable(), (what, line[:100]))
            self.assertLessEqual(len(line), 2_048, what)

    def said(self, bed: Bed, client: Any, line: str) -> bytes:
        client.read = b""
        client.transport.write(line.encode() + b"\r\n")
        bed.reactor.run_until(lambda: client.read)
        bed.reactor.run_for(1)
        return bytes(client.read)

    def test_replies(self) -> None:
        steps = {"mail": 0, "rcpt": 1, "data": 3, "dot": 3}
        for point, last in steps.items():
            for name, refusal in TEXTS.items():
                for reply in (refusal, refusal.replace(b"550", b"450").replace(b" 5.", b" 4."), accepting(refusal)):
                    bed = self.bed(timeouts=BRIEF, server={"users": None, "verdict": saying(point, reply)})
                    client = self.connect(bed)
                    self.said(bed, client, "EHLO client.example.com")
                    for step in (f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{ONE}>", "DATA", ".")[: last + 1]:
                        self.check_reply(self.said(bed, client, step), (point, name))
                    for step in ("RSET", "NOOP"):
                        self.assertEqual(self.said(bed, client, step)[:4], b"250 ", (point, name))
                    self.leave(bed, client)

    def test_what_it_offers(self) -> None:
        """Words that it knows, and no other of the server's."""
        reply = b"250-mx.test\r\n250-8BITMIME \x1b\r\n250-X\x1b[31m\r\n250-SIZE 1\x1b\r\n250 SMTPUTF8\r\n"
        bed = self.bed(credentials=CREDENTIALS, server={"verdict": saying("ehlo2", reply), "users": None})
        client = self.connect(bed)
        self.check_reply(self.said(bed, client, "EHLO client.example.com"), "EHLO")
        self.leave(bed, client)
