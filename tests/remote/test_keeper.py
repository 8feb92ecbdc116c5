"""The keeper against whatever may be at the other end of its socket: it lives, serves, and leaks nothing."""

from __future__ import annotations

import os
import random
import socket
import tempfile
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache import DeliveryResult, Destination, Envelope, Limits, MemorySessionCache, RemoteSessionCache, deliver
from mailcache.envelope import NO_NEEDS
from mailcache.remote import codec, commands, lending
from mailcache.remote.commands import KeeperFault
from mailcache.remote.keeper import Keeper
from mailcache.remote.packed import Granted, Released, Wanted
from mailcache.testing import SMTPServer
from tests.helpers import KEEPER, KeeperBed, Outcome, authority, verifying
from tests.remote.processes import until

BOXES, BOXES_EACH, LINKS_AT_ONCE = 10_000, 20, 10

reactor: Any = _reactor


class Raw(amp.AMP):
    """A borrower that says what it is told to."""


class Pair(Protocol):
    """The borrower's end of a pair."""

    def __init__(self) -> None:
        self.received = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class RawBed(KeeperBed):
    """A keeper and a raw link with it."""

    def __init__(self, greeted: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.link: Any = self.finish(Outcome(connectProtocol(UNIXClientEndpoint(self.reactor, KEEPER), Raw())))
        self.pairs_met: dict[int, Pair] = {}
        if greeted:
            assert self.call(commands.Hello, version=codec.VERSION) == {"version": codec.VERSION}

    def call(self, command: Any, **arguments: Any) -> Any:
        return self.finish(Outcome(self.link.callRemote(command, **arguments)))

    def ask(self, number: int, *, destination: bytes | None = None) -> Outcome:
        return Outcome(
            self.link.callRemote(
                commands.Acquire,
                destination=destination if destination is not None else codec.encode_destination(self.destination),
                wanted=Wanted(number, NO_NEEDS, False, frozenset(), 5.0).encode(),
            )
        )

    def borrow(self, number: int = 1) -> tuple[Granted, Pair]:
        answer = self.finish(self.ask(number))
        granted = Granted.decode(answer["granted"])
        if answer["descriptor"] is not None:
            self.pairs_met[granted.pair] = Pair()
            self.pairs.adopt(answer["descriptor"], self.pairs_met[granted.pair])
        return granted, self.pairs_met[granted.pair]

    def release(self, granted: Granted, sent: int = 0, received: int = 0, discard: bool = False) -> None:
        released = Released(granted.lease, granted.pair, sent, received, discard)
        self.link.callRemote(commands.Release, released=released.encode())
        self.reactor.pump()

    def say(self, pair: Pair, data: bytes, until_seen: bytes) -> None:
        pair.transport.write(data)  # type: ignore[union-attr]
        self.reactor.run_until(lambda: until_seen in pair.received)

    @property
    def linked(self) -> bool:
        return bool(self.keeper.borrowers)


class Counting(Keeper):
    """Knows how many links it has had."""

    links = 0

    def buildProtocol(self, addr: Any) -> Any:
        self.links += 1
        return super().buildProtocol(addr)


class RawCase(SynchronousTestCase):
    """Makes test beds, of which nothing may be left."""

    def bed(self, **settings: Any) -> RawBed:
        bed = RawBed(**settings)
        self.addCleanup(self.check_end, bed)
        return bed

    def check_end(self, bed: RawBed) -> None:
        if bed.link.transport is not None:
            bed.link.transport.loseConnection()
        bed.reactor.pump()
        bed.reactor.run_for(2)
        bed.close()
        self.assertEqual(bed.reactor.descriptors, {})


class CommandTests(RawCase):
    """What is refused, and that the link outlives what may be a mistake."""

    def check_refused(self, bed: RawBed, value: Any, kind: type[Exception] = KeeperFault) -> None:
        self.assertIsInstance(value, kind)
        self.assertTrue(bed.linked)

    def test_unknown_command(self) -> None:
        class Unheard(amp.Command):
            pass

        bed = self.bed()
        self.check_refused(bed, bed.call(Unheard), amp.UnhandledCommand)
        self.assertEqual(bed.call(commands.Ping), {})

    def test_start_tls(self) -> None:
        """AMP's own commands are unknown."""
        bed = self.bed()
        value = bed.finish(Outcome(bed.link.callRemoteString(b"StartTLS")))
        self.check_refused(bed, value, amp.UnhandledCommand)

    def test_before_hello(self) -> None:
        bed = self.bed(greeted=False)
        for command, arguments in (
            (commands.Ping, {}),
            (commands.Statistics, {}),
            (commands.Acquire, {"destination": b"", "wanted": b""}),
        ):
            self.check_refused(bed, bed.call(command, **arguments), amp.UnhandledCommand)

    def test_wrong_version(self) -> None:
        bed = self.bed(greeted=False)
        value = bed.call(commands.Hello, version=codec.VERSION + 1)
        self.check_refused(bed, value)
        self.assertIn(f"version {codec.VERSION}", str(value))
        self.check_refused(bed, bed.call(commands.Ping), amp.UnhandledCommand)

    def test_destination_that_is_refused(self) -> None:
        bed = self.bed()
        good = codec.encode_destination(bed.destination)
        for number, (data, word) in enumerate(
            (
                (good + b" " * codec.MAX_DESTINATION, "bytes"),
                (good[:-1] + b',"colour":"red"}', "colour"),
                (good.replace(b'"version":1', b'"version":2'), "version"),
                (b"[]", "object"),
                (b"\xff", "JSON"),
            )
        ):
            value = bed.finish(bed.ask(number, destination=data))
            self.check_refused(bed, value)
            self.assertIn(word, str(value))

    def test_arguments_that_are_none(self) -> None:
        """AMP's own parsing fails: that is answered too."""
        bed = self.bed()
        for arguments in ({}, {"destination": b"", "wanted": b""}, {"wanted": b"1"}):
            value = bed.finish(Outcome(bed.link.callRemoteString(b"Acquire", **arguments)))
            self.assertEqual(value.errorCode, b"FAULT")
            self.assertTrue(bed.linked)

    def test_too_many_requests(self) -> None:
        self.patch(lending, "MAX_REQUESTS", 3)
        bed = self.bed(limits=Limits(sessions_per_endpoint=1))
        granted, _ = bed.borrow()
        waiting = [bed.ask(number) for number in (2, 3, 4)]
        self.check_refused(bed, bed.finish(bed.ask(5)))
        self.assertFalse(any(outcome.done for outcome in waiting))
        bed.release(granted)
        self.assertIn("granted", bed.finish(waiting[0]))

    def test_number_twice(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_endpoint=1))
        bed.borrow()
        bed.ask(2)
        self.check_refused(bed, bed.finish(bed.ask(2)))

    def test_withdrawn(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_endpoint=1))
        bed.borrow()
        waiting = bed.ask(2)
        bed.link.callRemote(commands.Withdraw, number=2)
        self.assertIn("withdrawn", str(codec.decode_error(bed.finish(waiting)["error"])))
        bed.link.callRemote(commands.Withdraw, number=77)
        self.assertEqual(bed.call(commands.Ping), {})

    def test_boxes_that_end_the_link(self) -> None:
        for box in (
            amp.AmpBox({b"_answer": b"1"}),
            amp.AmpBox({b"_error": b"1", b"_error_code": b"X", b"_error_description": b""}),
            amp.AmpBox({b"nothing": b"at all"}),
            amp.AmpBox({b"_command": b"Acquire", b"destination": b"", b"wanted": b""}),
            amp.AmpBox({b"_command": b"Release", b"released": b"short"}),
            amp.AmpBox({b"_command": b"Unheard"}),
            amp.AmpBox({b"%d" % number: b"x" * 65_000 for number in range(5)}),
        ):
            bed = self.bed()
            bed.link.sendBox(box)
            bed.reactor.run_until(lambda bed=bed: not bed.linked, 1)  # type: ignore[misc]

    def test_no_pair(self) -> None:
        """A keeper out of descriptors says so, and has lost nothing when it has some again."""
        bed = self.bed()
        bed.pairs.failing = True
        self.check_refused(bed, bed.finish(bed.ask(1)))
        bed.pairs.failing = False
        bed.borrow(2)
        self.assertEqual(bed.server.connection_count, 1)


