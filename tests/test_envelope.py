"""Envelopes: what they say to servers, and what they need of them."""

from __future__ import annotations

import io
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Envelope
from mailcache.contents import BytesContent, FileContent
from mailcache.envelope import ALWAYS_TAKEN, NO_NEEDS, Needs
from mailcache.wire.capabilities import Capabilities
from tests.helpers import Bed, KeeperBed, Unseekable


class Envelopes(SynchronousTestCase):
    def test_say_who_sends_and_who_receives(self) -> None:
        envelope = Envelope("a@example.com", iter(["b@example.com", "c@example.com", "b@example.com"]))
        self.assertEqual((envelope.sender, envelope.recipients), ("a@example.com", ("b@example.com", "c@example.com")))
        self.assertEqual(envelope.commands[0], b"MAIL FROM:<a@example.com>")
        self.assertEqual(
            envelope.commands[1], b"RCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\nDATA\r\n", "each once"
        )
        self.assertEqual(repr(envelope), "Envelope('a@example.com', ['b@example.com', 'c@example.com'])")

    def test_may_have_the_null_sender(self) -> None:
        self.assertEqual(Envelope("", ["postmaster"]).commands[0], b"MAIL FROM:<>")

    def test_demand_what_their_addresses_need(self) -> None:
        ascii_only, international = "a@example.com", "\xe4@example.com"
        for sender, recipient, asked, mail in (
            (ascii_only, ascii_only, False, b"MAIL FROM:<a@example.com>"),
            (ascii_only, ascii_only, True, b"MAIL FROM:<a@example.com> SMTPUTF8"),
            (ascii_only, international, False, b"MAIL FROM:<a@example.com> SMTPUTF8"),
            (international, ascii_only, False, b"MAIL FROM:<\xc3\xa4@example.com> SMTPUTF8"),
        ):
            envelope = Envelope(sender, [recipient], smtputf8=asked)
            self.assertEqual(envelope.commands[0], mail)
            self.assertEqual(envelope.smtputf8, b"SMTPUTF8" in mail)
        self.assertEqual(
            Envelope(ascii_only, [ascii_only], requiretls=True).commands[0], b"MAIL FROM:<a@example.com> REQUIRETLS"
        )


class WhatIsNeeded(SynchronousTestCase):
    """Of the server, by an envelope and a content together."""

    def test_follows_from_both(self) -> None:
        seven, eight, big = BytesContent(b"a\r\n"), BytesContent(b"\xe4\r\n"), BytesContent(b"a\r\n" * 50_000)
        file = FileContent(io.BytesIO(b"\xe4" * 100_000))
        pipe = FileContent(Unseekable(b"\xe4"))
        for more, content, needs in (
            ({}, seven, Needs()),
            ({}, eight, Needs(eightbitmime=True, size=3)),
            ({}, big, Needs(size=150_000)),
            ({}, file, Needs(size=100_000)),
            ({}, pipe, Needs()),
            ({"body": "7BIT"}, seven, Needs()),
            ({"body": "8BITMIME"}, seven, Needs(eightbitmime=True, size=3)),
            ({"body": "8BITMIME"}, eight, Needs(eightbitmime=True, size=3)),
            ({"body": "8BITMIME"}, file, Needs(eightbitmime=True, size=100_000)),
            ({"smtputf8": True}, seven, Needs(smtputf8=True, size=3)),
            ({"smtputf8": True}, pipe, Needs(smtputf8=True)),
            ({"requiretls": True}, seven, Needs(requiretls=True, size=3)),
            ({"requiretls": True, "smtputf8": True}, eight, Needs(True, True, 3, True)),
        ):
            envelope = Envelope("a@example.com", ["b@example.com"], **more)
            self.assertEqual(envelope.needs(content), needs, more)

    def test_is_nothing_for_the_usual_message(self) -> None:
        envelope = Envelope("a@example.com", ["b@example.com"])
        self.assertIs(envelope.needs(BytesContent(b"a" * (ALWAYS_TAKEN - 2))), NO_NEEDS)
        self.assertEqual(envelope.needs(BytesContent(b"a" * ALWAYS_TAKEN)), Needs(size=ALWAYS_TAKEN + 2))

    def test_says_what_a_server_lacks(self) -> None:
        everything = Needs(True, True, 1000, True)
        offers = {"SMTPUTF8": (), "8BITMIME": (), "REQUIRETLS": (), "SIZE": ("1000",)}
        self.assertIsNone(everything.unmet_by(Capabilities(offers)))
        for keyword in ("SMTPUTF8", "8BITMIME", "REQUIRETLS"):
            some = {name: values for name, values in offers.items() if name != keyword}
            self.assertIn(f"does not offer {keyword}", everything.unmet_by(Capabilities(some)) or "")
        for size, limit, lacking in (
            (1000, ("1000",), None),
            (1001, ("1000",), "the message has 1001 bytes and the server takes 1000 at most"),
            (10**9, ("0",), None),
            (10**9, (), None),
            (10**9, ("much",), None),
            (None, ("1000",), None),
        ):
            self.assertEqual(Needs(size=size).unmet_by(Capabilities({"SIZE": limit})), lacking)
        self.assertIsNone(Needs(size=10**9).unmet_by(Capabilities()))
        self.assertIsNone(NO_NEEDS.unmet_by(Capabilities()))


