"""``mailcache send``, as a command: what it delivers, what it says, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MESSAGE = b"Subject: hello\n\nThis is a message.\n"
B = "b@example.com"


class SendTests(SynchronousTestCase):
    def setUp(self) -> None:
        environment = {**os.environ, "PYTHONPATH": ROOT}
        self.environment = environment
        self.server = subprocess.Popen(
            [sys.executable, "-m", "mailcache.testing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.addCleanup(self.server.wait)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.addCleanup(self.server.stdout.close)
        self.addCleanup(self.server.stdin.close)
        facts: dict[str, Any] = json.loads(self.server.stdout.readline())
        self.to_host = f"[127.0.0.1]:{facts['port']}"
        self.ca_file = self.mktemp()
        with open(self.ca_file, "w") as file:
            file.write(facts["certificate_authority"])

    def counts(self) -> dict[str, Any]:
        """What the server has seen; it ends with this."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        return dict(json.loads(self.server.stdout.readline()))

    def send(self, *arguments: str, message: bytes = MESSAGE) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "mailcache.cli", "send", *arguments],
            input=message,
            capture_output=True,
            env=self.environment,
            timeout=60,
        )

    def test_from_standard_input_over_verified_tls(self) -> None:
        done = self.send(
            "--to-host", self.to_host, "--from", "a@example.com", "--tls", "verify", "--ca-file", self.ca_file,
            "b@example.com", "c@example.com",
        )  # fmt: skip
        self.assertEqual(done.returncode, os.EX_OK, done.stderr)
        self.assertIn(b"b@example.com: 250", done.stdout)
        self.assertIn(b"c@example.com: 250", done.stdout)
        counts = self.counts()
        self.assertEqual((counts["messages"], counts["handshakes"], counts["violations"]), (1, 1, []))

    def test_from_a_file(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(MESSAGE)
            file.flush()
            done = self.send("--to-host", self.to_host, "--file", file.name, "b@example.com")
        self.assertEqual(done.returncode, os.EX_OK, done.stderr)
        self.assertEqual(self.counts()["messages"], 1)

    def test_from_a_pipe_that_is_filled_slowly(self) -> None:
        """It is taken up before anything else is done, wherever it is named."""
        for where in ("-", "fifo"):
            path = where
            if where == "fifo":
                path = os.path.abspath(self.mktemp())
                os.mkfifo(path)
            sending = subprocess.Popen(
                [sys.executable, "-m", "mailcache.cli", "send", "--to-host", self.to_host, "--file", path, B],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self.environment,
            )
            assert sending.stdin is not None
            writing = sending.stdin if where == "-" else open(path, "wb")  # noqa: SIM115
            for line in MESSAGE.splitlines(keepends=True):
                writing.write(line)
                writing.flush()
            writing.close()
            assert sending.stdout is not None
            sending.stdin.close()
            with sending.stdout:
                self.assertEqual(sending.stdout.read(18), b"b@example.com: 250")
            self.assertEqual(sending.wait(60), os.EX_OK)
        self.assertEqual(self.counts()["messages"], 2)

    def test_from_a_file_as_standard_input(self) -> None:
        """From where it stands."""
        with tempfile.TemporaryFile() as file:
            file.write(b"skipped" + MESSAGE)
            file.flush()
            os.lseek(file.fileno(), 7, os.SEEK_SET)
            done = subprocess.run(
                [sys.executable, "-m", "mailcache.cli", "send", "--to-host", self.to_host, B],
                stdin=file,
                capture_output=True,
                env=self.environment,
                timeout=60,
            )
        self.assertEqual(done.returncode, os.EX_OK, done.stderr)
        self.assertEqual(self.counts()["messages"], 1)

    def test_with_reports(self) -> None:
        done = self.send("--to-host", self.to_host, "--notify", "success,delay", "--ret", "hdrs", "--envid", "a b", B)
        self.assertEqual(done.returncode, os.EX_OK, done.stderr)
        for wrong in (("--notify", "never,delay"), ("--ret", "all"), ("--envid", "\xe4")):
            self.assertEqual(self.send("--to-host", self.to_host, *wrong, B).returncode, os.EX_USAGE)
        counts = self.counts()
        self.assertEqual((counts["messages"], counts["violations"]), (1, []))

    def test_without_a_keeper_it_goes_out_all_the_same(self) -> None:
        done = self.send("--to-host", self.to_host, "--cache", "/nonexistent/keeper.sock", "b@example.com")
        self.assertEqual(done.returncode, os.EX_OK, done.stderr)
        self.assertEqual(self.counts()["messages"], 1)

    def test_what_goes_wrong_has_its_status_and_its_reason(self) -> None:
        cases: list[tuple[tuple[str, ...], int, bytes]] = [
            (("--to-host", "127.0.0.1", "b@example.com"), os.EX_USAGE, b"write it in brackets"),
            (("--to-host", self.to_host, "b@@example"), os.EX_USAGE, b"recipient"),
            (("--to-host", self.to_host), os.EX_USAGE, b"RECIPIENT"),
            (("--to-host", self.to_host, "--tls", "perhaps", "b@example.com"), os.EX_USAGE, b"perhaps"),
            (("--to-host", self.to_host, "--ca-file", "/nonexistent", "b@example.com"), os.EX_USAGE, b"ca_file"),
            (("--to-host", self.to_host, "--file", "/nonexistent", "b@example.com"), os.EX_NOINPUT, b"/nonexistent"),
            (("--to-host", self.to_host, "--tls", "verify", "b@example.com"), os.EX_TEMPFAIL, b"trusted"),
            (("--to-host", "[127.0.0.1]:1", "b@example.com"), os.EX_TEMPFAIL, b"connect"),
        ]
        for arguments, status, reason in cases:
            done = self.send(*arguments)
            self.assertEqual((done.returncode, arguments), (status, arguments), done.stderr)
            self.assertIn(reason, done.stderr)
            self.assertNotIn(b"Traceback", done.stderr)
        self.assertEqual(self.counts()["messages"], 0)
