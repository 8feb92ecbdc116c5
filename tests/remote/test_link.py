"""The borrower's end of the link: how it is made, how it is known to live, how often it is tried again, how it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from mailcache.remote import codec, commands
from mailcache.remote.calling import LOOKS, PING_EVERY, PING_PATIENCE
from mailcache.remote.link import FIRST_PAUSE, LONGEST_PAUSE, MAX_FOLLOWED, Link
from mailcache.testing import MemoryPairs, MemoryReactor
from tests.helpers import KEEPER, Outcome

TICK = 0.1


class Keeping(amp.AMP):
    """A keeper's end that answers or does not."""

    def __init__(self, bed: LinkBed) -> None:
        super().__init__()
        self.bed = bed
        self.lost = False

    @commands.Hello.responder
    def hello(self, version: int) -> Any:
        self.bed.hellos += 1
        if self.bed.refusing:
            raise commands.KeeperFault("another version is spoken here")
        return {"version": self.bed.version} if self.bed.answering else Deferred()

    @commands.Ping.responder
    def ping(self) -> Any:
        self.bed.pings.append(self.bed.reactor.seconds())
        return {} if self.bed.answering else Deferred()

    @commands.Withdraw.responder
    def withdraw(self, number: int) -> dict[str, Any]:
        self.bed.withdrawn.append(number)
        return {}

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        super().connectionLost(reason)


class LinkBed:
    """A link, and what may be at its other end, in memory."""

    def __init__(self, endpoint: str = f"unix:{KEEPER}", listening: bool = True) -> None:
        self.reactor = MemoryReactor()
        self.pairs = MemoryPairs(self.reactor)
        self.refusing = False
        self.version = codec.VERSION
        self.answering = True
        self.hellos = 0
        self.pings: list[float] = []
        self.withdrawn: list[int] = []
        self.heard: list[str] = []
        self.keepers: list[Keeping] = []
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = self.build
        self.factory = factory
        self.port: Any = None
        if listening:
            self.listen()
        self.link = Link(
            self.reactor,
            endpoint,
            self.pairs,
            self.reactor.seconds,
            lambda: self.heard.append("made"),
            lambda _: self.heard.append("lost"),
            lambda _: self.heard.append("retiring"),
        )
        self.link._spread = lambda: 1.0

    def build(self, _address: object) -> Keeping:
        self.keepers.append(Keeping(self))
        return self.keepers[-1]

    def listen(self) -> None:
        self.port = self.reactor.listenUNIX(KEEPER, self.factory)

    def stop_listening(self) -> None:
        self.port.stopListening()

    def made(self) -> Link:
        assert self.link.want()
        self.reactor.run_until(lambda: self.link.up, 0.1)
        return self.link

    def cut(self) -> None:
        """The keeper ends it."""
        self.keepers[-1].transport.loseConnection()  # type: ignore[union-attr]
        self.reactor.run_until(lambda: self.link.down, 0.1)

    def pass_time(self, seconds: float, busy: bool = True, every: float = TICK) -> None:
        """Time passes, and the link is told of it as its owner would."""
        for _ in range(round(seconds / every)):
            self.reactor.run_for(every)
            self.link.tick(self.reactor.seconds(), busy)
        self.reactor.pump()

    def pause(self) -> float:
        """Seconds until the link is tried again."""
        began = self.reactor.seconds()
        while not self.link.want():
            self.reactor.run_for(0.01)
        return self.reactor.seconds() - began


