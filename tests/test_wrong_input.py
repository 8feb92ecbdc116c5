"""What callers get wrong is told at once: in one error that names what was wrong, and what would be right."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mailcache import (
    Credentials,
    Destination,
    Envelope,
    Limits,
    MemorySessionCache,
    Timeouts,
    TLSPolicy,
    deliver,
)
from mailcache.destination import MAX_PEM
from mailcache.testing import Authority, MemoryReactor
from tests.helpers import SMALL, Bed, stored

Row = tuple[Callable[[], object], Iterable[str]]
"""What is done, and the parts of the error's text."""

ONE, OTHER = Authority("one"), Authority("other")
DIGEST = "ab" * 32
SENDER, RECIPIENT = "a@example.com", "b@example.com"


class WrongInput(SynchronousTestCase):
    """Each of these is one ValueError, or a TypeError where no value of that type would do."""

    def check(self, rows: Iterable[Row], kind: type[Exception] = ValueError) -> None:
        for call, parts in rows:
            with self.assertRaises(kind) as raised:
                self.fail(f"no error, but {call()!r}; {parts}")
            text = str(raised.exception)
            for part in parts:
                self.assertIn(part, text)
            self.assertNotIn("\n", text)

    # -- where to ----------------------------------------------------------------------------------------------

    def test_next_hop(self) -> None:
        forms = ("next hop: ", "is none of example.com, example.com:587, [mail.example.com]")
        port = "is not a number from 1 to 65535"
        rows: list[tuple[Any, tuple[str, ...]]] = [
            *[
                (text, (*forms, repr(text)))
                for text in (
                    "",
                    " ",
                    "example.com ",
                    "example..com",
                    ".example.com",
                    "example.com..",
                    ".",
                    "exa mple.com",
                    "example.com\r\n",
                    "example.com\0",
                    "-example.com",
                    "example-.com",
                    "user@example.com",
                    "example.com/25",
                    f"{'a' * 64}.example",
                    f"{'a.' * 127}b",
                    "*.example.com",
                    "[]",
                    "[example..com]",
                    "[mail.example.com",
                    "mail.example.com]",
                    "[mail.example.com]25",
                    "[[::1]]",
                    "[192.0.2.1",
                    "[192.0.2.256]",
                    "[192.0.2]",
                    "[192.0.2.01]",
                    "[0x7f.0.0.1]",
                    "[0x7f000001]",
                    "192.0.2.256",
                    "2130706433",
                    "[2001:db8::1%]",
                    "[fe80::1%a/b]",
                    "[fe80::1%a b]",
                    "[fe80::1%a\r\nb]",
                    "[fe80::1%an_interface_name_too_long]",
                    "[2001:db8::1::]",
                )
            ],
            *[
                (text, ("next hop: ", "is an address", "write it in brackets", right))
                for text, right in (
                    ("192.0.2.1", "[192.0.2.1]"),
                    ("192.0.2.1:25", "[192.0.2.1]:25"),
                    ("::1", "[::1]"),
                    ("2001:db8::1", "[2001:db8::1]"),
                    ("fe80::1%lo", "[fe80::1%lo]"),
                )
            ],
            *[
                (text, ("next hop: ", repr(text), "the port ", port))
                for text in (
                    "example.com:",
                    "example.com:0",
                    "example.com:-1",
                    "example.com:+1",
                    "example.com:65536",
                    "example.com:99999999",
                    "example.com:smtp",
                    "example.com: 25",
                    "example.com:2_5",
                    "example.com:\u0662\u0665",
                    "example.com:25:25",
                    "http://example.com",
                    "[192.0.2.1]:",
                    "[::1]:0",
                    "[::1]:25\n",
                )
            ],
            *[
                (text, ("next hop: ", repr(text), "write an international name in its ASCII form, xn--"))
                for text in ("b\xfccher.example", "[b\xfccher.example]:25", "\u212aelvin.example", "example\u3002com")
            ],
            *[
                (text, ("next hop: ", "an absolute path of at most 107 bytes is wanted after unix:"))
                for text in (
                    "unix:",
                    "unix:run/lmtp",
                    "unix:/run/\0",
                    "unix:/run/a\nb",
                    "unix:/run/\x1b[m",
                    f"unix:/{'a' * 107}",
                    "unix:/\xe4" + "\xe4" * 60,
                )
            ],
            ("unix", ("next hop: ", "unix:/path", "a host's name is [unix]")),
            ("Unix.", ("next hop: ", "unix:/path", "a host's name is [unix]")),
            ("unix:/\ud800", ("next hop: ", "an absolute path")),
            ("[IPv6:mail.example.com]", ("next hop: ", "'mail.example.com' is no IPv6 address")),
            ("[IPv6:192.0.2.1]", ("next hop: ", "'192.0.2.1' is no IPv6 address")),
            (None, ("next hop: a string such as example.com", "not NoneType")),
            (b"example.com", ("next hop: a string such as example.com", "not bytes")),
            (("example.com", 25), ("next hop: a string such as example.com", "not tuple")),
        ]
        self.check((lambda text=text: Destination(text), parts) for text, parts in rows)

    def test_destination(self) -> None:
        def row(wrong: dict[str, Any], *parts: str) -> Row:
            return lambda: Destination("example.com", **wrong), parts

        smtps = ('tls: "smtps" is TLS from the first byte', 'give TLSPolicy("verify"), or "encrypt"')
        address = "is not an IP address such as 192.0.2.1"
        self.check(
            [
                *[
                    row({"protocol": protocol}, "protocol: ", repr(protocol), "is not one of smtp, smtps, lmtp")
                    for protocol in ("SMTP", "http", "", None, 25, ["smtp"])
                ],
                *[
                    row({"namespace": name}, "namespace: ", repr(name), "is not a printable string of at least one")
                    for name in ("", "a\n", "a\0b", None, 1, b"a")
                ],
                *[
                    row({"bind_address": bound}, f"bind_address: {bound!r} {address}")
                    for bound in ("", "localhost", "192.0.2.1:25", "[::1]", "192.0.2.256", 5, b"\x7f\0\0\1", "::1%\n")
                ],
                *[
                    row({"helo_name": name}, "helo_name: ", part)
                    for name, part in (
                        ("", "must be labels of letters"),
                        ("a b", "must be labels of letters"),
                        ("a\r\nMAIL FROM:<>", "must be labels of letters"),
                        ("192.0.2.1]", "must be labels of letters"),
                        ("[192.0.2.256]", "must be like [192.0.2.1]"),
                        ("[fe80::1%lo]", "must be like [192.0.2.1]"),
                        ("b\xfccher.example", "xn--"),
                        (b"a.example", "a host name or address literal is wanted, not bytes"),
                        (1, "a host name or address literal is wanted, not int"),
                    )
                ],
                *[
                    row({"credentials": given}, f"credentials: a Credentials object is wanted, not {name}")
                    for given, name in ((("user", "c4n4ry"), "tuple"), ("user:c4n4ry", "str"), ({}, "dict"))
                ],
                *[
                    row({"tls": given}, f'tls: a TLSPolicy is wanted, as in TLSPolicy("verify"), not {name}')
                    for given, name in (("verify", "str"), (True, "bool"), (TLSPolicy, "type"))
                ],
                row({"proxy": ""}, "proxy: ", "printable string"),
                row({"proxy": "tor\n"}, "proxy: ", "printable string"),
                row({"proxy": 9050}, "proxy: ", "printable string"),
                row({"proxy": "tor", "bind_address": "192.0.2.1"}, "proxy: ", "bind_address"),
                row({"protocol": "smtps"}, *smtps, '"may"'),
                row({"protocol": "smtps", "tls": TLSPolicy("may")}, *smtps, '"may"'),
                row({"protocol": "smtps", "tls": TLSPolicy("none")}, *smtps, '"none"'),
            ]
        )

    def test_credentials(self) -> None:
        self.check(
            [
                (lambda: Credentials("", "b"), ["credentials: the username is empty"]),
                (lambda: Credentials(None, "b"), ["credentials: the username must be a string, not NoneType"]),
                (lambda: Credentials("a", None), ["credentials: the password must be a string, not NoneType"]),
                (lambda: Credentials("a", b"b"), ["credentials: the password must be a string, not bytes"]),
                (lambda: Credentials("a\0", "b"), ["credentials: user name must be Unicode text without NUL"]),
                (lambda: Credentials("a", "\0b"), ["credentials: password must be Unicode text without NUL"]),
                (lambda: Credentials("a", "\ud800"), ["credentials: password must be Unicode text without NUL"]),
                (lambda: Credentials("a", "b" * 9300), ["credentials: AUTH must be at most 12288 bytes, not "]),
            ]
        )
        Credentials("a", "b" * 9000)

    # -- TLS ---------------------------------------------------------------------------------------------------

    def test_policy(self) -> None:
        def row(wrong: dict[str, Any], *parts: str) -> Row:
            return lambda: TLSPolicy(**wrong), parts

        digest = "is no SHA-256 digest: 64 hexadecimal digits are wanted, colons allowed"
        name = "is neither a host name in ASCII nor an address nor .example.com"
        self.check(
            [
                *[
                    row({"level": level}, f"level: {level!r} is not one of none, may, encrypt, fingerprint, verify")
                    for level in ("Verify", "", "starttls", None, True, 3, ["verify"])
                ],
                *[
                    row({"level": "fingerprint", "fingerprints": (given,)}, f"fingerprints: {given!r} {digest}")
                    for given in ("", "ab", "ab" * 20, "zz" * 32, "ab" * 33, "sha256:" + "ab" * 32, b"ab" * 32, 1, None)
                ],
                row({"level": "fingerprint", "fingerprints": DIGEST}, "fingerprints: a tuple of strings is wanted"),
                row({"level": "fingerprint", "fingerprints": 1}, "fingerprints: a tuple of strings is wanted, not 1"),
                row({"level": "fingerprint", "fingerprints": None}, "fingerprints: a tuple of strings is wanted"),
                row({"level": "fingerprint"}, 'level "fingerprint" needs at least one SHA-256 digest'),
                *[
                    row({"level": level, "fingerprints": (DIGEST,)}, 'used by level "fingerprint" only', f'"{level}"')
                    for level in ("none", "may", "encrypt", "verify", "secure")
                ],
                *[
                    row({"level": level, "match": ("a.example",)}, 'match: used by levels "verify" and "secure" only')
                    for level in ("none", "may", "encrypt")
                ],
                row({"level": "fingerprint", "fingerprints": (DIGEST,), "match": ("a",)}, "match: ", '"fingerprint"'),
                *[
                    row({"level": "verify", "match": (given,)}, f"match: {given!r} {name}")
                    for given in (
                        "",
                        ".",
                        "..example.com",
                        "*.example.com",
                        "a b",
                        "a\0b",
                        "\u212aelvin.example",
                        "b\xfccher.example",
                        "192.0.2.256",
                        "[192.0.2.1]",
                        ".192.0.2.1",
                        "a." * 127 + "b",
                        None,
                        1,
                        b"a.example",
                    )
                ],
                row({"level": "verify", "match": "a.example"}, "match: a tuple of strings is wanted, not 'a.example'"),
                row({"level": "verify", "match": 5}, "match: a tuple of strings is wanted, not 5"),
                *[
                    row({"servername": given}, f"servername: {given!r} is not a host name in ASCII, such as mail.")
                    for given in ("", ".a.example", "192.0.2.1", "::1", "a b", "\u017f.example", 1, b"a", "a" * 64)
                ],
                *[
                    row({"min_version": given}, f"min_version: {given!r} is not one of TLSv1.2, TLSv1.3")
                    for given in ("TLSv1", "TLSv1.1", "SSLv3", "1.2", "tlsv1.2", None, 1.2)
                ],
                *[
                    row({"ciphers": given}, f"ciphers: {given!r} is no OpenSSL cipher string that selects anything")
                    for given in ("", "NO-SUCH-CIPHER", "H\xccGH", "HIGH\0", "TLS_AES_128_GCM_SHA256", 1, b"HIGH", [])
                ],
                *[
                    row({"ca_file": given}, f"ca_file: the path of a PEM file is wanted, as a string, not {given!r}")
                    for given in ("", b"/etc/ca.pem", 5, Path("/etc/ca.pem"))
                ],
            ]
        )

    def test_names_must_be_given(self) -> None:
        """What stands second or third is a guess."""
        self.check(
            [
                (lambda: TLSPolicy("verify", "/etc/ca.pem"), ["positional argument"]),
                (lambda: Destination("example.com", "lmtp"), ["positional argument"]),
                (lambda: Envelope("a@example.com", [RECIPIENT], True), ["positional argument"]),
                (lambda: MemorySessionCache(MemoryReactor(), None, None, None, None), ["positional argument"]),
            ],
            TypeError,
        )

    def test_pem_files(self) -> None:
        """Both kinds of PEM files, each for itself."""
        pair = ONE.issue(client=True)
        encrypted = pair.key_pem.replace(b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY")
        folder = self.mktemp()
        os.mkdir(folder)
        unreadable = stored(self, ONE.certificate_pem)
        os.chmod(unreadable, 0)
        garbage = ONE.certificate_pem.replace(b"MII", b"XII")
        contents: tuple[tuple[str, bytes, str], ...] = (
            ("ca_file", b"", "holds no PEM certificate"),
            ("ca_file", b"\0" * 1000, "holds no PEM certificate"),
            ("ca_file", pair.key_pem, "holds no PEM certificate"),
            ("ca_file", garbage, "holds PEM that can't be used"),
            ("ca_file", ONE.certificate_pem[:-40], "holds PEM that can't be used"),
            ("ca_file", ONE.certificate_pem + garbage, "holds PEM that can't be used"),
            ("ca_file", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "holds PEM that can't be used"),
            ("ca_file", b"#" * (MAX_PEM + 1), f"has more than {MAX_PEM} bytes: it is no PEM file"),
            ("client_certificate", b"", "holds no PEM private key"),
            ("client_certificate", pair.certificate_pem, "holds no PEM private key"),
            ("client_certificate", pair.key_pem, "holds PEM that can't be used"),
            (
                "client_certificate",
                OTHER.issue().key_pem + pair.certificate_pem,
                "holds PEM that can't be used: the private key is not",
            ),
            ("client_certificate", encrypted + pair.certificate_pem, "holds PEM that can't be used"),
            ("client_certificate", pair.key_pem.replace(b"MIG", b"XIG"), "holds PEM that can't be used"),
        )
        paths = [(field, stored(self, content), part) for field, content, part in contents]
        for field in ("ca_file", "client_certificate"):
            paths.append((field, "/no/such/file.pem", "can't be read: No such file or directory"))
            paths.append((field, folder, "can't be read: Is a directory"))
            paths.append((field, f"{unreadable}/ca.pem", "can't be read: Not a directory"))
            paths.append((field, "/etc/ca\0.pem", "can't be read: embedded null byte"))
            if os.geteuid() != 0:
                paths.append((field, unreadable, "can't be read: Permission denied"))

        def named(field: str, path: Any) -> Destination:
            if field == "ca_file":
                return Destination("example.com", tls=TLSPolicy("verify", ca_file=path))
            return Destination("example.com", client_certificate=path)

        self.check((lambda f=field, p=path: named(f, p), [f"{field}: {path!r} {part}"]) for field, path, part in paths)
        self.check(
            (lambda p=path: named("client_certificate", p), ["client_certificate: the path of a PEM file is wanted"])
            for path in ("", 5, b"/etc/key.pem", Path("/etc/key.pem"))
        )

    # -- how much and how long ------------------------------------------------------------------------------------

    def test_limits(self) -> None:
        def row(kind: type, name: str, value: object, right: str) -> Row:
            return lambda: kind(**{name: value}), [f"{name}: {value!r} is not {right}"]

        counts = {"sessions": 1, "sessions_per_destination": 1, "sessions_per_endpoint": 1, "waiters": 0, "max_uses": 1}
        rows = []
        for field in attrs.fields(Limits):
            least = counts.get(field.name)
            values: tuple[object, ...]
            if field.name == "keep":
                values = ("", "Busy", "never", None, True, 1, b"busy")
                right = "one of always, busy"
            elif least is None:
                values = (-1, -0.001, float("nan"), float("inf"), "5", True, None, 1j)
                right = "a number of seconds of at least 0"
            else:
                values = (least - 1, -1, 1.5, 2.0, "5", True, b"5")
                right = f"a whole number of at least {least}"
            rows += [row(Limits, field.name, value, right) for value in values]
        for field in attrs.fields(Timeouts):
            values = (0, 0.0, -1, float("nan"), float("inf"), 10**400, "5", True, None)
            rows += [row(Timeouts, field.name, value, "a number of seconds of at least 0.001") for value in values]
        self.check(rows)
        self.check(
            [
                (lambda: Limits(idle=5), ["unexpected keyword argument 'idle'"]),
                (lambda: Timeouts(banner=5), ["unexpected keyword argument 'banner'"]),
                (lambda: Limits(5), ["positional argument"]),
            ],
            TypeError,
        )

    def test_cache(self) -> None:
        reactor = MemoryReactor()
        self.check(
            [
                (lambda: MemorySessionCache(reactor, {"sessions": 5}), ["limits: a Limits object is wanted, not dict"]),
                (lambda: MemorySessionCache(reactor, Timeouts()), ["limits: a Limits object", "not Timeouts"]),
                (lambda: MemorySessionCache(reactor, None, 5), ["timeouts: a Timeouts object is wanted, not int"]),
                (lambda: MemorySessionCache(reactor, None, Limits()), ["timeouts: a Timeouts", "not Limits"]),
            ]
        )

    # -- the message ---------------------------------------------------------------------------------------------

    def test_envelope(self) -> None:
        def row(wrong: dict[str, Any], *parts: str) -> Row:
            right: dict[str, Any] = {"sender": SENDER, "recipients": [RECIPIENT]}
            return lambda: Envelope(**(right | wrong)), parts

        addresses: tuple[tuple[str, str], ...] = (
            ("nobody", "address must be local@domain"),
            ("@example.com", "address must be local@domain"),
            ("a@", "address must be local@domain"),
            ("a@b@", "address must be local@domain"),
            ("a b@example.com", "must be letters, digits, dots"),
            ("a<b@example.com", "must be letters, digits, dots"),
            ('"a@example.com', "must end with its only bare quote"),
            ("a@example..com", "labels of letters"),
            ("a@[192.0.2.256]", "must be like [192.0.2.1]"),
            ("a@example.com\r\nRCPT TO:<c@example.com>", "must not have the character U+000D"),
            ("a\0@example.com", "must not have the character U+0000"),
            ("a\ud800@example.com", "must not have the character U+D800"),
            ("a" * 400 + "@example.com", "must be at most 320 octets"),
        )
        strings = "recipients: a list of addresses as strings is wanted, not "
        self.check(
            [
                *[row({"sender": given}, "sender address", part) for given, part in addresses if " must" not in part],
                *[
                    row({"recipients": [given]}, "recipient address", part.removeprefix("address "))
                    for given, part in addresses
                ],
                *[row({"sender": given}, "sender", part.removeprefix("address ")) for given, part in addresses],
                row({"sender": None}, 'sender: an address as a string is wanted, or "", not None'),
                row({"sender": b"a@example.com"}, "sender: an address as a string is wanted", "b'a@example.com'"),
                row({"recipients": []}, "recipients: at least one address is needed"),
                row({"recipients": ()}, "recipients: at least one address is needed"),
                row({"recipients": ""}, "recipients: a list of addresses is wanted, not the one string ''"),
                row({"recipients": RECIPIENT}, "a list of addresses is wanted, not the one string 'b@example.com'"),
                row({"recipients": None}, strings, "None"),
                row({"recipients": 5}, strings, "5"),
                row({"recipients": b"b@example.com"}, strings),
                row({"recipients": [b"b@example.com"]}, strings),
                row({"recipients": [RECIPIENT, None]}, strings, "None"),
                row({"recipients": [[RECIPIENT]]}, strings),
                row({"recipients": [""]}, "recipient address must be local@domain"),
                row({"body": "8bitmime"}, "body: '8bitmime' is not one of 7BIT, 8BITMIME, or None"),
                row({"body": "BINARYMIME"}, "body: 'BINARYMIME' is not one of"),
            ]
        )

    def test_content(self) -> None:
        bed = Bed()
        closed = io.BytesIO(SMALL)
        closed.close()
        writing = open(self.mktemp(), "wb")  # noqa: SIM115
        text = open(stored(self, SMALL))  # noqa: SIM115
        self.addCleanup(writing.close)
        self.addCleanup(text.close)

        def sent(content: Any, **envelope: Any) -> Callable[[], object]:
            return lambda: deliver(bed.cache, bed.destination, Envelope(SENDER, [RECIPIENT], **envelope), content)

        wanted = "content: bytes, a binary file or an EmailMessage is wanted, not "
        binary = "content: a text file can't be sent: open it in binary mode ('rb')"
        self.check(
            [
                (sent("text"), [wanted + "str"]),
                (sent(None), [wanted + "NoneType"]),
                (sent([b"a"]), [wanted + "list"]),
                (sent(Path("a")), [wanted]),
                (sent(io.StringIO("text")), [binary]),
                (sent(text), [binary]),
            ],
            TypeError,
        )
        self.check(
            [
                (sent(closed), ["content: the file can't be read: ", "closed"]),
                (sent(writing), ["content: the file can't be read: "]),
                (sent(b"\xff", body="7BIT"), ["body: the content has 8-bit bytes", "8BITMIME"]),
            ]
        )
        self.assertEqual(bed.server.connection_count, 0)
        bed.close()

    def test_delivery(self) -> None:
        bed = Bed()
        envelope = Envelope(SENDER, [RECIPIENT])

        def row(*parts: str, **wrong: Any) -> Row:
            right = {"cache": bed.cache, "destination": bed.destination, "envelope": envelope, "content": SMALL}
            return lambda: deliver(**(right | wrong)), parts

        self.check(
            [
                row("destination: a Destination is wanted, not str", destination="example.com"),
                row("destination: a Destination is wanted, not NoneType", destination=None),
                row("envelope: an Envelope is wanted, not tuple", envelope=(SENDER, [RECIPIENT])),
                row("envelope: an Envelope is wanted, not EmailMessage", envelope=EmailMessage()),
                *[
                    row(f"deadline: {deadline!r} is not a positive number of seconds", deadline=deadline)
                    for deadline in (0, -1, -0.5, float("nan"), float("inf"), "5", True, [5])
                ],
            ]
        )
        self.assertEqual((bed.server.connection_count, bed.counts()), (0, (0, 0, 0, 0)))
        bed.close()
