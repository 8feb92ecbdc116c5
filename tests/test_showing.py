"""What a running keeper has kept and saved, shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.trial.unittest import SynchronousTestCase

from mailcache.showing import table
from tests.remote.processes import ProcessCase

ROW: dict[str, Any] = {
    "destination": "smtp:example.com:25",
    "namespace": "default",
    "user": 1000,
    "transactions": 12_345,
    "sessions": 3,
    "hits": 12,
    "misses": {"route": 2, "none idle": 1},
    "handshakes": 3,
    "saved_handshakes": 12_342,
    "saved_seconds": 99.5,
}


class TableTests(SynchronousTestCase):
    def test_counts_and_destinations(self) -> None:
        other = {**ROW, "destination": "lmtp:unix:/run/lmtp", "user": None}
        text = table({"leased": 2, "saved_seconds": 1234.5, "misses": {"route": 4}, "destinations": [ROW, other]})
        lines = text.splitlines()
        self.assertIn("           2  sessions in use", lines)
        self.assertIn("     1,234.5  seconds of opening saved", lines)
        self.assertIn("           4  no kept session served: route", lines)
        self.assertEqual(
            lines[-3:],
            [
                "destination          namespace  user  messages  sessions  hits  misses   saved  saved s",
                "smtp:example.com:25  default    1000    12,345         3    12       3  12,342     99.5",
                "lmtp:unix:/run/lmtp  default            12,345         3    12       3  12,342     99.5",
            ],
        )

    def test_nothing_yet(self) -> None:
        text = table({"destinations": []})
        self.assertNotIn("destination", text)
        self.assertEqual({line.split()[0] for line in text.splitlines()}, {"0", "0.0"})


def shown(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mailcache.cli", "show", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class CommandTests(ProcessCase):
    """The command, a keeper and its borrowers: all of them processes."""

    async def test_what_was_saved_is_what_the_server_did_not_see(self) -> None:
        server = self.serve()
        await self.keeper(sessions_per_endpoint=2)
        borrowers = [self.borrower() for _ in range(2)]
        await gatherResults(
            [
                borrower.does("send", "done", labels=[f"{name}-{number}@test" for number in range(30)], at_once=3)
                for name, borrower in enumerate(borrowers)
            ]
        )
        await gatherResults([borrower.does("close", "closed") for borrower in borrowers])
        counts = json.loads((await self.show("--json")).stdout)
        self.assertEqual(counts["transactions"], 60)
        self.assertEqual(counts["saved_handshakes"], server.message_count - server.handshake_count)
        self.assertGreater(counts["saved_seconds"], 0)
        (row,) = counts["destinations"]
        self.assertEqual((row["transactions"], row["handshakes"]), (60, server.handshake_count))
        self.assertEqual(row["saved_handshakes"], counts["saved_handshakes"])
        self.assertEqual(row["user"], os.getuid())
        said = (await self.show()).stdout
        self.assertIn("TLS handshakes saved", said)
        self.assertIn(row["destination"], said)

    async def show(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        from twisted.internet.threads import deferToThread

        done: subprocess.CompletedProcess[str] = await deferToThread(shown, "--cache", self.socket, *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done


class NoKeeperTests(SynchronousTestCase):
    def test_nobody_listens(self) -> None:
        path = os.path.join(tempfile.mkdtemp(), "nobody.sock")
        done = shown("--cache", path)
        self.assertEqual((done.returncode, done.stdout), (os.EX_UNAVAILABLE, ""))
        self.assertIn(f"mailcache show: no keeper answers at {path}: ", done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1)
