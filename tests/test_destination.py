"""Destinations: what is the same, what is not, and that every field of a key counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, DeliveryError, Destination, TLSPolicy, UncertainDelivery
from mailcache.destination import Endpoint, Identity, NextHop, SessionKey, field_names
from mailcache.testing import Authority
from mailcache.trust.evidence import TLSClass
from mailcache.trust.policy import Requirement
from mailcache.wire.replies import Reply
from tests.helpers import stored

ONE, OTHER = Authority("one"), Authority("other")
CLIENT, OTHER_CLIENT = ONE.issue(client=True), ONE.issue(client=True)
DIGEST, OTHER_DIGEST = "AB" * 32, "CD" * 32


class NextHops(SynchronousTestCase):
    """What a next hop may look like, and what it becomes."""

    def test_has_the_forms_of_postfix(self) -> None:
        """And one form for each place, however it was written."""
        for text, kind, name, port in (
            ("example.com", "domain", "example.com", 25),
            ("Example.COM", "domain", "example.com", 25),
            ("example.com.", "domain", "example.com", 25),
            ("EXAMPLE.com.:587", "domain", "example.com", 587),
            ("localhost", "domain", "localhost", 25),
            ("xn--bcher-kva.example", "domain", "xn--bcher-kva.example", 25),
            ("_mail.example_com", "domain", "_mail.example_com", 25),
            ("1e100.net", "domain", "1e100.net", 25),
            (f"{'a' * 63}.example", "domain", f"{'a' * 63}.example", 25),
            (f"{'a.' * 126}b", "domain", f"{'a.' * 126}b", 25),
            ("[mail.example.com]", "host", "mail.example.com", 25),
            ("[Mail.Example.Com.]:465", "host", "mail.example.com", 465),
            ("[192.0.2.1]", "host", "192.0.2.1", 25),
            ("[192.0.2.1]:1", "host", "192.0.2.1", 1),
            ("[192.0.2.1]:65535", "host", "192.0.2.1", 65535),
            ("[192.0.2.1]:00025", "host", "192.0.2.1", 25),
            ("[::1]", "host", "::1", 25),
            ("[0:0:0:0:0:0:0:1]", "host", "::1", 25),
            ("[0000::0001]:587", "host", "::1", 587),
            ("[2001:DB8::A]", "host", "2001:db8::a", 25),
            ("[IPv6:2001:db8::a]", "host", "2001:db8::a", 25),
            ("[ipv6:2001:db8:0:0::a]:25", "host", "2001:db8::a", 25),
            ("[fe80::1%lo]", "host", "fe80::1%lo", 25),
            ("[FE80:0::1%eth0.5]", "host", "fe80::1%eth0.5", 25),
            ("[unix]", "host", "unix", 25),
            ("unix:/run/lmtp", "unix", "/run/lmtp", None),
            ("unix:/run/Mixed Case.", "unix", "/run/Mixed Case.", None),
            ("unix:/run/\xe4", "unix", "/run/\xe4", None),
            (f"unix:/{'a' * 106}", "unix", f"/{'a' * 106}", None),
        ):
            hop = NextHop.parse(text, 25)
            self.assertEqual((hop.kind, hop.name, hop.port), (kind, name, port), text)
            self.assertEqual(NextHop.parse(str(hop), 99), hop, "its text names it again")

    def test_differ_where_the_place_may_differ(self) -> None:
        """A domain goes through DNS, a host does not; a scope is a network of its own."""
        for one, other in (
            ("example.com", "[example.com]"),
            ("example.com", "www.example.com"),
            ("example.com", "example.com:26"),
            ("[fe80::1]", "[fe80::1%lo]"),
            ("[fe80::1%lo]", "[fe80::1%eth0]"),
            ("[fe80::1%Lo]", "[fe80::1%lo]"),
            ("[192.0.2.1]", "[::ffff:192.0.2.1]"),
            ("[127.0.0.1]", "[::1]"),
            ("unix:/run/a", "unix:/run/A"),
        ):
            self.assertNotEqual(NextHop.parse(one, 25), NextHop.parse(other, 25))
            self.assertNotEqual(Destination(one), Destination(other))

    def test_endpoints_are_told_in_words(self) -> None:
        for endpoint, text in (
            (Endpoint("smtp", "192.0.2.1", 25), "smtp:[192.0.2.1]:25"),
            (Endpoint("smtps", "fe80::1%lo", 465), "smtps:[fe80::1%lo]:465"),
            (Endpoint("lmtp", "/run/lmtp", None), "lmtp:unix:/run/lmtp"),
        ):
            self.assertEqual(str(endpoint), text)

    def test_the_port_is_the_protocols(self) -> None:
        for protocol, tls, port in (("smtp", "may", 25), ("smtps", "encrypt", 465), ("lmtp", "may", 24)):
            where = Destination("example.com", protocol=protocol, tls=TLSPolicy(tls))
            self.assertEqual((where.hop.port, where.next_hop), (port, f"example.com:{port}"))
            self.assertEqual(where, Destination(f"Example.com.:{port}", protocol=protocol, tls=TLSPolicy(tls)))
            self.assertEqual(str(where), f"{protocol}:example.com:{port}")


BASES: dict[type, dict[str, Any]] = {
    Credentials: {"username": "user", "password": "secret"},
    Endpoint: {"protocol": "smtp", "address": "192.0.2.1", "port": 25},
    Identity: {
        "namespace": "a",
        "bind_address": "192.0.2.7",
        "helo_name": "a.example",
        "credentials": Credentials("user", "secret"),
        "client_certificate": "ab",
        "proxy": "p",
        "uid": 1,
    },
    Requirement: {"level": "verify", "names": ("a",), "fingerprints": ("b",), "servername": "c"},
    TLSClass: {"trust_anchors": "ab", "min_version": "TLSv1.2", "ciphers": "HIGH", "client_certificate": "cd"},
    TLSPolicy: {"level": "verify"},
    Destination: {"next_hop": "[192.0.2.1]:25"},
}
BASES[SessionKey] = {
    "endpoint": Endpoint(**BASES[Endpoint]),
    "identity": Identity(**BASES[Identity]),
    "tls_class": TLSClass(**BASES[TLSClass]),
}
"""An instance of each class of which keys are made, by its arguments."""

PRINT = {"level": "fingerprint", "fingerprints": (DIGEST,)}

TOKEN = {"username": "user", "token": "secret"}


def supplier() -> str:
    return "secret"


def other_supplier() -> str:
    return "secret"


OTHERS: dict[type, dict[str, tuple[Any, ...]]] = {
    Credentials: {
        "username": ("User", "user ", "us\xe9r", "use\u0301r"),
        "password": ("Secret", "secret ", "", "s"),
        "token": (
            (TOKEN, {"username": "user", "token": "Secret"}),
            (TOKEN, {"username": "user", "token": supplier}),
            (TOKEN, {"username": "user", "password": "secret"}),
            ({"username": "user", "token": supplier}, {"username": "user", "token": other_supplier}),
        ),
        "external": ((TOKEN, {"username": "user", "external": True}),),
        "mechanisms": (("PLAIN",), ("LOGIN",), ("PLAIN", "LOGIN"), ("SCRAM-SHA-256",)),
    },
    Endpoint: {"protocol": ("lmtp", "smtps"), "address": ("192.0.2.10", "::1", "/25"), "port": (26, 2, None)},
    Identity: {
        "namespace": ("A", "b", "default"),
        "bind_address": (None, "192.0.2.8", "::1"),
        "helo_name": (None, "A.example", "b.example"),
        "credentials": (None, Credentials("user", "Secret"), Credentials("User", "secret")),
        "client_certificate": (None, "AB"),
        "proxy": (None, "q"),
        "uid": (None, 0, 2),
    },
    Requirement: {
        "level": ("secure", "encrypt", "may", "none"),
        "names": ((), ("b",), ("a", "b")),
        "fingerprints": ((), ("a",)),
        "servername": (None, "d"),
    },
    SessionKey: {
        "endpoint": (Endpoint("smtp", "192.0.2.2", 25),),
        "identity": (Identity("b", None, None, None, None),),
        "tls_class": (None, TLSClass(None, "TLSv1.2", None, None)),
    },
    TLSClass: {
        "trust_anchors": (None, "ac"),
        "min_version": ("TLSv1.3",),
        "ciphers": (None, "ALL"),
        "client_certificate": (None, "ab"),
    },
    TLSPolicy: {
        "level": ("none", "may", "encrypt", "secure"),
        "ca_file": ("/etc/one.pem", "/etc/One.pem"),
        "match": (("a.example",), (".a.example",), ("a.example", "b.example")),
        "fingerprints": ((PRINT, PRINT | {"fingerprints": (OTHER_DIGEST,)}),),
        "servername": ("a.example",),
        "min_version": ("TLSv1.3",),
        "ciphers": ("HIGH", "ALL"),
    },
    Destination: {
        "next_hop": ("[192.0.2.1]:26", "[192.0.2.2]:25", "192.0.2.example:25", "unix:/192.0.2.1"),
        "protocol": ("lmtp",),
        "namespace": ("Default", "other"),
        "bind_address": ("192.0.2.7", "::1"),
        "helo_name": ("a.example", "[192.0.2.7]"),
        "client_certificate": (),  # see ContentOfFiles
        "credentials": (Credentials("user", "secret"), Credentials("user", "Secret")),
        "tls": (TLSPolicy("none"), TLSPolicy("encrypt"), TLSPolicy("may", ciphers="HIGH")),
        "one_flight": (True,),
        "proxy": ("tor", "Tor"),
    },
}
"""For each field of each class values that are not its base's; a pair of arguments where the base does not allow it."""

