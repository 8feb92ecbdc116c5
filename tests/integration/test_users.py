"""Borrowers of several users at one keeper: what one user has opened, no other gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet import reactor as _reactor

from mailcache import Limits, MemorySessionCache
from mailcache.remote.keeper import Keeper
from tests.integration.users import ACCESS, ONE, OTHER, UsersCase
from tests.remote.processes import Process, until

reactor: Any = _reactor


class UsersTests(UsersCase):
    def users(self) -> list[Process]:
        """Two borrowers of one user, and two of the other."""
        return [self.borrower(uid=uid) for uid in (ONE, ONE, OTHER, OTHER)]

    async def check_users(self, borrowers: Iterable[Process]) -> None:
        for borrower, uid in zip(borrowers, (ONE, ONE, OTHER, OTHER), strict=True):
            self.assertEqual((await borrower.does("whoami", "uid"))["uid"], uid)

    async def send(self, borrower: Process, label: str, keeper: Process) -> None:
        """Send one message; the session is with the keeper again afterwards."""
        await borrower.does("send", "done", labels=[label], at_once=1)
        counts: dict[str, Any] = {"leased": 1}
        while counts["leased"]:
            counts, _ = await self.ask_keeper(keeper)

    async def test_sessions_are_of_a_user(self) -> None:
        """Two borrowers of one user share a connection; those of another never see it, however they take turns."""
        server = self.serve()
        keeper = await self.keeper(self.path, mode="666", tables=ACCESS)
        borrowers = self.users()
        await self.started(*borrowers)
        await self.check_users(borrowers)
        one, one_more, other, other_more = borrowers
        await self.send(one, "1@test", keeper)
        await self.send(one_more, "2@test", keeper)
        self.assertEqual(server.connection_count, 1)
        await self.send(other, "3@test", keeper)
        self.assertEqual(server.connection_count, 2)
        for number, borrower in enumerate((other_more, one, other, one_more, other_more, one)):
            await self.send(borrower, f"more-{number}@test", keeper)
        self.assertEqual(server.connection_count, 2)
        labels = [
            [message.content.split(b"<")[1].split(b">")[0].decode() for message in record.messages]
            for record in server.connections
        ]
        self.assertEqual(
            labels,
            [
                ["1@test", "2@test", "more-1@test", "more-3@test", "more-5@test"],
                ["3@test", "more-0@test", "more-2@test", "more-4@test"],
            ],
        )
        self.check_outcomes(borrowers, 9)
        await self.check_back(keeper, *borrowers)

    async def test_place_of_another_user(self) -> None:
        """Where a limit leaves one place, it changes hands: the session of the one is closed for the other's."""
        server = self.serve()
        keeper = await self.keeper(self.path, mode="666", tables=ACCESS, sessions_per_endpoint=1)
        borrowers = self.users()
        await self.started(*borrowers)
        for number, borrower in enumerate(borrowers):
            await self.send(borrower, f"{number}@test", keeper)
        self.assertEqual([len(record.messages) for record in server.connections], [2, 2])
        await until(lambda: server.open_count == 1, 10)
        self.check_outcomes(borrowers, 4)
        await self.check_back(keeper, *borrowers)

    async def test_who_is_known_by_the_system(self) -> None:
        """The user and the process are those of SO_PEERCRED: nothing that a borrower says is asked."""
        server = self.serve()
        cache = MemorySessionCache(reactor, Limits())
        keeper = Keeper(reactor, cache)
        port = reactor.listenUNIX(self.path, keeper, mode=0o666)
        self.addCleanup(port.stopListening)
        self.addCleanup(keeper.close)
        self.socket = self.path
        borrowers = self.users()
        for number, borrower in enumerate(borrowers):
            await borrower.does("send", "done", labels=[f"{number}@test"], at_once=1)
        known = {(borrower.pid, borrower.uid) for borrower in keeper.borrowers}
        uids = (ONE, ONE, OTHER, OTHER)
        self.assertEqual(known, {(each.pid, uid) for each, uid in zip(borrowers, uids, strict=True)})
        kept = {session.key.identity.uid for each in keeper.borrowers for session in each._by_session}
        self.assertEqual(kept, {ONE, OTHER})
        self.check_outcomes(borrowers, 4)
        self.assertEqual(server.violations, [])
