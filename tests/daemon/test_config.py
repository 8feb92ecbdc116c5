"""The configuration file: what it may say, and one clear line for each thing that is wrong with it."""

from __future__ import annotations

import os
import pwd
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits, Timeouts
from mailcache.daemon import config_tables
from mailcache.daemon.config import MAX_FILE, ConfigurationError, load, summary
from mailcache.daemon.config_files import MAX_PASSWORD
from mailcache.destination import Destination
from mailcache.remote.configuration import Pattern
from mailcache.remote.floors import Demand
from mailcache.remote.users import Permission
from tests.helpers import authority, certificate

SHIPPED = Path(__file__).parent.parent.parent / "contrib" / "mailcache.toml"
DIGEST = "AB" * 32
SECRET = "c4n4ry-secret"
LOGIN = '[credentials.relay]\nusername = "u"\npassword_file = "good"\nusers = ["root"]\n'

# What is in the file, and what its only line has: the line's number, the key, and some words.
WRONG: tuple[tuple[str, int, str, tuple[str, ...]], ...] = (
    # Tables.
    ("[limit]\n", 1, "limit", ("not known", "limits, timeouts, namespace")),
    ("\nsessions = 5\n", 2, "sessions", ("not known",)),
    ("limits = 5\n", 1, "limits", ("a whole number", "write [limits]")),
    ("[[limits]]\nsessions = 5\n", 1, "limits", ("an array", "write [limits]")),
    ("\n\n[[limits]]\nsessions = 5\n[[limits]]\n", 3, "limits", ("an array", "write [limits]")),
    ("[next_hop]\nmatch = '*'\n", 1, "next_hop", ("write [[next_hop]]",)),
    ("next_hop = [1]\n", 1, "next_hop", ("write [[next_hop]]",)),
    ("[namespace]\nbulk = true\n", 2, "namespace.bulk", ("true or false", "write [namespace.bulk]")),
    ("credentials = 'x'\n", 1, "credentials", ("text in quotes", "write [credentials]")),
    ("['a\\nb']\n".replace("'", '"'), 1, "'a\\nb'", ("not known",)),
    # Limits.
    ("[limits]\nsession = 5\n", 2, "limits.session", ("not known", "sessions_per_endpoint")),
    ("[limits]\n\nsessions = 0\n", 3, "limits.sessions", ("at least 1",)),
    ("[limits]\nsessions = true\n", 2, "limits.sessions", ("True", "whole number")),
    ("[limits]\nsessions = 1.5\n", 2, "limits.sessions", ("1.5", "whole number")),
    ("limits = { sessions = '5' }\n", 1, "limits.sessions", ("'5'", "whole number")),
    ("limits.waiters = -1\n", 1, "limits.waiters", ("at least 0",)),
    ("[limits]\nidle_timeout = -1\n", 2, "limits.idle_timeout", ("at least 0",)),
    ("[limits]\nmax_age = inf\n", 2, "limits.max_age", ("seconds",)),
    ("[limits]\nmax_age = nan\n", 2, "limits.max_age", ("seconds",)),
    ("[limits]\nmax_uses = 0\n", 2, "limits.max_uses", ("at least 1",)),
    ("[limits]\nkeep = 'never'\n", 2, "limits.keep", ("always, busy",)),
    ("[limits]\n\nsessions = 0x" + "f" * 5_000 + "\n", 3, "limits.sessions", ("64 bits",)),
    ("[limits]\nsessions = 9223372036854775808\n", 2, "limits.sessions", ("64 bits",)),
    ("[access]\nusers = [\n1,\n-9223372036854775809]\n", 2, "access.users", ("64 bits",)),
    # Time limits.
    ("[timeouts]\nmial = 5\n", 2, "timeouts.mial", ("not known", "first_reply")),
    ("[timeouts]\ndot = 0\n", 2, "timeouts.dot", ("at least 0.001",)),
    ("[timeouts]\ndot = 1979-05-27\n", 2, "timeouts.dot", ("seconds",)),
    ("[timeouts]\ndot = []\n", 2, "timeouts.dot", ("seconds",)),
    # Namespaces.
    ("[namespace.x]\nlimit = 1\n", 2, "namespace.x.limit", ("not known", "limits, timeouts, tls")),
    ("[namespace.x.limits]\nsessions = 1\n", 2, "namespace.x.limits.sessions", ("whole keeper", "[limits]")),
    ("[namespace.x.limits]\nwait_timeout = 1\n", 2, "namespace.x.limits.wait_timeout", ("[limits]",)),
    ("[namespace.'']\n", 1, "namespace.", ("printable",)),
    # TLS.
    ("[namespace.x.tls]\ncafile = 'x'\n", 2, "namespace.x.tls.cafile", ("not known", "anchors")),
    ("[namespace.x.tls]\nlevel = 'high'\n", 2, "namespace.x.tls.level", ("'high'", "none, may, encrypt")),
    ("[namespace.x.tls]\nlevel = 3\n", 2, "namespace.x.tls.level", ("a whole number", "text in quotes")),
    ("[namespace.x.tls]\nmin_version = 'TLSv1'\n", 2, "namespace.x.tls.min_version", ("TLSv1.2, TLSv1.3",)),
    ("[namespace.x.tls]\nciphers = 'colour'\n", 2, "namespace.x.tls.ciphers", ("cipher string",)),
    ("[namespace.x.tls]\nservername = '192.0.2.1'\n", 2, "namespace.x.tls.servername", ("host name",)),
    ("[namespace.x.tls]\nlevel = 'verify'\nmatch = 'x'\n", 3, "namespace.x.tls.match", ("an array",)),
    ("[namespace.x.tls]\nlevel = 'verify'\nmatch = [1]\n", 3, "namespace.x.tls.match", ("host name",)),
    ("[namespace.x.tls]\nmatch = ['x']\n", 2, "namespace.x.tls.match", ("verify", "secure")),
    ("[namespace.x.tls]\nlevel = 'fingerprint'\n", 1, "namespace.x.tls.fingerprints", ("missing", "SHA-256")),
    ("[namespace.x.tls]\nfingerprints = ['AB']\n", 2, "namespace.x.tls.fingerprints", ("64 hexadecimal",)),
    ("[namespace.x.tls]\nlevel = 'fingerprint'\nfingerprints = []\n", 3, "namespace.x.tls.fingerprints", ("empty",)),
    (f"[namespace.x.tls]\nfingerprints = ['{DIGEST}']\n", 2, "namespace.x.tls.fingerprints", ("level",)),
    ("[namespace.x.tls]\nanchors = 'ca'\n", 2, "namespace.x.tls.anchors", ("no [anchors.ca]", "none at all")),
    ("[anchors.c]\nfile = 'ca'\n[namespace.x.tls]\nanchors = 'd'\n", 4, "namespace.x.tls.anchors", ("there are c",)),
    # Next hops.
    ("[[next_hop]]\n", 1, "next_hop.match", ("missing", "*.example.com")),
    ("[[next_hop]]\nmatch = '*.[x]'\n", 2, "next_hop.match", ("asterisk", "unix:/path")),
    ("[[next_hop]]\nmatch = 'a b'\n", 2, "next_hop.match", ("a b", "no pattern", "unix:/path")),
    ("[[next_hop]]\nmatch = '*:'\n", 2, "next_hop.match", ("port",)),
    ("[[next_hop]]\nmatch = 'x:99999'\n", 2, "next_hop.match", ("port",)),
    ("[[next_hop]]\nmatch = 25\n", 2, "next_hop.match", ("text in quotes",)),
    ("[[next_hop]]\nmatch = 'x'\n[[next_hop]]\nmatch = '[X]'\n", 4, "next_hop.match", ("line 1", "before")),
    ("[[next_hop]]\nmatch = '*'\n[[next_hop]]\nmatch = 'x'\n", 4, "next_hop.match", ("line 1", "before")),
    ("[[next_hop]]\nmatch = '*'\nlevel = 'may'\n", 3, "next_hop.level", ("not known", "tls")),
    ("[[next_hop]]\nmatch = '*'\nbind_address = 'x'\n", 3, "next_hop.bind_address", ("IP address",)),
    ("[[next_hop]]\nmatch = '*'\nhelo_name = 'a b'\n", 3, "next_hop.helo_name", ("a b",)),
    ("[[next_hop]]\nmatch = '*'\n[next_hop.limits]\nwaiters = 1\n", 4, "next_hop.limits.waiters", ("[limits]",)),
    ("[[next_hop]]\nmatch = '*'\nlimits.colour = 1\n", 3, "next_hop.limits.colour", ("not known",)),
    ("[[next_hop]]\nmatch = '*'\ntimeouts.dot = 0\n", 3, "next_hop.timeouts.dot", ("seconds",)),
    ("[[next_hop]]\nmatch = '*'\ntls = 'may'\n", 3, "next_hop.tls", ("a table",)),
    ("[[next_hop]]\nmatch = '*'\ncredentials = 'x'\n", 3, "next_hop.credentials", ("[credentials.x]", "none at all")),
    (f"{LOGIN}[[next_hop]]\nmatch = '*'\ncredentials = 'x'\n", 7, "next_hop.credentials", ("there are relay",)),
    ("[[next_hop]]\nmatch = '*'\nclient_certificate = 'ca'\n", 3, "next_hop.client_certificate", ("private key",)),
    ("[[next_hop]]\nmatch = '*'\nclient_certificate = 'open'\n", 3, "next_hop.client_certificate", ("chmod 600",)),
    # Credentials.
    ("[credentials.a]\npassword_file='good'\nusers=[1]\n", 1, "credentials.a.username", ("missing", "account")),
    ("[credentials.a]\nusername='u'\nusers=[1]\n", 1, "credentials.a.password_file", ("missing", "path")),
    ("[credentials.a]\nusername='u'\npassword_file='good'\n", 1, "credentials.a.users", ("missing", "groups")),
    (f"{LOGIN}password = '{SECRET}'\n", 5, "credentials.relay.password", ("not known", "password_file")),
    (LOGIN.replace('"u"', '""'), 2, "credentials.relay.username", ("empty",)),
    (LOGIN.replace('"good"', '""'), 3, "credentials.relay.password_file", ("empty", "path")),
    (LOGIN.replace("good", "missing"), 3, "credentials.relay.password_file", ("No such file",)),
    (LOGIN.replace("good", "empty"), 3, "credentials.relay.password_file", ("is empty",)),
    (LOGIN.replace("good", "newline"), 3, "credentials.relay.password_file", ("is empty",)),
    (LOGIN.replace("good", "open"), 3, "credentials.relay.password_file", ("chmod 600",)),
    (LOGIN.replace("good", "long"), 3, "credentials.relay.password_file", (f"{MAX_PASSWORD} bytes",)),
    (LOGIN.replace("good", "binary"), 3, "credentials.relay.password_file", ("UTF-8",)),
    (LOGIN.replace("good", "nul"), 3, "credentials.relay.password_file", ("another password",)),
    (LOGIN.replace("good", "folder"), 3, "credentials.relay.password_file", ("no file",)),
    (LOGIN.replace("good", "pipe"), 3, "credentials.relay.password_file", ("no file",)),
    (LOGIN.replace('"good"', '"a\\u0000b"'), 3, "credentials.relay.password_file", ("NUL",)),
    (LOGIN.replace('["root"]', '"root"'), 4, "credentials.relay.users", ("an array",)),
    (LOGIN.replace('"root"', '"nobody-at-all"'), 4, "credentials.relay.users", ("no user 'nobody-at-all'",)),
    (f"{LOGIN}groups = ['nobody-at-all']\n", 5, "credentials.relay.groups", ("no group",)),
    # Anchors.
    ("[anchors.a]\n", 1, "anchors.a.file", ("missing", "PEM")),
    ("[anchors.a]\nfile = 'missing'\n", 2, "anchors.a.file", ("No such file",)),
    ("[anchors.a]\nfile = 'good'\n", 2, "anchors.a.file", ("PEM certificates",)),
    ("[anchors.a]\nfile = 'ca'\npath = 'ca'\n", 3, "anchors.a.path", ("not known", "file")),
    # Users.
    ("[access]\nuser = ['root']\n", 2, "access.user", ("not known", "users, groups")),
    ("[access]\nleases_per_user = 0\n", 2, "access.leases_per_user", ("0", "at least 1")),
    ("[access]\nleases_per_user = true\n", 2, "access.leases_per_user", ("True", "whole number")),
    ("[access]\nleases_per_user = '5'\n", 2, "access.leases_per_user", ("'5'", "whole number")),
    ("[access]\nusers = [-1]\n", 2, "access.users", ("-1", "number from 0")),
    ("[access]\nusers = [true]\n", 2, "access.users", ("True",)),
    ("[access]\nusers = [1.5]\n", 2, "access.users", ("1.5",)),
    ("[access]\nusers = [4294967295]\n", 2, "access.users", ("4294967295",)),
    ("[access]\ngroups = ['a\\u0000']\n".replace("'", '"'), 2, "access.groups", ("no group",)),
    ("[sharing]\n", 1, "sharing.between", ("missing",)),
    ("[sharing]\nbetween = [1, 2]\n", 2, "sharing.between", ("array of arrays",)),
    ("[sharing]\nbetween = [[1]]\n", 2, "sharing.between", ("at least two",)),
    ("[sharing]\nbetween = [[1, 1]]\n", 2, "sharing.between", ("at least two",)),
    ("[sharing]\nbetween = [[1, 2], [2, 3]]\n", 2, "sharing.between", ("user 2", "two groups")),
    ("[sharing]\nbetween = [[1, 2]]\nwith = 1\n", 3, "sharing.with", ("not known",)),
)  # fmt: skip