FOLLOWING = {
    Destination: {
        "hop": "next_hop, parsed",
        "identity": "made of the arguments",
        "tls_class": "made of tls and client_certificate, with the content of their files",
        "trust_anchors": "the content whose digest is in tls_class",
        "client_pem": "the content whose digest is in identity",
        "lineage": "made of identity, where credentials have a token",
        "_hash": "the hash",
    }
}
"""Fields that are no arguments, with what they follow from."""


class Fields(SynchronousTestCase):
    """Equal means equal in every field."""

    def pairs(self, kind: type) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Each field with the arguments of two instances that differ in it alone."""
        base = BASES[kind]
        found = []
        for name, values in OTHERS[kind].items():
            for value in values:
                both = value if isinstance(value, tuple) and value and isinstance(value[0], dict) else None
                found.append((name, *both) if both else (name, base, base | {name: value}))
        return found

    def test_are_all_in_the_tables(self) -> None:
        """A field that somebody adds has to be thought about here."""
        for kind, table in OTHERS.items():
            names = {field.name for field in attrs.fields(kind)}
            self.assertEqual(names, table.keys() | FOLLOWING.get(kind, {}).keys(), kind)
            uncompared = names - set(field_names(kind))
            self.assertLessEqual(uncompared, FOLLOWING.get(kind, {}).keys(), kind)

    def test_equal_fields_make_equal_values(self) -> None:
        for kind in OTHERS:
            for name, one, other in self.pairs(kind):
                for arguments in (one, other):
                    made, again = kind(**arguments), kind(**arguments)
                    self.assertIsNot(made, again)
                    self.assertEqual(made, again, name)
                    self.assertEqual(hash(made), hash(again), name)

    def test_one_other_field_makes_another_value(self) -> None:
        for kind in OTHERS:
            for name, one, other in self.pairs(kind):
                self.assertNotEqual(kind(**one), kind(**other), f"{kind.__name__}.{name}: {one} {other}")
                self.assertNotEqual(hash(kind(**one)), hash(kind(**other)), f"{kind.__name__}.{name}")

    def test_none_can_be_changed(self) -> None:
        for kind in OTHERS:
            made = kind(**BASES[kind])
            for name in OTHERS[kind]:
                self.assertRaises(attrs.exceptions.FrozenInstanceError, setattr, made, name, None)

    def test_all_that_can_not_be_judged_is_in_the_key(self) -> None:
        """Names and fingerprints are judged for each borrower, and one_flight is its own affair."""
        endpoint = Endpoint("smtp", "192.0.2.1", 25)
        shared = {"next_hop", "protocol", "one_flight"}  # the first two are in the endpoint
        for name, one, other in self.pairs(Destination):
            if name != "tls":
                same = Destination(**one).key(endpoint) == Destination(**other).key(endpoint)
                self.assertEqual(same, name in shared, name)
        judged = {"level", "match", "fingerprints", "servername"}
        for name, one, other in self.pairs(TLSPolicy):
            if name == "ca_file":
                continue  # its content is: see ContentOfFiles
            first, second = (Destination("a.example", tls=TLSPolicy(**policy)) for policy in (one, other))
            clear = "none" in (one["level"], other["level"])
            self.assertEqual(
                first.key(endpoint) == second.key(endpoint), name in judged and not clear, f"{one} {other}"
            )


TEXT = st.text(alphabet="aA|*\0\n\"'{}[]:,\\ \xe9e\u0301", max_size=4)
MAYBE = st.none() | TEXT


def credentials() -> st.SearchStrategy[Credentials]:
    text = st.text(alphabet="aA|*\n\"'{}:\\\xe9e\u0301", min_size=1, max_size=3)
    return st.builds(Credentials, text, st.just("") | text)


def arguments_of_keys() -> st.SearchStrategy[tuple[Any, ...]]:
    """All fields of a `SessionKey`, flat."""
    port = st.none() | st.integers(1, 3)
    identity = (TEXT, MAYBE, MAYBE, st.none() | credentials(), MAYBE, MAYBE, st.none() | st.integers(0, 2))
    return st.tuples(TEXT, TEXT, port, *identity, MAYBE, TEXT, MAYBE, MAYBE)


def key_of(fields: tuple[Any, ...]) -> SessionKey:
    return SessionKey(Endpoint(*fields[:3]), Identity(*fields[3:10]), TLSClass(*fields[10:]))


class Keys(SynchronousTestCase):
    """No two keys are equal by the way their fields are put together."""

    @settings(max_examples=400, deadline=None)
    @given(arguments_of_keys(), arguments_of_keys())
    def test_are_equal_if_and_only_if_their_fields_are(self, one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
        self.assertEqual(key_of(one) == key_of(other), one == other)
        self.assertEqual(key_of(one), key_of(tuple(one)))
        if one == other:
            self.assertEqual(hash(key_of(one)), hash(key_of(other)))

    @settings(max_examples=400, deadline=None)
    @given(arguments_of_keys(), st.data())
    def test_differ_by_any_one_field(self, fields: tuple[Any, ...], data: st.DataObject) -> None:
        """Two drawn independently seldom share most fields, so one of them is changed."""
        other = list(data.draw(arguments_of_keys()))
        place = data.draw(st.integers(0, len(fields) - 1))
        changed = (*fields[:place], other[place], *fields[place + 1 :])
        self.assertEqual(key_of(fields) == key_of(changed), fields == changed)
        self.assertEqual(len({key_of(fields), key_of(changed)}), 1 if fields == changed else 2)

    @settings(max_examples=500, deadline=None)
    @given(credentials(), credentials())
    @example(Credentials("user", "Secret"), Credentials("user", "secret"))
    @example(Credentials("a:b", "c"), Credentials("a", "b:c"))
    def test_take_credentials_byte_for_byte(self, one: Credentials, other: Credentials) -> None:
        equal = (one.username, one.password) == (other.username, other.password)
        self.assertEqual(one == other, equal)
        endpoint = Endpoint("smtp", "192.0.2.1", 25)
        keys = [Destination("[192.0.2.1]", credentials=each).key(endpoint) for each in (one, other)]
        self.assertEqual(keys[0] == keys[1], equal)


class ContentOfFiles(SynchronousTestCase):
    """Files count by what is in them."""

    endpoint = Endpoint("smtp", "192.0.2.1", 25)

    def trusting(self, path: str) -> Destination:
        return Destination("[192.0.2.1]", tls=TLSPolicy("verify", ca_file=path))

    def showing(self, path: str) -> Destination:
        return Destination("[192.0.2.1]", client_certificate=path)

    def check(self, make: Any, content: bytes, other: bytes) -> None:
        path, copy = stored(self, content), stored(self, content)
        first = make(path)
        self.assertEqual(make(path), first)
        self.assertEqual(make(copy).key(self.endpoint), first.key(self.endpoint), "the same under another name")
        Path(path).write_bytes(other)
        second = make(path)
        self.assertNotEqual(second, first)
        self.assertNotEqual(second.key(self.endpoint), first.key(self.endpoint))
        self.assertEqual(make(stored(self, other)).key(self.endpoint), second.key(self.endpoint))

    def test_of_trust_anchors(self) -> None:
        self.check(self.trusting, ONE.certificate_pem, OTHER.certificate_pem)
        self.check(self.trusting, ONE.certificate_pem, ONE.certificate_pem + OTHER.certificate_pem)

    def test_of_a_client_certificate(self) -> None:
        self.check(self.showing, CLIENT.private_pem, OTHER_CLIENT.private_pem)
        where = self.showing(stored(self, CLIENT.private_pem))
        self.assertEqual(where.tls_class and where.tls_class.client_certificate, where.identity.client_certificate)

    def test_is_kept_with_the_destination(self) -> None:
        """What happens to the file later does not change a destination that stands."""
        path = stored(self, ONE.certificate_pem)
        where = self.trusting(path)
        Path(path).unlink()
        self.assertEqual(where.trust_anchors, ONE.certificate_pem)
        path = stored(self, CLIENT.private_pem)
        self.assertEqual(self.showing(path).client_pem, CLIENT.private_pem)

    def test_is_read_again_when_a_file_is_written_twice_in_a_moment(self) -> None:
        """Same name, same size, perhaps the same tick of the file system's clock."""
        first, second = ONE.certificate_pem, ONE.certificate_pem + b"# changed\n"
        first += b"# written\n"
        path = stored(self, first)
        for content in (first, second) * 20:
            Path(path).write_bytes(content)
            self.assertEqual(self.trusting(path).trust_anchors, content)


