"""A configured keeper: who may borrow, what is demanded, whose credentials are used, and what a reload ends."""

from __future__ import annotations

import os
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mailcache import (
    Credentials,
    DeliveryError,
    DeliveryResult,
    Destination,
    Limits,
    RemoteSessionCache,
    Timeouts,
    TLSPolicy,
)
from mailcache.remote import configuration, keeper
from mailcache.remote.configuration import Configuration, Login, Pattern, Rule, changed
from mailcache.remote.floors import Demand
from mailcache.remote.users import Permission, User, groups_of
from mailcache.testing import Fault
from tests.helpers import CREDENTIALS, PORT, KeeperBed, Outcome, authority, certificate, verifying

ANCHORS = authority().certificate_pem
ANN, BOB, EVE = 5001, 5002, 5003
EVERYBODY = Permission(frozenset((ANN, BOB, EVE)))
HOP = f"[127.0.0.1]:{PORT}"
LOGIN = Login("relay", CREDENTIALS, Permission(frozenset((ANN,)), frozenset((77,))))


def rules(match: str = "*", **rule: Any) -> tuple[tuple[Pattern, Rule], ...]:
    return ((Pattern.parse(match), Rule(**rule)),)


class Bed(KeeperBed):
    """A keeper with borrowers of several users."""

    def __init__(self, configured: Configuration | None, **settings: Any) -> None:
        self.caches: dict[int, RemoteSessionCache] = {}
        self.connecting: int | None = ANN
        settings.setdefault("borrower", {"fallback": None, "linger": 0.0})
        super().__init__(**settings)
        self.keeper.identify = lambda transport: (1, self.connecting)  # type: ignore[method-assign]
        if configured is not None:
            self.keeper.reconfigure(configured)

    def of(self, uid: int) -> RemoteSessionCache:
        """The cache of a borrower of this user."""
        if uid not in self.caches:
            self.caches[uid] = self.borrower()
        self.connecting = uid
        return self.caches[uid]

    def mail(self, uid: int, destination: Destination | None = None, **more: Any) -> Any:
        """The result of a delivery by this user, or the exception."""
        own, self.cache = self.cache, self.of(uid)
        try:
            result = self.deliver(destination=destination, **more)
            self.reactor.run_for(0.01)
            return result
        finally:
            self.cache = own

    def lease(self, uid: int, destination: Destination | None = None) -> Any:
        where = destination if destination is not None else self.destination
        return self.finish(Outcome(self.of(uid).acquire(where)))

    def kept_counts(self) -> tuple[int, int]:
        counts = self.finish(Outcome(self.kept.statistics()))
        return counts["leased"], counts["idle"]

    def evictions(self) -> dict[str, int]:
        return dict(self.finish(Outcome(self.kept.statistics()))["evictions"])

    def close(self) -> None:
        for cache in self.caches.values():
            self.finish(Outcome(cache.close()))
        super().close()


class Case(SynchronousTestCase):
    def bed(self, configured: Configuration | None = None, **settings: Any) -> Bed:
        bed = Bed(configured, **settings)
        self.addCleanup(bed.close)
        return bed

    def logged(self) -> list[str]:
        """The texts of what is logged from now on."""
        texts: list[str] = []

        def observe(event: Any) -> None:
            texts.append(str(event.get("log_format", "")).format(**event) if "link" in event else "")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return texts


