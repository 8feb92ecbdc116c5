"""Commands: what is written is what was meant, and no value becomes a command or a parameter."""

from __future__ import annotations

import base64
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire import commands
from mailcache.wire.commands import CommandError, check_address, parse, xtext_decode, xtext_encode

# One value for every way out of a slot that somebody's client has let through.
PAYLOADS = (
    "\r\n", "\r\nRSET", "\n", "\r", "\0", "\x0b", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\u760a\u760d",
    "> SIZE=1", "<", " ", "\t", "x" * 513, "x" * 10_000_000, "\ud800", "\udc0d\udc0a", "\udcff", "\u00a0",
)  # fmt: skip

# Where a payload can stand in a command, and the words that the command may have.
SLOTS: dict[str, tuple[Callable[[str], bytes], int]] = {
    "EHLO name": (lambda p: commands.ehlo(f"a{p}b.example"), 2),
    "HELO name": (lambda p: commands.helo(f"a{p}b.example"), 2),
    "LHLO name": (lambda p: commands.lhlo(f"a{p}b.example"), 2),
    "sender's local part": (lambda p: commands.mail(f"a{p}b@example.com", smtputf8=True), 3),
    "sender's domain": (lambda p: commands.mail(f"a@b{p}c.example", smtputf8=True), 3),
    "ASCII sender": (lambda p: commands.mail(f"a{p}b@example.com"), 2),
    "SIZE": (lambda p: commands.mail("a@b", size=f"1{p}"), 3),  # type: ignore[arg-type]
    "BODY": (lambda p: commands.mail("a@b", body=f"8BITMIME{p}"), 3),
    "RET": (lambda p: commands.mail("a@b", ret=f"HDRS{p}"), 3),
    "ENVID": (lambda p: commands.mail("a@b", envid=f"a{p}b"), 3),
    "AUTH=": (lambda p: commands.mail("a@b", auth=f"a{p}b@example.com", smtputf8=True), 4),
    "recipient's local part": (lambda p: commands.rcpt(f"a{p}b@example.com", smtputf8=True), 2),
    "recipient's domain": (lambda p: commands.rcpt(f"a@b{p}c.example", smtputf8=True), 2),
    "recipient's quoted local part": (lambda p: commands.rcpt(f'"a{p}b"@c.example', smtputf8=True), 2),
    "recipient's literal": (lambda p: commands.rcpt(f"a@[IPv6:::1{p}]"), 2),
    "recipient's zone": (lambda p: commands.rcpt(f"a@[IPv6:fe80::1%{p}]"), 2),
    "postmaster": (lambda p: commands.rcpt(f"postmaster{p}"), 2),
    "NOTIFY": (lambda p: commands.rcpt("a@b", notify=["DELAY", p]), 3),
    "NOTIFY's only word": (lambda p: commands.rcpt("a@b", notify=p), 3),
    "ORCPT's type": (lambda p: commands.rcpt("a@b", orcpt=(f"rfc822{p}", "a@b")), 3),
    "ORCPT's address": (lambda p: commands.rcpt("a@b", orcpt=("rfc822", f"a{p}b")), 3),
    "ORCPT's UTF-8 address": (lambda p: commands.rcpt("a@b", orcpt=("utf-8", f"a{p}b")), 3),
    "mechanism": (lambda p: commands.auth(f"PLAIN{p}", None), 2),
    "initial response": (lambda p: commands.auth("PLAIN", p.encode("utf-8", "surrogatepass")), 3),
}

ADDRESSES = (
    "a@b", "first.last@example.com", "a..b@example.com", ".a.@example.com", "a+b=c@example.com",
    "!#$%&'*+-/=?^_`{|}~@x.example", "user%host@relay.example", "host!user@relay.example",
    "a@under_score.example", "a@192.0.2.1", '"a b"@example.com', '"a\\"b\\\\c"@example.com',
    '"a@b>c<d"@example.com', '""@example.com', "a@[192.0.2.1]", "a@[IPv6:::1]", "a@[ipv6:2001:db8::1]",
    "a@xn--bcher-kva.example", "x" * 100 + "@example.com", "x" * 64 + "@" + "y" * 255,
)  # fmt: skip

