"""A login that failed, or was never finished, leaves no session to anybody: not to the next user, not to none."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError

from mailcache import Credentials, DeliveryError
from mailcache.testing import Connection, Fault
from mailcache.testing.authentication import ALL_MECHANISMS
from tests.security.callers import SENDERS, WAYS, Callers, SharingCase, to

USERS = {"anne": "secret", "bert": "secret"}
ANNE, BERT, WRONG = Credentials("anne", "secret"), Credentials("bert", "secret"), Credentials("anne", "guess")
SERVER = {"users": USERS}
WHO = {"anne": to(credentials=ANNE), "bert": to(credentials=BERT), "nobody": to()}


class Refused(SharingCase):
    """CVE-2015-6817 (PgBouncer): a look-up that failed leaves the client logged in as who looked it up."""

    def assert_not_logged_in(self, callers: Callers, *numbers: int) -> None:
        for number in numbers:
            record = callers.connections[number - 1]
            self.assertEqual((record.user, record.transactions, record.messages), (None, 0, []))

    def assert_fresh_for(self, callers: Callers, who: str) -> None:
        """The next one has a connection made for him, as who he is, whatever there was before."""
        before = len(callers.connections)
        self.sent(callers.deliver(1, WHO[who]))
        self.assertEqual(len(callers.connections), before + 1)
        record = callers.connections[-1]
        self.assertEqual((record.user, len(record.messages)), (None if who == "nobody" else who, 1))

    def test_a_refused_login_is_never_kept(self) -> None:
        for mechanism in ALL_MECHANISMS[:4]:
            for who in WHO:
                for way in WAYS:
                    server = {**SERVER, "mechanisms": (mechanism,)}
                    with self.about(mechanism, who, way), self.callers(way, server=server) as callers:
                        error = callers.deliver(0, to(credentials=WRONG))
                        self.assertEqual((error.phase, error.retriable, error.reply.code), ("auth", False, 535))
                        self.assertEqual(callers.bed.counts(), (0, 0, 0, 0))
                        self.assert_fresh_for(callers, who)
                        self.assert_not_logged_in(callers, 1)

    def test_whatever_else_goes_wrong_with_it(self) -> None:
        kinds = ("421", "4xx", "garbage", "rst", "fin", "notify", "badrecord", "dup", "unsolicited", "early", "mixed",
                 "digits2", "digits4", "nosep", "zero", "longline", "nolf", "endless")  # fmt: skip
        for kind in kinds:
            for way in WAYS:
                fault = Fault("auth", kind, connection=1)
                with self.about(kind, way), self.callers(way, server=SERVER, faults=[fault]) as callers:
                    self.assertIsInstance(callers.deliver(0, WHO["anne"]), DeliveryError)
                    self.assertEqual(callers.bed.counts(), (0, 0, 0, 0))
                    self.assertEqual(callers.connections[0].messages, [])
                    self.assert_fresh_for(callers, "bert")

    def test_one_that_is_refused_takes_nothing_from_who_is_logged_in(self) -> None:
        """The right password's session is there before and after, and the wrong one never has it."""
        for way in WAYS:
            with self.about(way), self.callers(way, server=SERVER) as callers:
                self.sent(callers.deliver(0, WHO["anne"]))
                for _ in range(3):
                    self.assertEqual(callers.deliver(1, to(credentials=WRONG)).phase, "auth")
                self.sent(callers.deliver(0, WHO["anne"]))
                first, *others = callers.connections
                self.assertEqual((first.user, len(first.messages)), ("anne", 2))
                self.assertEqual([record.messages for record in others], [[]] * len(others))

    def test_a_password_that_is_changed_does_not_open_what_the_old_one_left(self) -> None:
        """CVE-2025-2291 (PgBouncer): a password that is no longer valid is let in."""
        for way in WAYS:
            with self.about(way), self.callers(way, server={"users": dict(USERS)}) as callers:
                self.sent(callers.deliver(0, WHO["anne"]))
                callers.bed.server.users = {"anne": "new"}
                self.sent(callers.deliver(1, to(credentials=Credentials("anne", "new"))))
                self.assertEqual([len(record.messages) for record in callers.connections], [1, 1])
                callers.bed.server.abort_connections()
                callers.bed.reactor.run_for(1)
                self.assertEqual(callers.deliver(0, WHO["anne"]).phase, "auth")


class Unfinished(SharingCase):
    """The server has said 334, and its client goes away."""

    MECHANISMS = ("LOGIN", "CRAM-MD5", "SCRAM-SHA-256")

    def test_a_login_that_is_cancelled_half_way_is_nobodys(self) -> None:
        for mechanism in self.MECHANISMS:
            for who in WHO:
                for way in WAYS:
                    server: dict[str, Any] = {**SERVER, "mechanisms": (mechanism,), "challenge": None}
                    with self.about(mechanism, who, way), self.callers(way, server=server, latency=0.01) as callers:
                        bed = callers.bed
                        callers.who(0)
                        going = bed.start(destination=WHO["anne"], sender=SENDERS[0])
                        bed.reactor.run_until(lambda bed=bed: self.half_way(bed.server.connections), 10)
                        going.deferred.cancel()
                        bed.reactor.run_for(0.2)
                        self.assertIsInstance(going.value, CancelledError)
                        self.assertEqual(bed.counts(), (0, 0, 0, 0))
                        self.sent(callers.deliver(1, WHO[who]))
                        first, second = callers.connections
                        self.assertEqual((first.user, first.messages, first.closed), (None, [], "reset"))
                        self.assertEqual((second.user, len(second.messages)), (None if who == "nobody" else who, 1))

    def half_way(self, connections: list[Connection]) -> bool:
        return any(command.startswith("AUTH ") for record in connections[:1] for command in record.commands)

    def test_who_waits_for_it_gets_one_of_his_own(self) -> None:
        """Two wait for one login, and the first gives up: the second is served by it or by another, as himself."""
        for way in WAYS:
            with self.about(way), self.callers(way, server=SERVER, latency=0.01) as callers:
                bed = callers.bed
                waiting = []
                for which in (0, 1):
                    callers.who(which)
                    waiting.append(bed.start(destination=WHO["anne"], sender=SENDERS[which]))
                bed.reactor.run_until(lambda bed=bed: self.half_way(bed.server.connections), 10)
                waiting[0].deferred.cancel()
                self.sent(bed.finish(waiting[1], 30))
                bed.reactor.run_for(0.5)
                self.assertEqual([record.user for record in callers.of(1)], ["anne"])
                self.assertEqual(callers.of(0), [])