class LeasesTests(Case):
    """How many sessions one user may have at a time."""

    def test_no_more_than_so_many_for_each_user_in_all_his_processes(self) -> None:
        bed = self.bed(Configuration(access=EVERYBODY, leases_per_user=2))
        leases = [bed.lease(ANN), bed.lease(ANN)]
        error = bed.lease(ANN)
        self.assertIsInstance(error, DeliveryError)
        self.assertEqual((error.phase, error.retriable), ("waiting", True))
        self.assertIn(f"user {ANN} has or waits for 2 sessions", str(error))
        bed.caches.pop(ANN)  # another process of his
        self.assertIsInstance(bed.lease(ANN), DeliveryError)
        leases.append(bed.lease(BOB))
        leases[0].release()
        bed.reactor.run_for(0.1)
        leases.append(bed.lease(ANN))
        for lease in leases:
            lease.release()
        bed.reactor.run_for(0.1)
        self.assertEqual(bed.kept_counts()[0], 0)

    def test_who_waits_counts(self) -> None:
        bed = self.bed(
            Configuration(Limits(sessions_per_destination=1), access=EVERYBODY, leases_per_user=2),
        )
        lease = bed.lease(ANN)
        waiting = Outcome(bed.of(ANN).acquire(bed.destination))
        bed.reactor.run_for(0.1)
        self.assertIsInstance(bed.lease(ANN, bed.to(HOP, namespace="other")), DeliveryError)
        lease.release()
        bed.finish(waiting).release()
        bed.reactor.run_for(0.1)
        self.assertEqual(bed.kept_counts()[0], 0)


class AccessTests(Case):
    def check_admitted(self, bed: Bed, uid: int) -> None:
        self.assertIsInstance(bed.mail(uid), DeliveryResult)

    def check_refused(self, bed: Bed, uid: int) -> None:
        """Before a command of his is read, and with a line in the log."""
        texts = self.logged()
        error = bed.mail(uid)
        self.assertIsInstance(error, DeliveryError)
        self.assertIn("no keeper has served it", str(error))
        self.assertNotIn(uid, {borrower.uid for borrower in bed.keeper.borrowers})
        said = [text for text in texts if f"user {uid}" in text]
        self.assertIn("[access]", said[0])
        self.assertEqual(bed.server.connection_count, 0)

    def test_default(self) -> None:
        """The keeper's own user and root."""
        self.check_admitted(self.bed(Configuration()), os.geteuid())
        self.check_admitted(self.bed(Configuration()), 0)
        self.check_refused(self.bed(Configuration()), ANN)

    def test_not_configured(self) -> None:
        """A keeper that a program has made lends to whoever can connect."""
        self.check_admitted(self.bed(None), ANN)

    def test_users(self) -> None:
        configured = Configuration(access=Permission(frozenset((ANN,))))
        self.check_admitted(self.bed(configured), ANN)
        self.check_admitted(self.bed(configured), os.geteuid())
        self.check_refused(self.bed(configured), EVE)

    def test_groups(self) -> None:
        self.patch(keeper, "groups_of", {ANN: frozenset((7, 8)), EVE: frozenset((9,))}.get)
        configured = Configuration(access=Permission(frozenset(), frozenset((8,))))
        self.check_admitted(self.bed(configured), ANN)
        self.check_refused(self.bed(configured), EVE)

    def test_user_that_is_not_known(self) -> None:
        self.assertFalse(Configuration().admits(User(None)))

    def test_groups_of_the_system(self) -> None:
        self.assertIn(os.getgid() if os.getuid() == os.geteuid() else 0, groups_of(os.getuid()))
        for uid in (3_999_999_999, 2**32):
            self.assertEqual(groups_of(uid), frozenset())

    def test_large_numbers(self) -> None:
        """The numbers of users have no sign."""
        import socket

        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        data = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.assertEqual(keeper._CREDENTIALS.unpack(data), (os.getpid(), os.geteuid(), os.getegid()))
        self.assertEqual(keeper._CREDENTIALS.unpack(b"\1\0\0\0" + b"\xfe\xff\xff\xff" * 2)[1], 2**32 - 2)


