"""What the tests with real servers share: a server for each test, and the check of what it has stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, TestCase

from tests.integration.corpus import as_stored, label_of
from tests.integration.debian_postfix import UnavailableError
from tests.integration.servers import StoringServer


class ServerTestCase(TestCase):
    """
    Tests with a running server of a ``kind``, whose log stays in trial's folder under the test's name. They are
    skipped where the server can't be had, unless ``CI`` is set.
    """

    kind: ClassVar[type[StoringServer]]
    server: StoringServer
    timeout = 600  # the first run on a machine fetches Postfix

    async def setUp(self) -> None:
        self.server = self.kind(reactor, Path(self.mktemp()) / "log")
        self.addCleanup(self.server.stop)
        try:
            await self.server.start()
        except UnavailableError as error:
            if os.environ.get("CI"):
                raise
            raise SkipTest(str(error)) from error

    async def check_stored(self, messages: dict[str, bytes]) -> None:
        """Wait until as many messages are stored; each of these must be there once, byte for byte."""
        await self.server.wait_for(len(messages), 60)
        stored = self.server.messages()
        by_label = {label_of(message): message for message in stored}
        self.assertEqual(len(stored), len(messages), "messages")
        self.assertEqual(by_label.keys(), messages.keys())
        for label, message in messages.items():
            self.assertEqual(by_label[label], as_stored(message), label)
