"""What is sent, and what sending it takes of one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import attrs
from twisted.internet.defer import Deferred, FirstError, gatherResults

from mailcache.delivery import deliver
from mailcache.destination import Destination
from mailcache.envelope import Envelope
from mailcache.result import DeliveryError, UncertainDelivery

MAX_MESSAGES = 100_000
"""The server keeps every message in memory: at this many it takes about 1 GB."""

MAX_SENDERS = 50
"""Connections that may wait to be accepted (the backlog of `IReactorTCP.listenTCP`)."""

TEXT = (
    "Dear reader,\r\n\r\n"
    + "This is one line of a message that is as long as ordinary mail is, about four kB.\r\n" * 48
    + "\r\nYours,\r\nmailcache\r\n"
)


class DemoFailed(Exception):  # noqa: N818  (reads as the event it reports)
    """The demonstration could not be carried out, or not all mail has arrived; the text is for the user."""


@attrs.frozen
class Measured:
    """What sending has cost."""

    seconds: float
    cpu_seconds: float
    waited: float  # seconds, the sum over all deliveries


def message(number: int, at: float) -> bytes:
    """A message as a mail client would make it, each with a Message-ID of its own."""
    head = (
        f"Message-ID: <{number}.{at:.6f}@example.com>\r\n"
        f"Date: {formatdate(at)}\r\n"
        f"Subject: message {number} of a demonstration\r\n"
        "From: Ann <ann@example.com>\r\n"
        "To: Ben <ben@example.org>\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "\r\n"
    )
    return (head + TEXT).encode("ascii")


async def measure(
    cache: Any, where: Destination, numbers: range, senders: int, done: Callable[[int], None]
) -> Measured:
    """Send the messages of these numbers, close ``cache``, and tell what that took of this process.

    :param done: called with how many of them are sent.
    :raises DemoFailed: if a message was not taken.
    """
    rest = iter(numbers)
    at = time.time()
    waited = 0.0
    sent = 0

    async def send(some: Iterator[int]) -> None:
        nonlocal waited, sent
        for number in some:
            began = time.perf_counter()
            envelope = Envelope("ann@example.com", ["ben@example.org"])
            try:
                result = await deliver(cache, where, envelope, message(number, at))
            except (DeliveryError, UncertainDelivery) as error:
                raise DemoFailed(f"message {number}: {error}") from error
            if result.rejected:
                raise DemoFailed(f"message {number}: the server has refused it: {result.reply}")
            waited += time.perf_counter() - began
            sent += 1
            done(sent)

    gc.collect()
    cpu, started = time.process_time(), time.perf_counter()
    sending = [Deferred.fromCoroutine(send(rest)) for _ in range(senders)]
    try:
        await gatherResults(sending, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
    finally:
        for sender in sending:
            sender.cancel()
    await cache.close()
    return Measured(time.perf_counter() - started, time.process_time() - cpu, waited)
