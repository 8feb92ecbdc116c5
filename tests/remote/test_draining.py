"""A keeper that retires: what is lent comes back to it, and all that is wanted after that comes from the next."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryResult, Limits, MemorySessionCache
from mailcache.memory import CLOSE_LIMIT
from mailcache.remote import commands
from mailcache.remote.calling import PING_PATIENCE
from mailcache.remote.keeper import FAREWELL, Keeper
from mailcache.remote.lending import Borrower
from mailcache.remote.link import FOLLOW_PATIENCE, MAX_FOLLOWED
from mailcache.testing import Fault
from tests.helpers import KEEPER, KeeperBed, Outcome


class RetiringBed(KeeperBed):
    """A bed whose keeper can have a successor."""

    def __init__(self, **settings: Any) -> None:
        self.limits = settings.get("limits")
        self.retired: list[Keeper] = []
        super().__init__(**settings)

    def stop_listening(self) -> None:
        self.reactor._ports[KEEPER].stopListening()

    def start_another(self) -> Keeper:
        """A keeper listens in the place of the one before, as after a rename."""
        self.stop_listening()
        former = self.keeper
        self.retired.append(former)
        self.kept = MemorySessionCache(self.reactor, self.limits, clock=self.reactor.seconds)
        self.keeper = Keeper(self.reactor, self.kept, self.pairs)
        self.reactor.listenUNIX(KEEPER, self.keeper)
        return former

    def replace(self, **drain: Any) -> Outcome:
        """Another takes over, and this one drains; gives the end of that."""
        return Outcome(self.start_another().drain(**drain))

    def kept_counts(self, name: str) -> int:
        """What the keeper of now says."""
        return int(self.finish(Outcome(self.kept.statistics()))[name])


class DrainingTests(SynchronousTestCase):
    def bed(self, **settings: Any) -> RetiringBed:
        bed = RetiringBed(**settings)
        self.addCleanup(self.check_end, bed)
        return bed

    def check_end(self, bed: RetiringBed) -> None:
        for keeper in bed.retired:
            bed.finish(Outcome(keeper.drain()), 60)
        bed.close()
        bed.reactor.run_for(60)
        self.assertEqual((bed.reactor.getDelayedCalls(), bed.reactor.connections), ([], []))
        self.assertEqual([server.open_count for server in bed.servers], [0] * len(bed.servers))

    def check_no_fallback(self, bed: RetiringBed) -> None:
        self.assertEqual(bed.statistics()["fallbacks"], 0)

    def sent(self, value: Any) -> DeliveryResult:
        self.assertIsInstance(value, DeliveryResult)
        return value  # type: ignore[no-any-return]

    def test_next_message_goes_through_the_next_keeper(self) -> None:
        bed = self.bed()
        self.sent(bed.deliver())
        bed.reactor.run_for(1)
        drained = bed.replace()
        bed.reactor.pump()
        self.assertTrue(drained.done, "nothing was lent")
        self.assertTrue(bed.server.connections[0].quit_seen)
        self.sent(bed.deliver())
        self.assertEqual((bed.server.connection_count, bed.kept_counts("handshakes")), (2, 1))
        self.check_no_fallback(bed)

    def test_what_lingers_goes_back_at_once(self) -> None:
        bed = self.bed(borrower={"linger": 60.0})
        self.sent(bed.deliver())
        self.assertEqual(bed.statistics()["idle"], 1)
        drained = bed.replace()
        bed.reactor.pump()
        self.assertTrue(drained.done)

    def test_transaction_under_way_ends_where_it_began(self) -> None:
        bed = self.bed(faults=[Fault("after_dot", "slow")])
        outcome = bed.start()
        bed.reactor.run_until(lambda: bed.server.connections and bed.server.connections[0].transactions)
        drained = bed.replace()
        bed.reactor.pump()
        self.assertFalse(outcome.done or drained.done)
        self.assertEqual(bed.statistics()["leased"], 1)
        # Meanwhile another goes out through the next.
        self.sent(bed.deliver())
        self.assertFalse(outcome.done)
        self.sent(bed.finish(outcome))
        bed.finish(drained, 1)
        self.assertEqual([len(record.messages) for record in bed.server.connections], [1, 1])
        self.assertEqual((bed.server.message_count, bed.statistics()["leased"]), (2, 0))
        self.assertTrue(bed.server.connections[0].quit_seen)
        self.check_no_fallback(bed)

    def test_freed_lease_is_not_handed_on(self) -> None:
        """Who waits here gets a session of the next keeper, though this one is at hand: else it would never go."""
        bed = self.bed()
        lease = bed.finish(bed.acquire())
        drained = bed.replace()
        bed.reactor.pump()
        self.sent(bed.finish(bed.send(lease)))
        lease.release()
        other = bed.finish(bed.acquire())
        self.assertEqual(other.uses, 0)
        bed.finish(drained, 1)
        self.sent(bed.finish(bed.send(other)))
        other.release()
        self.check_no_fallback(bed)

    def test_who_waits_is_asked_for_anew_in_order(self) -> None:
        """Of several destinations, with one session for all, and with what is left of their patience."""
        bed = self.bed(limits=Limits(sessions_per_endpoint=1))
        lease = bed.finish(bed.acquire())
        names = [f"space{number % 3}" for number in range(7)]
        waiting = [bed.acquire(bed.to("[127.0.0.1]:2525", namespace=name)) for name in names]
        fresh = bed.acquire(bed.to("[127.0.0.1]:2525", namespace="space2"), fresh=True)
        bed.reactor.pump()
        self.assertEqual(bed.kept_counts("waiting"), 8)
        drained = bed.replace()
        bed.reactor.pump()
        self.assertEqual(bed.kept_counts("waiting") + fresh.done, 8)
        lease.release()
        bed.finish(drained, 1)
        order = []
        for _ in range(8):
            bed.reactor.run_until(lambda: any(each.done for each in [fresh, *waiting] if each not in order), 60)
            (granted,) = [each for each in [fresh, *waiting] if each.done and each not in order]
            order.append(granted)
            granted.value.discard()
        self.assertEqual(order, [fresh, *waiting])
        self.check_no_fallback(bed)

    def test_patience_goes_on(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_endpoint=1))
        others = [bed.borrower(), bed.borrower()]
        held = [bed.finish(Outcome(others[0].acquire(bed.destination)))]
        began = bed.reactor.seconds()
        waiting = bed.acquire(timeout=5)
        bed.reactor.run_for(3)
        former = bed.start_another()
        held.append(bed.finish(Outcome(others[1].acquire(bed.destination))))
        former.drain()
        self.assertEqual(bed.finish(waiting).phase, "waiting")
        self.assertLess(abs(bed.reactor.seconds() - began - 5), 0.5)
        for lease, other in zip(held, others, strict=True):
            lease.release()
            bed.finish(Outcome(other.close()))
        self.check_no_fallback(bed)

    def test_limit(self) -> None:
        """Who holds a lease and does nothing with it keeps the old one alive so long."""
        for limit, expected in ((None, CLOSE_LIMIT), (3.0, 3.0), (0.0, 0.0)):
            bed = self.bed()
            lease = bed.finish(bed.acquire())
            drained = bed.replace(**({} if limit is None else {"limit": limit}))
            bed.reactor.pump()
            began = bed.reactor.seconds()
            bed.finish(drained, 60)
            self.assertLess(abs(bed.reactor.seconds() - began - expected), 0.3)
            self.assertFalse(lease.reusable)
            lease.release()
            self.sent(bed.deliver())
            self.check_no_fallback(bed)

    def test_limit_is_shortened(self) -> None:
        bed = self.bed()
        lease = bed.finish(bed.acquire())
        drained = bed.replace()
        bed.reactor.run_for(2)
        self.assertFalse(drained.done)
        again = Outcome(bed.retired[0].drain(0.0))
        bed.reactor.run_for(0.5)
        self.assertTrue(drained.done and again.done)
        Outcome(bed.retired[0].drain(60.0))
        lease.release()

    def test_transaction_beyond_the_limit(self) -> None:
        """It is cut; before the end of its content it goes out once more, through the next keeper."""
        bed = self.bed(faults=[Fault("mail", "slow", transaction=2)])
        self.sent(bed.deliver())
        outcome = bed.start()
        bed.reactor.run_until(lambda: bed.server.connections[0].transactions == 2)
        bed.replace(limit=0.0)
        self.sent(bed.finish(outcome))
        self.assertEqual([len(record.messages) for record in bed.server.connections], [1, 1])
        self.check_no_fallback(bed)

    def test_nobody_listens_after_it(self) -> None:
        """Then the ordinary rule holds: without a keeper, counted."""
        bed = self.bed()
        self.sent(bed.deliver())
        bed.stop_listening()
        drained = Outcome(bed.keeper.drain())
        bed.reactor.pump()
        self.sent(bed.deliver())
        self.assertTrue(drained.done)
        self.assertEqual(bed.statistics()["fallbacks"], 1)

    def test_nobody_listens_after_it_while_some_wait(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_endpoint=1))
        lease = bed.finish(bed.acquire())
        waiting = [bed.start() for _ in range(3)]
        bed.reactor.pump()
        bed.stop_listening()
        drained = Outcome(bed.keeper.drain())
        for outcome in waiting:
            self.sent(bed.finish(outcome))
        self.assertEqual(bed.statistics()["fallbacks"], 3)
        self.sent(bed.finish(bed.send(lease)))
        lease.release()
        bed.finish(drained, 1)

    def test_reached_in_its_last_moment(self) -> None:
        """Who connects to one that retires already is sent on, and not for ever."""
        bed = self.bed()
        bed.keeper.drain()
        hellos = [0]

        class Counting(Borrower):
            def connectionMade(self) -> None:
                hellos[0] += 1
                super().connectionMade()

        former = bed.keeper
        former.buildProtocol = lambda addr: Counting(former)  # type: ignore[method-assign]
        self.sent(bed.deliver())
        self.assertEqual((hellos[0], bed.statistics()["fallbacks"]), (1 + MAX_FOLLOWED, 1))
        bed.reactor.run_for(30)
        bed.start_another()
        self.sent(bed.deliver())
        self.assertEqual(bed.statistics()["fallbacks"], 1)

    def test_accepted_before_and_greeted_after(self) -> None:
        """Its link is closed by the borrower, who goes to the next one."""
        bed = self.bed()
        outcome = bed.start()
        bed.reactor.run_until(lambda: bed.keeper.borrowers)
        drained = bed.replace()
        self.sent(bed.finish(outcome))
        self.assertTrue(drained.done)
        self.check_no_fallback(bed)

    def test_supervisor_holds_the_socket(self) -> None:
        """Whoever is waited for has so long to answer, when a keeper has said that it retires, and no longer."""
        for seconds, fallbacks in ((FOLLOW_PATIENCE - 1, 0), (FOLLOW_PATIENCE + 1, 1)):
            bed = self.bed()
            self.sent(bed.deliver())
            former = bed.start_another()
            bed.keeper.buildProtocol = lambda addr, bed=bed, after=seconds: Late(bed.keeper, after)  # type: ignore
            former.drain()
            bed.reactor.pump()
            self.sent(bed.deliver())
            self.assertEqual(bed.statistics()["fallbacks"], fallbacks)

    def test_keeper_stands_still_while_it_drains(self) -> None:
        """It is done without as ever, and what the next one lends is left alone."""
        bed = self.bed(faults=[Fault("mail", "slow", transaction=2)])
        self.sent(bed.deliver())
        first = bed.start()
        bed.reactor.run_until(lambda: bed.server.connections[0].transactions == 2)
        bed.replace()
        bed.reactor.pump()
        lease = bed.finish(bed.acquire())
        (old,) = bed.retired[0].borrowers
        old.transport.pauseProducing()  # type: ignore[union-attr]
        began = bed.reactor.seconds()
        self.sent(bed.finish(first))
        self.assertLess(bed.reactor.seconds() - began, PING_PATIENCE + 0.8)
        self.assertTrue(lease.reusable)
        self.sent(bed.finish(bed.send(lease)))
        lease.release()
        self.check_no_fallback(bed)

    def test_lease_is_pinged_for_while_it_drains(self) -> None:
        """A transaction that takes longer than the keeper takes silence for death is not dropped."""
        bed = self.bed(faults=[Fault("after_dot", "slow")], server={"slow_delay": 20.0})
        outcome = bed.start()
        bed.reactor.run_until(lambda: bed.server.connections and bed.server.connections[0].transactions)
        drained = bed.replace()
        self.sent(bed.finish(outcome))
        self.assertEqual(bed.server.message_count, 1)
        bed.finish(drained, 1)

    def test_borrower_closes_while_it_drains(self) -> None:
        bed = self.bed()
        lease = bed.finish(bed.acquire())
        drained = bed.replace()
        bed.reactor.pump()
        closed = Outcome(bed.cache.close())
        bed.reactor.run_for(1)
        self.assertFalse(closed.done)
        lease.release()
        bed.finish(closed, 1)
        self.assertTrue(drained.done)

    def test_borrower_that_has_not_heard(self) -> None:
        """It does not hold up the end, and hears why its link has ended when it listens."""
        bed = self.bed()
        self.sent(bed.deliver())
        bed.reactor.run_for(1)
        transport: Any = bed.cache._link.wire.transport  # type: ignore[attr-defined]
        transport.pauseProducing()
        drained = bed.replace()
        bed.reactor.pump()
        self.assertTrue(drained.done)
        transport.resumeProducing()
        self.sent(bed.deliver())
        self.check_no_fallback(bed)

    def test_link_without_hello(self) -> None:
        """Who connects and says nothing is given a second."""
        bed = self.bed()
        silent = Protocol()
        endpoint = clientFromString(bed.reactor, f"unix:{KEEPER}")
        bed.finish(Outcome(connectProtocol(endpoint, silent)))
        drained = bed.replace()
        bed.reactor.run_for(FAREWELL - 0.1)
        self.assertFalse(drained.done)
        bed.reactor.run_for(0.2)
        self.assertTrue(drained.done)

    def test_refusal_without_word(self) -> None:
        """A request that is refused because the keeper retires says as much as the keeper's own word."""
        bed = self.bed()

        class Silent(Borrower):
            @commands.Acquire.responder
            def acquire(self, destination: bytes, wanted: bytes) -> Any:
                if bed.keeper is former:
                    bed.start_another()
                raise commands.KeeperRetiring("the keeper retires")

            def retire(self) -> None:
                pass

        former = bed.keeper
        former.buildProtocol = lambda addr: Silent(former)  # type: ignore[method-assign]
        outcomes = [bed.start() for _ in range(3)]
        for outcome in outcomes:
            self.sent(bed.finish(outcome))
        self.check_no_fallback(bed)

    def test_five_in_a_row(self) -> None:
        """Messages come all the time, and keepers go: each message is sent once, none without a keeper."""
        bed = self.bed(faults=[Fault("after_dot", "slow", times=1_000)], server={"slow_delay": 0.2})
        outcomes: list[Outcome] = []
        drained: list[Outcome] = []
        for turn in range(150):
            outcomes.append(bed.start())
            bed.reactor.run_for(0.02)
            if turn % 25 == 12:
                drained.append(bed.replace())
        for outcome in outcomes:
            self.sent(bed.finish(outcome))
        self.assertEqual(bed.server.message_count, 150)
        bed.reactor.run_for(2)
        self.assertTrue(all(each.done for each in drained))
        self.assertEqual(len(drained), 6)
        self.check_no_fallback(bed)


class Late(Borrower):
    """A keeper's end that answers nothing for a while, as one whose process is being started."""

    def __init__(self, keeper: Keeper, after: float) -> None:
        super().__init__(keeper)
        self._after = after
        self._read: bytes | None = b""

    def connectionMade(self) -> None:
        super().connectionMade()
        self._keeper.reactor.callLater(self._after, self._begin)

    def dataReceived(self, data: bytes) -> None:
        if self._read is None:
            super().dataReceived(data)
        else:
            self._read += data

    def _begin(self) -> None:
        data, self._read = self._read, None
        if data and not self._lost:
            super().dataReceived(data)
