"""A borrower as a process: it does what the lines on its standard input say, and tells what came of it.

Each line is JSON: what is to be done under "do", with its arguments. It ends with its standard input.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import Any

from twisted.internet import reactor, stdio
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Protocol
from twisted.protocols.basic import LineOnlyReceiver

from mailcache import (
    DeliveryError,
    Destination,
    Envelope,
    RemoteSessionCache,
    TLSPolicy,
    UncertainDelivery,
    deliver,
)


def tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Stalling(io.BytesIO):
    """Content that is never read to its end: the whole process stands still in the middle of it."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if size and self.tell() > len(self.getvalue()) // 2:
            tell(stalled=True)
            signal.pause()
        return data


class Borrower(LineOnlyReceiver):
    """Carries out the lines."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 24

    def __init__(self, keeper: str, next_hop: str, ca_file: str, domain: str) -> None:
        self.cache: Any = RemoteSessionCache(reactor, f"unix:{keeper}")
        self.destination = Destination(next_hop, tls=TLSPolicy("verify", ca_file=ca_file))
        self.domain = domain
        self.lease: Any = None

    def lineReceived(self, line: bytes) -> None:
        order = json.loads(line)
        do = getattr(self, "do_" + order.pop("do"))
        Deferred.fromCoroutine(do(**order)).addErrback(lambda failure: tell(failed=failure.getTraceback()))

    def connectionLost(self, reason: Any = None) -> None:
        self.cache.close().addBoth(lambda _: reactor.stop())  # type: ignore[attr-defined]

    async def send_one(self, label: str, content: Any) -> None:
        outcome = "sent"
        detail = ""
        try:
            result = await deliver(self.cache, self.destination, Envelope("a@x.test", [f"b@{self.domain}"]), content)
            if result.rejected:
                outcome, detail = "refused", str(result.reply)
        except UncertainDelivery as error:
            outcome, detail = "uncertain", str(error)
        except DeliveryError as error:
            outcome, detail = "error", str(error)
        tell(label=label, outcome=outcome, detail=detail)

    async def do_send(self, labels: list[str], at_once: int, head: str = "Message-ID: <{}>", size: int = 0) -> None:
        waiting = iter(labels)

        async def some() -> None:
            for label in waiting:
                body = b"x" * 60 + b"\r\n"
                message = head.format(label).encode() + b"\r\n\r\n" + body * (1 + size // len(body))
                await self.send_one(label, message)

        await gatherResults([Deferred.fromCoroutine(some()) for _ in range(at_once)])
        tell(done=True)

    async def do_stall(self, label: str) -> None:
        content = f"Message-ID: <{label}>\r\n\r\n".encode() + b"Half of this is never sent.\r\n" * 20_000
        await self.send_one(label, Stalling(content))

    async def do_hold(self) -> None:
        self.lease = await self.cache.acquire(self.destination)
        tell(held=True)

    async def do_use(self, label: str) -> None:
        """Send on the session that is held."""
        try:
            content = f"Message-ID: <{label}>\r\n\r\nheld\r\n".encode()
            await self.lease.send(Envelope("a@x.test", [f"b@{self.domain}"]), content)
            tell(label=label, outcome="sent")
        except DeliveryError as error:
            tell(label=label, outcome="error", detail=str(error))
        self.lease.release()

    async def do_lie(self, said: str, until: str) -> None:
        """Leave the session that is held in the middle of something, and call it clean."""
        connection = self.lease.session.connection
        got = bytearray()
        answered: Deferred[None] = Deferred()

        def received(data: bytes) -> None:
            connection.received += len(data)
            got.extend(data)
            if until.encode() in got and not answered.called:
                answered.callback(None)

        connection.dataReceived = received
        question, _, left_behind = said.partition("|")
        connection._send(question.encode())
        await answered
        if left_behind:
            connection._send(left_behind.encode())
        # What is sent last goes another way than the release, and is to be there first: the keeper has had its turn.
        for _ in range(2):
            await self.cache.statistics()
        self.lease.release()
        tell(lied=True)

    async def do_whoami(self) -> None:
        tell(uid=os.getuid(), pid=os.getpid(), reactor=type(reactor).__name__)

    async def do_statistics(self) -> None:
        tell(statistics=await self.cache.statistics())

    async def do_close(self) -> None:
        await self.cache.close()
        tell(closed=True)


def become(uid: int) -> None:
    """Be this user from here on, and nobody else."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main(make: type[Borrower] = Borrower) -> None:
    keeper, next_hop, ca_file, domain, *user = sys.argv[1:]
    borrower = make(keeper, next_hop, ca_file, domain)
    for uid in user:
        become(int(uid))
    stdio.StandardIO(borrower)
    reactor.run()  # type: ignore[attr-defined]


assert issubclass(Borrower, Protocol)
if __name__ == "__main__":
    main()
