"""Whole deliveries to a server that says anything at any time: none is told to be sent that was not, or sent twice.

In memory and through a keeper. What is true is told by `tests.fuzz.ledger`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

from twisted.internet.protocol import Factory, Protocol

from mailcache import (
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    Limits,
    Timeouts,
    TLSPolicy,
    UncertainDelivery,
    deliver,
    opening,
)
from mailcache.testing import MemoryReactor
from tests.fuzz.choices import Choices
from tests.fuzz.ledger import REFUSED, TAKEN, Ended, Tapped, contents_ended
from tests.fuzz.strange_server import StrangeServer
from tests.fuzz.target import Target
from tests.helpers import PORT, Outcome, keeper_cache, memory_cache

TIMEOUTS = Timeouts(
    connect=2, greeting=2, ehlo=2, starttls=2, auth=2, mail=2, rcpt=2, data=2, content=2, dot=2, rset=2, quit=1,
    first_reply=2,
)  # fmt: skip
LIMITS = Limits(wait_timeout=5, idle_timeout=5)

LONGEST = 120.0
"""Seconds, on the clock of the network in memory, within which each delivery must have come to an end."""

LINES = b"A line of many, of which there are more than one transport takes at once.\r\n"


class World:
    """A cache, whose connections are tapped, and what is strange behind it."""

    kind: type[Tapped] = Tapped
    cache: Any

    def __init__(self) -> None:
        self.reactor = MemoryReactor()
        self.tapped: list[Tapped] = []

    def listen(self, build: Callable[[], Protocol]) -> Factory:
        """What makes a protocol for each connection."""
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _: build()
        return factory  # type: ignore[no-any-return]

    def connection(self, *arguments: Any) -> Tapped:
        """What the cache makes in place of a `Connection`."""
        self.tapped.append(self.kind(*arguments))
        return self.tapped[-1]

    def finish(self, outcome: Outcome) -> Any:
        self.reactor.run_until(lambda: outcome.done, LONGEST)
        return outcome.value

    def deliver(self, content: bytes, recipients: Sequence[str], deadline: float | None) -> Any:
        """What comes of a message."""
        where = Destination(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("none"))
        envelope = Envelope("a@example.com", recipients)
        return self.finish(Outcome(deliver(self.cache, where, envelope, content, deadline)))

    def ended(self, content: bytes) -> list[Ended]:
        """Each time that this content was written to its end."""
        return [each for connection in self.tapped for each in contents_ended(connection, content + b".\r\n")]

    def close(self) -> None:
        """Nothing is left of it."""
        self.finish(Outcome(self.cache.close()))
        self.reactor.run_for(10)
        counts = self.finish(Outcome(self.cache.statistics()))
        assert not any(counts[name] for name in ("leased", "idle", "opening", "waiting")), counts
        assert self.reactor.connections == [] and self.reactor.descriptors == {}
        assert self.reactor.getDelayedCalls() == [], self.reactor.getDelayedCalls()


def check(data: bytes) -> None:
    """Three messages, one after the other."""
    choices = Choices(data)
    way = choices.byte()
    through_keeper = bool(way & 1)
    world = World()
    servers = world.listen(lambda: StrangeServer(choices, world.reactor))
    world.reactor.listenTCP(PORT, servers, interface="127.0.0.1")
    world.cache = (keeper_cache if through_keeper else memory_cache)(world.reactor, LIMITS, TIMEOUTS, None)
    with patch.object(opening, "Connection", world.connection):
        for number in range(3):
            content = b"Subject: message %d\r\n\r\n" % number
            if way & 2 and number == 1:
                content += LINES * 4_000
            recipients = ("b@example.com", "c@example.com")[: 1 + number % 2]
            deadline = 0.03 * choices.byte() + 0.001 if way & 4 else None
            value = world.deliver(content, recipients, deadline)
            check_claim(value, recipients, world.ended(content), exact=not through_keeper)
            if way & 8:
                world.reactor.run_for(0.05 * choices.byte())
        world.close()


def check_claim(value: Any, recipients: Sequence[str], ended: list[Ended], *, exact: bool) -> None:
    """What is told of a message is true.

    :param exact: what the borrower has written, its keeper has written, too.
    """
    for recipient in recipients:
        concerned = [each for each in ended if recipient in each.recipients and each.outcome != REFUSED]
        assert len(concerned) <= 1, f"the message went to {recipient} {len(concerned)} times"
    if isinstance(value, DeliveryResult):
        assert {*value.accepted, *value.rejected} == set(recipients)
        for recipient in value.accepted:
            taken = any(each.outcome == TAKEN and recipient in each.recipients for each in ended)
            assert taken, f"{recipient} is told to have the message, and the server has not said so: {ended}"
        for recipient in value.rejected:
            taken = any(each.outcome == TAKEN and recipient in each.recipients for each in ended)
            assert not taken, f"{recipient} is told not to have the message, and has it: {ended}"
    elif isinstance(value, UncertainDelivery):
        assert ended or not exact, "there is doubt where the content was not written to its end"
    elif isinstance(value, DeliveryError):
        assert not ended, f"it is told not to be sent, and its end was written: {ended}"
    else:
        raise AssertionError(f"neither a result nor one of our errors: {value!r}")


TARGET = Target(
    "conversation",
    check,
    (
        *(bytes([way]) for way in range(16)),
        *(bytes([way, *[15] * place, what, 9, 9]) for way in (0, 1) for place in range(8) for what in range(1, 12)),
        *(bytes([way, *[15] * place, what, 3, 0x80]) for way in (0, 1) for place in range(12) for what in (5, 10)),
        # Greeted, the reply to EHLO, and then this in place of, before and behind the replies to MAIL, RCPT and DATA.
        *(
            bytes([way, 15, 0, 15, what, 16, len(said)]) + said + bytes([then, 16, len(more)]) + more
            for way in range(4)
            for what in (2, 3, 4, 5, 11)
            for said, then, more in (
                (b"354 go\r\n25", 2, b"0 ok\r\n"),
                (b"354 go\r\n250 ok\r\n", 2, b"250 ok\r\n"),
                (b"250 a\r\n250 b\r\n354 c\r\n25", 2, b"0 ok\r\n"),
                (b"250 a\r\n550 b\r\n354 c\r\n", 15, b""),
                (b"550 a\r\n250 b\r\n354 c\r\n", 2, b"250 ok\r\n"),
            )
        ),
        # All is well with a message; then, while a long content is on its way, this, and more of it behind its end.
        *(
            bytes([way, 15, 0, 15, 15, 15, 4, 16, len(said)]) + said + bytes([late, 2, 16, len(more)]) + more
            for way in range(4)
            for said, more in ((b"25", b"0 ok\r\n"), (b"250 ok\r\n", b""), (b"250-o", b"k\r\n250 ok\r\n"))
            for late in (0, 1)
        ),
        b"\4\xff\xff\x0f\xff\x0f\0\x0f\x06\x40",
    ),
    (b"250 ok\r\n", b"354 go\r\n", b"\r\n", b"\n", b"25", b"\xfe\x64", b"\xfd\x40", b"\x0f\x0f\x0f", b"\x02\x11"),
    max_input=400,
)
