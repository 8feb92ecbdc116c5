"""A hostile borrower towards a keeper and whoever else borrows; and a hostile keeper towards a borrower.

What either end does with single boxes and bytes is in `tests.remote.test_keeper`, `tests.remote.test_guarded` and
`tests.remote.test_watch`; the descriptors are in `tests.security.test_descriptors`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryError, DeliveryResult, Limits, RemoteSessionCache, TLSPolicy
from mailcache.destination import Endpoint
from mailcache.remote import client, codec, commands
from mailcache.remote.client import MAX_USELESS_GRANTS
from mailcache.remote.codec import Facts
from mailcache.remote.commands import KeeperFault
from mailcache.remote.guarded import MAX_BOX
from mailcache.remote.lending import MAX_REQUESTS
from mailcache.remote.packed import Granted, Released
from mailcache.testing import MemoryPairs
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import Capabilities
from tests.helpers import KEEPER, SMALL, Bed, Outcome
from tests.remote.test_keeper import Pair, Raw, RawBed, RawCase

START = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n"
LARGEST = (1 << 64) - 1
"""The largest number that a release can have."""


class TwoBed(RawBed):
    """A keeper with two borrowers of the same user: what `link` is, is said by `by`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.victim = (self.link, self.pairs_met)
        self.thief = (self.finish(Outcome(connectProtocol(UNIXClientEndpoint(self.reactor, KEEPER), Raw()))), {})
        with self.by(self.thief):
            assert self.call(commands.Hello, version=codec.VERSION) == {"version": codec.VERSION}

    @contextmanager
    def by(self, who: tuple[Any, dict[int, Pair]]) -> Iterator[None]:
        """What is asked, released and withdrawn meanwhile is by this one."""
        before = self.link, self.pairs_met
        self.link, self.pairs_met = who
        yield
        self.link, self.pairs_met = before

    def leased(self) -> int:
        return int(self.finish(Outcome(self.kept.statistics()))["leased"])


