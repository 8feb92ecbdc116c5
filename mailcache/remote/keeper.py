"""The keeper: sessions of a `MemorySessionCache`, lent to other processes over a UNIX socket."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, ISystemHandle
from twisted.internet.protocol import Factory

from mailcache.destination import Destination
from mailcache.interfaces import IPairs
from mailcache.memory import CLOSE_LIMIT, MemorySessionCache
from mailcache.remote import codec
from mailcache.remote.configuration import Configuration, changed
from mailcache.remote.lending import Borrower
from mailcache.remote.pairs import SocketPairs
from mailcache.remote.users import User, groups_of
from mailcache.session import Session
from mailcache.ticker import Ticker

LOOK_EVERY = 1.0
"""Seconds between looks at who has a lease and says nothing."""

FAREWELL = 1.0
"""Seconds that links have to end when the sessions of a keeper have: what is written is to leave, and who has just
connected is to hear that it retires."""

MAX_DESTINATIONS = 1_000
"""Destinations remembered by the bytes that said them."""

_CREDENTIALS = struct.Struct("i2I")


class Keeper(Factory):
    """What listens for borrowers and lends them the sessions of ``cache``.

    :param pairs: makes the pairs; ``None`` is socket pairs of ``reactor``.
    :param configuration: what borrowers get and who may be one; ``None`` is what they ask for, and whoever can connect.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        cache: MemorySessionCache,
        pairs: IPairs | None = None,
        configuration: Configuration | None = None,
    ) -> None:
        self.reactor = reactor
        self.cache = cache
        self.pairs = pairs if pairs is not None else SocketPairs(reactor)
        self.closing = False
        self.borrowers: set[Borrower] = set()
        self._farewell: IDelayedCall | None = None
        self._ended: list[Deferred[None]] = []
        self.ticker = Ticker(reactor, LOOK_EVERY, self._look)
        self._destinations: dict[tuple[bytes, User], Destination] = {}
        self._last_users: dict[Session, int | None] = {}
        self._configuration: Configuration | None = None
        cache.watch(self._session_gone)
        if configuration is not None:
            self.reconfigure(configuration)

    def buildProtocol(self, addr: IAddress | None) -> Borrower:
        return Borrower(self)

    def reconfigure(self, configuration: Configuration) -> None:
        """Do as ``configuration`` says from now on.

        Sessions of destinations that it would have otherwise are ended: idle ones now, leased ones when they are
        released. Borrowers whose users it does not admit are told to go, and lent nothing more.
        """
        was, self._configuration = self._configuration, configuration
        self._destinations.clear()
        self.cache.retire(changed(was if was is not None else Configuration(), configuration), "configuration")
        self.cache.reconfigure(
            configuration.limits,
            configuration.timeouts,
            configuration.limits_of,
            configuration.timeouts_of,
            configuration.interval,
        )
        for borrower in list(self.borrowers):
            borrower.reconsider()

    def user(self, uid: int | None) -> User:
        """The user ``uid``, with groups if they matter."""
        if uid is None or self._configuration is None or not self._configuration.asks_for_groups:
            return User(uid)
        return User(uid, groups_of(uid))

    def admits(self, user: User) -> bool:
        """Whether ``user`` may be a borrower."""
        return self._configuration is None or self._configuration.admits(user)

    def destination(self, data: bytes, user: User) -> Destination:
        """What ``user`` gets for the destination in ``data``; the same bytes are parsed once in a while.

        :raises MalformedError: for what is no destination.
        :raises DeliveryError: for what the user may not have.
        """
        known = self._destinations.get((data, user))
        if known is None:
            known = codec.decode_destination(data, user.uid)
            if self._configuration is not None:
                known = self._configuration.destination(known, user)
            if len(self._destinations) >= MAX_DESTINATIONS:
                self._destinations.clear()
            self._destinations[(data, user)] = known
        return known

    def changes_hands(self, session: Session, uid: int | None) -> bool:
        """``session`` is lent to ``uid``; gives whether another user has had it before."""
        shared = session.key.identity.uid
        if shared is None or shared >= 0:
            return False
        before = self._last_users.get(session, uid)
        self._last_users[session] = uid
        return before != uid

    @property
    def most_leases(self) -> int | None:
        """How many sessions one user may have or wait for, if there is a limit."""
        return None if self._configuration is None else self._configuration.leases_per_user

    def in_use(self, uid: int | None) -> int:
        """How many sessions the user ``uid`` has or waits for, by all his borrowers."""
        return sum(borrower.in_use for borrower in self.borrowers if borrower.uid == uid)

    def identify(self, transport: Any) -> tuple[int | None, int | None]:
        """The process and the user at the other end of a UNIX socket (SO_PEERCRED), as far as the transport tells."""
        handle = transport.getHandle() if ISystemHandle.providedBy(transport) else None
        if not isinstance(handle, socket.socket):
            return None, None
        pid, uid, _ = _CREDENTIALS.unpack(handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return pid, uid

    def drain(self, limit: float = CLOSE_LIMIT) -> Deferred[None]:
        """Lend no more: borrowers are told to ask elsewhere, idle sessions end, and leased ones when they come back.

        :param limit: seconds that leases have; then they are cut. A later call can shorten it.
        :return: fires when all sessions and links have ended.
        """
        if not self.closing:
            self.closing = True
            for borrower in list(self.borrowers):
                borrower.retire()
        closed: Deferred[None] = self.cache.close(limit)
        return closed.addCallback(lambda _: self._end_links())

    def close(self) -> Deferred[None]:
        """See `drain`."""
        return self.drain()

    def _end_links(self) -> Deferred[None]:
        """End them: at once where the borrower was told to go elsewhere, else when it has said Hello and hears so."""
        ended: Deferred[None] = Deferred()
        self._ended.append(ended)
        if self._farewell is None or not self._farewell.active():
            self._farewell = self.reactor.callLater(FAREWELL, self._drop_links)
        for borrower in list(self.borrowers):
            if borrower.greeted:
                borrower.finish()
        self.link_lost()
        return ended

    def _drop_links(self) -> None:
        for borrower in list(self.borrowers):
            transport: Any = borrower.transport
            transport.abortConnection()

    def link_lost(self) -> None:
        """A link has ended."""
        if self.borrowers or self._farewell is None:
            return
        if self._farewell.active():
            self._farewell.cancel()
        self.ticker.stop()
        waiting, self._ended = self._ended, []
        for ended in waiting:
            ended.callback(None)

    def _look(self) -> bool:
        looks = [borrower.look() for borrower in self.borrowers]
        return any(looks)

    def _session_gone(self, session: Session) -> None:
        self._last_users.pop(session, None)
        for borrower in list(self.borrowers):
            borrower.session_gone(session)
