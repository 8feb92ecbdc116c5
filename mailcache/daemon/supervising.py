"""What a service tells systemd: that it is ready, that it lives, that it ends (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Any

from twisted.logger import Logger

from mailcache.ticker import Ticker


class Supervisor:
    """Tells systemd how the service is; nothing is told where nobody wants to hear it.

    :param environ: where systemd says what it wants to hear; that is taken out of it, for it is not meant for
        processes that this one starts.
    """

    _log = Logger()

    def __init__(self, reactor: Any, environ: MutableMapping[str, str]) -> None:
        where = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        interval, watched = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._watchdog: Ticker | None = None
        if where and interval.isdecimal() and int(interval) and watched in ("", str(os.getpid())):
            self._watchdog = Ticker(reactor, int(interval) / 2_000_000, self._alive)

    def ready(self, status: str) -> None:
        """The service does its work, for the first time or again; the watchdog's time begins."""
        self._tell("READY=1", f"STATUS={status}")
        if self._watchdog is not None:
            self._watchdog.start()

    def reloading(self) -> None:
        """The configuration is being read again; `ready` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self, status: str, limit: float) -> None:
        """The service ends, which may take ``limit`` seconds."""
        self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(limit * 1_000_000)}")

    def stopped(self) -> None:
        """Nothing more is told."""
        if self._watchdog is not None:
            self._watchdog.stop()

    def _alive(self) -> bool:
        self._tell("WATCHDOG=1")
        return True

    def _tell(self, *assignments: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
            try:
                out.sendto("\n".join(assignments).encode(), self._address)
            except OSError as error:
                self._log.warn("systemd does not hear {what}: {error}", what=assignments[0], error=str(error))