class OnBehalf(SynchronousTestCase):
    """A keeper's destinations: the same, for one of its users, with what only that user could read."""

    endpoint = Endpoint("smtp", "192.0.2.1", 25)

    def test_are_the_users_alone(self) -> None:
        where = Destination("[192.0.2.1]", credentials=Credentials("user", "secret"))
        keys = {where.key(self.endpoint)}
        for uid in (0, 1000, 1001):
            other = where.on_behalf(uid, None, None)
            self.assertEqual((other.identity.uid, other.hop, other.tls), (uid, where.hop, where.tls))
            self.assertEqual(other, where.on_behalf(uid, None, None))
            self.assertEqual(hash(other), hash(where.on_behalf(uid, None, None)))
            keys.add(other.key(self.endpoint))
        self.assertEqual(len(keys), 4)
        self.assertEqual(where.on_behalf(None, None, None), where)
        self.assertEqual(where.identity.uid, None)

    def test_have_the_content_of_files(self) -> None:
        """As if the file had been named."""
        pem, client = ONE.certificate_pem, CLIENT.private_pem
        named = Destination(
            "[192.0.2.1]",
            tls=TLSPolicy("verify", ca_file=stored(self, pem)),
            client_certificate=stored(self, client),
        )
        given_content = Destination("[192.0.2.1]", tls=TLSPolicy("verify")).on_behalf(None, pem, client)
        self.assertEqual(given_content.key(self.endpoint), named.key(self.endpoint))
        self.assertEqual((given_content.trust_anchors, given_content.client_pem), (pem, client))
        for anchors, own in (
            (OTHER.certificate_pem, client),
            (pem, OTHER_CLIENT.private_pem),
            (None, client),
            (pem, None),
        ):
            other = Destination("[192.0.2.1]", tls=TLSPolicy("verify")).on_behalf(None, anchors, own)
            self.assertNotEqual(other.key(self.endpoint), named.key(self.endpoint))
            self.assertNotEqual(other, given_content)
        clear = Destination("[192.0.2.1]", tls=TLSPolicy("none"))
        self.assertIsNone(clear.on_behalf(1, pem, None).tls_class)

    def test_take_no_pem_that_can_not_be_used(self) -> None:
        where = Destination("[192.0.2.1]", tls=TLSPolicy("verify"))
        pem, client = ONE.certificate_pem, CLIENT.private_pem
        for anchors, own in (
            (b"", None),
            (b"garbage", None),
            (pem[:-30], None),
            (None, b""),
            (None, CLIENT.key_pem),
            (None, CLIENT.certificate_pem),
            (pem, OTHER_CLIENT.key_pem + CLIENT.certificate_pem),
            (client[:100], client),
        ):
            error = self.assertRaises(ValueError, where.on_behalf, 1, anchors, own)
            self.assertIn("PEM that can't be used: ", str(error))
            self.assertNotIn("PRIVATE", str(error))

    def test_show_no_secret(self) -> None:
        where = Destination("[192.0.2.1]", credentials=Credentials("user", "c4n4ry"))
        text = repr(where.on_behalf(1, ONE.certificate_pem, CLIENT.private_pem))
        self.assertNotIn("c4n4ry", text)
        self.assertNotIn("-----BEGIN", text)