class DemandTests(Case):
    def demanding(self, *demands: Demand, match: str = "*") -> Configuration:
        return Configuration(
            namespaces={"default": Rule(demand=demands[1])} if len(demands) > 1 else {},
            next_hops=rules(match, demand=demands[0]),
            access=EVERYBODY,
        )

    def test_less_is_raised(self) -> None:
        """Who asks for clear text gets what is demanded."""
        bed = self.bed(self.demanding(Demand("verify", match=("mx.test",), trust_anchors=ANCHORS)))
        for level in ("none", "may", "encrypt"):
            self.assertIsInstance(bed.mail(ANN, bed.to(HOP, tls=TLSPolicy(level))), DeliveryResult)
        self.assertEqual([record.tls for record in bed.server.connections], [True])

    def test_demand_that_is_not_met(self) -> None:
        bed = self.bed(self.demanding(Demand("verify", match=("other.test",), trust_anchors=ANCHORS)))
        for policy in (TLSPolicy("none"), verifying(), verifying(match=("mx.test",))):
            error = bed.mail(ANN, bed.to(HOP, tls=policy))
            self.assertIsInstance(error, DeliveryError)
            self.assertEqual(error.phase, "trust")
        self.assertEqual(bed.server.message_count, 0)

    def test_anchors_of_a_borrower_do_not_lower_it(self) -> None:
        """The platform does not trust the server, whatever the borrower does."""
        bed = self.bed(self.demanding(Demand("verify")))
        self.assertEqual(bed.mail(ANN).phase, "trust")

    def test_more_is_kept(self) -> None:
        bed = self.bed(self.demanding(Demand("encrypt")))
        self.assertEqual(bed.mail(ANN, bed.to(HOP, tls=verifying(match=("other.test",)))).phase, "trust")
        self.assertIsInstance(bed.mail(ANN), DeliveryResult)

    def test_others(self) -> None:
        """What no rule is about is as it was asked for."""
        bed = self.bed(self.demanding(Demand("verify"), match="example.com"))
        self.assertIsInstance(bed.mail(ANN, bed.to(HOP, tls=TLSPolicy("none"))), DeliveryResult)
        self.assertFalse(bed.server.connections[0].tls)

    def test_namespace_and_next_hop(self) -> None:
        """Both demands hold."""
        pin = "AB" * 32
        found = self.demanding(Demand("encrypt"), Demand("fingerprint", fingerprints=(pin,))).destination(
            Destination(HOP, tls=TLSPolicy("may")), User(ANN)
        )
        self.assertEqual(found.tls.level, "fingerprint")
        found = self.demanding(Demand(min_version="TLSv1.3"), Demand("encrypt")).destination(
            Destination(HOP, tls=TLSPolicy("may")), User(ANN)
        )
        self.assertEqual(found.tls, TLSPolicy("encrypt", min_version="TLSv1.3"))

    def test_names_and_addresses(self) -> None:
        """Those of the configuration are used; a proxy connects from where it is."""
        configured = Configuration(next_hops=rules(bind_address="127.0.0.9", helo_name="keeper.test"), access=EVERYBODY)
        bed = self.bed(configured)
        bed.mail(ANN, bed.to(HOP, helo_name="ann.test", bind_address="127.0.0.2"))
        (record,) = bed.server.connections
        self.assertEqual((record.helo_name, record.peer.host), ("keeper.test", "127.0.0.9"))  # type: ignore[attr-defined]
        where = configured.destination(Destination("[x.test]", proxy="p"), User(ANN))
        self.assertEqual((where.bind_address, where.helo_name), (None, "keeper.test"))