# What is no TOML, its line, and a word.
NO_TOML = (
    (b"[limits\n", 1, "Expected"),
    (b"\n[limits]\nsessions = = 1\n", 3, "Invalid value"),
    (b"[limits]\n[limits]\n", 2, "twice"),
    (b"a = '''\n\n", 1, "''"),
    (b"a = '''\r\n\r\n", 1, "''"),
    (b"[limits]\n\xff\xfe", 2, "UTF-8"),
    (b"[limits]\n\nsessions = " + b"9" * 4_301, 3, "digits"),
    (b"[limits]\n\nsessions = [5,\n" + b"9_" * 5_000 + b"9]\n", 4, "digits"),
    (b"a = " + b"[" * 100_000, 1, ""),
)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        for name, mode, content in (
            ("good", 0o600, f"{SECRET}\n".encode()),
            ("empty", 0o600, b""),
            ("newline", 0o400, b"\n"),
            ("open", 0o640, b"x"),
            ("long", 0o600, b"x" * (MAX_PASSWORD + 1)),
            ("binary", 0o600, SECRET.encode() + b"\xff"),
            ("nul", 0o600, SECRET.encode() + b"\0"),
            ("ca", 0o600, authority().certificate_pem),
            ("client", 0o600, certificate().certificate_pem + certificate().key_pem),
        ):
            path = self.folder / name
            path.write_bytes(content)
            path.chmod(mode)
        (self.folder / "folder").mkdir()
        os.mkfifo(self.folder / "pipe", 0o600)

    def stored(self, content: str | bytes) -> str:
        path = self.folder / "keeper.toml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def errors(self, content: str | bytes) -> tuple[str, ...]:
        with self.assertRaises(ConfigurationError, msg=content) as caught:
            load(self.stored(content))
        self.assertEqual(str(caught.exception), "\n".join(caught.exception.lines))
        self.assertNotIn(SECRET, str(caught.exception))
        return caught.exception.lines


