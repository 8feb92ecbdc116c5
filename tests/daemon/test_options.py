"""The options of ``twist mailcache`` and its configuration file: what is wrong is refused by name."""

from __future__ import annotations

import os

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits, Timeouts
from mailcache.daemon.config import ConfigurationError, load
from mailcache.daemon.options import DEFAULT_LISTEN, Options
from tests.helpers import stored


class ConfigurationTests(SynchronousTestCase):
    def test_values(self) -> None:
        path = stored(self, b"[limits]\nsessions = 7\nmax_uses = 3\n[timeouts]\ndot = 1.5\n")
        found = load(path)
        self.assertEqual((found.limits, found.timeouts), (Limits(sessions=7, max_uses=3), Timeouts(dot=1.5)))

    def test_empty(self) -> None:
        found = load(stored(self, b""))
        self.assertEqual((found.limits, found.timeouts), (Limits(), Timeouts()))

    def test_refusals(self) -> None:
        """The text names the file, and these words."""
        for content, *words in (
            (b"[limit]\n", "[limit]", "limits", "timeouts"),
            (b"sessions = 5\n", "sessions"),
            (b"limits = 5\n", "[limits]"),
            (b"[limits]\nsession = 5\n", "session ", "[limits]", "sessions_per_endpoint"),
            (b"[timeouts]\nmial = 5\n", "mial", "[timeouts]", "first_reply"),
            (b"[limits]\nsessions = 0\n", "sessions", "at least 1"),
            (b"[limits]\nsessions = true\n", "sessions"),
            (b"[limits]\nsessions = 1.5\n", "sessions"),
            (b'[limits]\nsessions = "5"\n', "sessions"),
            (b"[limits]\nidle_timeout = -1\n", "idle_timeout"),
            (b"[limits]\nmax_age = inf\n", "max_age"),
            (b"[limits]\nmax_age = nan\n", "max_age"),
            (b"[timeouts]\ndot = 0\n", "dot"),
            (b"[timeouts]\ndot = 1979-05-27\n", "dot"),
            (b"[timeouts]\ndot = []\n", "dot"),
            (b"[[limits]]\nsessions = 5\n", "[limits]"),
            (b"[limits\n", "TOML"),
            (b"\xff\xfe", "TOML"),
        ):
            path = stored(self, content)
            with self.assertRaises(ConfigurationError, msg=content) as caught:
                load(path)
            for word in (path, *words):
                self.assertIn(word, str(caught.exception), content)

    def test_unreadable(self) -> None:
        missing = self.mktemp()
        for path in (missing, os.path.dirname(__file__)):
            with self.assertRaises(ConfigurationError) as caught:
                load(path)
            self.assertIn(path, str(caught.exception))


class OptionsTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        options = Options()
        options.parseOptions([])
        self.assertEqual(options["listen"], DEFAULT_LISTEN)
        self.assertEqual(DEFAULT_LISTEN, "unix:/run/mailcache/mailcache.sock:mode=600")
        self.assertEqual(options["configuration"].limits, Limits())

    def test_configuration(self) -> None:
        options = Options()
        options.parseOptions(["--config", stored(self, b"[limits]\nsessions = 7\n")])
        self.assertEqual(options["configuration"].limits.sessions, 7)

    def test_refusals(self) -> None:
        for arguments in (["--config", self.mktemp()], ["--colour", "red"], ["surplus"]):
            with self.assertRaises(UsageError, msg=arguments):
                Options().parseOptions(arguments)