class NotUnderstoodTests(SynchronousTestCase):
    """What no keeper of this version says: it ends the link, and is no failure that anybody would have to see."""

    def heard(self, **values: bytes) -> LinkBed:
        bed = LinkBed()
        bed.made()
        box = amp.AmpBox({name.encode(): value for name, value in values.items()})
        bed.keepers[0].transport.write(box.serialize())  # type: ignore[union-attr]
        bed.reactor.pump()
        return bed

    def test_answers_to_nothing(self) -> None:
        for values in (
            {"_answer": b"77"},
            {"_error": b"77", "_error_code": b"FAULT", "_error_description": b""},
            {"nothing": b"at all"},
            {"_command": b"Acquire"},
            {"_command": b"Retiring", "_ask": b"1", "_answer": b"2"},
        ):
            bed = self.heard(**values)
            self.assertEqual((bed.heard, bed.keepers[0].lost), (["made", "lost"], True), values)

    def test_long_key(self) -> None:
        bed = LinkBed()
        bed.made()
        bed.keepers[0].transport.write(b"\x7f\xffkey")  # type: ignore[union-attr]
        bed.reactor.pump()
        self.assertEqual(bed.heard, ["made", "lost"])

    def test_commands_of_amp_itself(self) -> None:
        """They are not known here."""
        for name in (b"StartTLS", b"ProtocolSwitch", b"Acquire"):
            bed = LinkBed()
            bed.made()
            asked = Outcome(bed.keepers[0].callRemoteString(name))
            bed.reactor.pump()
            self.assertIsInstance(asked.value, ConnectionLost)
            self.assertEqual(bed.heard, ["made", "lost"])


class MakingTests(SynchronousTestCase):
    """From being wanted to standing, or to the next attempt."""

    def test_made_when_wanted(self) -> None:
        bed = LinkBed()
        bed.reactor.run_for(60)
        self.assertEqual((bed.keepers, bed.link.up, bed.link.down), ([], False, True))
        self.assertTrue(bed.link.want())
        self.assertEqual((bed.link.up, bed.link.down), (False, False))
        bed.reactor.pump()
        self.assertEqual((bed.link.up, bed.link.down), (True, False))
        self.assertEqual((bed.heard, bed.hellos), (["made"], 1))

    def test_wanted_once(self) -> None:
        """While it is being made and while it stands, wanting it makes no other."""
        bed = LinkBed()
        self.assertTrue(bed.link.want() and bed.link.want())
        bed.reactor.pump()
        self.assertTrue(bed.link.want())
        bed.reactor.pump()
        self.assertEqual((len(bed.keepers), bed.heard), (1, ["made"]))

    def test_hello_refused(self) -> None:
        bed = LinkBed()
        bed.refusing = True
        self.assertTrue(bed.link.want())
        bed.reactor.run_until(lambda: bed.heard, 0.1)
        self.assertEqual((bed.heard, bed.link.down), (["lost"], True))
        bed.reactor.pump()
        self.assertEqual(bed.reactor.connections, [])
        self.assertFalse(bed.link.want())

    def test_hello_answered_by_another_version(self) -> None:
        """By a keeper that did not refuse, and is not ours all the same."""
        for version in (codec.VERSION - 1, codec.VERSION + 1):
            bed = LinkBed()
            bed.version = version
            self.assertTrue(bed.link.want())
            bed.reactor.run_until(lambda bed=bed: bed.heard, 0.1)  # type: ignore[misc]
            self.assertEqual((bed.heard, bed.link.down), (["lost"], True))
            bed.reactor.pump()
            self.assertEqual(bed.reactor.connections, [])

    def test_hello_unanswered(self) -> None:
        bed = LinkBed()
        bed.answering = False
        self.assertTrue(bed.link.want())
        bed.reactor.run_for(PING_PATIENCE - 0.01)
        self.assertEqual((bed.heard, bed.hellos), ([], 1))
        bed.reactor.run_for(0.01)
        self.assertEqual((bed.heard, bed.link.down, bed.reactor.connections), (["lost"], True, []))

    def test_end_in_hello(self) -> None:
        bed = LinkBed()
        bed.answering = False
        bed.link.want()
        bed.reactor.run_until(lambda: bed.hellos, 0.1)
        bed.cut()
        self.assertEqual(bed.heard, ["lost"])
        bed.reactor.run_for(PING_PATIENCE * 2)
        self.assertEqual(bed.heard, ["lost"], "once")

    def test_nobody_there(self) -> None:
        bed = LinkBed(listening=False)
        self.assertTrue(bed.link.want())
        bed.reactor.run_until(lambda: bed.heard, 0.1)
        self.assertEqual((bed.heard, bed.link.down), (["lost"], True))

    def test_no_answer_to_connecting(self) -> None:
        """The attempt is given up, with nothing left of it."""
        bed = LinkBed("tcp:host=192.0.2.1:port=1")
        bed.reactor.black_holes.add(("192.0.2.1", 1))
        bed.link.want()
        bed.reactor.run_for(PING_PATIENCE)
        self.assertEqual((bed.heard, bed.link.down), (["lost"], True))
        self.assertEqual((bed.reactor.connections, bed.reactor.getDelayedCalls()), ([], []))

    def test_pauses(self) -> None:
        """Doubled with each failure up to the longest, and the first again after a success."""
        bed = LinkBed(listening=False)
        doubled = [min(LONGEST_PAUSE, FIRST_PAUSE * 2**number) for number in range(8)]
        self.assertEqual(self.pauses(bed, 8), doubled)
        bed.listen()
        bed.reactor.run_until(lambda: bed.link.want() and bed.link.up, 2 * LONGEST_PAUSE)
        bed.stop_listening()
        bed.cut()
        self.assertEqual(self.pauses(bed, 3), doubled[:3])

    def pauses(self, bed: LinkBed, count: int) -> list[float]:
        pauses = []
        bed.link.want()
        for _ in range(count):
            bed.reactor.run_until(lambda: bed.link.down, 0.1)
            pauses.append(round(bed.pause(), 1))
        return pauses

    def test_pauses_are_spread(self) -> None:
        """Borrowers that lost their keeper together do not come back together."""
        for spread in (0.8, 1.2):
            bed = LinkBed(listening=False)
            bed.link._spread = lambda spread=spread: spread  # type: ignore[misc]
            bed.link.want()
            bed.reactor.pump()
            bed.reactor.run_for(FIRST_PAUSE * spread - 0.01)
            self.assertFalse(bed.link.want())
            bed.reactor.run_for(0.02)
            self.assertTrue(bed.link.want())
        link = Link(
            MemoryReactor(),
            f"unix:{KEEPER}",
            MemoryPairs(MemoryReactor()),
            lambda: 0.0,
            lambda: None,
            lambda _: None,
            lambda _: None,
        )
        drawn = [link._spread() for _ in range(100)]
        self.assertTrue(all(0.8 <= each <= 1.2 for each in drawn))
        self.assertGreater(max(drawn) - min(drawn), 0.2)


