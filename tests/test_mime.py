"""Messages of the email package: what is sent of them, and what is left as it is."""

from __future__ import annotations

import email
from email import policy
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache.mime import needs_smtputf8, serialised, seven_bit_form


def message(body: str = "hello\n", *, cte: str | None = None, **fields: Any) -> EmailMessage:
    """A message with these header fields."""
    made = EmailMessage()
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    made.set_content(body, cte=cte)
    return made


def fields(data: bytes) -> list[bytes]:
    """The lines of the header."""
    return data.partition(b"\r\n\r\n")[0].split(b"\r\n")


def read(data: bytes) -> EmailMessage:
    """What a reader of the message makes of it."""
    parsed = email.message_from_bytes(data, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


class Serialised(SynchronousTestCase):
    def check_refused(self, made: Message, *parts: str) -> None:
        for smtputf8 in (False, True):
            error = self.assertRaises(ValueError, serialised, made, smtputf8=smtputf8)
            for part in ("content: the message can't be written: ", *parts):
                self.assertIn(part, str(error))
            self.assertTrue(str(error).isprintable(), error)

    def test_with_line_ends_as_mail_has_them(self) -> None:
        for body in ("one\ntwo\n", "one\r\ntwo\r\n"):
            data = serialised(message(body, Subject="hi"), smtputf8=False)
            self.assertTrue(data.endswith(b"\r\n\r\none\r\ntwo\r\n"))
            self.assertEqual(data.count(b"\n"), data.count(b"\r\n"))

    def test_blind_copies_stay_blind(self) -> None:
        """And the caller's message is what it was."""
        made = message(To="b@example.com", Bcc="c@example.com", Resent_Bcc="d@example.com", Resent_To="e@example.com")
        before = made.as_bytes()
        data = serialised(made, smtputf8=False)
        self.assertEqual(made.as_bytes(), before)
        self.assertEqual([line.split(b":")[0] for line in fields(data)][:2], [b"To", b"Resent-To"])
        self.assertNotIn(b"bcc", data.lower())
        self.assertNotIn(b"c@example.com", data)
        self.assertIn("Bcc", made)

    def test_the_callers_message_is_not_changed_at_any_depth(self) -> None:
        """Not even a boundary is put into it."""
        inner, outer = MIMEMultipart(), MIMEMultipart()
        inner.attach(MIMEText("caf\xe9", _charset="utf-8"))
        outer.attach(inner)
        outer["Subject"] = "caf\xe9"
        serialised(outer, smtputf8=False)
        self.assertEqual((outer.get_boundary(), inner.get_boundary()), (None, None))
        self.assertEqual(list(outer.raw_items())[-1], ("Subject", "caf\xe9"))

    def test_header_fields_in_encoded_words_or_in_utf_8(self) -> None:
        for made in (message(Subject="caf\xe9", To="J\xfcrgen <j@example.com>"), MIMEText("hello\n")):
            if "Subject" not in made:
                made["Subject"], made["To"] = "caf\xe9", "J\xfcrgen <j@example.com>"
            self.assertFalse(needs_smtputf8(made))
            data = serialised(made, smtputf8=False)
            self.assertTrue(data.isascii())
            self.assertIn(b"Subject: =?utf-8?q?caf=C3=A9?=", fields(data))
            self.assertEqual((read(data)["Subject"], read(data)["To"]), ("caf\xe9", "J\xfcrgen <j@example.com>"))
            data = serialised(made, smtputf8=True)
            self.assertIn("Subject: caf\xe9".encode(), fields(data))
            self.assertIn("To: J\xfcrgen <j@example.com>".encode(), fields(data))

    def test_domains_as_a_labels(self) -> None:
        group = Group("g", [Address("J\xfcrgen", "j", "b\xfccher.example"), Address("", "k", "example.com")])
        for value in ("J\xfcrgen <j@b\xfccher.example>, k@example.com", [Address("", "j", "b\xfccher.example")], group):
            made = message(To=value)
            self.assertFalse(needs_smtputf8(made))
            data = serialised(made, smtputf8=False)
            self.assertTrue(data.isascii())
            self.assertEqual(read(data)["To"].addresses[0].addr_spec, "j@xn--bcher-kva.example")
            self.assertIn("b\xfccher".encode(), serialised(made, smtputf8=True))

    def test_smtputf8_is_needed_where_an_address_has_no_ascii_form(self) -> None:
        for wrong in ("j\xfcrgen@example.com", "g: a@example.com, \xfc@example.com;", "a@stra\xdfe.example"):
            for name in ("From", "To", "Cc", "Reply-To", "Resent-To"):
                for made in (EmailMessage(), Message()):
                    made[name] = wrong
                    self.assertTrue(needs_smtputf8(made), (name, wrong))
                    self.assertIn(f"{name}: {wrong}".encode(), serialised(made, smtputf8=True))
        for name, value in (("Bcc", "j\xfcrgen@example.com"), ("Subject", "j\xfcrgen@example.com")):
            self.assertFalse(needs_smtputf8(message(**{name: value})), name)

    def test_what_was_parsed_stays_as_it_was(self) -> None:
        """Folding, long lines up to the limit, and fields that the library would write otherwise."""
        raw = (
            b"DKIM-Signature: v=1; d=example.com;\r\n\tb=" + b"a" * 500 + b"\r\nReferences: <" + b"x" * 200 + b"@y>\r\n"
            b"Subject:  two  spaces\r\nTo: \"A\"   <a@example.com>\r\n\r\nbody\r\n.dot\r\n"
        )  # fmt: skip
        for rules in (policy.default, policy.compat32, policy.SMTP):
            for smtputf8 in (False, True):
                data = serialised(email.message_from_bytes(raw, policy=rules), smtputf8=smtputf8)
                self.assertEqual(data, raw.replace(b"Subject:  two", b"Subject: two"))

    def test_8_bit_header_fields_that_were_parsed_are_encoded(self) -> None:
        raw = b"Subject: caf\xc3\xa9\r\nX-Odd: \xff\r\nTo: \xc3\xbc@example.com\r\n\r\nhi\r\n"
        for rules in (policy.default, policy.compat32):
            made = email.message_from_bytes(raw, policy=rules)
            self.assertTrue(needs_smtputf8(made))
            self.assertIn(b"Subject: caf\xc3\xa9", fields(serialised(made, smtputf8=True)))
            del made["To"]
            self.assertFalse(needs_smtputf8(made))
            self.assertTrue(serialised(made, smtputf8=False).isascii())

    def test_lines_over_998_octets_in_the_header_are_folded(self) -> None:
        for value in ("word " * 400, "word " * 400 + "caf\xe9"):
            for made in (EmailMessage(), Message()):
                made["X-Long"] = value
                lines = fields(serialised(made, smtputf8=False))
                self.assertLess(max(len(line) for line in lines), 998)
                self.assertGreater(len(lines), 10)

    def test_older_kinds_of_values(self) -> None:
        made = Message()
        made["Subject"] = Header("caf\xe9", "utf-8")
        made["X-Plain"] = "plain"
        made.set_payload("caf\xe9", "utf-8")
        self.assertEqual(read(serialised(made, smtputf8=False))["Subject"], "caf\xe9")
        self.assertEqual(read(serialised(made, smtputf8=True)).get_content().rstrip(), "caf\xe9")

    def test_no_value_becomes_another_field(self) -> None:
        for value in ("a\nBcc: c@example.com", "a\r\nX: y", "a\rX: y", "a\n\nbody", "a\n", "a\r\n\r\nbody"):
            made = Message()
            made["Subject"] = value
            self.check_refused(made, "the header field Subject has a line end in its value")
        for name in ("X Y", "X:Y", "X\r\nY", "", "\xfc"):
            made = Message()
            made._headers.append((name, "value"))  # type: ignore[attr-defined]
            self.check_refused(made, "is no name of a header field")
        folded = Message()
        folded["Subject"] = "a\n b\r\n\tc"
        self.assertEqual(fields(serialised(folded, smtputf8=False)), [b"Subject: a", b" b", b"\tc"])

    def test_what_can_not_be_written_is_told(self) -> None:
        made = Message()
        made.set_payload("caf\xe9")
        self.check_refused(made, "UnicodeEncodeError", "\\xe9")
        made = Message()
        made["X"] = 5  # type: ignore[assignment]
        self.check_refused(made, "the header field X has a int for its value")
        made = MIMEMultipart()
        made.set_payload(["text"])  # type: ignore[arg-type]
        self.check_refused(made)
        made = Message()
        made.set_payload(object())  # type: ignore[arg-type]
        self.check_refused(made)


class SevenBitForms(SynchronousTestCase):
    def form(self, made: Message) -> EmailMessage:
        data = serialised(made, smtputf8=False)
        self.assertFalse(data.isascii(), "else there is nothing to do")
        form = seven_bit_form(data)
        assert form is not None
        self.assertTrue(form.isascii())
        self.assertLessEqual(max(len(line) for line in form.split(b"\r\n")), 998)
        self.assertEqual(fields(form)[:1], fields(data)[:1])
        return read(form)

    def test_of_text(self) -> None:
        for body in ("caf\xe9\n", "caf\xe9 at the end \n.dot\n\n", "caf\xe9 =\t\n" * 1000, "\xe9" * 900 + "\n"):
            form = self.form(message(body, cte="8bit", Subject="caf\xe9"))
            self.assertEqual(form.get_content(), body.replace("\n", "\r\n"))
            self.assertEqual((form["Content-Transfer-Encoding"], form["MIME-Version"]), ("quoted-printable", "1.0"))

    def test_of_attachments(self) -> None:
        made = message("caf\xe9\n", cte="8bit", Subject="a")
        made.add_attachment(b"\xff\n\0", maintype="application", subtype="x", cte="8bit")
        made.add_attachment(message("inside \xe9\n", cte="8bit", Subject="b"), cte="8bit")
        made.add_attachment(b"plain", maintype="application", subtype="y")
        text, octets, inside, plain = self.form(made).iter_parts()
        self.assertEqual(text.get_content(), "caf\xe9\r\n")
        self.assertEqual(octets["Content-Transfer-Encoding"], "base64")
        self.assertEqual(inside.get_content().get_content(), "inside \xe9\r\n")
        self.assertEqual(inside["Content-Transfer-Encoding"], "7bit")
        self.assertEqual(plain.get_content(), b"plain")

    def test_of_text_that_says_nothing_of_itself(self) -> None:
        form = self.form(email.message_from_bytes(b"Subject: a\r\n\r\ncaf\xe9\r\n"))
        self.assertEqual(form["MIME-Version"], "1.0")
        self.assertEqual(form.get_payload(decode=True), b"caf\xe9\r\n")

    SIGNED = (
        b"Subject: a\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=m\r\n\r\n"
        b"--m\r\nContent-Type: multipart/signed; boundary=s\r\n\r\n"
        b"--s\r\nContent-Type:text/plain\r\n\r\nsigned %s\r\n--s\r\nContent-Type: application/pgp-signature\r\n\r\n"
        b"signature\r\n--s--\r\n\r\n"
        b"--m\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\ncaf\xc3\xa9\r\n"
        b"--m--\r\n"
    )

    def test_leave_what_is_signed_alone(self) -> None:
        """Or there is none, where that is not 7-bit, or where it could not be written again as it was."""
        good = (self.SIGNED % b"text").replace(b"Type:text", b"Type: text")
        form = seven_bit_form(good)
        assert form is not None
        head, _, tail = good.partition(b"--m\r\nContent-Type: text/plain;")
        self.assertTrue(form.startswith(head))
        self.assertIn(b"caf=C3=A9", form)
        self.assertNotIn(b"caf\xc3", form)
        self.assertTrue(tail)
        self.assertIsNone(seven_bit_form(good.replace(b"signed text", b"signed \xc3\xa9")))
        self.assertIsNone(seven_bit_form(self.SIGNED % b"text"), "the library would write a space behind the colon")

    def test_are_none_where_the_header_is_8_bit(self) -> None:
        made = message("caf\xe9\n", cte="8bit", To="\xfc@example.com")
        self.assertIsNone(seven_bit_form(serialised(made, smtputf8=True)))