class Defaults(SynchronousTestCase):
    def test_credentials_are_for_a_verified_server_only(self) -> None:
        self.assertEqual(Destination("example.com").tls, TLSPolicy("may"))
        self.assertEqual(Destination("example.com", credentials=Credentials("a", "b")).tls, TLSPolicy("verify"))

    def test_no_tls_class_where_tls_is_not_wanted(self) -> None:
        self.assertIsNone(Destination("example.com", tls=TLSPolicy("none")).tls_class)

    def test_policies_compare_what_they_mean(self) -> None:
        """Order, case, colons and final dots mean nothing."""
        colons = ":".join(DIGEST[at : at + 2] for at in range(0, 64, 2)).lower()
        for one, other in (
            (
                TLSPolicy("verify", match=("b.example", "A.Example.", ".C.example", "a.example")),
                TLSPolicy("verify", match=["a.example", "b.example", ".c.example."]),
            ),
            (
                TLSPolicy("fingerprint", fingerprints=(colons, OTHER_DIGEST)),
                TLSPolicy("fingerprint", fingerprints=[OTHER_DIGEST.lower(), DIGEST]),
            ),
            (TLSPolicy("may", servername="MX.Example."), TLSPolicy("may", servername="mx.example")),
            (TLSPolicy("verify", match=("2001:DB8:0::1",)), TLSPolicy("verify", match=("2001:db8::1",))),
        ):
            self.assertEqual(one, other)
            self.assertEqual(hash(one), hash(other))