class LoginTests(Case):
    users = {"user": "correct horse", "ann": "her own"}

    def login_bed(self, **rule: Any) -> Bed:
        values = {"login": LOGIN, "demand": Demand("verify", trust_anchors=ANCHORS), **rule}
        configured = Configuration(next_hops=rules(HOP, **values), access=EVERYBODY)
        return self.bed(configured, server={"users": self.users})

    def test_used(self) -> None:
        bed = self.login_bed()
        for level in ("none", "may"):
            self.assertIsInstance(bed.mail(ANN, bed.to(HOP, tls=TLSPolicy(level))), DeliveryResult)
        self.assertEqual([(record.user, record.tls) for record in bed.server.connections], [("user", True)])

    def test_own_stay_own(self) -> None:
        bed = self.login_bed()
        for uid, name in ((ANN, "ann"), (EVE, "ann")):
            bed.mail(uid, bed.to(HOP, credentials=Credentials("ann", "her own")))
            self.assertEqual(bed.server.connections[-1].user, name)

    def test_not_allowed(self) -> None:
        """It is no fault of the keeper's: nothing else is tried."""
        bed = self.login_bed()
        bed.of(EVE)
        bed.caches[EVE] = bed.borrower(fallback=bed.kept)
        error = bed.mail(EVE)
        self.assertIsInstance(error, DeliveryError)
        self.assertEqual((error.phase, error.retriable), ("auth", False))
        self.assertIn("'relay'", str(error))
        self.assertNotIn("correct horse", str(error))
        self.assertEqual(bed.server.connection_count, 0)
        self.assertEqual(bed.finish(Outcome(bed.caches[EVE].statistics()))["fallbacks"], 0)
        self.assertIn(EVE, {borrower.uid for borrower in bed.keeper.borrowers})

    def test_allowed_by_group(self) -> None:
        self.patch(keeper, "groups_of", {BOB: frozenset((77,)), EVE: frozenset((78,))}.get)
        bed = self.login_bed()
        self.assertIsInstance(bed.mail(BOB), DeliveryResult)
        self.assertEqual(bed.mail(EVE).phase, "auth")

    def test_elsewhere(self) -> None:
        bed = self.login_bed()
        server = bed.add_server(2526, users=self.users)
        bed.mail(EVE, bed.to("[127.0.0.1]:2526"))
        self.assertIsNone(server.connections[0].user)

    def test_users_do_not_share(self) -> None:
        """Those who may use the same credentials have sessions of their own all the same."""
        self.patch(keeper, "groups_of", {BOB: frozenset((77,)), ANN: frozenset()}.get)
        bed = self.login_bed()
        bed.mail(ANN)
        bed.mail(BOB)
        self.assertEqual([record.user for record in bed.server.connections], ["user", "user"])

    def test_client_certificate(self) -> None:
        """The keeper's is shown for who brings none of his own, neither credentials."""
        pem, own = certificate().private_pem, authority().issue(names=("ann",)).private_pem
        configured = Configuration(next_hops=rules(client_pem=pem), access=EVERYBODY)
        for asked, expected in (
            (Destination(HOP), pem),
            (Destination(HOP).on_behalf(ANN, None, own), own),
            (Destination(HOP, credentials=CREDENTIALS), None),
        ):
            self.assertEqual(configured.destination(asked, User(ANN)).client_pem, expected)


class SharingTests(Case):
    configured = Configuration(access=EVERYBODY, shared=(frozenset((ANN, BOB)),))

    def commands(self, bed: Bed) -> list[list[str]]:
        """The verbs, without those that open a session."""
        return [
            [line.split()[0] for line in record.commands if line.split()[0] not in ("EHLO", "STARTTLS", "QUIT")]
            for record in bed.server.connections
        ]

    def test_never_by_default(self) -> None:
        bed = self.bed(Configuration(access=EVERYBODY))
        for uid in (ANN, BOB, ANN):
            bed.mail(uid)
        self.assertEqual([len(record.messages) for record in bed.server.connections], [2, 1])

    def test_barrier(self) -> None:
        """RSET stands between two users, and nowhere else."""
        bed = self.bed(self.configured)
        for uid in (ANN, ANN, BOB, BOB, ANN):
            self.assertIsInstance(bed.mail(uid), DeliveryResult)
        mail = ["MAIL", "RCPT", "DATA"]
        self.assertEqual(self.commands(bed), [mail + mail + ["RSET"] + mail + mail + ["RSET"] + mail])
        self.assertEqual(bed.server.violations, [])

    def test_others(self) -> None:
        bed = self.bed(self.configured)
        for uid in (ANN, EVE, BOB):
            bed.mail(uid)
        self.assertEqual([len(record.messages) for record in bed.server.connections], [2, 1])

    def test_own_credentials(self) -> None:
        """The same ones, even: who brings them shares with nobody."""
        bed = self.bed(self.configured, server={"users": {"user": "correct horse"}})
        where = bed.to(HOP, credentials=CREDENTIALS)
        for uid in (ANN, BOB):
            bed.mail(uid, where)
        self.assertEqual([len(record.messages) for record in bed.server.connections], [1, 1])

    def test_refused_barrier(self) -> None:
        """A server that does not obey RSET costs a session, and no message."""
        bed = self.bed(self.configured, faults=[Fault("rset", "4xx")])
        for uid in (ANN, BOB):
            self.assertIsInstance(bed.mail(uid), DeliveryResult)
        self.assertEqual(bed.server.message_count, 2)

    def test_numbers(self) -> None:
        """One for each group, which no user has, and which changes with who is in it."""
        numbers = {Configuration(shared=(frozenset(users),)).common(1) for users in ((1, 2), (1, 3), (1, 2, 3))}
        self.assertEqual(len(numbers), 3)
        self.assertTrue(all(number is not None and number < 0 for number in numbers))
        both = Configuration(shared=(frozenset((1, 2)), frozenset((3, 4))))
        self.assertEqual(both.common(1), both.common(2))
        self.assertNotEqual(both.common(1), both.common(3))
        self.assertEqual((both.common(5), both.common(None)), (5, None))


