"""Connections that are cut at every octet of a transaction, and what must be said of the message.

A *way* is how a message goes out: over which stream, in how many flights, to how many recipients. It is rehearsed
once without a cut, which shows how many octets each flight and each answer has. Then there is one delivery for each
`Place`, on a network of its own, and `expected` says from the numbers alone what must come of it:

* the content not written: the message goes once more where there is somewhere to go, else `DeliveryError`;
* written, and no complete reply read: `UncertainDelivery`;
* a complete reply read: what it says.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, UNIXAddress

from mailcache import Timeouts, TLSPolicy
from mailcache.testing import CAPABILITIES, HIGH_WATER, WINDOW, MemoryTransport
from tests.helpers import PORT, SMALL, Bed, KeeperBed, TableRouter, hop, verdict_of

PROBE = "probe@example.com"
ELSEWHERE = PORT + 1
UP, DOWN = "to the server", "to the client"

WAYS_TO_BREAK = {UP: ("rst", "close", "silence"), DOWN: ("rst", "fin", "silence")}
"""How a connection is cut, by direction. It is the server's end that closes: behind its answer, or within it."""

UNDER_WAY = WINDOW + HIGH_WATER + 65_536
"""Octets of streamed content that may be written without having arrived: on the wire, in the transport, one chunk."""

TIMEOUTS = Timeouts(mail=40, rcpt=40, data=40, content=40, dot=60)
"""Shorter than the defaults: who waits for a reply through a keeper pings it three times a second meanwhile."""

STREAMED = b"Subject: hello\r\n\r\n" + b"This is one line of many that are streamed.\r\n" * 7_000


@attrs.frozen
class Way:
    """How a message goes out.

    :ivar flights: how many flights it has; the last one has the content.
    :ivar pair: it is not the server's connection that is cut, but the pair between a borrower and the keeper.
    :ivar step: only every so-many-th octet: the content is large.
    """

    make_bed: type[Bed] = Bed
    settings: dict[str, Any] = attrs.field(factory=dict)
    recipients: tuple[str, ...] = ("b@example.com",)
    content: Callable[[], Any] = lambda: SMALL
    flights: int = 2
    sessions: tuple[str, ...] = ("fresh", "reused")
    secure: bool = True
    pair: bool = False
    step: int = 1


def several_lines(point: str, argument: str, connection: Any) -> bytes | None:
    """A server that says everything in three lines."""
    codes = {"mail": b"250", "rcpt": b"250", "data": b"354", "dot": b"250"}
    code = codes.get(point)
    return None if code is None else code + b"-one\r\n" + code + b"-two\r\n" + code + b" three\r\n"


ONE_BY_ONE = {"capabilities": [word for word in CAPABILITIES if word != "PIPELINING"]}
THREE = ("first@example.com", "second@example.com", "last@example.com")


