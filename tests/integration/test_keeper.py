"""Many processes, one keeper, a real Postfix: few connections, every message unchanged and once, nothing left over."""

from __future__ import annotations

from twisted.internet.defer import gatherResults

from tests.integration.case import ServerTestCase
from tests.integration.debian_postfix import PostfixServer
from tests.integration.servers import DOMAIN
from tests.remote.processes import ProcessCase, descriptors, until

PROCESSES, MESSAGES, LIMIT = 8, 500, 5
SIZE = 1_000


class KeeperTests(ServerTestCase, ProcessCase):
    """What a keeper is for."""

    kind = PostfixServer
    timeout = 600

    async def test_processes(self) -> None:
        """8 processes send 500 messages each over STARTTLS: 5 connections and 5 handshakes at most."""
        postfix = self.server
        keeper = await self.keeper(sessions_per_endpoint=LIMIT, idle_timeout=1.0)
        before = keeper.open_at_start
        where = f"[{postfix.address}]:{postfix.port}"
        borrowers = [self.borrower(where, str(postfix.ca_file), DOMAIN) for _ in range(PROCESSES)]
        labels = [[f"{process}-{number}" for number in range(MESSAGES)] for process in range(PROCESSES)]
        head = "X-Mailcache-Test: {}"
        sending = [
            borrower.does("send", "done", labels=some, at_once=10, head=head, size=SIZE)
            for borrower, some in zip(borrowers, labels, strict=True)
        ]
        await gatherResults(sending)
        body = (b"x" * 60 + b"\r\n") * (1 + SIZE // 62)
        await self.check_stored(
            {label: head.format(label).encode() + b"\r\n\r\n" + body for some in labels for label in some}
        )
        for borrower in borrowers:
            counts = (await borrower.does("statistics", "statistics"))["statistics"]
            self.assertEqual((counts["fallbacks"], counts["leased"], counts["waiting"]), (0, 0, 0))
        await gatherResults([borrower.does("close", "closed") for borrower in borrowers])
        await until(lambda: descriptors(keeper.pid) == before, 10, lambda: (before, descriptors(keeper.pid)))
        await postfix.wait_closed(10)
        self.assertLessEqual(postfix.connections(), LIMIT)
        self.assertEqual(postfix.handshakes(), postfix.connections())
        outcomes = [facts["outcome"] for borrower in borrowers for facts in borrower.heard if "outcome" in facts]
        self.assertEqual(outcomes, ["sent"] * PROCESSES * MESSAGES)