class LimitsTests(Case):
    def limited(self, **limits: Any) -> Configuration:
        return Configuration(next_hops=rules(HOP, limits=limits), access=EVERYBODY)

    def elsewhere(self, bed: Bed) -> Destination:
        bed.add_server(2526)
        return bed.to("[127.0.0.1]:2526")

    def test_idle_timeout(self) -> None:
        bed = self.bed(self.limited(idle_timeout=2))
        bed.mail(ANN)
        bed.mail(ANN, self.elsewhere(bed))
        self.assertEqual(bed.kept_counts(), (0, 2))
        bed.reactor.run_for(3)
        self.assertEqual(bed.kept_counts(), (0, 1))
        self.assertEqual(bed.evictions(), {"idle": 1})

    def test_short_limits_are_noticed(self) -> None:
        """The keeper looks as often as the shortest limit of any destination demands."""
        self.assertEqual(self.limited(idle_timeout=0.2).interval, 0.02)
        self.assertEqual(Configuration(namespaces={"x": Rule(timeouts={"dot": 0.5})}).interval, 0.05)
        self.assertEqual(Configuration().interval, 0.25)

    def test_sessions_per_destination(self) -> None:
        bed = self.bed(self.limited(sessions_per_destination=1))
        for where, most in ((bed.destination, 1), (self.elsewhere(bed), 3)):
            leases = [Outcome(bed.of(ANN).acquire(where, timeout=1.0)) for _ in range(3)]
            bed.reactor.run_for(0.5)
            self.assertEqual(sum(lease.done for lease in leases), most)
            for lease in leases:
                value = bed.finish(lease)
                if not isinstance(value, DeliveryError):
                    value.release()
            bed.reactor.run_for(1)

    def test_age_and_uses(self) -> None:
        bed = self.bed(self.limited(max_uses=2))
        where = self.elsewhere(bed)
        for _ in range(4):
            bed.mail(ANN)
            bed.mail(ANN, where)
        self.assertEqual([server.connection_count for server in bed.servers], [2, 1])
        bed = self.bed(self.limited(max_age=2))
        where = self.elsewhere(bed)
        for _ in range(2):
            bed.mail(ANN)
            bed.mail(ANN, where)
            bed.reactor.run_for(4)
        self.assertEqual([server.connection_count for server in bed.servers], [2, 1])

    def test_keep(self) -> None:
        bed = self.bed(self.limited(keep="busy"))
        bed.mail(ANN)
        bed.mail(ANN, self.elsewhere(bed))
        self.assertEqual((bed.kept_counts(), bed.evictions()), ((0, 1), {"demand": 1}))

    def test_timeouts(self) -> None:
        """Those of a next hop hold for the sessions that are opened for it."""
        configured = Configuration(next_hops=rules("*:2526", timeouts={"greeting": 2}), access=EVERYBODY)
        bed = self.bed(configured)
        bed.add_server(2526, faults=[Fault("banner", "silence")])
        began = bed.reactor.seconds()
        self.assertEqual(bed.mail(ANN, bed.to("[127.0.0.1]:2526")).phase, "greeting")
        self.assertLess(bed.reactor.seconds() - began, 10)

    def test_precedence(self) -> None:
        """The next hop's before the namespace's before the keeper's."""
        configured = Configuration(
            Limits(max_uses=1, max_age=1, idle_timeout=1, sessions=1),
            namespaces={"bulk": Rule(limits={"max_uses": 2, "max_age": 2}, timeouts={"dot": 2, "data": 2})},
            next_hops=(*rules("a.test", limits={"max_uses": 3}, timeouts={"dot": 3}), *rules(limits={"max_uses": 4})),
        )
        for next_hop, namespace, expected in (
            ("a.test", "bulk", Limits(max_uses=3, max_age=2, idle_timeout=1)),
            ("a.test", "default", Limits(max_uses=3, max_age=1, idle_timeout=1)),
            ("b.test", "bulk", Limits(max_uses=4, max_age=2, idle_timeout=1)),
        ):
            self.assertEqual(configured.limits_of(Destination(next_hop, namespace=namespace)), expected)
        found = configured.timeouts_of(Destination("a.test", namespace="bulk"))
        self.assertEqual(found, Timeouts(dot=3, data=2))

    def test_memory_is_bounded(self) -> None:
        self.patch(configuration, "MAX_SETTINGS", 3)
        configured = Configuration(next_hops=rules("*.x", limits={"max_uses": 3}))
        for number in range(10):
            self.assertEqual(configured.limits_of(Destination(f"a{number}.x")).max_uses, 3)
            self.assertLessEqual(len(configured._known), 3)