class WrongTests(Case):
    def test_each_has_its_line(self) -> None:
        self.assertGreaterEqual(len(WRONG), 40)
        for content, line, key, words in WRONG:
            lines = self.errors(content)
            self.assertEqual(len(lines), 1, (content, lines))
            start = f"{self.folder}/keeper.toml:{line}: {key}: "
            self.assertTrue(lines[0].startswith(start), (start, lines[0]))
            for word in words:
                self.assertIn(word, lines[0])
            self.assertNotIn("\n", lines[0])

    def test_all_have_their_lines(self) -> None:
        """In the order of the file, whatever kind they are of."""
        lines = self.errors(
            "colour = 'red'\n"
            "[limits]\nsessions = 0\nwaiters = -1\nsize = 3\n"
            "[[next_hop]]\nmatch = 'a b'\ncredentials = 'none'\nhelo_name = 'a b'\n"
            "[next_hop.tls]\nlevel = 'high'\nanchors = 'none'\nmin_version = 'SSLv3'\n"
            "[credentials.relay]\nusername = ''\npassword_file = 'open'\n"
            "[anchors.ca]\nfile = 'missing'\n"
            "[access]\nusers = ['nobody-at-all', -5]\n"
        )
        numbers = [int(line.split(":")[1]) for line in lines]
        self.assertEqual(numbers, [1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 14, 15, 16, 18, 20, 20])

    def test_what_is_named_and_wrong(self) -> None:
        """It is told once, where it is wrong."""
        lines = self.errors(
            "[credentials.a]\nusername = 'u'\npassword_file = 'open'\nusers = [1]\n[anchors.b]\nfile = 'good'\n"
            "[[next_hop]]\nmatch = 'x'\ncredentials = 'a'\ntls.anchors = 'b'\n"
        )
        self.assertEqual([int(line.split(":")[1]) for line in lines], [3, 6])

    def test_no_toml(self) -> None:
        for content, line, word in NO_TOML:
            (found,) = self.errors(content)
            if line != 1 or word:
                self.assertIn(f"keeper.toml:{line}: no TOML: ", found)
            self.assertIn(word, found)

    def test_unreadable(self) -> None:
        for path in (str(self.folder / "missing"), str(self.folder)):
            with self.assertRaises(ConfigurationError) as caught:
                load(path)
            self.assertIn(f"{path}: can't be read: ", str(caught.exception))

    def test_too_large(self) -> None:
        (line,) = self.errors(b"#" * (MAX_FILE + 1))
        self.assertIn(f"{MAX_FILE} bytes", line)

    def test_others_may_not_read_a_password(self) -> None:
        """No bit of the group's or of others is let pass."""
        for bit in (0o040, 0o020, 0o010, 0o004, 0o002, 0o001):
            (self.folder / "good").chmod(0o600 | bit)
            (line,) = self.errors(LOGIN)
            self.assertIn("chmod 600", line)
        (self.folder / "good").chmod(0o400)
        load(self.stored(LOGIN))