class PairTests(RawCase):
    """What happens on pairs."""

    def counts_of_keeper(self, bed: RawBed) -> tuple[int, int]:
        counts = bed.finish(Outcome(bed.kept.statistics()))
        return counts["leased"], counts["idle"]

    def test_descriptors_once(self) -> None:
        """The first lease of a session brings a descriptor and facts, the second names the pair."""
        bed = self.bed()
        first = bed.finish(bed.ask(1))
        self.assertIsNotNone(first["facts"])
        granted = Granted.decode(first["granted"])
        bed.pairs_met[granted.pair] = Pair()
        bed.pairs.adopt(first["descriptor"], bed.pairs_met[granted.pair])
        self.assertEqual(bed.reactor.descriptors, {}, "closed when it had left")
        bed.release(granted)
        second = bed.finish(bed.ask(2))
        self.assertEqual((second["facts"], second["descriptor"]), (None, None))
        self.assertEqual(Granted.decode(second["granted"]).pair, granted.pair)

    def test_clean_release(self) -> None:
        bed = self.bed()
        granted, pair = bed.borrow()
        bed.say(pair, b"NOOP\r\n", b"250")
        bed.release(granted, 6, len(pair.received))
        self.assertEqual(self.counts_of_keeper(bed), (0, 1))

    def test_wrong_counts(self) -> None:
        for sent, received in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            bed = self.bed()
            granted, pair = bed.borrow()
            bed.say(pair, b"NOOP\r\n", b"250")
            bed.release(granted, 6 + sent, len(pair.received) + received)
            bed.reactor.run_until(lambda bed=bed: self.counts_of_keeper(bed) == (0, 0), 1)  # type: ignore[misc]
            self.assertFalse(bed.server.connections[0].quit_seen)

    def test_unclean_places(self) -> None:
        """Whatever it is called by its borrower."""
        start = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n"
        for said, seen, more in ((b"NOOP\r\n", b"250", b"NO"), (start, b"354", b""), (start, b"354", b"x\r\n.\r")):
            bed = self.bed()
            granted, pair = bed.borrow()
            bed.say(pair, said, seen)
            pair.transport.write(more)  # type: ignore[union-attr]
            bed.reactor.pump()
            bed.release(granted, len(said + more), len(pair.received))
            bed.reactor.run_until(lambda bed=bed: self.counts_of_keeper(bed) == (0, 0), 1)  # type: ignore[misc]
            self.assertEqual(bed.server.message_count, 0)

    def test_another_session(self) -> None:
        """What makes another session of it: it is not kept."""
        for said in (b"EHLO [127.0.0.2]\r\n", b"AUTH PLAIN AGEAYg==\r\n"):
            bed = self.bed()
            granted, pair = bed.borrow()
            bed.say(pair, said, b"\r\n")
            bed.release(granted, len(said), len(pair.received))
            bed.reactor.run_until(lambda bed=bed: self.counts_of_keeper(bed) == (0, 0), 1)  # type: ignore[misc]

    def test_transaction_left_open(self) -> None:
        """RSET goes before the next MAIL, for whoever has the session then."""
        bed = self.bed()
        granted, pair = bed.borrow()
        said = b"MAIL FROM:<a@x.test>\r\n"
        bed.say(pair, said, b"250")
        bed.release(granted, len(said), len(pair.received))
        again, _ = bed.borrow(2)
        self.assertEqual((again.uses, again.rset_due), (1, True))

    def test_intrusion(self) -> None:
        """A byte on a pair that is not leased closes it, and the session is none the worse."""
        bed = self.bed()
        granted, pair = bed.borrow()
        bed.release(granted)
        pair.transport.write(b"QUIT\r\n")  # type: ignore[union-attr]
        bed.reactor.run_until(lambda: pair.lost, 1)
        self.assertEqual(self.counts_of_keeper(bed), (0, 1))
        again, other = bed.borrow(2)
        self.assertNotEqual(again.pair, granted.pair)
        bed.say(other, b"NOOP\r\n", b"250")

    def test_end_of_pair(self) -> None:
        """It is waited for what explains it, for a second."""
        bed = self.bed()
        _, pair = bed.borrow()
        pair.transport.loseConnection()  # type: ignore[union-attr]
        bed.reactor.run_for(0.9)
        self.assertEqual(self.counts_of_keeper(bed), (1, 0))
        bed.reactor.run_for(0.2)
        self.assertEqual(self.counts_of_keeper(bed), (0, 0))
        self.assertTrue(bed.linked)

    def test_end_of_link(self) -> None:
        """All of its leases end at once."""
        bed = self.bed()
        bed.borrow(1)
        bed.borrow(2)
        bed.link.transport.abortConnection()
        bed.reactor.run_until(lambda: self.counts_of_keeper(bed) == (0, 0), 0.1)

    def test_silence(self) -> None:
        """Who has a lease and does not call Ping stands still."""
        bed = self.bed()
        bed.borrow()
        bed.reactor.run_for(4)
        self.assertTrue(bed.linked)
        bed.reactor.run_for(3)
        self.assertFalse(bed.linked)
        self.assertEqual(self.counts_of_keeper(bed), (0, 0))

    def test_silence_on_pair(self) -> None:
        """Who lives and does not use his lease loses it."""
        bed = self.bed()
        _, pair = bed.borrow()
        for _ in range(130):
            bed.call(commands.Ping)
            bed.reactor.run_for(0.5)
        self.assertTrue(bed.linked)
        self.assertTrue(pair.lost)
        self.assertEqual(self.counts_of_keeper(bed), (0, 0))

    def test_answers_that_nobody_reads(self) -> None:
        """No more commands are read while answers wait."""
        bed = self.bed()
        bed.link.transport.pauseProducing()
        for _ in range(200):
            for _ in range(100):
                bed.link.callRemote(commands.Ping).addErrback(lambda _: None)
            bed.reactor.pump()
        (borrower,) = bed.keeper.borrowers
        self.assertLess(len(borrower.transport._waiting), 200_000)
        bed.link.transport.resumeProducing()
        self.assertEqual(bed.call(commands.Ping), {})


