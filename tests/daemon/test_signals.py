"""The signals that a keeper obeys: from the reactor, and in place of what Twisted does about them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache.daemon.signals import Signals


class Running:
    """A reactor as far as signals go."""

    def __init__(self) -> None:
        self.when_running: list[Callable[[], None]] = []
        self.to_call: list[tuple[Any, ...]] = []

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.when_running.append(call)

    def callFromThread(self, *call: Any) -> None:
        self.to_call.append(call)


class SignalsTests(SynchronousTestCase):
    def test_signals(self) -> None:
        running = Running()
        heard: list[str] = []
        signals = Signals(running, heard.append, lambda: heard.append("reload"))
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = [signal.getsignal(number) for number in numbers]
        signals.install()
        self.assertEqual([signal.getsignal(number) for number in numbers], before, "not yet")
        (install,) = running.when_running
        install()
        self.addCleanup(signals.uninstall)
        for number in (*numbers, signal.SIGTERM):
            os.kill(os.getpid(), number)
        self.assertEqual(heard, [], "not in the handler")
        for do, *arguments in running.to_call:
            do(*arguments)
        self.assertEqual(heard, ["SIGTERM", "SIGINT", "reload", "SIGTERM"])
        signals.uninstall()
        self.assertEqual([signal.getsignal(number) for number in numbers], before)