class BorrowerTests(RawCase):
    """One that names what is not his, says it twice, or goes away."""

    def two(self, **settings: Any) -> TwoBed:
        bed = TwoBed(**settings)
        self.addCleanup(self.check_end, bed)
        self.addCleanup(bed.thief[0].transport.loseConnection)
        return bed

    def use(self, bed: RawBed, pair: Pair, said: bytes = b"NOOP\r\n") -> None:
        """The session is there, and answers."""
        pair.received = b""
        bed.say(pair, said, b"250")

    def test_leases_and_pairs_of_another(self) -> None:
        """Their numbers mean something on their own link only."""
        bed = self.two()
        _, pair = bed.borrow()
        with bed.by(bed.thief):
            own, _ = bed.borrow(7)
            for lease in (*range(10), LARGEST):
                for number in (*range(10), LARGEST):
                    for discard in (False, True):
                        if (lease, number) != (own.lease, own.pair):
                            said = Released(lease, number, 0, 0, discard)
                            bed.link.callRemote(commands.Release, released=said.encode())
            bed.reactor.pump()
        self.assertEqual(bed.leased(), 2)
        self.use(bed, pair)

    def test_requests_of_another(self) -> None:
        """Who waits goes on waiting, whoever withdraws what."""
        bed = self.two(limits=Limits(sessions_per_endpoint=1))
        with bed.by(bed.thief):
            granted, _ = bed.borrow(3)
        waiting = bed.ask(5)
        with bed.by(bed.thief):
            for number in range(20):
                bed.link.callRemote(commands.Withdraw, number=number)
            bed.reactor.run_for(1)
            self.assertFalse(waiting.done)
            bed.release(granted)
        answer = bed.finish(waiting)
        self.assertIsNotNone(answer["granted"])
        bed.pairs.close(answer["descriptor"])

    def test_released_twice(self) -> None:
        """The second time is for nothing; also when the pair is leased again, and to nobody else's harm."""
        bed = self.two(limits=Limits(sessions_per_endpoint=1))
        granted, pair = bed.borrow()
        for _ in range(3):
            bed.release(granted)
        self.assertEqual(bed.leased(), 0)
        again, _ = bed.borrow(2)
        self.assertEqual(again.pair, granted.pair)
        for discard in (False, True):
            bed.release(granted, discard=discard)
        self.assertEqual(bed.leased(), 1)
        self.use(bed, pair)
        bed.release(again, 6, len(pair.received))
        with bed.by(bed.thief):
            _, other = bed.borrow(1)
            for each in (granted, again):
                with bed.by(bed.victim):
                    bed.release(each, discard=True)
            self.assertEqual(bed.leased(), 1)
            self.use(bed, other)
        self.assertEqual(bed.server.connection_count, 1)

    def test_counts_that_can_not_be(self) -> None:
        for sent, received in ((LARGEST, LARGEST), (LARGEST, 0), (0, LARGEST)):
            bed = self.bed()
            granted, _ = bed.borrow()
            bed.release(granted, sent, received)
            bed.reactor.run_until(lambda bed=bed: bed.server.connections[0].closed, 1)  # type: ignore[misc]
            self.assertTrue(bed.linked)

    def test_pair_of_a_session_that_another_has_now(self) -> None:
        """Nothing written there reaches the server, and nothing of the other's is read there."""
        for attack in (b"QUIT\r\n", b"\r\n.\r\n", b"RCPT TO:<evil@y.test>\r\n", b"x" * 100_000):
            bed = self.two(limits=Limits(sessions_per_endpoint=1))
            with bed.by(bed.thief):
                granted, old = bed.borrow(1)
                bed.release(granted)
            _, pair = bed.borrow(1)
            bed.say(pair, START, b"354")
            old.transport.write(attack)  # type: ignore[union-attr]
            bed.reactor.run_for(1)
            self.assertEqual((old.lost, old.received), (True, b""))
            pair.received = b""
            bed.say(pair, SMALL + b".\r\n", b"250")
            (message,) = bed.server.messages
            self.assertEqual((message.content, message.recipients), (SMALL, ("b@y.test",)))
            self.assertEqual((bed.server.violations, bed.server.connection_count), ([], 1))

    def test_gone_at_every_byte_of_the_content(self) -> None:
        """Nobody says its end in his place, and the next message has a session of its own."""
        content = b"Subject: x\r\n\r\n..\r\n.\r"

        def link_ends(bed: RawBed, pair: Pair) -> None:
            bed.link.transport.abortConnection()

        def pair_ends(bed: RawBed, pair: Pair) -> None:
            pair.transport.loseConnection()  # type: ignore[union-attr]

        def calls_it_clean(bed: RawBed, pair: Pair) -> None:
            sent = len(START) + number
            bed.link.callRemote(commands.Release, released=Released(1, 1, sent, len(pair.received), False).encode())

        for leave in (link_ends, pair_ends, calls_it_clean):
            for number in range(len(content) + 1):
                bed = self.bed(tls=TLSPolicy("none"), server={"certificate": None})
                _, pair = bed.borrow()
                bed.say(pair, START, b"354")
                if number:
                    pair.transport.write(content[:number])  # type: ignore[union-attr]
                bed.reactor.pump()
                leave(bed, pair)
                bed.reactor.run_until(lambda bed=bed: bed.server.connections[0].closed, 5)  # type: ignore[misc]
                self.assertEqual(bed.server.messages, [], (leave, number))
                self.assertFalse(bed.server.connections[0].quit_seen)
                result = bed.deliver()
                self.assertIsInstance(result, DeliveryResult)
                self.assertEqual((bed.server.message_count, bed.server.connection_count), (1, 2))

    def test_gone_at_every_byte_of_a_chunk(self) -> None:
        said = START.replace(b"DATA\r\n", b"BDAT 10 LAST\r\n")
        for number in range(10):
            bed = self.bed()
            _, pair = bed.borrow()
            pair.transport.write(said + b"x" * number)  # type: ignore[union-attr]
            bed.reactor.run_for(0.1)
            bed.link.transport.abortConnection()
            bed.reactor.run_until(lambda bed=bed: bed.server.connections[0].closed, 5)  # type: ignore[misc]
            self.assertEqual(bed.server.messages, [], number)

    def test_another_user_in_words(self) -> None:
        """Who he is the system says; a destination has no place for it."""
        bed = self.bed()
        fields = json.loads(codec.encode_destination(bed.destination))
        for claim in ({"uid": 0}, {"user": "root"}, {"identity": {"uid": 0}}, {"gids": [0]}, {"trusted": True}):
            value = bed.finish(bed.ask(1, destination=json.dumps({**fields, **claim}).encode()))
            self.assertIsInstance(value, KeeperFault, claim)
            self.assertIn("is not known here", str(value))
        self.assertEqual(bed.server.connections, [])

    def test_more_requests_than_are_let_wait(self) -> None:
        """They are refused him, and another borrower is served meanwhile."""
        bed = self.two(limits=Limits(sessions_per_destination=1, waiters=2 * MAX_REQUESTS))
        with bed.by(bed.thief):
            bed.borrow(0)
            asked = [bed.ask(number) for number in range(1, MAX_REQUESTS + 101)]
            bed.reactor.pump()
            refused = [outcome for outcome in asked if outcome.done]
            self.assertEqual(len(refused), 100)
            self.assertTrue(all(isinstance(outcome.value, KeeperFault) for outcome in refused))
        where = codec.encode_destination(bed.to("[127.0.0.1]:2525", namespace="another"))
        answer = bed.finish(bed.ask(1, destination=where), 1)
        self.assertIsNotNone(answer["granted"])
        bed.pairs.close(answer["descriptor"])