class RandomTests(TestCase):
    """Real sockets and descriptors, and boxes that make no sense."""

    timeout = 60

    async def test_boxes(self) -> None:
        """10,000 of them, whole or cut, with and without descriptors: it lives, serves, and has no descriptor more."""
        server = SMTPServer(reactor, certificate=authority().issue(names=("localhost",), addresses=("127.0.0.1",)))
        server.listen()
        self.addCleanup(server.close)
        path = os.path.join(tempfile.mkdtemp(), "keeper")
        served = Counting(reactor, MemorySessionCache(reactor))
        port = reactor.listenUNIX(path, served, mode=0o600)
        self.addCleanup(port.stopListening)
        destination = Destination(f"[127.0.0.1]:{server.port}", tls=verifying())
        choice = random.Random(20)
        before = 0
        for links in range(0, BOXES // BOXES_EACH, LINKS_AT_ONCE):
            for _ in range(LINKS_AT_ONCE):
                self.attack(path, choice, destination)
            all_came = links + LINKS_AT_ONCE
            await until(lambda all_came=all_came: served.links == all_came and not served.borrowers, 5)  # type: ignore[misc]
            if not before:
                # The reactor opens some of its own with the first.
                before = len(os.listdir("/proc/self/fd")) - 2 * server.open_count
        # A session that was opened for one who had gone is kept: both ends of it are in this process.
        # A session that was opened for one who had gone is kept: both ends of it are in this process.
        await until(lambda: len(os.listdir("/proc/self/fd")) == before + 2 * server.open_count, 5)
        cache = RemoteSessionCache(reactor, f"unix:{path}", fallback=None)
        result = await deliver(cache, destination, Envelope("a@x.test", ["b@y.test"]), b"Subject: still there\r\n\r\n")
        self.assertIsInstance(result, DeliveryResult)
        await cache.close()
        await served.close()
        await until(lambda: len(os.listdir("/proc/self/fd")) == before, 5)

    def attack(self, path: str, choice: random.Random, destination: Destination) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(5)
            link.connect(path)
            hello = {b"_command": b"Hello", b"_ask": b"h", b"version": b"1"}
            data = amp.AmpBox(hello).serialize() if choice.random() < 0.8 else b""
            for number in range(BOXES_EACH):
                data += random_box(choice, number, destination)
            if choice.random() < 0.5:
                data = data[: choice.randrange(len(data))]
            try:
                if choice.random() < 0.3 and data:
                    sent = socket.send_fds(link, [data[: len(data) // 2] or data], [0, 1])
                    data = data[sent:]
                link.sendall(data)
            except OSError:
                pass  # the keeper has had enough


def random_box(choice: random.Random, number: int, destination: Destination) -> bytes:
    """A box that may look like one of ours, or like nothing."""
    kind = choice.random()
    if kind < 0.1:
        return choice.randbytes(choice.randrange(1, 60))
    names = [b"Hello", b"Ping", b"Acquire", b"Withdraw", b"Release", b"Statistics", b"StartTLS", b"", b"\xff\0"]
    box = amp.AmpBox({b"_command": choice.choice(names)})
    if choice.random() < 0.9:
        box[b"_ask"] = b"%d" % number
    if choice.random() < 0.05:
        box[choice.choice([b"_answer", b"_error"])] = b"1"
    good = {
        b"number": b"%d" % number,
        b"version": b"1",
        b"destination": codec.encode_destination(destination),
        b"wanted": Wanted(number, NO_NEEDS, False, frozenset(), 1.0).encode(),
        b"released": Released(1, 1, 0, 0, False).encode(),
    }
    for name, value in good.items():
        luck = choice.random()
        if luck < 0.4:
            box[name] = value
        elif luck < 0.7:
            box[name] = bytes(choice.randbytes(choice.randrange(200)))
        elif luck < 0.8 and value:
            at = choice.randrange(len(value))
            box[name] = value[:at] + choice.randbytes(1) + value[at + 1 :]
    return bytes(box.serialize())
