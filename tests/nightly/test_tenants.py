"""The command on tenants, in small, and that it notices what it is there to notice."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache.testing import Fault
from tests.helpers import PORT, Bed, ca_file
from tests.nightly.tenants import ALL, TENANTS, Figures, Tenant, run

MESSAGES = 1_000


class Processes(TestCase):
    timeout = 240

    async def test_send_as_nobody_else(self) -> None:
        figures = await run(reactor, MESSAGES, seed=1, processes=3)
        self.assertEqual(figures.broken, [], figures.lines())
        self.assertEqual(len(figures.sent) + len(figures.uncertain) + len(figures.failed), MESSAGES)
        self.assertEqual(len(figures.by_tenant), TENANTS)
        self.assertGreater(figures.cuts, 10)
        self.assertLess(figures.connections, MESSAGES / 2, "sessions are shared")


class Noticing(SynchronousTestCase):
    """Two tenants on a network in memory, and figures of what the server has."""

    def figures(self, *deliveries: tuple[Tenant, Tenant, str], **settings: Any) -> Figures:
        """Of messages: as whom each is sent, whose it says that it is, and its label."""
        bed = Bed(server={"users": {tenant.name: tenant.secret for tenant in ALL}}, **settings)
        figures = Figures()
        for way, owner, label in deliveries:
            where = way.destination(PORT, ca_file())
            bed.deliver(owner.content(label), destination=where, sender=owner.seen[3])
            figures.sent.add(label)
        figures.look(bed.server)
        bed.close()
        return figures

    def all_but(self, *labels: str) -> list[tuple[Tenant, Tenant, str]]:
        return [(tenant, tenant, str(tenant.number)) for tenant in ALL if str(tenant.number) not in labels]

    def test_nothing_where_all_is_well(self) -> None:
        self.assertEqual(self.figures(*self.all_but()).broken, [])

    def test_a_message_that_came_as_somebody_elses(self) -> None:
        figures = self.figures(*self.all_but("1"), (ALL[0], ALL[1], "1"))
        self.assertEqual(figures.broken, ["a message came as somebody else's"])
        self.assertIn("of tenant-1: ('127.7.0.1', 'tenant-0.example', 'tenant-0'", figures.mixed[0])

    def test_a_message_that_came_twice(self) -> None:
        self.assertEqual(self.figures(*self.all_but(), (ALL[3], ALL[3], "3")).broken, ["a message came twice"])

    def test_a_message_that_is_lost(self) -> None:
        figures = self.figures(*self.all_but(), (ALL[3], ALL[3], "lost"), faults=[Fault("dot", "5xx", transaction=2)])
        self.assertEqual(figures.broken, ["a message is lost"])

    def test_a_message_that_was_taken_though_it_failed(self) -> None:
        figures = self.figures(*self.all_but())
        figures.failed["3"] = "not delivered"
        figures.cuts = 1
        self.assertEqual(figures.broken, ["a message was taken that was reported as not delivered"])

    def test_more_doubt_than_there_is_reason_for(self) -> None:
        figures = self.figures(*self.all_but())
        figures.uncertain.add("another")
        self.assertEqual(figures.broken, ["more is in doubt, or has failed, than was cut"])
        figures.cuts = 1
        self.assertEqual(figures.broken, [])

    def test_a_tenant_that_was_left_out(self) -> None:
        self.assertEqual(self.figures(*self.all_but("5")).broken, ["a tenant has sent nothing"])