class RightTests(Case):
    def test_values(self) -> None:
        path = self.stored(b"[limits]\nsessions = 7\nmax_uses = 3\n[timeouts]\ndot = 1.5\n")
        found = load(path)
        self.assertEqual((found.limits, found.timeouts), (Limits(sessions=7, max_uses=3), Timeouts(dot=1.5)))
        self.assertEqual(found.path, path)

    def test_empty(self) -> None:
        found = load(self.stored(b""))
        self.assertEqual((found.limits, found.timeouts), (Limits(), Timeouts()))
        self.assertEqual((found.access, found.shared, found.next_hops), (Permission(), (), ()))

    def test_password(self) -> None:
        """One newline at its end is no part of it."""
        for content, password in (
            ("x", "x"),
            ("x\n", "x"),
            ("x\r\n", "x"),
            ("x\n\n", "x\n"),
            (" x ", " x "),
            ("ü", "ü"),
        ):
            (self.folder / "good").write_bytes(content.encode())
            found = load(self.stored(f"{LOGIN}[[next_hop]]\nmatch = '*'\ncredentials = 'relay'\n"))
            ((_, rule),) = found.next_hops
            assert rule.login is not None
            self.assertEqual(rule.login.credentials.password, password)
            self.assertNotIn("password='", repr(found))

    def test_level_of_credentials(self) -> None:
        """They go to who has proved its name, unless the file says otherwise."""
        for tls, level in (("", "verify"), ("tls.min_version = 'TLSv1.3'\n", "verify"), ("tls.level = 'may'\n", "may")):
            found = load(self.stored(f"{LOGIN}[[next_hop]]\nmatch = '*'\ncredentials = 'relay'\n{tls}"))
            ((_, rule),) = found.next_hops
            assert rule.demand is not None
            self.assertEqual(rule.demand.level, level)

    def test_whole(self) -> None:
        found = load(
            self.stored(
                f"{LOGIN}groups = [5]\n[anchors.ours]\nfile = 'ca'\n"
                "[namespace.bulk]\nlimits = { max_uses = 5, idle_timeout = 3 }\ntls.level = 'encrypt'\n"
                "[[next_hop]]\nmatch = '*.example.com:587'\ncredentials = 'relay'\nclient_certificate = 'client'\n"
                "bind_address = '192.0.2.1'\nhelo_name = 'x.example'\nlimits.max_uses = 9\ntimeouts.dot = 9\n"
                "[next_hop.tls]\nanchors = 'ours'\nmatch = ['.example.com']\n"
                "[access]\nusers = ['root', 77]\n[sharing]\nbetween = [[3, 4], [1, 2]]\n"
            )
        )
        settings = found.settings(Destination("mx.example.com:587", namespace="bulk"))
        self.assertEqual(settings.limits, Limits(max_uses=9, idle_timeout=3))
        self.assertEqual(settings.timeouts, Timeouts(dot=9))
        pem = authority().certificate_pem
        self.assertEqual(
            settings.demands, (Demand("encrypt"), Demand("verify", match=(".example.com",), trust_anchors=pem))
        )
        assert settings.login is not None
        self.assertEqual(settings.login.allowed, Permission(frozenset({0}), frozenset({5})))
        self.assertEqual((settings.bind_address, settings.helo_name), ("192.0.2.1", "x.example"))
        self.assertEqual(settings.client_pem, (self.folder / "client").read_bytes())
        self.assertEqual(found.settings(Destination("mx.example.com:25")).limits, Limits())
        self.assertEqual(found.access, Permission(frozenset({0, 77})))
        self.assertEqual(found.shared, (frozenset({3, 4}), frozenset({1, 2})))
        said = summary(found)
        for words in ("bulk", "next hops: 1", "credentials in use: relay", "user 77", "users 1, 2"):
            self.assertIn(words, said)

    def test_paths_are_those_of_the_file(self) -> None:
        """Wherever the keeper runs."""
        path = os.path.abspath(self.stored(LOGIN))
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir("/")
        load(path)