class ReloadTests(Case):
    def test_idle_and_leased(self) -> None:
        """Idle sessions of what has changed are closed now, leased ones when they are released; others stay."""
        bed = self.bed(Configuration(access=EVERYBODY))
        other_server = bed.add_server(2526)
        other = bed.to("[127.0.0.1]:2526")
        idle, leased = bed.lease(ANN), bed.lease(ANN)
        idle.release()
        bed.mail(ANN, other)
        self.assertEqual(bed.kept_counts(), (1, 2))
        bed.keeper.reconfigure(
            Configuration(next_hops=rules(HOP, demand=Demand("encrypt", min_version="TLSv1.3")), access=EVERYBODY)
        )
        bed.reactor.run_for(0.1)
        self.assertEqual(bed.kept_counts(), (1, 1))
        self.assertTrue(bed.server.connections[0].quit_seen)
        self.assertIsNone(bed.server.connections[1].closed)
        self.assertIsInstance(bed.finish(bed.send(leased)), DeliveryResult)
        leased.release()
        bed.reactor.run_for(0.1)
        self.assertTrue(bed.server.connections[1].quit_seen)
        self.assertEqual((bed.kept_counts(), bed.evictions()), ((0, 1), {"configuration": 2}))
        bed.mail(ANN)
        bed.mail(ANN, other)
        self.assertEqual((bed.server.connection_count, other_server.connection_count), (3, 1))

    def test_nothing_changed(self) -> None:
        bed = self.bed(Configuration(next_hops=rules(HOP, demand=Demand("encrypt")), access=EVERYBODY))
        bed.mail(ANN)
        bed.keeper.reconfigure(
            Configuration(Limits(sessions=5), next_hops=rules(HOP, demand=Demand("encrypt")), access=EVERYBODY)
        )
        bed.mail(ANN)
        self.assertEqual(bed.server.connection_count, 1)

    def test_opening(self) -> None:
        """What is being opened serves whom it is opened for, and is not kept."""
        bed = self.bed(Configuration(access=EVERYBODY), latency=1.0)
        outcome = Outcome(bed.of(ANN).acquire(bed.destination))
        bed.reactor.run_until(lambda: bed.server.connection_count == 1, 10)
        bed.keeper.reconfigure(Configuration(next_hops=rules(limits={"max_uses": 5}), access=EVERYBODY))
        bed.finish(outcome).release()
        bed.reactor.run_for(5)
        self.assertEqual((bed.kept_counts(), bed.evictions()), ((0, 0), {"configuration": 1}))

    def test_destinations_anew(self) -> None:
        """What a borrower asked for before is looked at with the new rules."""
        bed = self.bed(Configuration(access=EVERYBODY))
        where = bed.to(HOP, tls=TLSPolicy("none"))
        bed.mail(ANN, where)
        bed.keeper.reconfigure(Configuration(next_hops=rules(HOP, demand=Demand("encrypt")), access=EVERYBODY))
        bed.mail(ANN, where)
        self.assertEqual([record.tls for record in bed.server.connections], [False, True])

    def test_more_places(self) -> None:
        """Who waits at a limit that is raised waits no longer."""
        bed = self.bed(Configuration(Limits(sessions_per_destination=1), access=EVERYBODY))
        first = bed.lease(ANN)
        waiting = Outcome(bed.of(ANN).acquire(bed.destination))
        bed.reactor.run_for(1)
        self.assertFalse(waiting.done)
        bed.keeper.reconfigure(Configuration(Limits(sessions_per_destination=2), access=EVERYBODY))
        bed.finish(waiting, 1).release()
        first.release()

    def test_user_who_is_admitted_no_more(self) -> None:
        """He may end what he has begun, is lent nothing more, and does not get in again."""
        bed = self.bed(Configuration(access=EVERYBODY))
        lease = bed.lease(EVE)
        bed.mail(ANN)
        bed.connecting = EVE
        bed.keeper.reconfigure(Configuration(access=Permission(frozenset((ANN,)))))
        self.assertIsInstance(bed.finish(bed.send(lease)), DeliveryResult)
        lease.release()
        bed.reactor.run_for(0.1)
        self.assertIn("no keeper has served it", str(bed.mail(EVE)))
        self.assertIsInstance(bed.mail(ANN), DeliveryResult)
        self.assertEqual(bed.server.connection_count, 2)

    def test_first_configuration(self) -> None:
        """A keeper that had none gets one."""
        bed = self.bed(None)
        bed.mail(ANN)
        bed.keeper.reconfigure(Configuration(access=EVERYBODY))
        bed.mail(ANN)
        self.assertEqual(bed.server.connection_count, 1)

    def test_what_counts_as_changed(self) -> None:
        base = {"next_hops": rules("a.test", login=LOGIN), "shared": (frozenset((1, 2)),)}
        old = Configuration(**base)  # type: ignore[arg-type]
        a, b = Destination("a.test"), Destination("b.test")
        other = Login("relay", Credentials("user", "new"), LOGIN.allowed)
        fewer = Login("relay", CREDENTIALS, Permission())
        for new, expected in (
            ({}, (False, False)),
            ({"limits": Limits(sessions=1, sessions_per_endpoint=1, waiters=1, wait_timeout=1)}, (False, False)),
            ({"access": EVERYBODY}, (False, False)),
            ({"limits": Limits(max_age=1)}, (True, True)),
            ({"timeouts": Timeouts(dot=1)}, (True, True)),
            ({"namespaces": {"default": Rule(demand=Demand("may"))}}, (True, True)),
            ({"namespaces": {"bulk": Rule(demand=Demand("may"))}}, (False, False)),
            ({"next_hops": rules("a.test", login=other)}, (True, False)),
            ({"next_hops": rules("a.test", login=fewer)}, (True, False)),
            ({"next_hops": ()}, (True, False)),
            ({"next_hops": (*base["next_hops"], *rules(helo_name="x.test"))}, (False, True)),
        ):
            outdated = changed(old, Configuration(**{**base, **new}))  # type: ignore[arg-type]
            self.assertEqual((outdated(a), outdated(b)), expected, new)

    def test_what_counts_as_changed_with_sharing(self) -> None:
        old = Configuration(shared=(frozenset((1, 2)), frozenset((3, 4))))

        def of(uid: int | None) -> Destination:
            return Destination("a.test").on_behalf(uid, None, None)

        new = Configuration(shared=(frozenset((1, 2)), frozenset((4, 5))))
        for uid, expected in (
            (old.common(1), False), (old.common(3), True), (1, False), (3, True), (4, True), (5, True), (6, False),
            (None, False),
        ):  # fmt: skip
            self.assertEqual(changed(old, new)(of(uid)), expected, uid)
