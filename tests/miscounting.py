"""Servers whose replies are one too few, one too many, or come once more later: never is a message reported as sent
that the server has not taken, and never does it have one twice.

A reply too many that comes while the reply to a content is due, alone, can't be told from that: the server has said
250 where it was its turn. The latencies below leave that window out; `tests.test_miscounting` has what is done then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from twisted.internet.address import IPv4Address

from mailcache import TLSPolicy
from mailcache.testing import Fault
from tests.helpers import PORT, Bed, KeeperBed, verdict_of

RECIPIENTS = tuple(f"r{number}@example.com" for number in range(100))
GROUP = len(RECIPIENTS) + 2
"""Replies that MAIL, so many RCPTs and DATA have."""

REPLIES = {"mail": b"250 2.1.0 ok\r\n", "rcpt": b"250 2.1.5 ok\r\n", "data": b"354 go ahead\r\n"}
TAKEN, REFUSED = b"250 2.0.0 ok: queued\r\n", b"554 5.6.0 content refused\r\n"

EXTRA = {"250": b"250 2.1.5 ok\r\n", "550": b"550 5.1.1 no such user\r\n", "354": b"354 go ahead\r\n"}
"""What is said once too often behind a reply, in one write with it."""

DELAYS = (0.0, 0.001, 0.005, 0.05, 0.5)
LATENCIES = (0.0, 0.0001, 0.03)
PAUSES = (0.0, 0.002, 0.04, 0.3)
"""Seconds: of a reply that comes again, from one end to the other, between two messages."""

SIDES: dict[str, type[Bed]] = {"memory": Bed, "keeper": KeeperBed}


@attrs.frozen
class Case:
    """One server, and what it gets wrong."""

    title: str
    run: Callable[[], list[tuple[str, str]]]


THINKS = 0.01
"""How much of the latency a server takes to answer a content, so that its reply is a segment of its own."""


def bed_for(side: str, one_flight: bool, latency: float = 0.0) -> Bed:
    """A server in plain text, so that what it says can be added to."""
    return SIDES[side](
        latency=latency,
        tls=TLSPolicy("none"),
        server={"certificate": None, "slow_delay": latency * THINKS},
        one_flight=one_flight,
    )


def false_reports(bed: Bed, reported: dict[str, Any]) -> list[tuple[str, str]]:
    """What is untrue of what was reported, by sender."""
    problems = []
    for sender, value in reported.items():
        taken = Counter(
            recipient for message in bed.server.messages if message.sender == sender for recipient in message.accepted
        )
        word = verdict_of(value)
        accepted = getattr(value, "accepted", ()) if word != "NEXT" else ()
        if any(not taken[recipient] for recipient in accepted):
            problems.append(("lost", f"{sender} was reported as sent, and is not there: {value!r}"))
        if any(count > 1 for count in taken.values()):
            problems.append(("doubled", f"{sender} is there {max(taken.values())} times"))
        if word == "NEXT" and taken:
            problems.append(("doubled", f"{sender} was reported as not sent, and is there: {value!r}"))
    leased, _, opening, waiting = bed.counts()
    if (leased, opening, waiting) != (0, 0, 0):
        problems.append(("wrong", f"{leased} leased, {opening} opening, {waiting} waiting"))
    return problems


# -- a reply of a group missing, or one too many ---------------------------------------------------------------------


def miscounted(
    one_flight: bool, apart: bool, reused: bool, position: int, extra: str | None, final: bytes
) -> list[tuple[str, str]]:
    """The reply at ``position`` is missing, or has ``extra`` behind it; the content's comes with them or ``apart``."""
    bed = bed_for("memory", one_flight, latency=0.001)
    if apart:
        bed.server.arm(Fault("after_dot", "slow", times=2))
    if reused:
        assert verdict_of(bed.deliver(sender="first@example.com")) == "SENT"
    answered = 0

    def verdict(point: str, argument: str, connection: Any) -> bytes | None:
        nonlocal answered
        if point == "dot":
            return final
        if point not in REPLIES or connection.number > 1:
            return None
        answered += 1
        if answered - 1 != position:
            return None
        return b"" if extra is None else REPLIES[point] + EXTRA[extra]

    bed.server.verdict = verdict
    value = bed.deliver(sender="probe@example.com", recipients=RECIPIENTS)
    bed.reactor.run_for(1)
    problems = false_reports(bed, {"probe@example.com": value})
    word = verdict_of(value)
    if one_flight and answered:
        right = {"UNKNOWN"}
    elif not reused:
        right = {"NEXT"}
    else:
        right = {"SENT" if final == TAKEN else "PERM"}
    if word not in right:
        problems.append(("wrong", f"{word} in place of {right}: {value!r}"))
    return problems


def groups() -> Iterator[Case]:
    """Each position of the group, in one flight and in two."""
    ways = {
        "two flights": (False, False),
        "one flight": (True, False),
        "one flight, its last reply apart": (True, True),
    }
    for way, (one_flight, apart) in ways.items():
        for position in range(GROUP - one_flight):
            for extra in (None, *EXTRA):
                for final in (TAKEN, REFUSED):
                    for reused in (False, True):
                        order = (one_flight, apart, reused, position, extra, final)
                        yield Case(
                            f"{way}, {'reused' if reused else 'fresh'}, reply {position} "
                            f"{f'and {extra}' if extra else 'missing'}, then {final[:3].decode()}",
                            lambda order=order: miscounted(*order),
                        )


# -- the reply to a message once more, later -------------------------------------------------------------------------


def repeated(side: str, one_flight: bool, delay: float, latency: float, pause: float) -> list[tuple[str, str]]:
    """The first message's reply comes again; of those that follow every other one is refused."""
    bed = bed_for(side, one_flight, latency)
    bed.server.arm(Fault("after_dot", "slow", times=100))
    senders = [f"m{number}@example.com" for number in range(4)]

    def again() -> None:
        for end in bed.reactor.connections:
            host = end.getHost()
            if isinstance(host, IPv4Address) and host.port == PORT:
                end.write(TAKEN)

    def verdict(point: str, argument: str, connection: Any) -> bytes | None:
        if point != "dot":
            return None
        if argument == senders[0]:
            bed.reactor.callLater(delay, again)
        return REFUSED if senders.index(argument) % 2 else TAKEN

    bed.server.verdict = verdict
    reported = {}
    for sender in senders:
        reported[sender] = bed.deliver(sender=sender)
        if pause:
            bed.reactor.run_for(pause)
    bed.reactor.run_for(1)
    problems = false_reports(bed, reported)
    # In one flight a second reply in the same segment leaves doubt: which of them is the one too many?
    if verdict_of(reported[senders[0]]) not in ({"SENT", "UNKNOWN"} if one_flight and not delay else {"SENT"}):
        problems.append(("wrong", f"the first one: {reported[senders[0]]!r}"))
    return problems


def repetitions() -> Iterator[Case]:
    """Each delay with each latency and each pause."""
    for side in SIDES:
        for one_flight in (False, True):
            for delay in DELAYS:
                for latency in LATENCIES:
                    for pause in PAUSES:
                        order = (side, one_flight, delay, latency, pause)
                        yield Case(
                            f"{side}, {'one flight' if one_flight else 'two flights'}, again after {delay * 1000:g} ms,"
                            f" latency {latency * 1000:g} ms, pause {pause * 1000:g} ms",
                            lambda order=order: repeated(*order),
                        )


MISCOUNTS = {"a reply of a group missing or one too many": groups, "a reply once more, later": repetitions}
