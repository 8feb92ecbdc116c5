"""What the tests with real servers share: servers that end with the test, and the check of what they have stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, TestCase

from tests.integration.corpus import label_of
from tests.integration.debian import UnavailableError
from tests.integration.servers import StoringServer, StoringSMTPServer

Kind = TypeVar("Kind", bound=StoringServer)


class RealServerCase(TestCase):
    """
    Tests that start real servers, whose logs stay in trial's folder under the test's name. They are skipped
    where a server can't be had, unless ``CI`` is set.
    """

    timeout = 600  # the first run on a machine fetches the servers

    async def run_server(self, kind: type[Kind], **options: Any) -> Kind:
        """A server that runs until the test ends."""
        server = kind(reactor, Path(self.mktemp()) / "log", **options)
        self.addCleanup(server.stop)
        try:
            await server.start()
        except UnavailableError as error:
            if os.environ.get("CI"):
                raise
            raise SkipTest(str(error)) from error
        return server

    async def check_stored_by(self, server: StoringServer, messages: dict[str, bytes]) -> None:
        """Wait until as many messages are stored; each of these must be there once, byte for byte."""
        await server.wait_for(len(messages), 60)
        stored = server.messages()
        by_label = {label_of(message): message for message in stored}
        self.assertEqual(len(stored), len(messages), "messages")
        self.assertEqual(by_label.keys(), messages.keys())
        for label, message in messages.items():
            self.assertEqual(by_label[label], server.as_stored(message), label)


class ServerTestCase(RealServerCase):
    """Tests with a running server of a ``kind``."""

    kind: ClassVar[type[StoringSMTPServer]]
    server: StoringSMTPServer

    async def setUp(self) -> None:
        super().setUp()
        self.server = await self.run_server(self.kind)

    async def check_stored(self, messages: dict[str, bytes]) -> None:
        await self.check_stored_by(self.server, messages)
