"""Two callers of one cache, in each of the ways in which they can come to share a session that they should not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryError, DeliveryResult, Destination
from mailcache.testing import Connection, MemoryReactor, Message
from mailcache.testing.authentication import ALL_MECHANISMS
from tests.helpers import PORT, SMALL, Bed, KeeperBed, Outcome, memory_cache, verifying

MEMORY = "a cache in memory"
KEEPER = "one borrower of a keeper"
BORROWERS = "two borrowers of a keeper"
WAYS = (MEMORY, KEEPER, BORROWERS)

HERE = f"[127.0.0.1]:{PORT}"
SENDERS = ("one@example.com", "other@example.com")
ORDERS = ((0, 1), (1, 0))

MECHANISMS = tuple(name for name in ALL_MECHANISMS if name != "SCRAM-SHA-256")
"""Those that a server offers here: the one that takes milliseconds at both ends only where it matters."""

SETTLED = 0.5
"""Seconds after which a borrower that keeps a lease for its own next message has given it back."""


def to(next_hop: str = HERE, **arguments: Any) -> Destination:
    """A destination; its certificate is verified unless ``tls`` says otherwise."""
    arguments.setdefault("tls", verifying())
    return Destination(next_hop, **arguments)


@attrs.frozen
class Pair:
    """Two destinations that must not share a session.

    :ivar seen: what the server must see of each on its connection, by the attributes of `Connection`.
    :ivar refused: the phase of the error if the second of them can't be delivered to this server.
    :ivar server: what the server is like.
    :ivar more: other places where a server like it listens: port and address.
    :ivar proxies: makes the proxies that the cache knows.
    :ivar faulted: the server is spoken to in a way that it does not know.
    :ivar replaced: asking for the second ends the session of the first, as a newer token of the same account does.
    """

    one: Destination
    other: Destination
    seen: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    refused: str | None = None
    server: Mapping[str, Any] = attrs.Factory(dict)
    more: Sequence[tuple[int, str]] = ()
    proxies: Callable[[MemoryReactor], Any] | None = None
    faulted: bool = False
    replaced: bool = False

    @property
    def destinations(self) -> tuple[Destination, Destination]:
        return self.one, self.other


class Callers:
    """Two callers, and the servers that their mail goes to.

    :ivar bed: what they stand on; its cache is that of who has delivered last.
    :param users: the user of each, where a keeper can tell them apart.
    """

    def __init__(
        self,
        way: str,
        *,
        proxies: Callable[[MemoryReactor], Any] | None = None,
        users: tuple[int | None, int | None] = (None, None),
        **settings: Any,
    ) -> None:
        self.bed: Bed
        self._users = users
        if way == MEMORY:
            self.bed = Bed(
                make_cache=lambda reactor, *rest: memory_cache(
                    reactor, *rest, None if proxies is None else proxies(reactor)
                ),
                **settings,
            )
            self.caches = [self.bed.cache] * 2
        else:
            # Without a fallback: what the keeper does not serve is an error, and not another cache's session.
            bed = self.bed = KeeperBed(proxies=proxies, borrower={"fallback": None}, **settings)
            bed.keeper.identify = lambda _: (None, self._user)  # type: ignore[method-assign]
            self.caches = [bed.cache, bed.cache if way == KEEPER else bed.borrower()]
        self._user = users[0]

    def who(self, which: int) -> None:
        """From here on this one calls."""
        self.bed.cache = self.caches[which]
        self._user = self._users[which]

    def deliver(self, which: int, destination: Destination, content: Any = SMALL, **more: Any) -> Any:
        """One of the callers delivers: the result, or the exception, not raised, when all has settled."""
        self.who(which)
        more.setdefault("sender", SENDERS[which])
        value = self.bed.deliver(content, destination=destination, **more)
        self.bed.reactor.run_for(SETTLED)
        return value

    @property
    def connections(self) -> list[Connection]:
        """All that there have been, whichever server's."""
        return [record for server in self.bed.servers for record in server.connections]

    def of(self, which: int) -> list[Connection]:
        """Those on which mail of this caller has come."""
        mine = {id(message.connection): message.connection for message in self.messages(which)}
        return list(mine.values())

    def messages(self, which: int) -> list[Message]:
        """Those of this caller whose content came to its end."""
        found = [message for server in self.bed.servers for message in server.messages]
        return [message for message in found if message.sender == SENDERS[which]]

    def violations(self) -> list[str]:
        return [violation for server in self.bed.servers for violation in server.violations]

    def close(self) -> None:
        """Both close; nothing may be left."""
        self.who(1)
        if self.caches[0] is not self.caches[1]:
            self.bed.finish(Outcome(self.caches[1].close()), 60)
        self.who(0)
        self.bed.close()
        self.bed.reactor.run_for(60)
        for server in self.bed.servers:
            assert server.open_count == 0, server.log


class SharingCase(SynchronousTestCase):
    """Delivers, and looks at who has come over which connection."""

    @contextlib.contextmanager
    def callers(self, way: str, pair: Pair | None = None, **settings: Any) -> Iterator[Callers]:
        """Callers for a time, at whose end nothing of them may be left and no server may have had to complain."""
        if pair is not None:
            settings = {"server": dict(pair.server), "proxies": pair.proxies, **settings}
        callers = Callers(way, **settings)
        for port, address in () if pair is None else pair.more:
            callers.bed.add_server(port, address, **pair.server)  # type: ignore[union-attr]
        callers.bed.reactor.hosts["mx.test"] = ["127.0.0.1"]
        yield callers
        if pair is None or not pair.faulted:
            self.assertEqual(callers.violations(), [])
        callers.close()

    @contextlib.contextmanager
    def about(self, *what: object) -> Iterator[None]:
        """Whatever fails here says what it was about: these tests are tables."""
        try:
            yield
        except AssertionError as error:
            raise self.failureException(f"{what}: {error}") from error

    def sent(self, value: Any) -> DeliveryResult:
        self.assertIsInstance(value, DeliveryResult)
        self.assertEqual(value.rejected, {})
        return value  # type: ignore[no-any-return]

    def assert_apart(self, pair: Pair, way: str, order: tuple[int, int], **settings: Any) -> None:
        """The two take turns, and each has all its mail on one connection of its own, as the one it is."""
        with self.callers(way, pair, **settings) as callers:
            for which in order * 2:
                value = callers.deliver(which, pair.destinations[which])
                if which and pair.refused is not None:
                    self.assertIsInstance(value, DeliveryError)
                    self.assertEqual(value.phase, pair.refused, value)
                else:
                    self.sent(value)
            for which, seen in enumerate(pair.seen):
                mine = callers.of(which)
                expected = (0,) if which and pair.refused else (1, 2) if pair.replaced else (1,)
                self.assertIn(len(mine), expected, callers.connections)
                for record in mine:
                    self.assertEqual({message.sender for message in record.messages}, {SENDERS[which]})
                    self.assertEqual({name: getattr(record, name) for name in seen}, seen)
            if pair.refused is None:
                self.assertEqual(len(callers.connections), 2)

    def assert_shared(self, pair: Pair, way: str) -> None:
        """Each of the two does share with one that asks for the same: it is not for another reason that they don't."""
        for which in (0,) if pair.refused else (0, 1):
            with self.callers(way, pair) as callers:
                for who in (0, 1):
                    self.sent(callers.deliver(who, pair.destinations[which]))
                self.assertEqual(len(callers.connections), 1)