class PatternTests(SynchronousTestCase):
    def test_matches(self) -> None:
        for pattern, yes, no in (
            ("example.com", ("example.com", "[example.com]", "EXAMPLE.com:587"), ("a.example.com", "xexample.com")),
            ("example.com:25", ("example.com", "[example.com]:25"), ("example.com:587",)),
            ("*.example.com", ("a.example.com", "[a.b.example.com]:26"), ("example.com", "aexample.com")),
            ("*.example.com:587", ("a.example.com:587",), ("a.example.com",)),
            ("[mail.example.com]:587", ("[mail.example.com]:587", "mail.example.com:587"), ("[mail.example.com]",)),
            ("[192.0.2.1]", ("[192.0.2.1]:77", "[::ffff:192.0.2.1]"), ("[192.0.2.2]", "unix:/192.0.2.1")),
            ("[2001:DB8::1]", ("[IPv6:2001:db8:0::1]",), ("[2001:db8::2]",)),
            ("unix:/run/x", ("unix:/run/x",), ("unix:/run/xy", "run")),
            ("*:587", ("example.com:587", "[192.0.2.1]:587"), ("example.com", "unix:/run/x")),
            ("*", ("example.com", "unix:/run/x", "[192.0.2.1]:77"), ()),
        ):
            made = Pattern.parse(pattern)
            for next_hop in yes:
                self.assertTrue(made.matches(Destination(next_hop).hop), (pattern, next_hop))
            for next_hop in no:
                self.assertFalse(made.matches(Destination(next_hop).hop), (pattern, next_hop))