class LifeTests(SynchronousTestCase):
    """How the keeper is known to live."""

    def test_busy(self) -> None:
        bed = LinkBed()
        bed.made()
        bed.pass_time(6)
        pauses = [round(after - before, 3) for before, after in pairwise(bed.pings)]
        self.assertTrue(all(PING_EVERY <= pause <= PING_EVERY + TICK for pause in pauses), pauses)
        self.assertGreaterEqual(len(pauses), 14)
        self.assertTrue(bed.link.up)

    def test_idle(self) -> None:
        """Nobody depends on it: nothing is asked, and its silence means nothing."""
        bed = LinkBed()
        bed.made()
        bed.answering = False
        bed.pass_time(60, busy=False)
        self.assertEqual((bed.pings, bed.heard), ([], ["made"]))

    def test_one_at_a_time(self) -> None:
        bed = LinkBed()
        bed.made()
        bed.answering = False
        bed.pass_time(PING_EVERY + PING_PATIENCE - TICK)
        self.assertEqual((len(bed.pings), bed.link.pinging, bed.link.up), (1, True, True))

    def test_no_answer(self) -> None:
        bed = LinkBed()
        bed.made()
        bed.answering = False
        began = bed.reactor.seconds()
        while bed.link.up:
            bed.pass_time(TICK)
        self.assertAlmostEqual(bed.reactor.seconds() - began, PING_EVERY + PING_PATIENCE, delta=2 * TICK)
        self.assertEqual((bed.heard, bed.link.pinging), (["made", "lost"], False))
        self.assertTrue(bed.keepers[0].lost)

    def test_asked_and_idle_since(self) -> None:
        """What was asked is awaited, whoever depends on it now."""
        bed = LinkBed()
        bed.made()
        bed.answering = False
        bed.pass_time(PING_EVERY + TICK)
        self.assertTrue(bed.link.pinging)
        bed.pass_time(PING_PATIENCE + TICK, busy=False)
        self.assertFalse(bed.link.up)

    def test_looks_are_counted(self) -> None:
        """Who looks seldom looks as often."""
        bed = LinkBed()
        bed.made()
        bed.answering = False
        bed.pass_time(5, every=5)
        self.assertTrue(bed.link.pinging)
        bed.pass_time((LOOKS - 1) * 5, every=5)
        self.assertTrue(bed.link.up)
        bed.pass_time(5, every=5)
        self.assertFalse(bed.link.up)

    def test_own_standstill(self) -> None:
        """A process that was stopped finds the time gone and the answer unread: that is not the keeper's death."""
        bed = LinkBed()
        bed.made()
        bed.pass_time(PING_EVERY - TICK)
        bed.reactor.rightNow += TICK
        bed.link.tick(bed.reactor.seconds(), True)
        self.assertTrue(bed.link.pinging)
        bed.reactor.rightNow += 3600
        for _ in range(LOOKS - 1):
            bed.link.tick(bed.reactor.seconds(), True)
        self.assertTrue(bed.link.up)
        bed.reactor.pump()
        self.assertFalse(bed.link.pinging)
        bed.pass_time(3)
        self.assertEqual(bed.heard, ["made"])

    def test_standstill_of_both(self) -> None:
        """A keeper that is dead indeed is noticed when as many looks have passed."""
        bed = LinkBed()
        bed.made()
        bed.answering = False
        bed.pass_time(PING_EVERY)
        self.assertTrue(bed.link.pinging)
        bed.reactor.rightNow += 3600
        bed.pass_time((LOOKS - 1) * TICK)
        self.assertTrue(bed.link.up)
        bed.pass_time(TICK)
        self.assertFalse(bed.link.up)

    def test_lost(self) -> None:
        """What was asked fails with it; another is made when it is wanted, and asked anew."""
        bed = LinkBed()
        link = bed.made()
        bed.answering = False
        bed.pass_time(PING_EVERY)
        asked = Outcome(link.call(commands.Ping))
        bed.cut()
        self.assertTrue(asked.done)
        self.assertFalse(link.pinging)
        self.assertFalse(link.want(), "too early")
        bed.reactor.run_for(FIRST_PAUSE)
        bed.answering = True
        bed.made()
        bed.pass_time(2)
        self.assertEqual(bed.heard, ["made", "lost", "made"])

    def test_nothing_is_done_without_one(self) -> None:
        bed = LinkBed()
        bed.link.tick(1.0, True)
        bed.link.tell(commands.Withdraw, number=1)
        bed.link.abort()
        bed.link.close()
        bed.reactor.pump()
        self.assertEqual((bed.heard, bed.keepers), ([], []))