def clear(server: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Settings of a bed without TLS."""
    return {"tls": TLSPolicy("none"), "server": {"certificate": None, **(server or {})}, **more}


WAYS = {
    "plain text": Way(settings=clear(), secure=False, sessions=("fresh", "reused", "elsewhere")),
    "TLS": Way(sessions=("fresh", "reused", "elsewhere")),
    "TLS from the first byte": Way(settings={"protocol": "smtps", "server": {"implicit_tls": True}}),
    "one flight, plain text": Way(settings=clear(one_flight=True), flights=1, secure=False),
    "one flight, TLS": Way(settings={"one_flight": True}, flights=1),
    "LMTP, plain text": Way(settings=clear({"lmtp": True}, protocol="lmtp"), recipients=THREE, secure=False),
    "LMTP, TLS": Way(settings={"protocol": "lmtp", "server": {"lmtp": True}}, recipients=THREE),
    "no PIPELINING, plain text": Way(settings=clear(ONE_BY_ONE), flights=4, secure=False),
    "no PIPELINING, TLS": Way(settings={"server": ONE_BY_ONE}, flights=4),
    "replies of three lines, plain text": Way(settings=clear({"verdict": several_lines}), secure=False),
    "streamed content, plain text": Way(settings=clear(), content=lambda: io.BytesIO(STREAMED), secure=False, step=997),
    "streamed content, TLS": Way(content=lambda: io.BytesIO(STREAMED), step=997),
    "keeper, plain text": Way(KeeperBed, clear(), secure=False),
    "keeper, TLS": Way(KeeperBed),
    "keeper, one flight, TLS": Way(KeeperBed, {"one_flight": True}, flights=1, sessions=("reused",)),
    "keeper, LMTP, plain text": Way(KeeperBed, clear({"lmtp": True}, protocol="lmtp"), recipients=THREE, secure=False),
    "keeper, the pair": Way(KeeperBed, secure=False, pair=True),
    "keeper, the pair, one flight": Way(
        KeeperBed, {"one_flight": True}, flights=1, sessions=("reused",), secure=False, pair=True
    ),
}


@attrs.frozen
class Place:
    """Where a connection is cut.

    :ivar octets: how many arrive in that direction, counted from the beginning of the transaction.
    :ivar at_next: it is cut when one more is to go: whoever gets the last may have said something to it already.
    """

    direction: str
    how: str
    octets: int
    at_next: bool = False


@attrs.frozen
class Expected:
    """What must come of a delivery.

    :ivar words: the verdicts that are right; more than one where it depends on what the transport holds.
    :ivar taken: how often the server that was cut has the message, for each recipient.
    :ivar told: of how many recipients the client has read the verdict, with LMTP, where it is in doubt about others.
    """

    words: frozenset[str]
    taken: int
    told: int = 0


@attrs.frozen
class Rehearsal:
    """What a delivery looks like that is not cut: the octets of each flight, and of each answer."""

    flights: tuple[int, ...]
    answers: tuple[int, ...]
    last_answer: bytes

    def octets(self, direction: str) -> tuple[int, ...]:
        return self.flights if direction == UP else self.answers

    def places(self, step: int = 1) -> Iterator[Place]:
        """Every octet in both directions, in all ways; the end of each flight twice, see `Place.at_next`."""
        for direction, ways in WAYS_TO_BREAK.items():
            ends = list(accumulate(self.octets(direction)))
            for how in ways:
                for octets in range(ends[-1] + 1):
                    if octets in ends:
                        yield Place(direction, how, octets)
                        if octets != ends[-1]:
                            yield Place(direction, how, octets, at_next=True)
                    elif octets % step == 0:
                        yield Place(direction, how, octets)


def expected(way: Way, rehearsal: Rehearsal, place: Place) -> Expected:
    """What the phase rules say of a message that is cut there."""
    octets = place.octets
    ends = [0, *accumulate(rehearsal.octets(place.direction))]
    last = len(ends) - 1
    whole = sum(octets >= end for end in ends) - 1
    # It is cut at the last octet of a flight, or of an answer, and the next one has not begun.
    waits = octets == ends[whole] and octets > 0 and not place.at_next
    if place.direction == UP:
        # Who closes behind an answer is answered once more by the client.
        written = whole if waits and place.how != "close" else whole + 1
        if written > last:
            return Expected(frozenset({"SENT"}), 1)
        if written < last:
            return Expected(frozenset({"NOT SENT"}), 0)
        if way.content() is not SMALL and octets < ends[-1]:
            far = ends[-1] - octets > UNDER_WAY
            return Expected(frozenset({"NOT SENT"} if far else {"NOT SENT", "UNKNOWN"}), 0)
        return Expected(frozenset({"UNKNOWN"}), int(whole == last))
    if whole == last:
        return Expected(frozenset({"SENT"}), 1)
    if whole < last - 1:
        return Expected(frozenset({"NOT SENT"}), 0)
    told = 0
    if len(way.recipients) > 1 and not way.secure:
        told = rehearsal.last_answer[: octets - ends[whole]].count(b"\r\n")
    doubt = {"UNKNOWN"}
    if way.content() is not SMALL and waits:
        doubt.add("NOT SENT")  # it had begun to write, no more
    return Expected(frozenset(doubt), 0 if waits else 1, told)


class Trial:
    """One delivery on a network of its own, over a session that has carried a message before, or was opened for it."""

    def __init__(self, way: Way, session: str) -> None:
        self.way = way
        self.session = session
        settings = {**way.settings, "timeouts": TIMEOUTS}
        if session == "elsewhere":
            settings["router"] = TableRouter(two=[hop(), hop(port=ELSEWHERE)])
        self.bed = bed = way.make_bed(**settings)
        if session == "elsewhere":
            bed.add_server(ELSEWHERE, **settings.get("server", {}))
            bed.destination = bed.to("two.example", tls=settings.get("tls"))
        if session == "reused":
            assert verdict_of(bed.deliver(sender="first@example.com")) == "SENT"

    def _when_leased(self, begin: Callable[[MemoryTransport, MemoryTransport], object]) -> None:
        """Have this called with both ends when the next session is leased, before anything is written on it."""
        cache = self.bed.cache
        acquire = cache.acquire

        def leased(lease: Any) -> Any:
            begin(*self._ends())
            return lease

        def acquiring(*arguments: Any, **more: Any) -> Any:
            cache.acquire = acquire
            return acquire(*arguments, **more).addCallback(leased)

        cache.acquire = acquiring

    def _ends(self) -> tuple[MemoryTransport, MemoryTransport]:
        """The client's end and the server's of the stream that is to be cut."""

        def is_end(transport: MemoryTransport, local: Any, remote: Any) -> bool:
            host, peer = transport.getHost(), transport.getPeer()
            if self.way.pair:
                kind = type(transport.protocol).__name__
                return host == peer == UNIXAddress(None) and kind == ("BorrowedConnection" if remote else "Relay")
            return (
                isinstance(host, IPv4Address)
                and isinstance(peer, IPv4Address)
                and (peer.port if remote else host.port) == PORT
            )

        connections = self.bed.reactor.connections
        (near,) = [each for each in connections if is_end(each, False, True)]
        (far,) = [each for each in connections if is_end(each, True, False)]
        return near, far

    def deliver(self) -> Any:
        return self.bed.deliver(self.way.content(), sender=PROBE, recipients=self.way.recipients)

    def rehearse(self) -> Rehearsal:
        flights: list[bytes] = []
        answers: list[bytes] = []

        def record(near: MemoryTransport, far: MemoryTransport) -> None:
            _record(far, flights)
            _record(near, answers)

        self._when_leased(record)
        value = self.deliver()
        assert verdict_of(value) == "SENT", value
        number = self.way.flights
        assert len(answers) == number, (self.way, answers)
        sizes = [len(data) for data in flights]
        return Rehearsal(
            (*sizes[: number - 1], sum(sizes[number - 1 :])), tuple([len(data) for data in answers]), answers[-1]
        )

    def run(self, rehearsal: Rehearsal, place: Place) -> Iterator[tuple[str, str]]:
        """Cut it there; gives what is wrong, and why."""

        def cut(near: MemoryTransport, far: MemoryTransport) -> None:
            end = near if place.direction == UP else far
            end.cut_after(place.octets, place.how, at_next=place.at_next)

        self._when_leased(cut)
        right = expected(self.way, rehearsal, place)
        value = self.deliver()
        word = verdict_of(value)
        first = self._taken(0)
        elsewhere = self._taken(1) if self.session == "elsewhere" else [0] * len(first)
        in_all = [one + other for one, other in zip(first, elsewhere, strict=True)]
        told = set(value.accepted) if word in ("SENT", "UNKNOWN") else set()
        if any(recipient in told and not count for recipient, count in zip(self.way.recipients, in_all, strict=True)):
            yield "lost", f"reported as sent, and taken {in_all}"
        if max(in_all) > 1 or (word == "NEXT" and max(in_all)):
            yield "doubled", f"taken {in_all}, reported {word}"
        yield from self._wrong(right, value, word, in_all)
        yield from self._left(word, place.how)

    def _wrong(self, right: Expected, value: Any, word: str, in_all: list[int]) -> Iterator[tuple[str, str]]:
        again = self.session != "fresh"
        came_of = {"SENT": "NOT SENT" if self._sent_again else "SENT", "NEXT": "NOT SENT"}.get(word, word)
        if came_of not in right.words:
            yield "wrong", f"{came_of} in place of {sorted(right.words)}: {value!r}"
        elif came_of == "NOT SENT" and (word == "SENT") != again:
            yield "wrong", f"{value!r} on a session that was {self.session}"
        if came_of != "NOT SENT" and in_all != [right.taken] * len(in_all):
            yield "wrong", f"taken {in_all} in place of {right.taken}"
        if word == "UNKNOWN" and len(value.accepted) != right.told:
            yield "wrong", f"{value.accepted} in place of {right.told} recipients: {value!r}"

    @property
    def _sent_again(self) -> bool:
        """Whether there was another connection than the one that was cut."""
        return sum(server.connection_count for server in self.bed.servers) > 1

    def _left(self, word: str, how: str) -> Iterator[tuple[str, str]]:
        """What is left of it: the cut session is never used again, and nothing stays behind."""
        bed = self.bed
        bed.reactor.run_for(1)
        # It is kept where nobody can have noticed; with its pair gone the keeper still has the session, which is well.
        unnoticed = word == "SENT" and not self._sent_again and how == "silence"
        kept = int(word == "SENT" and (self._sent_again or unnoticed))
        leased, idle, opening, waiting = bed.counts()
        if idle != kept and not (self.way.pair and word == "SENT"):
            yield "wrong", f"{idle} sessions are kept in place of {kept}"
        if (leased, opening, waiting) != (0, 0, 0):
            yield "wrong", f"leased, opening, waiting: {leased, opening, waiting}"
        value = bed.deliver(sender="next@example.com")
        last = [message for server in bed.servers for message in server.messages if message.sender != PROBE][-1]
        if verdict_of(value) != "SENT" or (last.connection.number == 1 and self.session != "elsewhere"):
            yield "wrong", f"the next one: {value!r} over connection {last.connection.number}"
        bed.close()
        for server in bed.servers:
            server.close()
            if server.violations:
                yield "wrong", f"violations: {server.violations}"
        bed.reactor.run_for(1_000)
        left = (bed.reactor.getDelayedCalls(), bed.reactor.connections)
        if left != ([], []):
            yield "wrong", f"left behind: {left}"

    def _taken(self, server: int) -> list[int]:
        accepted = Counter(
            recipient
            for message in self.bed.servers[server].messages
            if message.sender == PROBE
            for recipient in message.accepted
        )
        return [accepted[recipient] for recipient in self.way.recipients]


def _record(end: MemoryTransport, segments: list[bytes]) -> None:
    """Keep what arrives at this end from now on, segment by segment."""
    protocol: Any = end.protocol
    receive = protocol.dataReceived

    def recording(data: bytes) -> None:
        segments.append(data)
        receive(data)

    protocol.dataReceived = recording


@attrs.frozen
class Cut:
    """One that was tried."""

    way: str
    session: str
    place: Place
    problems: tuple[tuple[str, str], ...]


def sweep(names: Sequence[str], every: int = 1, offset: int = 0) -> Iterator[Cut]:
    """Cut at all places of these ways, or at every so-many-th, beginning with the ``offset``-th."""
    number = -offset
    for name in names:
        way = WAYS[name]
        for session in way.sessions:
            rehearsal = Trial(way, session).rehearse()
            for place in rehearsal.places(way.step):
                if way.pair and place.how == "close":
                    continue  # the keeper does not close a pair behind an answer of its own
                number += 1
                if number % every == 0:
                    yield Cut(name, session, place, tuple(Trial(way, session).run(rehearsal, place)))