def facts(**changed: Any) -> bytes:
    """Right ones of a session that is lent, but for these."""
    right = Facts("1", Endpoint("smtp", "127.0.0.1", 2525), "127.0.0.1", Capabilities({}), CLEAR, "no TLS", 0.1)
    return json.dumps({**json.loads(codec.encode_facts(right)), **changed}).encode()


def granted(lease: int = 1, pair: int = 1) -> bytes:
    return Granted(lease, pair, 0, None, False).encode()


class HostileKeeper(amp.AMP):
    """Answers as the test says."""

    bed: HostileBed

    @commands.Hello.responder
    def hello(self, version: int) -> dict[str, int]:
        return {"version": version}

    @commands.Ping.responder
    def ping(self) -> dict[str, Any]:
        return {}

    @commands.Release.responder
    def release(self, released: bytes) -> dict[str, Any]:
        self.bed.released += 1
        return {}

    @commands.Withdraw.responder
    def withdraw(self, number: int) -> dict[str, Any]:
        return {}

    @commands.Statistics.responder
    def statistics(self) -> dict[str, Any]:
        return {"counts": self.bed.counts_said}

    @commands.Acquire.responder
    def acquire(self, destination: bytes, wanted: bytes) -> Any:
        self.bed.asked += 1
        return self.bed.answer(self)


class HostileBed(Bed):
    """A borrower with a fallback, whose keeper does as the test says."""

    def __init__(self, answer: Callable[[HostileKeeper], Any]) -> None:
        self.answer = answer
        self.asked = self.released = 0
        self.counts_said = b"{}"
        self.keepers: list[HostileKeeper] = []
        self.own: list[int] = []
        super().__init__(make_cache=self._made, tls=TLSPolicy("none"), server={"certificate": None})

    def _made(self, reactor: Any, *_: Any) -> RemoteSessionCache:
        self.pairs = MemoryPairs(reactor)
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = self._build
        reactor.listenUNIX(KEEPER, factory)
        return RemoteSessionCache(reactor, f"unix:{KEEPER}", pairs=self.pairs, clock=reactor.seconds)

    def _build(self, _: object) -> HostileKeeper:
        keeper = HostileKeeper()
        keeper.bed = self
        self.keepers.append(keeper)
        return keeper

    def descriptor(self, protocol: Protocol | None = None) -> int:
        """One end of a pair of the keeper's."""
        for sent in self.own:
            self.pairs.close(sent)
        self.own = [self.pairs.make(protocol if protocol is not None else Pair())]
        return self.own[0]