INTERNATIONAL = (
    "jürgen@example.com",
    "a@bücher.example",
    "用户@例子.测试",
    '"ü ü"@example.com',
    "\u760a\u760d@example.com",
)

BAD_ADDRESSES = (
    "", "a", "@", "a@", "@b", "a b@example.com", "a@b c", "<a@b>", "a@b>", "a@b,c@d", "a,b@c", "a(b)@c",
    "a:b@c", "a;b@c", "a\\b@c", "a[b]@c", "a@b@c", '"a@b', '"a"b@c', 'a"b"@c', '"a"b"@c', '"a\\"@b', "a@.b",
    "a@b.", "a@b..c", "a@-b", "a@b-", "a@b/c", "a@[192.0.2]", "a@[192.0.2.1", "a@192.0.2.1]", "a@[]",
    "a@[::1]", "a@[IPv6:fe80::1%eth0]", "a@[x:y]", "a@b:25", "@relay:a@b", "a@b\u00a0", "a\u3000b@c",
    "a@" + "y" * 256, "x" * 65 + "@" + "y" * 255, "ü" * 155 + "@example.com", "Name <a@b>", "mailto:a@b",
)  # fmt: skip


class NoValueLeavesItsSlot(SynchronousTestCase):
    def test_every_slot_and_payload(self) -> None:
        for slot, (encode, words) in SLOTS.items():
            for payload in PAYLOADS:
                with self.subTest(slot=slot, payload=payload[:20], length=len(payload)):
                    try:
                        line = encode(payload)
                    except ValueError as error:
                        self.assertTrue(str(error).isprintable(), str(error))
                        self.assertLess(len(str(error)), 500)
                        continue
                    self.assertTrue(line.endswith(b"\r\n"))
                    self.assertLessEqual(len(line), commands.MAX_AUTH)
                    body = line[:-2]
                    self.assertFalse([octet for octet in body if octet < 0x20 or octet == 0x7F])
                    if b'"' not in body:
                        self.assertEqual(len(body.split(b" ")), words)
                    command = parse(body)
                    self.assertEqual(command.verb.encode(), body.split(b" ")[0])
                    self.assertNotIn("SIZE", command.parameters)

    def test_line_ends_and_nul_are_in_no_slot_but_the_base64_one(self) -> None:
        for slot, (encode, _) in SLOTS.items():
            for payload in ("\r", "\n", "\0", "\r\nRSET", "\x85", "\u2028", "\u2029", "\ud800"):
                if slot != "initial response":
                    with self.subTest(slot=slot, payload=payload):
                        self.assertRaises(ValueError, encode, payload)

    def test_errors_of_auth_do_not_tell_the_secret(self) -> None:
        error = self.assertRaises(ValueError, commands.auth, "PLAIN", b"secret" * 2000)
        self.assertNotIn(base64.b64encode(b"secret")[:6].decode(), str(error))


