"""Real processes and real deaths: no message lost or doubled, nobody waits for ever, no session shared wrongly."""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.defer import gatherResults

from mailcache.testing import Fault
from tests.remote.processes import Process, ProcessCase, descriptors, until


def labels(name: str, count: int) -> list[str]:
    return [f"{name}-{number}@test" for number in range(count)]


def slow_verdicts() -> Fault:
    """Each verdict takes a while, so that many leases are out at a time."""
    return Fault("after_dot", "slow", times=1_000_000)


class DeathTests(ProcessCase):
    """Who dies, is stopped, or lies."""

    async def hold(self, borrower: Process) -> None:
        await borrower.does("hold", "held")

    async def test_borrower_killed_in_content(self) -> None:
        """Its message is not delivered; its session is gone, its place and its descriptors are free."""
        server = self.serve()
        keeper = await self.keeper(sessions_per_endpoint=1)
        other = self.borrower()
        await self.started(other)
        await other.does("send", "done", labels=["first@test"], at_once=1)
        before = descriptors(keeper.pid)
        victim = self.borrower()
        await victim.does("stall", "stalled", label="never@test")
        waiting = other.does("send", "done", labels=labels("after", 3), at_once=3)
        victim.kill(signal.SIGKILL)
        await waiting
        await until(lambda: server.open_count == 1, 5)
        self.assertEqual(self.committed(), {"first@test": 1, **dict.fromkeys(labels("after", 3), 1)})
        self.assertEqual([record.closed for record in server.connections], ["reset", None])
        await until(lambda: descriptors(keeper.pid) == before, 5, lambda: (before, descriptors(keeper.pid)))
        self.check_outcomes([other], 4)
        await self.check_back(keeper, other)

    async def test_keeper_killed(self) -> None:
        """With 20 leases out and mail flowing, each message ends as sent once, or uncertain."""
        server = self.serve(faults=[slow_verdicts()], slow_delay=0.3)
        keeper = await self.keeper()
        borrowers = [self.borrower() for _ in range(2)]
        await self.started(*borrowers)
        sending = [
            borrower.does("send", "done", labels=labels(f"flow{number}", 40), at_once=10)
            for number, borrower in enumerate(borrowers)
        ]
        await until(lambda: server.message_count > 20, 20, lambda: server.open_count)
        leased = 0
        while leased != 20:
            counts, _ = await self.ask_keeper(keeper)
            leased = counts["leased"]
        self.assertEqual(server.open_count, 20)
        keeper.kill(signal.SIGKILL)
        await gatherResults(sending)
        outcomes = self.check_outcomes(borrowers, 80)
        self.assertLessEqual(sum(outcome == "uncertain" for outcome in outcomes.values()), 20)
        for borrower in borrowers:
            counts = (await borrower.does("statistics", "statistics"))["statistics"]
            self.assertGreater(counts["fallbacks"], 0)
            self.assertEqual((counts["leased"], counts["waiting"]), (0, 0))
        await self.check_closed(*borrowers)
        await until(lambda: server.open_count == 0, 10, lambda: server.open_count)

    async def test_keeper_stopped(self) -> None:
        """A keeper that stands still is done without within two seconds, and used again when it goes on."""
        server = self.serve(faults=[slow_verdicts()], slow_delay=0.02)
        keeper = await self.keeper()
        borrower = self.borrower()
        await self.started(borrower)
        sending = borrower.does("send", "done", labels=labels("flow", 200), at_once=5)
        await until(lambda: server.message_count > 20, 20)
        keeper.kill(signal.SIGSTOP)
        stood_at = len(borrower.heard)
        await until(lambda: len(borrower.heard) > stood_at + 20, 8)
        keeper.kill(signal.SIGCONT)
        await sending
        self.check_outcomes([borrower], 200)

        async def goes_through_keeper() -> bool:
            before = (await borrower.does("statistics", "statistics"))["statistics"]["fallbacks"]
            label = f"again-{len(borrower.heard)}@test"
            await borrower.does("send", "done", labels=[label], at_once=1)
            after = (await borrower.does("statistics", "statistics"))["statistics"]["fallbacks"]
            return bool(after == before)

        for _ in range(1000):
            if await goes_through_keeper():
                break
        else:
            self.fail("the keeper is not used again")
        await self.check_back(keeper, borrower)

    async def test_borrower_stopped(self) -> None:
        """The last lease, held by one who stands still, is revoked: who waits gets its place."""
        server = self.serve()
        keeper = await self.keeper(sessions_per_endpoint=1)
        stopped, other = self.borrower(), self.borrower()
        await self.started(stopped, other)
        await stopped.does("send", "done", labels=["first@test"], at_once=1)
        await self.hold(stopped)
        stopped.kill(signal.SIGSTOP)
        await other.does("send", "done", labels=["waited@test"], at_once=1)
        stopped.kill(signal.SIGCONT)
        late = await stopped.does("use", "outcome", label="late@test")
        self.assertEqual(late["outcome"], "error")
        await stopped.does("send", "done", labels=["later@test"], at_once=1)
        self.assertEqual(self.committed(), {"first@test": 1, "waited@test": 1, "later@test": 1})
        self.assertEqual(server.violations, [])
        await self.check_back(keeper, stopped, other)

    async def check_lie(self, said: str, until_seen: str, **server: Any) -> None:
        self.serve(**server)
        keeper = await self.keeper(sessions_per_endpoint=1)
        liar, other = self.borrower(), self.borrower()
        await self.started(liar, other)
        await other.does("send", "done", labels=["first@test"], at_once=1)
        await self.hold(liar)
        waiting = other.does("send", "done", labels=labels("honest", 3), at_once=1)
        await liar.does("lie", "lied", said=said, until=until_seen)
        await waiting
        self.check_outcomes([other], 4)
        self.assertEqual(set(self.committed().values()), {1})
        self.assertNotIn("lie@test", self.committed())
        await self.check_back(keeper, liar, other)

    async def test_lie_in_content(self) -> None:
        """Half a message, called clean: the next one is not appended to it."""
        await self.check_lie(
            "MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n|Message-ID: <lie@test>\r\n\r\nhalf\r\n", "354"
        )

    async def test_lie_in_transaction(self) -> None:
        """Recipients are left behind, as if all were clean: the next message does not go to them."""
        await self.check_lie("MAIL FROM:<a@x.test>\r\nRCPT TO:<c@y.test>\r\n", "250 2.1.5")
        self.assertTrue(all(message.recipients == ("b@y.test",) for message in self.server.messages))

    async def test_lie_in_command(self) -> None:
        """Half a command is left behind: the next one is not appended to it."""
        await self.check_lie("NOOP\r\n|MAI", "250")