def raw(*boxes: bytes) -> Callable[[HostileKeeper], Any]:
    """The keeper writes these in place of an answer, and the answer never comes."""

    def answer(keeper: HostileKeeper) -> Deferred[Any]:
        for data in boxes:
            keeper.transport.write(data)  # type: ignore[union-attr]
        return Deferred()

    return answer


def with_pair(**answer: Any) -> Callable[[HostileKeeper], Any]:
    """An answer that brings a descriptor."""
    return lambda keeper: {"descriptor": keeper.bed.descriptor(), **answer}


def box(**values: bytes) -> bytes:
    return bytes(amp.AmpBox({name.encode(): value for name, value in values.items()}).serialize())


ANSWERS: dict[str, Callable[[HostileKeeper], Any]] = {
    "nothing": lambda _: {},
    "a grant that is too short": lambda _: {"granted": b"x"},
    "a grant that is too long": lambda _: {"granted": granted() + b"x"},
    "a grant that is no truth": lambda _: {"granted": granted()[:-1] + b"\x07"},
    "an error that is none": lambda _: {"error": b"{}"},
    "an error of no JSON": lambda _: {"error": b"\xff" * 1_000},
    "an error without a bottom": lambda _: {"error": b"[" * 60_000},
    "a descriptor and no grant": with_pair(),
    "a descriptor and an error that is none": with_pair(error=b"{}"),
    "a descriptor and a wrong grant": with_pair(granted=b"x", facts=facts()),
    "no facts": with_pair(granted=granted()),
    "facts of no JSON": with_pair(granted=granted(), facts=b"\0" * 10),
    "facts without a bottom": with_pair(granted=granted(), facts=b'{"a":' * 10_000),
    "an endpoint that is none": with_pair(granted=granted(), facts=facts(endpoint=["smtp", 5, "x"])),
    "capabilities that are none": with_pair(granted=granted(), facts=facts(keywords={"SIZE": 5})),
    "evidence that is none": with_pair(granted=granted(), facts=facts(evidence={"colour": "red"})),
    "a fact that is not known": with_pair(granted=granted(), facts=facts(more=1)),
    "an answer to nobody": raw(box(_answer=b"77", granted=granted())),
    "an error for nobody": raw(box(_error=b"77", _error_code=b"X", _error_description=b"")),
    "an answer and a question": raw(box(_answer=b"1", _ask=b"1", _command=b"Ping")),
    "a question": raw(box(_ask=b"1", _command=b"Acquire")),
    "TLS": raw(box(_ask=b"1", _command=b"StartTLS")),
    "a box of nothing": raw(b"\0\0"),
    "a long key": raw(b"\x7f\xff" + b"x" * 1_000),
    "a box without an end": raw(*[b"\0\4%04d\xff\xff" % number + b"x" * 65_535 for number in range(20)]),
    "Retiring with a wish": raw(box(_ask=b"1", _command=b"Retiring")),
}
"""What no keeper says."""