class FollowingTests(SynchronousTestCase):
    """What becomes of it when the keeper retires."""

    def retire(self, bed: LinkBed) -> Any:
        """The keeper says so; gives the wire, which is a former one then."""
        wire = bed.link.wire
        bed.keepers[-1].callRemote(commands.Retiring)
        bed.reactor.pump()
        return wire

    def test_former_wire(self) -> None:
        """It is there for leases, pinged for, and another can be made at once."""
        bed = LinkBed()
        link = bed.made()
        former = self.retire(bed)
        self.assertEqual((bed.heard, link.up, link.down, link.leaving), (["made", "retiring"], False, True, True))
        bed.made()
        self.assertIsNot(link.wire, former)
        bed.pass_time(2, busy=False)
        self.assertGreaterEqual(len(bed.pings), 4)
        link.leave(former)
        bed.reactor.pump()
        self.assertEqual((bed.heard[2:], link.up, link.leaving), (["made", "lost"], True, False))
        self.assertEqual([keeper.lost for keeper in bed.keepers], [True, False])

    def test_former_keeper_dies(self) -> None:
        """By not answering, too. The other is none the worse, and no pause is due."""
        for silent in (False, True):
            bed = LinkBed()
            link = bed.made()
            self.retire(bed)
            bed.made()
            if silent:
                bed.keepers[0].transport.pauseProducing()  # type: ignore[union-attr]
                bed.pass_time(2, busy=False)
            else:
                bed.keepers[0].transport.abortConnection()  # type: ignore[union-attr]
                bed.reactor.pump()
            self.assertEqual((bed.heard[-1], link.up, link.leaving), ("lost", True, False))

    def test_current_one_is_not_left(self) -> None:
        bed = LinkBed()
        link = bed.made()
        assert link.wire is not None
        link.leave(link.wire)
        bed.reactor.pump()
        self.assertTrue(link.up)

    def test_said_twice(self) -> None:
        bed = LinkBed()
        bed.made()
        for _ in range(2):
            bed.keepers[-1].callRemote(commands.Retiring)
        bed.reactor.pump()
        self.assertEqual(bed.heard, ["made", "retiring"])

    def test_those_that_only_retire(self) -> None:
        """Some are followed at once; then there is a pause as after a loss. One that has lasted is no such."""
        bed = LinkBed()
        for _ in range(MAX_FOLLOWED):
            bed.made()
            self.retire(bed)
        bed.made()
        bed.pass_time(FIRST_PAUSE + TICK)
        self.retire(bed)
        for _ in range(MAX_FOLLOWED):
            bed.made()
            self.retire(bed)
        bed.made()
        self.retire(bed)
        self.assertFalse(bed.link.want())
        self.assertEqual(round(bed.pause(), 1), FIRST_PAUSE)

    def test_those_that_lend_are_followed_however_soon_they_retire(self) -> None:
        """Restarts may come one upon the other."""
        bed = LinkBed()
        for _ in range(3 * MAX_FOLLOWED):
            bed.made().lent()
            self.retire(bed)
        self.assertTrue(bed.link.want())
        self.assertNotIn("lost", bed.heard)

    def test_nobody_there_after_it(self) -> None:
        bed = LinkBed()
        bed.made()
        bed.stop_listening()
        self.retire(bed)
        self.assertTrue(bed.link.want())
        bed.reactor.run_until(lambda: "lost" in bed.heard, 0.1)
        self.assertFalse(bed.link.want())