class ShippedTests(Case):
    """contrib/mailcache.toml."""

    def activated(self) -> str:
        """With every line that is commented out."""
        return re.sub(r"(?m)^#(?=\S)", "", SHIPPED.read_text())

    def prepare(self) -> None:
        for name, what in (("relay.password", "good"), ("corporate-ca.pem", "ca"), ("client.pem", "client")):
            (self.folder / what).rename(self.folder / name)
        known = {"mail": 8, "news": 9}
        self.patch(pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=known[name]))
        self.patch(config_tables.grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=known[name]))

    def test_as_it_is(self) -> None:
        found = load(str(SHIPPED))
        self.assertEqual((found.limits, found.timeouts, found.next_hops), (Limits(), Timeouts(), ()))

    def test_activated(self) -> None:
        """It is fine, and shows the defaults."""
        self.prepare()
        found = load(self.stored(self.activated()))
        self.assertEqual((found.limits, found.timeouts), (Limits(max_uses=100), Timeouts()))
        self.assertEqual(len(found.next_hops), 3)
        self.assertEqual(found.shared, (frozenset({8, 9}),))

    def test_every_key_is_there(self) -> None:
        values = tomllib.loads(self.activated())
        hops = values["next_hop"]

        def check(known: Iterable[str], *given: dict[str, object]) -> None:
            self.assertEqual(set(known), {key for table in given for key in table})

        check(config_tables.TOP, values)
        check(config_tables.LIMITS, values["limits"])
        check(config_tables.TIMEOUTS, values["timeouts"])
        check(config_tables.NAMESPACE, *values["namespace"].values())
        check(config_tables.NEXT_HOP, *hops)
        check(config_tables.TLS, *(hop["tls"] for hop in hops if "tls" in hop))
        check(config_tables.CREDENTIALS, *values["credentials"].values())
        check(config_tables.ANCHORS, *values["anchors"].values())
        check(config_tables.ACCESS, values["access"])
        check(config_tables.SHARING, values["sharing"])
