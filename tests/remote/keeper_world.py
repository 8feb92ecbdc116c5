"""The world of whole caches with a keeper in between: borrowers of two users, links that break, keepers that end."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IListeningPort

from mailcache import Destination, Limits
from mailcache.remote.configuration import Configuration
from mailcache.remote.fallback import FALLBACK_LIMITS
from mailcache.remote.keeper import Keeper
from mailcache.remote.users import Permission
from mailcache.testing import MemoryPairs
from tests.cache_worlds.books import WatchedMemory, WatchedRemote
from tests.cache_worlds.callers import Call, nothing
from tests.cache_worlds.servers import TIMEOUTS, WAIT
from tests.cache_worlds.world import World

ANN, BOB = 5001, 5002
USERS = (ANN, ANN, BOB)
"""Whose the borrowers are."""

ADMITTED = Permission(frozenset(USERS))


class WatchedKeeper(Keeper):
    """A keeper that knows its borrowers by the path they have taken."""

    cache: WatchedMemory

    def identify(self, transport: Any) -> tuple[int | None, int | None]:
        path = transport.getHost().name
        return 1, USERS[int(path[-1:])]


class KeeperWorld(World):
    """Three borrowers of two users, and a keeper; another one when that has ended.

    :ivar keepers: all there have been, the one that listens last.
    """

    def __init__(
        self, limits: Limits, latency: float, slow_delay: float, restart_seconds: float, linger: float
    ) -> None:
        self.linger = linger
        self.keepers: list[WatchedKeeper] = []
        self.borrowers: list[WatchedRemote] = []
        self.shared = False
        self._ports: list[IListeningPort] = []
        super().__init__(limits, latency, slow_delay, restart_seconds)

    def make_cache(self) -> Any:
        self.pairs = MemoryPairs(self.reactor)
        self.configured = Configuration(self.limits, TIMEOUTS, access=ADMITTED)
        self.begin_keeper()
        for number in range(len(USERS)):
            # The last one has nothing to fall back on.
            fallback = self.memory(f"fallback {number}", FALLBACK_LIMITS) if number < 2 else None
            borrower = WatchedRemote(
                self.reactor,
                f"unix:{_path(number)}",
                timeouts=TIMEOUTS,
                fallback=fallback,
                wait_timeout=WAIT,
                linger=self.linger,
                pairs=self.pairs,
                clock=self.reactor.seconds,
            )
            borrower.book = self.book(f"borrower {number}")
            self.borrowers.append(borrower)
        return self.borrowers[0]

    def caller(self, who: int) -> WatchedRemote:
        return self.borrowers[who]

    def stream_of(self, who: int, where: Destination) -> str:
        return f"{super().stream_of(who, where)}-{USERS[who]}"

    def may_share(self, streams: set[str]) -> bool:
        """Users share where a configuration has said so, but for what one logs in to himself."""
        named = {stream.rpartition("-")[0] for stream in streams}
        return len(streams) == 1 or (self.shared and len(named) == 1 and all(name.endswith("-") for name in named))

    # -- keepers ---------------------------------------------------------------------------------------------------

    @property
    def keeper(self) -> WatchedKeeper:
        return self.keepers[-1]

    def begin_keeper(self) -> None:
        kept = self.memory(f"keeper {len(self.keepers)}", self.limits)
        keeper = WatchedKeeper(self.reactor, kept, self.pairs, self.configured)
        self.keepers.append(keeper)
        self._ports = [self.reactor.listenUNIX(_path(number), keeper) for number in range(len(USERS))]
        self.set_ceilings()

    def end_keeper(self, how: str, another: bool) -> None:
        """It ends, "in order" or "killed"; where there is to be ``another``, that listens at once."""
        keeper = self.keeper
        for port in self._ports:
            port.stopListening()
        self._ports = []
        limit = 30.0
        if how == "killed":
            limit = 0.0
            for borrower in keeper.borrowers:
                for pair in borrower._lent.values():
                    pair.relay.transport.abortConnection()
                borrower.transport.abortConnection()
            for connection in keeper.cache._connections:
                if connection.transport is not None:
                    connection.transport.abortConnection()
        Call(self, "the end of a keeper", keeper.drain(limit), self.reactor.seconds() + 60, nothing)
        if another:
            self.begin_keeper()

    def begin_another(self) -> None:
        if not self._ports:
            self.begin_keeper()

    def reload(self, configured: Configuration) -> None:
        """The keeper is configured otherwise."""
        self.check()
        self.configured = configured
        self.limits = configured.limits
        self.shared = self.shared or bool(configured.shared)
        self.keeper.reconfigure(configured)
        self.set_ceilings()

    def cut_link(self, who: int, side: str) -> None:
        """The link of a borrower breaks."""
        if side == "borrower":
            self.borrowers[who]._link.abort()
            return
        for borrower in self.keeper.borrowers:
            if borrower.transport.getHost().name == _path(who):
                borrower.transport.abortConnection()

    # -- what must be true -----------------------------------------------------------------------------------------

    def check(self) -> None:
        for keeper in self.keepers:
            lent = sum(pair.lease is not None for borrower in keeper.borrowers for pair in borrower._lent.values())
            held = len(keeper.cache.book.held)
            if lent != held:
                self.complain(f"{keeper.cache.book.name} has lent {lent} sessions, and {held} are leased")
        here: dict[str, str] = {}
        for borrower in self.borrowers:
            name = borrower.book.name
            for session in borrower.book.held:
                if session in here:
                    self.complain(f"session {session} is {name}'s and {here[session]}'s")
                here[session] = name
        super().check()

    def close(self) -> None:
        self.closed = True
        for who in range(len(self.borrowers)):
            self.close_one(who)

    def close_one(self, who: int) -> None:
        borrower = self.borrowers[who]
        Call(self, f"close of {borrower.book.name}", borrower.close(), self.reactor.seconds() + 120, nothing)

    def end_of_use(self) -> None:
        super().end_of_use()
        if self._ports:
            self.end_keeper("in order", False)
        self.await_calls(150.0)

    def check_nothing_is_left(self) -> None:
        super().check_nothing_is_left()
        for borrower in self.borrowers:
            assert not (borrower.book.pending or borrower.book.held), (borrower.book.pending, borrower.book.held)
            assert not (borrower._waiting or borrower._leased or borrower._adopted or borrower._adopted._numbered)
        for keeper in self.keepers:
            assert not keeper.borrowers
            assert not keeper._last_users


def _path(number: int) -> str:
    return f"/run/mailcache/{number}"