class WritingCommands(SynchronousTestCase):
    def test_lines(self) -> None:
        for line, expected in (
            (commands.ehlo("mail.example.com"), b"EHLO mail.example.com\r\n"),
            (commands.ehlo("[192.0.2.1]"), b"EHLO [192.0.2.1]\r\n"),
            (commands.ehlo("[IPv6:2001:db8::1]"), b"EHLO [IPv6:2001:db8::1]\r\n"),
            (commands.helo("localhost"), b"HELO localhost\r\n"),
            (commands.lhlo("a_b.example"), b"LHLO a_b.example\r\n"),
            (commands.mail(""), b"MAIL FROM:<>\r\n"),
            (commands.mail("a@b"), b"MAIL FROM:<a@b>\r\n"),
            (commands.mail("a@b", size=0, body="7BIT"), b"MAIL FROM:<a@b> SIZE=0 BODY=7BIT\r\n"),
            (commands.mail("ü@b", smtputf8=True), b"MAIL FROM:<\xc3\xbc@b> SMTPUTF8\r\n"),
            (
                commands.mail("a@b", ret="HDRS", envid="a+b=c d"),
                b"MAIL FROM:<a@b> RET=HDRS ENVID=a+2Bb+3Dc+20d\r\n",
            ),
            (commands.mail("a@b", auth=""), b"MAIL FROM:<a@b> AUTH=<>\r\n"),
            (commands.mail("a@b", auth="<>"), b"MAIL FROM:<a@b> AUTH=<>\r\n"),
            (commands.mail("a@b", auth="e+mc2@example.com"), b"MAIL FROM:<a@b> AUTH=e+2Bmc2@example.com\r\n"),
            (commands.mail("a@b", requiretls=True), b"MAIL FROM:<a@b> REQUIRETLS\r\n"),
            (commands.rcpt("Postmaster"), b"RCPT TO:<Postmaster>\r\n"),
            (commands.rcpt("a@b", notify=["NEVER"]), b"RCPT TO:<a@b> NOTIFY=NEVER\r\n"),
            (commands.rcpt("a@b", notify={"DELAY", "SUCCESS"}), b"RCPT TO:<a@b> NOTIFY=SUCCESS,DELAY\r\n"),
            (commands.rcpt("a@b", orcpt=("rfc822", "x+y@z")), b"RCPT TO:<a@b> ORCPT=rfc822;x+2By@z\r\n"),
            (
                commands.rcpt("a@b", orcpt=("utf-8", "ü+y@z")),
                b"RCPT TO:<a@b> ORCPT=utf-8;\\x{FC}\\x{2B}y@z\r\n",
            ),
            (commands.auth("LOGIN", None), b"AUTH LOGIN\r\n"),
            (commands.auth("EXTERNAL", b""), b"AUTH EXTERNAL =\r\n"),
            (commands.auth("PLAIN", b"\0a\0b"), b"AUTH PLAIN AGEAYg==\r\n"),
        ):
            with self.subTest(expected=expected):
                self.assertEqual(line, expected)

    def test_bad_values(self) -> None:
        for make in (
            lambda: commands.ehlo(""),
            lambda: commands.ehlo("a b"),
            lambda: commands.ehlo("bücher.example"),
            lambda: commands.ehlo("[1.2.3]"),
            lambda: commands.ehlo("x" * 256),
            lambda: commands.mail("postmaster"),
            lambda: commands.mail("ü@b"),
            lambda: commands.mail("a@b", auth="ü@b"),
            lambda: commands.mail("a@b", size=-1),
            lambda: commands.mail("a@b", size=10**20),
            lambda: commands.mail("a@b", body="8bitmime"),
            lambda: commands.mail("a@b", ret="BODY"),
            lambda: commands.mail("a@b", envid=""),
            lambda: commands.mail("a@b", envid="ü"),
            lambda: commands.mail("a@b", envid="x" * 2000),
            lambda: commands.rcpt(""),
            lambda: commands.rcpt("ü@b"),
            lambda: commands.rcpt("a@b", notify=[]),
            lambda: commands.rcpt("a@b", notify="NEVER"),
            lambda: commands.rcpt("a@b", notify=["NEVER", "DELAY"]),
            lambda: commands.rcpt("a@b", orcpt=("", "a@b")),
            lambda: commands.rcpt("a@b", orcpt=("rfc822", "")),
            lambda: commands.rcpt("a@b", orcpt=("rfc822", "ü@b")),
            lambda: commands.auth("plain", None),
            lambda: commands.auth("", None),
            lambda: commands.auth("X" * 21, None),
            lambda: commands.auth("XOAUTH2", b"x" * 12288),
        ):
            self.assertRaises(ValueError, make)


class Addresses(SynchronousTestCase):
    def test_good_ones_go_through_as_they_are(self) -> None:
        for address in ADDRESSES + INTERNATIONAL:
            for what in ("sender", "recipient"):
                self.assertEqual(check_address(address, what), address.encode("utf-8"))

    def test_bad_ones_are_refused_with_a_reason(self) -> None:
        for address in BAD_ADDRESSES:
            with self.subTest(address=address):
                error = self.assertRaises(ValueError, check_address, address, "recipient")
                self.assertRegex(str(error), "recipient address must")
                self.assertNotIsInstance(error, UnicodeError)

    def test_postmaster_needs_no_domain_as_a_recipient_only(self) -> None:
        for address in ("postmaster", "POSTMASTER", "Postmaster"):
            self.assertEqual(check_address(address, "recipient"), address.encode())
            self.assertRaises(ValueError, check_address, address, "sender")