class Secrets(SynchronousTestCase):
    """A password shows in nothing that is printed."""

    def test_are_in_no_text(self) -> None:
        secret = "c4n4ry-pass word"
        login = Credentials("user", secret)
        where = Destination("[192.0.2.1]", credentials=login, client_certificate=stored(self, CLIENT.private_pem))
        endpoint = Endpoint("smtp", "192.0.2.1", 25)
        key = where.key(endpoint)
        error = DeliveryError("no", phase="auth", endpoint=str(endpoint), reply=Reply.make(535, "no"))
        shown: list[object] = [login, where, where.identity, key, key.tls_class, error, UncertainDelivery("no")]
        shown += [[each] for each in shown]
        for each in shown:
            for text in (repr(each), str(each), f"{each}", f"{each!r}", "%s" % (each,)):  # noqa: UP031
                for part in (secret, secret[:6], "PRIVATE KEY", CLIENT.key_pem.decode()[40:80]):
                    self.assertNotIn(part, text)
        self.assertIn("user", repr(where))

    def test_are_in_no_error_about_them(self) -> None:
        for username, password in (
            ("user", "c4n4ry\0"),
            ("user", "c4n4ry\ud800"),
            ("user", "c4n4ry" * 5000),
            ("user", b"c4n4ry"),
            ("", "c4n4ry"),
            (["c4n4ry"], "c4n4ry"),
        ):
            error = self.assertRaises(ValueError, Credentials, username, password)
            self.assertNotIn("c4n4ry", repr(error))
            self.assertTrue(error.__cause__ is None and (error.__context__ is None or error.__suppress_context__))
            self.assertNotIn("c4n4ry", repr(error.__context__))