class KeeperTests(SynchronousTestCase):
    """A keeper that is none: the borrower lets go of it, its mail goes out by itself, and nothing of it is left."""

    def tearDown(self) -> None:
        """No failure was left for the collector to tell of."""
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def check_fallback(self, name: str, bed: HostileBed) -> None:
        result = bed.deliver()
        self.assertIsInstance(result, DeliveryResult, (name, result))
        self.assertEqual(bed.statistics()["fallbacks"], 1, name)
        self.assertEqual((bed.server.message_count, bed.server.violations), (1, []), name)

    def close(self, name: str, bed: HostileBed) -> None:
        bed.close()
        for keeper in bed.keepers:
            if keeper.transport is not None:
                keeper.transport.abortConnection()
        bed.reactor.run_for(2)
        # The keeper's own are not closed by it: what is left of the others is none.
        self.assertEqual(bed.reactor.descriptors.keys() - set(bed.own), set(), name)
        self.assertEqual(self.flushLoggedErrors(), [], name)

    def test_what_no_keeper_says(self) -> None:
        for name, answer in ANSWERS.items():
            bed = HostileBed(answer)
            self.check_fallback(name, bed)
            self.close(name, bed)

    def test_how_much_is_held(self) -> None:
        """Of a box without an end no more than a box may have, whatever its pieces."""
        for piece in (100, 10_000, 65_535):
            bed = HostileBed(lambda _: Deferred())
            outcome = bed.start()
            bed.reactor.run_until(lambda bed=bed: bed.asked, 1)  # type: ignore[misc]
            (keeper,) = bed.keepers
            wire = bed.cache._link.wire
            sent = 0
            while bed.cache._link.wire is wire:
                keeper.transport.write(b"\0\6%06d" % (sent // piece) + piece.to_bytes(2, "big") + b"x" * piece)  # type: ignore[union-attr]
                bed.reactor.pump()
                sent += piece
                self.assertLess(sent, 2 * MAX_BOX)
            self.assertIsInstance(bed.finish(outcome), DeliveryResult)
            self.close(str(piece), bed)

    def test_grants_that_mean_nothing(self) -> None:
        """Pairs that never came: each is given back, and such a keeper is not asked for ever."""
        bed = HostileBed(lambda keeper: {"granted": granted(keeper.bed.asked, 77)})
        self.check_fallback("", bed)
        self.assertEqual(bed.asked, MAX_USELESS_GRANTS + 1)
        self.assertGreaterEqual(bed.released, MAX_USELESS_GRANTS)
        self.close("", bed)

    def test_pair_that_ends_or_speaks_out_of_turn(self) -> None:
        """It is as with a server that does so: the message goes out otherwise, and once."""
        self.patch(client, "MAX_USELESS_GRANTS", 20)
        for said in (None, b"250 2.0.0 ok\r\n" * 5, b"\xff" * 1_000, b"250-" + b"x" * 100_000):

            class Speaking(Protocol):
                said: bytes | None = None

                def connectionMade(self) -> None:
                    if self.said is None:
                        self.transport.loseConnection()  # type: ignore[union-attr]
                    else:
                        self.transport.write(self.said)  # type: ignore[union-attr]

            Speaking.said = said
            bed = HostileBed(
                lambda keeper, kind=Speaking: {  # type: ignore[misc]
                    "descriptor": keeper.bed.descriptor(kind()), "granted": granted(keeper.bed.asked, keeper.bed.asked),
                    "facts": facts(),
                }
            )  # fmt: skip
            value = bed.deliver()
            self.assertIsInstance(value, (DeliveryResult, DeliveryError), said)
            self.assertEqual(bed.server.message_count, int(isinstance(value, DeliveryResult)))
            self.assertLessEqual(bed.asked, 3 + 20)
            self.close(repr(said), bed)

    def test_error_with_more_in_it_than_a_text(self) -> None:
        """It is one printable line for the caller and his log."""
        said = {
            "message": "no\r\n\x1b[31mroot logged in\x85" + "x" * 10_000, "phase": "waiting\n", "retriable": True,
            "endpoint": "smtp\x07", "reply": [550, "no"],
        }  # fmt: skip
        bed = HostileBed(lambda _: {"error": json.dumps(said).encode()})
        error = bed.deliver()
        self.assertIsInstance(error, DeliveryError)
        self.assertTrue(str(error).isprintable(), str(error)[:100])
        self.assertLess(len(str(error)), 4_200)
        self.close("", bed)
        for reply in ([550, "no\r\n250 yes"], [7, ""], [550], ["x", "y"], [None, None]):
            bed = HostileBed(lambda _, reply=reply: {"error": json.dumps({**said, "reply": reply}).encode()})  # type: ignore[misc]
            self.check_fallback(repr(reply), bed)
            self.close(repr(reply), bed)

    def test_figures_that_are_none(self) -> None:
        """What the borrower knows itself is told all the same."""
        for counts in (b"[]", b"", b"\xff", b'{"leased":"many"}', b'{"misses":{"a":[]}}', b'{"a":null}', b"[" * 60_000):
            bed = HostileBed(lambda _: Deferred())
            bed.counts_said = counts
            outcome = bed.start()
            bed.reactor.run_until(lambda bed=bed: bed.asked, 1)  # type: ignore[misc]
            self.assertEqual(bed.statistics()["fallbacks"], 0, counts)
            outcome.deferred.cancel()
            bed.finish(outcome)
            self.close(repr(counts), bed)
