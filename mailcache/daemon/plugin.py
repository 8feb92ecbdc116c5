"""What ``twist mailcache`` runs: the options, and the service made of them."""

from __future__ import annotations

from twisted.application.service import IService

from mailcache.daemon.options import Options
from mailcache.daemon.service import CannotListen, KeeperService, listening_path, take_path

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> IService:
    """The service that ``twist mailcache`` runs; it exits with a clear message where it can't listen."""
    from twisted.internet import reactor

    try:
        take_path(listening_path(options["listen"]))
        return KeeperService(reactor, options["listen"], options["configuration"])
    except CannotListen as error:
        raise SystemExit(f"mailcache: {error}") from None