class EndTests(SynchronousTestCase):
    """How it ends."""

    def test_close_flushes(self) -> None:
        bed = LinkBed()
        link = bed.made()
        for number in range(1_000):
            link.tell(commands.Withdraw, number=number)
        link.close()
        link.close()
        self.assertTrue(link.up)
        bed.reactor.pump()
        self.assertEqual(bed.withdrawn, list(range(1_000)))
        self.assertEqual((bed.heard, link.down, bed.reactor.connections), (["made", "lost"], True, []))

    def test_close_has_a_limit(self) -> None:
        """A keeper that takes nothing does not hold it up for long."""
        bed = LinkBed()
        link = bed.made()
        bed.keepers[0].transport.pauseProducing()  # type: ignore[union-attr]
        for number in range(10_000):
            link.tell(commands.Withdraw, number=number)
        bed.reactor.pump()
        link.close()
        bed.pass_time(PING_PATIENCE - TICK, busy=False)
        self.assertTrue(link.up)
        bed.pass_time(2 * TICK, busy=False)
        self.assertEqual((bed.heard, link.down), (["made", "lost"], True))

    def test_close_of_a_loss(self) -> None:
        bed = LinkBed()
        link = bed.made()
        bed.cut()
        link.close()
        bed.pass_time(5)
        self.assertEqual(bed.heard, ["made", "lost"])

    def test_abort(self) -> None:
        bed = LinkBed()
        link = bed.made()
        link.abort()
        bed.reactor.pump()
        self.assertEqual((bed.heard, link.down, bed.keepers[0].lost), (["made", "lost"], True, True))

    def test_unclaimed_descriptors(self) -> None:
        """Those that came for answers which never came whole are closed with it."""
        bed = LinkBed()
        bed.made()
        keeper: Any = bed.keepers[0].transport
        for _ in range(3):
            descriptor = bed.pairs.make(Protocol())
            keeper.sendFileDescriptor(descriptor)
            keeper.write(b"\0\x08_command"[:3])
            bed.reactor.pump()
            bed.pairs.close(descriptor)
        self.assertEqual(len(bed.reactor.descriptors), 3)
        keeper.loseConnection()
        bed.reactor.pump()
        self.assertEqual((bed.heard, bed.reactor.descriptors), (["made", "lost"], {}))
        self.assertEqual(bed.reactor.connections, [])
