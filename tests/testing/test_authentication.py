"""The scripted server's side of AUTH: what it takes, and what it holds against a client."""

from __future__ import annotations

import base64
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing.authentication import ALL_MECHANISMS
from tests.testing.lockstep import CERTIFICATE, Scene

REFUSED, MALFORMED = b"535 5.7.8 credentials not accepted\r\n", b"501 5.5.2 not base64\r\n"


def b64(text: bytes) -> bytes:
    return base64.b64encode(text)


class Strictness(SynchronousTestCase):
    def said(self, *lines: bytes, **more: Any) -> tuple[bytes, list[str]]:
        """The last answer, and what was noted."""
        settings = {"users": {"ann": "secret"}, "mechanisms": ALL_MECHANISMS, **more}
        scene = Scene(certificate=CERTIFICATE, **settings)
        client = scene.ready(tls=True)
        for line in lines[:-1]:
            self.assertEqual(scene.say(client, line + b"\r\n")[:4], b"334 ")
        answer = scene.say(client, lines[-1] + b"\r\n")
        return answer, [each.removeprefix("connection 1: ") for each in scene.server.violations]

    def test_offers(self) -> None:
        scene = Scene(certificate=CERTIFICATE, users={}, mechanisms=("XOAUTH2", "PLAIN"))
        self.assertNotIn(b"AUTH", scene.say(scene.ready(), b"EHLO me\r\n"))
        client = scene.ready(tls=True)
        self.assertIn(b"250 AUTH XOAUTH2 PLAIN\r\n", scene.say(client, b"EHLO me\r\n"))
        self.assertEqual(scene.say(client, b"AUTH LOGIN\r\n"), b"504 5.5.4 mechanism not known\r\n")
        scene = Scene(users={"ann": "secret"}, auth_in_clear=True)
        client = scene.ready()
        self.assertIn(b"250 AUTH PLAIN LOGIN\r\n", scene.say(client, b"EHLO me\r\n"))
        self.assertEqual(scene.say(client, b"AUTH PLAIN " + b64(b"\0ann\0secret") + b"\r\n")[:4], b"235 ")
        self.assertEqual(scene.server.violations, [])

    def test_tokens(self) -> None:
        good, bad = b"user=ann\x01auth=Bearer secret\x01\x01", b"user=ann\x01auth=Bearer guess\x01\x01"
        bearer = b"n,a=ann,\x01auth=Bearer guess\x01\x01"
        for lines, answer, noted in (
            ([b"AUTH XOAUTH2 " + b64(good)], b"235", []),
            ([b"AUTH XOAUTH2", b64(good)], b"235", []),
            ([b"AUTH XOAUTH2 " + b64(bad), b""], b"535", []),
            ([b"AUTH XOAUTH2 " + b64(bad), b"AQ=="], b"535", ["an answer to XOAUTH2's error that is not b''"]),
            ([b"AUTH OAUTHBEARER " + b64(bearer), b"AQ=="], b"535", []),
            (
                [b"AUTH OAUTHBEARER " + b64(bearer), b""],
                b"535",
                ["an answer to OAUTHBEARER's error that is not b'\\x01'"],
            ),
            ([b"AUTH XOAUTH2 " + b64(good[:-1])], b"501", ["an XOAUTH2 message that is none"]),
            ([b"AUTH OAUTHBEARER " + b64(good)], b"501", ["an OAUTHBEARER message that is none"]),
            (
                [b"AUTH OAUTHBEARER " + b64(b"n,a=a,b,\x01auth=Bearer t\x01\x01")],
                b"501",
                ["an OAUTHBEARER message that is none"],
            ),
        ):
            found = self.said(*lines)
            self.assertEqual((found[0][:3], found[1]), (answer, noted), lines)

    def test_cram_md5(self) -> None:
        for lines, answer, noted in (
            ([b"AUTH CRAM-MD5 " + b64(b"ann x")], MALFORMED, ["CRAM-MD5 with an initial response"]),
            ([b"AUTH CRAM-MD5", b64(b"ann nodigest")], MALFORMED, ["a CRAM-MD5 response that is none"]),
            ([b"AUTH CRAM-MD5", b64(b"ann " + b"0" * 32)], REFUSED, []),
            ([b"AUTH CRAM-MD5", b64(b"bob " + b"0" * 32)], REFUSED, []),
            ([b"AUTH CRAM-MD5", b"*"], b"501 5.0.0 cancelled\r\n", []),
        ):
            self.assertEqual(self.said(*lines), (answer, noted), lines)

    def test_scram(self) -> None:
        first = b"n,,n=ann,r=0123456789abcdef"
        final = b"c=biws,r=0123456789abcdef,p=" + b64(bytes(32))
        for lines, noted in (
            ([b"AUTH SCRAM-SHA-256 " + b64(b"y" + first[1:])], ["a SCRAM client's first message that is none"]),
            ([b"AUTH SCRAM-SHA-256 " + b64(first[:-8])], ["a SCRAM client's first message that is none"]),
            ([b"AUTH SCRAM-SHA-256 " + b64(first), b64(final)], ["a SCRAM client's final message that is none"]),
            ([b"AUTH SCRAM-SHA-256 " + b64(first), b64(b"x")], ["a SCRAM client's final message that is none"]),
        ):
            self.assertEqual(self.said(*lines), (MALFORMED, noted), lines)

    def test_external(self) -> None:
        self.assertEqual(self.said(b"AUTH EXTERNAL ="), (REFUSED, ["EXTERNAL without a certificate"]))

    def test_challenges_can_be_altered(self) -> None:
        seen: list[tuple[str, bytes]] = []

        def alter(mechanism: str, octets: bytes) -> bytes | None:
            seen.append((mechanism, octets))
            return b"334 !\r\n" if octets == b"Password:" else None

        scene = Scene(certificate=CERTIFICATE, users={"ann": "secret"}, challenge=alter)
        client = scene.ready(tls=True)
        self.assertEqual(scene.say(client, b"AUTH LOGIN\r\n"), b"334 VXNlcm5hbWU6\r\n")
        self.assertEqual(scene.say(client, b64(b"ann") + b"\r\n"), b"334 !\r\n")
        self.assertEqual(seen, [("LOGIN", b"Username:"), ("LOGIN", b"Password:")])