class Xtext(SynchronousTestCase):
    def test_examples(self) -> None:
        for text, encoded in (
            ("", b""),
            ("abc!~<>;@", b"abc!~<>;@"),
            ("+", b"+2B"),
            ("=", b"+3D"),
            ("a b", b"a+20b"),
            ("\r\n\0\x7f", b"+0D+0A+00+7F"),
            ("ü", b"+C3+BC"),
        ):
            self.assertEqual(xtext_encode(text), encoded)
            self.assertEqual(xtext_decode(encoded), text)
        self.assertEqual(xtext_decode(b"+2b"), "+")

    def test_what_is_not_xtext(self) -> None:
        for encoded in (
            b"+",
            b"a+",
            b"+2",
            b"+2G",
            b"+ 2",
            b"++2B",
            b"a=b",
            b"a b",
            b"\xfc",
            b"\n",
            b"+2B\n",
            b"+FF",
        ):
            self.assertRaises(ValueError, xtext_decode, encoded)
        self.assertRaises(ValueError, xtext_encode, "\ud800")

    @given(st.text())
    def test_round_trip(self, text: str) -> None:
        encoded = xtext_encode(text)
        self.assertEqual(xtext_decode(encoded), text)
        self.assertRegex(encoded, rb"\A[!-~]*\Z")
        self.assertNotIn(b"=", encoded)


