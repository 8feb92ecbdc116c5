"""What crosses: round trips, and refusals by name of all that is not exactly right."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from service_identity.hazmat import DNSPattern, IPAddressPattern
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, DeliveryError, Destination, TLSPolicy
from mailcache.destination import Endpoint
from mailcache.remote import codec
from mailcache.remote.codec import Facts, MalformedError
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply
from tests.helpers import authority, certificate, evidence_of, stored, verifying

SECRET = "correct horse battery"
UID = 1000


def full(case: SynchronousTestCase) -> Destination:
    """A destination with a value in every field."""
    pem = certificate().key_pem + certificate().certificate_pem
    return Destination(
        "mx.example.com:587",
        namespace="newsletter",
        bind_address="127.0.0.1",
        helo_name="client.example.com",
        client_certificate=stored(case, pem),
        credentials=Credentials("user", SECRET),
        tls=verifying(match=("mx.example.com", ".example.org"), servername="sni.example.com", ciphers="ECDHE+AESGCM"),
        one_flight=True,
    )


class DestinationTests(SynchronousTestCase):
    def there(self, destination: Destination, uid: int | None = UID) -> Destination:
        return codec.decode_destination(codec.encode_destination(destination), uid)

    def test_round_trips(self) -> None:
        """All of identity, TLS class, requirement and route arrive; the user is added."""
        for destination in (
            full(self),
            Destination("example.com"),
            Destination("[2001:db8::1]:25", protocol="lmtp", tls=TLSPolicy("none")),
            Destination("unix:/run/lmtp", protocol="lmtp"),
            Destination("[192.0.2.1]", protocol="smtps", tls=TLSPolicy("fingerprint", fingerprints=("AB" * 32,))),
            Destination("example.com", tls=TLSPolicy("secure", min_version="TLSv1.3")),
            Destination("example.com", credentials=Credentials("user", "", mechanisms=("PLAIN", "SCRAM-SHA-256"))),
            Destination("example.com", credentials=Credentials("user", token="t0ken", mechanisms=["XOAUTH2"])),
            Destination(
                "example.com",
                credentials=Credentials("", external=True),
                client_certificate=stored(self, certificate().private_pem),
            ),
        ):
            found = self.there(destination)
            self.assertEqual(found.identity, attrs.evolve(destination.identity, uid=UID))
            self.assertEqual(found.tls_class, destination.tls_class)
            self.assertEqual(found.tls.resolve("a.test", "b.test"), destination.tls.resolve("a.test", "b.test"))
            self.assertEqual((found.hop, found.one_flight), (destination.hop, destination.one_flight))
            self.assertEqual(found.trust_anchors, destination.trust_anchors)
            self.assertEqual(found.client_pem, destination.client_pem)

    def test_users_differ(self) -> None:
        one, other = self.there(Destination("example.com"), 1), self.there(Destination("example.com"), 2)
        self.assertNotEqual(one, other)
        self.assertNotEqual(one.identity, other.identity)

    def test_no_path_crosses(self) -> None:
        destination = full(self)
        data = codec.encode_destination(destination).decode()
        self.assertNotIn(str(destination.client_certificate), data)
        self.assertNotIn(str(destination.tls.ca_file), data)
        self.assertIsNone(self.there(destination).client_certificate)

    def test_too_large(self) -> None:
        anchors = stored(self, authority().certificate_pem * 60)
        with self.assertRaises(DeliveryError) as caught:
            codec.encode_destination(Destination("example.com", tls=TLSPolicy("verify", ca_file=anchors)))
        self.assertFalse(caught.exception.retriable)
        self.assertIn("32768", str(caught.exception))

    def test_no_secret_is_told(self) -> None:
        """Not by what comes out, nor by a refusal of what goes in."""
        found = self.there(full(self))
        self.assertNotIn(SECRET, repr(found) + str(found) + repr(found.identity))
        fields = json.loads(codec.encode_destination(full(self)))
        for name in fields:
            for wrong in (None, 5, [SECRET], {"x": SECRET}, SECRET):
                try:
                    codec.decode_destination(json.dumps({**fields, name: wrong}).encode(), UID)
                except MalformedError as error:
                    if name == "credentials":
                        self.assertNotIn(SECRET, str(error))

    def test_refusals(self) -> None:
        """Every field: missing, of each wrong type; fields that are not known, at both levels."""
        fields: dict[str, Any] = json.loads(codec.encode_destination(full(self)))
        cases: list[tuple[dict[str, Any], str]] = [({**fields, "colour": "red"}, "colour")]
        external = {**fields["credentials"], "password": None, "external": True}
        cases.append(({**fields, "tls": {**fields["tls"], "ca_file": "/etc/passwd"}}, "ca_file"))
        for name, value in fields.items():
            without = {other: each for other, each in fields.items() if other != name}
            cases.append((without, name))
            for wrong in (5, [], {}, True, "x", 1.5):
                if type(wrong) is not type(value) and not (name == "one_flight" and isinstance(wrong, bool)):
                    cases.append(({**fields, name: wrong}, name))
        for name in fields["tls"]:
            for wrong in (5, {}, True):
                cases.append(({**fields, "tls": {**fields["tls"], name: wrong}}, name))
            without = {other: each for other, each in fields["tls"].items() if other != name}
            cases.append(({**fields, "tls": without}, name))
        cases += [
            ({**fields, "credentials": ["user", SECRET]}, "credentials"),
            ({**fields, "credentials": {"username": "user", "password": SECRET}}, "credentials"),
            ({**fields, "credentials": {**fields["credentials"], "supplier": "x"}}, "supplier"),
            ({**fields, "credentials": {**fields["credentials"], "password": None}}, "password"),
            ({**fields, "credentials": {**fields["credentials"], "password": 5}}, "password"),
            ({**fields, "credentials": {**fields["credentials"], "token": SECRET}}, "not several of them"),
            ({**fields, "credentials": {**fields["credentials"], "external": True}}, "not several of them"),
            ({**fields, "credentials": {**fields["credentials"], "external": 0}}, "external"),
            ({**fields, "credentials": {**fields["credentials"], "mechanisms": ["XOAUTH2"]}}, "mechanisms"),
            ({**fields, "credentials": {**fields["credentials"], "mechanisms": [5]}}, "mechanisms"),
            ({**fields, "credentials": {**fields["credentials"], "mechanisms": [[]]}}, "mechanisms"),
            ({**fields, "client_certificate": None, "credentials": external}, "client_certificate"),
            ({**fields, "next_hop": "192.0.2.1"}, "next hop"),
            ({**fields, "protocol": "http"}, "protocol"),
            ({**fields, "namespace": ""}, "namespace"),
            ({**fields, "trust_anchors": "no PEM"}, "PEM"),
            ({**fields, "client_certificate": "no PEM"}, "PEM"),
            ({**fields, "tls": {**fields["tls"], "level": "trusting"}}, "level"),
            ({**fields, "tls": {**fields["tls"], "match": [5]}}, "match"),
        ]
        for wrong, word in cases:
            with self.assertRaises(MalformedError, msg=f"{word}: {wrong}") as caught:
                codec.decode_destination(json.dumps(wrong).encode(), UID)
            self.assertIn(word, str(caught.exception))

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        for decode in (
            lambda data: codec.decode_destination(data, UID),
            codec.decode_facts,
            codec.decode_error,
        ):
            with contextlib.suppress(MalformedError):
                decode(data)

    def test_depth(self) -> None:
        with self.assertRaises(MalformedError):
            codec.decode_destination(b"[" * 20_000, UID)


class FactsTests(SynchronousTestCase):
    def facts(self, **more: Any) -> Facts:
        evidence = evidence_of(certificate(), authority().certificate_pem, "localhost")
        values: dict[str, Any] = {
            "identifier": "1f",
            "endpoint": Endpoint("smtp", "192.0.2.1", 25),
            "host": "mx.example.com",
            "capabilities": Capabilities({"PIPELINING": (), "SIZE": ("1000",), "AUTH": ("PLAIN", "LOGIN")}),
            "evidence": evidence,
            "verdict": "verified",
            "setup_seconds": 0.25,
        }
        return Facts(**{**values, **more})

    def test_round_trip(self) -> None:
        for facts in (self.facts(), self.facts(evidence=CLEAR, endpoint=Endpoint("lmtp", "/run/lmtp", None))):
            self.assertEqual(codec.decode_facts(codec.encode_facts(facts)), facts)
        kinds = {type(name) for name in self.facts().evidence.names}
        self.assertEqual(kinds, {DNSPattern, IPAddressPattern})

    def test_too_many_names(self) -> None:
        """More than fits an answer is found before anything is sent."""
        names = tuple(DNSPattern.from_bytes(b"name%d.example.com" % number) for number in range(4_000))
        with self.assertRaises(MalformedError):
            codec.encode_facts(self.facts(evidence=attrs.evolve(CLEAR, names=names)))

    def test_refusals(self) -> None:
        good = json.loads(codec.encode_facts(self.facts()))
        for name in good:
            for wrong in (None, 5 if name != "setup_seconds" else "5"):
                with self.assertRaises(MalformedError, msg=name) as caught:
                    codec.decode_facts(json.dumps({**good, name: wrong}).encode())
                self.assertIn(name, str(caught.exception))
        for wrong in (
            {"setup_seconds": 10**400},
            {"keywords": {"SIZE": "1000"}},
            {"keywords": {"SIZE": [1000]}},
            *({"evidence": {**good["evidence"], name: {}}} for name in good["evidence"]),
            {"evidence": {**good["evidence"], "names": [["dns", "*"], 5]}},
        ):
            with self.assertRaises(MalformedError, msg=wrong):
                codec.decode_facts(json.dumps({**good, **wrong}).encode())


class ErrorTests(SynchronousTestCase):
    def test_round_trips(self) -> None:
        for error in (
            DeliveryError("no", phase="connect", endpoint="smtp:[192.0.2.1]:25"),
            DeliveryError("no", phase="auth", retriable=False, reply=Reply.make(535, "5.7.8 no", "really")),
            DeliveryError("x" * 100_000, phase="waiting"),
        ):
            data = codec.encode_error(error)
            self.assertLess(len(data), 0xFFFF)
            found = codec.decode_error(data)
            self.assertEqual(
                (found.phase, found.retriable, found.endpoint), (error.phase, error.retriable, error.endpoint)
            )
            self.assertEqual(found.args[0], error.args[0][: codec.MAX_TEXT])
            self.assertEqual(found.reply and found.reply.code, error.reply and error.reply.code)

    def test_refusals(self) -> None:
        good = json.loads(codec.encode_error(DeliveryError("no", phase="auth", reply=Reply.make(535, "no"))))
        for name, wrong in (
            ("reply", [1, "x"]),
            ("reply", []),
            ("reply", "535"),
            ("reply", [float("inf"), "x"]),
            ("reply", ["535", "x"]),
            ("phase", 5),
            ("retriable", 1),
        ):
            with self.assertRaises(MalformedError):
                codec.decode_error(json.dumps({**good, name: wrong}).encode())
