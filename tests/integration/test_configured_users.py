"""A configured keeper and borrowers of several users, as real processes: who may, who shares, who logs in."""

from __future__ import annotations

from typing import Any

from tests.helpers import ca_file
from tests.integration.users import ACCESS, ONE, OTHER, UsersCase
from tests.remote.processes import Process


class ConfiguredUsersTests(UsersCase):
    async def two(self, tables: str) -> tuple[Process, Process, Process]:
        """A keeper, and a borrower of each user."""
        keeper = await self.keeper(self.path, mode="666", tables=tables)
        one, other = self.borrower(uid=ONE), self.borrower(uid=OTHER)
        await self.started(one, other)
        return keeper, one, other

    async def send(self, borrower: Process, label: str, keeper: Process) -> dict[str, Any]:
        """Send one message; the session is with the keeper again afterwards."""
        await borrower.does("send", "done", labels=[label], at_once=1)
        counts: dict[str, Any] = {"leased": 1}
        while counts["leased"]:
            counts, _ = await self.ask_keeper(keeper)
        (outcome,) = [facts for facts in borrower.heard if facts.get("label") == label]
        return outcome

    async def fallbacks(self, borrower: Process) -> int:
        told = await borrower.does("statistics", "statistics")
        return int(told["statistics"]["fallbacks"])

    async def test_access(self) -> None:
        """Who may not connect is served without the keeper, and the keeper's log says who it was."""
        self.serve()
        keeper, one, other = await self.two(f"[access]\nusers = [{ONE}]\n")
        for number, borrower in enumerate((one, other)):
            await self.send(borrower, f"{number}@test", keeper)
        self.assertEqual([await self.fallbacks(borrower) for borrower in (one, other)], [0, 1])
        self.assertIn(f"user {OTHER}".encode(), keeper.output)
        self.assertNotIn(f"user {ONE}".encode(), keeper.output)
        self.check_outcomes((one, other), 2)

    async def test_sharing(self) -> None:
        """Two users on one connection, with a RSET between them."""
        server = self.serve()
        keeper, one, other = await self.two(f"{ACCESS}[sharing]\nbetween = [[{ONE}, {OTHER}]]\n")
        for number, borrower in enumerate((one, other, other, one)):
            await self.send(borrower, f"{number}@test", keeper)
        (record,) = server.connections
        verbs = [line.split()[0] for line in record.commands]
        self.assertEqual((len(record.messages), verbs.count("RSET")), (4, 2))
        self.check_outcomes((one, other), 4)
        await self.check_back(keeper, one, other)

    async def test_credentials(self) -> None:
        """Used for the one who may; refused to the other, for whom nothing else is tried."""
        server = self.serve(users={"mailer": "correct horse"})
        secret = self.folder / "secret"
        secret.write_text("correct horse\n")
        secret.chmod(0o600)
        keeper, one, other = await self.two(
            f'{ACCESS}[anchors.ca]\nfile = "{ca_file()}"\n'
            f'[credentials.relay]\nusername = "mailer"\npassword_file = "{secret}"\nusers = [{ONE}]\n'
            '[[next_hop]]\nmatch = "*"\ncredentials = "relay"\ntls.anchors = "ca"\n'
        )
        self.assertEqual((await self.send(one, "1@test", keeper))["outcome"], "sent")
        refused = await self.send(other, "2@test", keeper)
        self.assertEqual(refused["outcome"], "error")
        self.assertIn("may not use", refused["detail"])
        self.assertEqual([record.user for record in server.connections], ["mailer"])
        self.assertEqual(await self.fallbacks(other), 0)
        self.assertNotIn(b"correct horse", keeper.output)
        await self.check_back(keeper, one, other)
