"""What ``twist mailcache`` runs: the options, and the service made of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.application.service import IService
from twisted.internet.error import ReactorNotRunning

from mailcache.daemon.listening import CannotListen
from mailcache.daemon.options import Options
from mailcache.daemon.service import KeeperService
from mailcache.daemon.signals import Signals

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> IService:
    """The service that ``twist mailcache`` runs, and the signals that it obeys.

    It exits with a clear message where it can't listen.
    """
    from twisted.internet import reactor

    loop: Any = reactor

    def stop() -> None:
        with suppress(ReactorNotRunning):
            loop.stop()

    try:
        service = KeeperService(
            loop,
            options["listen"],
            options["configuration"],
            life=options["life"],
            takeover=bool(options["takeover"]),
            on_end=stop,
        )
        service.check()
    except CannotListen as error:
        raise SystemExit(f"mailcache: {error}") from None
    Signals(loop, service.retire, service.hang_up).install()
    return service
