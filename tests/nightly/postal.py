"""Keepers and borrowers as real processes, whose letters are kept account of; for the commands beside this module."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from mailcache.testing import Connection, SMTPServer
from tests.helpers import CREDENTIALS
from tests.nightly.ledger import Ledger
from tests.nightly.letters import verdict
from tests.remote.processes import Process
from tests.remote.test_restart import RestartCase

STARTS = 60.0
"""Seconds until a keeper listens, on a machine that has much to do all the time."""


class WatchedServer(SMTPServer):
    """A server that does something at the moment when a conversation comes to a point.

    :ivar awaited: that point, once.
    :ivar reached: what is done.
    """

    awaited: str | None = None
    reached: Callable[[Connection], object]

    def take(self, point: str, record: Connection, only: str | None = None) -> str | None:
        if point == self.awaited and only is None:
            self.awaited = None
            self.reached(record)
        return super().take(point, record, only)


def slay(process: Process) -> None:
    """Kill it, and return when it has ended: it does nothing any more, and no reply overtakes its death."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(process.pid, signal.SIGKILL)
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX":
            pass


class PostalCase(RestartCase):
    """A case that keeps books."""

    timeout = 24 * 3600
    borrower_script = Path(__file__).with_name("letter_writer.py")

    def setUp(self) -> None:
        super().setUp()
        self.ledger = Ledger()
        self.servers: list[SMTPServer] = []

    def serve(self, **settings: Any) -> SMTPServer:
        given = {"verdict": verdict, "users": {"user": CREDENTIALS.password}, **settings}
        server = super().serve(**given)
        self.servers.append(server)
        return server

    def post(self, writer: Process, labels: Sequence[str], **more: Any) -> Deferred[dict[str, Any]]:
        """Have these letters sent; fires when all of them were told of."""
        for label in labels:
            self.ledger.begin(label)
        return writer.does("post", "posted", labels=labels, **more).addCallback(_without_failure)

    async def begin(self, *options: str) -> Process:
        """A keeper, over the socket that the one before has left, if one has."""
        keeper = await self.start(*options, within=STARTS)
        _, keeper.open_at_start = await self.ask_keeper(keeper)
        return keeper

    def settle(self, writers: Sequence[Process]) -> None:
        """Enter what writers have told and servers have, and compare; what nobody has told, nobody will."""
        for writer in writers:
            heard, writer.heard = writer.heard, []
            for facts in heard:
                if "report" in facts:
                    self.ledger.hear(facts["label"], facts["report"])
        self.ledger.unreported()
        for server in self.servers:
            self.ledger.read(server, f"port {server.port}")
        self.ledger.settle()


def _without_failure(facts: dict[str, Any]) -> dict[str, Any]:
    if "failed" in facts:
        raise AssertionError(facts["failed"])
    return facts


def run(case: unittest.TestCase) -> bool:
    """Run it outside of trial; tells what has failed, and gives whether nothing has."""
    result = unittest.TestResult()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        case.run(result)
    for _, problem in (*result.errors, *result.failures):
        sys.stdout.write(problem)
    return result.wasSuccessful()
