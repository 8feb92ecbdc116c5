"""The options of ``twist mailcache``: what is wrong is refused by name."""

from __future__ import annotations

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits
from mailcache.daemon.options import DEFAULT_LISTEN, Options
from mailcache.daemon.retirement import Life
from tests.helpers import stored


class OptionsTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        options = Options()
        options.parseOptions([])
        self.assertEqual(options["listen"], DEFAULT_LISTEN)
        self.assertEqual(DEFAULT_LISTEN, "unix:/run/mailcache/mailcache.sock:mode=600")
        self.assertEqual(options["configuration"].limits, Limits())
        self.assertEqual(options["life"], Life(retire_after=0, max_memory=0, drain_limit=30))
        self.assertFalse(options["takeover"])

    def test_life(self) -> None:
        options = Options()
        options.parseOptions(
            ["--retire-after", "3600.5", "--max-memory", "200000000", "--drain-limit", "5", "--takeover"]
        )
        self.assertEqual(options["life"], Life(retire_after=3600.5, max_memory=200_000_000, drain_limit=5))
        self.assertTrue(options["takeover"])

    def test_configuration(self) -> None:
        options = Options()
        options.parseOptions(["--config", stored(self, b"[limits]\nsessions = 7\n")])
        self.assertEqual(options["configuration"].limits.sessions, 7)

    def test_refusals(self) -> None:
        for arguments in (
            ["--config", self.mktemp()],
            ["--colour", "red"],
            ["surplus"],
            ["--retire-after", "soon"],
            ["--retire-after", "-1"],
            ["--retire-after", "inf"],
            ["--max-memory", "1.5"],
            ["--max-memory", "-1"],
            ["--drain-limit", "nan"],
        ):
            with self.assertRaises(UsageError, msg=arguments):
                Options().parseOptions(arguments)