class Reports(SynchronousTestCase):
    """Delivery status notifications: asked for where the server offers DSN, and not mentioned elsewhere."""

    def test_are_asked_for_in_mail_and_rcpt(self) -> None:
        plain = (b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\nDATA\r\n")
        for more, mail, b, c in (
            ({"ret": "HDRS"}, b" RET=HDRS", b"", b""),
            ({"ret": "FULL", "envid": "a+b c"}, b" RET=FULL ENVID=a+2Bb+20c", b"", b""),
            ({"notify": "NEVER"}, b"", b" NOTIFY=NEVER", b" NOTIFY=NEVER"),
            ({"notify": {"DELAY", "SUCCESS"}}, b"", b" NOTIFY=SUCCESS,DELAY", b" NOTIFY=SUCCESS,DELAY"),
            ({"notify": {"c@example.com": ["FAILURE"]}}, b"", b"", b" NOTIFY=FAILURE"),
            ({"notify": {"b@example.com": "NEVER"}}, b"", b" NOTIFY=NEVER", b""),
            ({"orcpt": {"b@example.com": "rfc822;x+y@z"}}, b"", b" ORCPT=rfc822;x+2By@z", b""),
            ({"orcpt": {"b@example.com": "utf-8;\xfc@z"}}, b"", b" ORCPT=utf-8;\\x{FC}@z", b""),
            (
                {"notify": "SUCCESS", "orcpt": {"c@example.com": "rfc822;z@z"}},
                b"",
                b" NOTIFY=SUCCESS",
                b" NOTIFY=SUCCESS ORCPT=rfc822;z@z",
            ),
        ):
            envelope = Envelope("a@example.com", ["b@example.com", "c@example.com"], **more)  # type: ignore[arg-type]
            wanted = (
                b"MAIL FROM:<a@example.com>" + mail,
                b"RCPT TO:<b@example.com>" + b + b"\r\nRCPT TO:<c@example.com>" + c + b"\r\nDATA\r\n",
            )
            self.assertEqual((envelope.commands, envelope.dsn_commands), (plain, wanted))
        self.assertIsNone(Envelope("a@example.com", ["b@example.com"]).dsn_commands)

    def test_go_with_some_of_the_recipients(self) -> None:
        envelope = Envelope(
            "a@example.com",
            ["b@example.com", "c@example.com"],
            body="8BITMIME",
            requiretls=True,
            ret="HDRS",
            envid="id",
            notify={"b@example.com": "NEVER"},
            orcpt={"c@example.com": "rfc822;d@example.com"},
        )
        some = envelope.evolved(recipients=("c@example.com",))
        self.assertEqual((some.recipients, some.body, some.requiretls), (("c@example.com",), "8BITMIME", True))
        self.assertEqual(
            some.dsn_commands,
            (
                b"MAIL FROM:<a@example.com> RET=HDRS ENVID=id REQUIRETLS",
                b"RCPT TO:<c@example.com> ORCPT=rfc822;d@example.com\r\nDATA\r\n",
            ),
        )
        self.assertTrue(envelope.evolved(smtputf8=True).commands[0].endswith(b" SMTPUTF8 REQUIRETLS"))

    def test_nothing_wrong_is_taken(self) -> None:
        b = "b@example.com"
        for more, part in (
            ({"ret": "full"}, "ret must be one of FULL, HDRS: 'full'"),
            ({"envid": ""}, "envid must be printable ASCII"),
            ({"envid": "a\r\nb"}, "envid must be printable ASCII"),
            ({"envid": 5}, "envid: printable ASCII is wanted, not 5"),
            ({"notify": []}, "notify must be a set: NEVER alone, or of SUCCESS, FAILURE, DELAY"),
            ({"notify": ["NEVER", "DELAY"]}, "notify must be a set: NEVER alone"),
            ({"notify": "SUCCESS,DELAY"}, "notify must be a set"),
            ({"notify": 5}, 'notify: "NEVER" or a set of words is wanted, not 5'),
            ({"notify": [["DELAY"]]}, 'notify: "NEVER" or a set of words is wanted'),
            ({"notify": {b: None}}, 'notify: "NEVER" or a set of words is wanted, not None'),
            ({"notify": {"x@example.com": "NEVER"}}, "notify: 'x@example.com' is not a recipient of this envelope"),
            ({"orcpt": "rfc822;x"}, "orcpt: a mapping from recipients is wanted, not 'rfc822;x'"),
            ({"orcpt": {"x@example.com": "rfc822;x"}}, "orcpt: 'x@example.com' is not a recipient"),
            ({"orcpt": {b: "x@example.com"}}, 'orcpt: a type and an address like "rfc822;ann@example.com"'),
            ({"orcpt": {b: 5}}, "orcpt: a type and an address"),
            ({"orcpt": {b: "rfc822;\xfc"}}, "the address in orcpt must be printable ASCII"),
            ({"orcpt": {b: "rfc 822;x"}}, "the type in orcpt must be a word like rfc822"),
        ):
            error = self.assertRaises(ValueError, Envelope, "a@example.com", [b], **more)
            self.assertIn(part, str(error))

    def test_reach_a_server_that_offers_them_and_no_other(self) -> None:
        more: dict[str, Any] = {
            "ret": "HDRS",
            "envid": "id",
            "notify": {"b@example.com": ["DELAY"]},
            "orcpt": {"c@example.com": "rfc822;d@example.com"},
        }
        for kind in (Bed, KeeperBed):
            for pipelining in ([], ["PIPELINING"]):
                for one_flight in (False, True):
                    chunking = ["CHUNKING", "ENHANCEDSTATUSCODES"] if one_flight else []
                    for dsn in (["DSN"], []):
                        capabilities = [*pipelining, *chunking, *dsn, "SIZE 0"]
                        bed = kind(server={"capabilities": capabilities}, one_flight=one_flight)
                        for _ in range(2):
                            result = bed.deliver(recipients=["b@example.com", "c@example.com"], **more)
                            self.assertEqual(result.accepted, ("b@example.com", "c@example.com"))
                        for message in bed.server.messages:
                            self.assertEqual(
                                (message.parameters, message.recipient_parameters),
                                (
                                    ("RET=HDRS", "ENVID=id", "SIZE=34"),
                                    {
                                        "b@example.com": ("NOTIFY=DELAY",),
                                        "c@example.com": ("ORCPT=rfc822;d@example.com",),
                                    },
                                )
                                if dsn
                                else (("SIZE=34",), {"b@example.com": (), "c@example.com": ()}),
                            )
                        self.assertEqual(bed.server.violations, [])
                        bed.close()
