"""The command: its arguments, and how it ends when things go wrong."""

from __future__ import annotations

import io
import sys
from importlib import metadata
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mailcache import cli, controlling, demo
from tests.helpers import stored


class CommandTests(SynchronousTestCase):
    def call(self, *arguments: str) -> tuple[int | str | None, str, str]:
        """The exit status, and what was written to either stream."""
        out, errors = io.StringIO(), io.StringIO()
        with mock.patch.object(sys, "stdout", out), mock.patch.object(sys, "stderr", errors):
            try:
                status: int | str | None = cli.main(arguments)
            except SystemExit as leaving:
                status = leaving.code
        return status, out.getvalue(), errors.getvalue()

    def pretend(self, outcome: int | BaseException) -> mock.Mock:
        """In place of the demonstration."""
        run = mock.Mock(side_effect=[outcome])
        self.patch(demo, "run", run)
        return run

    def test_version(self) -> None:
        with mock.patch.object(metadata, "version", return_value="1.2.3"):
            self.assertEqual(self.call("--version"), (0, "mailcache 1.2.3\n", ""))

    def test_version_of_a_checkout(self) -> None:
        """Not installed, it says so."""
        with mock.patch.object(metadata, "version", side_effect=metadata.PackageNotFoundError):
            self.assertEqual(self.call("--version"), (0, "mailcache (not installed)\n", ""))

    def test_help(self) -> None:
        """Each command is listed, with what it does."""
        status, out, _ = self.call("--help")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"(?m)^ +demo +send mail")

    def test_no_command(self) -> None:
        status, _, errors = self.call()
        self.assertEqual(status, 2)
        self.assertIn("required: COMMAND", errors)

    def test_demo(self) -> None:
        """What was asked for, or the defaults; the demonstration's status is the command's."""
        for arguments, expected in (
            ((), (1000, 4)),
            (("--messages", "50"), (50, 4)),
            (("--senders", "50", "--messages", "100000"), (100_000, 50)),
        ):
            run = self.pretend(7)
            self.assertEqual(self.call("demo", *arguments)[0], 7)
            self.assertEqual(run.call_args.args[:2], expected)

    def test_bad_numbers(self) -> None:
        for name, bad in (
            ("messages", "0"),
            ("messages", "100001"),
            ("messages", "-1"),
            ("messages", "1e3"),
            ("messages", "\N{SUPERSCRIPT TWO}"),
            ("messages", "9" * 5000),
            ("senders", "0"),
            ("senders", "51"),
        ):
            run = self.pretend(0)
            status, _, errors = self.call("demo", f"--{name}={bad}")
            self.assertEqual(status, 2)
            self.assertIn(f"argument --{name}: '{bad}' is not a whole number from 1 to ", errors)
            self.assertFalse(run.called)

    def test_failure(self) -> None:
        """What can be foreseen is told in one line."""
        for error in (demo.DemoFailed("no luck"), OSError("no luck")):
            self.pretend(error)
            self.assertEqual(self.call("demo"), (1, "", "mailcache demo: no luck\n"))

    def test_interrupted(self) -> None:
        self.pretend(KeyboardInterrupt())
        self.assertEqual(self.call("demo"), (130, "", ""))

    def test_check(self) -> None:
        """A file that is fine, and one that has errors: a line for each, and the status of sysexits.h."""
        path = stored(self, b"[limits]\nsessions = 7\n")
        status, out, errors = self.call("check", path)
        self.assertEqual((status, errors), (0, ""))
        self.assertTrue(out.startswith(f"{path}: fine\n"))
        self.assertIn("sessions: 7 at most", out)
        path = stored(self, b"[limits]\nsessions = 0\ncolour = 1\n")
        status, out, errors = self.call("check", path)
        self.assertEqual((status, out), (78, ""))
        first, second = errors.splitlines()
        self.assertTrue(first.startswith(f"{path}:2: limits.sessions: "))
        self.assertTrue(second.startswith(f"{path}:3: limits.colour: "))
        status, out, errors = self.call("check", self.mktemp())
        self.assertEqual((status, out, errors.count("\n")), (78, "", 1))

    def test_reload(self) -> None:
        """The socket is the usual one unless another is named."""
        for arguments, path in (((), controlling.SOCKET), (("--cache", "/x"), "/x")):
            reload = mock.Mock(return_value=0)
            self.patch(controlling, "reload", reload)
            self.assertEqual(self.call("reload", *arguments)[0], 0)
            self.assertEqual(reload.call_args.args[0], path)

    def test_reload_without_keeper(self) -> None:
        path = self.mktemp()
        status, out, errors = self.call("reload", "--cache", path)
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(errors, f"mailcache reload: {path}: no keeper answers there: No such file or directory\n")