class ReadingCommands(SynchronousTestCase):
    def test_what_was_written_is_read_back(self) -> None:
        for address in (*ADDRESSES, *INTERNATIONAL):
            utf8 = not address.isascii()
            command = parse(
                commands.mail(
                    address,
                    size=7,
                    body="8BITMIME",
                    smtputf8=utf8,
                    ret="FULL",
                    envid="a +=b",
                    auth="",
                    requiretls=True,
                )[:-2]
            )
            expected: dict[str, str | None] = {
                "SIZE": "7", "BODY": "8BITMIME", "RET": "FULL", "ENVID": "a+20+2B+3Db", "AUTH": "<>",
                "REQUIRETLS": None,
            }  # fmt: skip
            if utf8:
                expected["SMTPUTF8"] = None
            self.assertEqual((command.verb, command.path), ("MAIL", address))
            self.assertEqual(dict(command.parameters), expected)
            command = parse(commands.rcpt(address, smtputf8=utf8, notify=["DELAY"], orcpt=("rfc822", "a+b@c"))[:-2])
            self.assertEqual((command.verb, command.path), ("RCPT", address))
            self.assertEqual(dict(command.parameters), {"NOTIFY": "DELAY", "ORCPT": "rfc822;a+2Bb@c"})

    @settings(deadline=None)
    @given(st.text(), st.sampled_from(["sender", "recipient"]))
    def test_every_address_that_can_be_written_is_read_back(self, local: str, what: str) -> None:
        quoted = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for address in (f"{local}@example.com", f"{quoted}@example.com", f"a@{local}.example"):
            try:
                check_address(address, what)
            except ValueError:
                continue
            line = commands.mail(address, smtputf8=True) if what == "sender" else commands.rcpt(address, smtputf8=True)
            self.assertEqual(parse(line[:-2]).path, address)

    @settings(deadline=None)
    @given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200))
    def test_every_envid_is_read_back(self, envid: str) -> None:
        value = parse(commands.mail("", envid=envid)[:-2]).parameters["ENVID"]
        assert value is not None
        self.assertEqual(xtext_decode(value.encode()), envid)

    def test_liberties_that_clients_take(self) -> None:
        for line, path, parameters in (
            (b"mail from:<a@b>", "a@b", {}),
            (b"MAIL FROM: <a@b>  size=1\tbody=8BITMIME ", "a@b", {"SIZE": "1", "BODY": "8BITMIME"}),
            (b"MAIL FROM:<>", "", {}),
            (b"RCPT To:<@one.example,@two.example:a@b>", "a@b", {}),
            (b"RCPT TO:<@[IPv6:::1]:a@b>", "a@b", {}),
            (b'RCPT TO:<"a> SIZE=1"@b>', '"a> SIZE=1"@b', {}),
            (b"RCPT TO:<postmaster>", "postmaster", {}),
            (b"MAIL FROM:<a@b> X-NEW=\xc3\xbc", "a@b", {"X-NEW": "ü"}),
        ):
            with self.subTest(line=line):
                command = parse(line)
                self.assertEqual((command.path, dict(command.parameters)), (path, parameters))

    def test_other_verbs_have_their_argument_as_sent(self) -> None:
        for line, verb, argument in (
            (b"ehlo  Host.Example ", "EHLO", b"Host.Example"),
            (b"DATA", "DATA", b""),
            (b"BDAT 100 LAST", "BDAT", b"100 LAST"),
            (b"AUTH PLAIN AGEAYg==", "AUTH", b"PLAIN AGEAYg=="),
            (b"X-WHAT \xff", "X-WHAT", b"\xff"),
            (b"AUTH XOAUTH2 " + b"x" * 12000, "AUTH", b"XOAUTH2 " + b"x" * 12000),
        ):
            command = parse(line)
            self.assertEqual((command.verb, command.argument), (verb, argument))
            self.assertEqual((command.path, dict(command.parameters)), (None, {}))

    def test_errors_are_replies(self) -> None:
        for line, code, enhanced in (
            (b"", 500, "5.5.2"),
            (b" NOOP", 500, "5.5.2"),
            (b"\x16\x03\x01", 500, "5.5.2"),
            (b"NOOP\tx", 500, "5.5.2"),
            (b"NOOP a\rb", 500, "5.5.2"),
            (b"NOOP a\nb", 500, "5.5.2"),
            (b"RCPT TO:<a\0@b>", 500, "5.5.2"),
            (b"NOOP " + b"x" * 2000, 500, "5.5.2"),
            (b"MAIL", 501, "5.5.4"),
            (b"MAIL a@b", 501, "5.5.4"),
            (b"MAIL FROM:a@b", 501, "5.5.4"),
            (b"MAIL FROM :<a@b>", 501, "5.5.4"),
            (b"MAIL TO:<a@b>", 501, "5.5.4"),
            (b"MAIL FROM:<a@b", 501, "5.5.4"),
            (b"MAIL FROM:<a@b>SIZE=1", 501, "5.5.4"),
            (b"MAIL FROM:<a@b>>", 501, "5.5.4"),
            (b"MAIL FROM:<a@b> SIZE=", 501, "5.5.4"),
            (b"MAIL FROM:<a@b> =1", 501, "5.5.4"),
            (b"MAIL FROM:<a@b> SIZE=1=2", 501, "5.5.4"),
            (b"MAIL FROM:<a@b> SIZE=1 size=2", 501, "5.5.4"),
            (b"MAIL FROM:<a@b> X=\xff", 501, "5.5.4"),
            (b"MAIL FROM:<a b@c>", 501, "5.1.7"),
            (b"MAIL FROM:<postmaster>", 501, "5.1.7"),
            (b"MAIL FROM:<\xff@b>", 501, "5.1.7"),
            (b"RCPT TO:<>", 501, "5.1.3"),
            (b"RCPT TO:<@a:>", 501, "5.1.3"),
            (b"RCPT TO:<a@b..c>", 501, "5.1.3"),
            (b'RCPT TO:<"a@b>', 501, "5.5.4"),
        ):
            with self.subTest(line=line[:40]):
                error = self.assertRaises(CommandError, parse, line)
                self.assertEqual((error.code, error.enhanced), (code, enhanced))
                self.assertTrue(error.text.isprintable() and error.text.isascii())
                self.assertEqual(str(error), f"{code} {enhanced} {error.text}")
                self.assertIsInstance(error, ValueError)

    @settings(deadline=None)
    @given(st.binary(), st.sampled_from([b"", b"MAIL FROM:<", b"RCPT TO:<", b'RCPT TO:<"', b"MAIL FROM:<a@b> "]))
    def test_any_bytes_are_a_command_or_an_error(self, data: bytes, head: bytes) -> None:
        try:
            command = parse(head + data)
        except CommandError:
            return
        self.assertTrue(command.verb.isascii())
        if command.path:
            check_address(command.path, "recipient")
