"""What a delivery on a kept session costs, in calls and not in seconds, so that it is the same on every machine.

Counted are the calls of Python functions and of C functions (the interpreter's "call" and "c_call" events) from
`deliver` to the result, and nothing of the server: its side is played by hand between what is counted.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections import Counter
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISystemHandle
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mailcache import DeliveryResult, Destination, Envelope, MemorySessionCache, TLSPolicy, deliver
from tests.helpers import certificate, verifying

PLAIN, TLS = 181, 270
"""The budgets: some 5 % above what a delivery takes (CPython 3.11; later ones count the same or less)."""

DELIVERIES = 200
CONTENT = b"Subject: a message of 4 KB\r\n\r\n" + (b"x" * 70 + b"\r\n") * 57
REPLIES = {
    b"EHLO": b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250 STARTTLS\r\n",
    b"STARTTLS": b"220 2.0.0 go ahead\r\n",
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"DATA": b"354 End data with <CR><LF>.<CR><LF>\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
TAKEN = b"250 2.0.0 Ok: queued as 4Xk3Pq1zLcz2xG\r\n"


class Server:
    """The other end of the socket: reads what has come, and gives the bytes of the answers to it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._tls: SSL.Connection | None = None
        self._in_content = False
        self.taken = 0

    def answers(self) -> bytes:
        data = self._end.recv(65536)
        tls = self._tls
        if tls is None:
            return self._answers_to(data)
        tls.bio_write(data)
        try:
            plain = tls.recv(65536)
        except SSL.WantReadError:
            plain = b""
        if plain:
            tls.sendall(self._answers_to(plain))
        return self._records()

    def _answers_to(self, data: bytes) -> bytes:
        if self._in_content:
            assert data.endswith(b"\r\n.\r\n"), data
            self._in_content = False
            self.taken += 1
            return TAKEN
        said = b""
        for line in data.splitlines():
            verb = line.split()[0].partition(b":")[0]
            said += REPLIES[verb]
            self._in_content = verb == b"DATA"
            if verb == b"STARTTLS":
                self._tls = SSL.Connection(certificate().server_context(), None)
                self._tls.set_accept_state()
        return said

    def _records(self) -> bytes:
        assert self._tls is not None
        try:
            return self._tls.bio_read(65536)
        except SSL.WantReadError:
            return b""


@implementer(ISystemHandle)
class Wire:
    """A transport with a real socket, for which the time is always right to write."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.protocol: Any = None

    def getHandle(self) -> socket.socket:
        return self._end

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 40000)

    def write(self, data: bytes) -> None:
        self._end.sendall(data)


class Network(Clock):
    """A reactor whose connections are one socket pair."""

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float, bindAddress: Any) -> None:
        ours, theirs = socket.socketpair()
        self.ends = (ours, theirs)
        self.server = Server(theirs)
        self.wire = Wire(ours)
        self.wire.protocol = factory.buildProtocol(IPv4Address("TCP", host, port))
        self.wire.protocol.makeConnection(self.wire)


class Counting:
    """Counts calls while it is entered."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __enter__(self) -> None:
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, function: Any) -> None:
        if event == "call" and frame.f_code is not Counting.__exit__.__code__:
            self.calls[frame.f_code.co_qualname] += 1
        elif event == "c_call" and function is not sys.setprofile:
            self.calls[function.__qualname__] += 1


class KeptDeliveryTests(SynchronousTestCase):
    def check(self, policy: TLSPolicy, budget: int) -> None:
        # Who listens to the log is the program's affair.
        self.patch(MemorySessionCache, "_log", Logger(namespace="tests", observer=_nobody))
        self.network = Network()
        self.cache = MemorySessionCache(self.network, clock=self.network.seconds)
        self.destination = Destination("[127.0.0.1]:25", tls=policy)
        self.deliver(Counting(), greeting=b"220 mx.test ESMTP\r\n")
        counting = Counting()
        gc.disable()  # what it collects may have finalizers, which would be counted
        self.addCleanup(gc.enable)
        for _ in range(DELIVERIES):
            self.deliver(counting)
        self.assertEqual(self.network.server.taken, DELIVERIES + 1)
        for end in self.network.ends:
            end.close()
        calls = counting.calls.total() / DELIVERIES
        by_name = "\n".join(f"{count / DELIVERIES:6.2f} {name}" for name, count in counting.calls.most_common())
        self.assertLessEqual(
            calls, budget, f"{calls:g} calls for a delivery, where {budget} are allowed; of each:\n{by_name}"
        )

    def deliver(self, counting: Counting, greeting: bytes = b"") -> None:
        """One delivery; the server's part of it is not counted."""
        with counting:
            delivering: Deferred[DeliveryResult] = deliver(
                self.cache, self.destination, Envelope("a@example.com", ["b@example.com"]), CONTENT
            )
        results: list[Any] = []
        delivering.addBoth(results.append)
        received = self.network.wire.protocol.dataReceived
        if greeting:
            received(greeting)
        while not results:
            answers = self.network.server.answers()
            with counting:
                received(answers)
        self.assertIsInstance(results[0], DeliveryResult)

    def test_plain(self) -> None:
        """In clear text."""
        self.check(TLSPolicy("none"), PLAIN)

    def test_tls(self) -> None:
        """Over TLS, verified."""
        self.check(verifying(), TLS)


def _nobody(_event: Any) -> None:
    pass
