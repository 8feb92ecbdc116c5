"""Descriptors that a peer sends: whatever they are, each is closed, none is inherited, and none is taken for a pair."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.threads import deferToThread
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache import MemorySessionCache
from mailcache.remote.calling import MAX_UNCLAIMED, Wire
from mailcache.remote.keeper import Keeper
from mailcache.remote.pairs import SocketPairs
from tests.remote.processes import until

reactor: Any = _reactor


@contextmanager
def counted(case: SynchronousTestCase) -> Iterator[None]:
    """As many descriptors are open afterwards as before."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    after = sorted(os.listdir("/proc/self/fd"))
    case.assertEqual(len(after), len(before), (set(after) - set(before)))


def sockets(kind: int, listening: bool = False, family: int = socket.AF_UNIX) -> int:
    """A descriptor of a socket that is not connected."""
    made = socket.socket(family, kind)
    if listening:
        made.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
        made.listen()
    return made.detach()


def one_of(pair: tuple[Any, Any]) -> int:
    """A descriptor of one end, whose other end is closed."""
    kept, other = pair
    for each in (other,):
        os.close(each) if isinstance(each, int) else each.close()
    return kept if isinstance(kept, int) else kept.detach()


def epoll() -> int:
    made = select.epoll()
    found = os.dup(made.fileno())
    made.close()
    return found


KINDS: dict[str, Callable[[], int]] = {
    "a file": lambda: os.open(__file__, os.O_RDONLY),
    "a folder": lambda: os.open("/", os.O_RDONLY),
    "a path only": lambda: os.open("/etc/passwd", os.O_PATH),
    "a pipe": lambda: one_of(os.pipe()),
    "a device": lambda: os.open("/dev/zero", os.O_RDONLY),
    "an epoll": epoll,
    "an event": lambda: os.eventfd(0),
    "memory": lambda: os.memfd_create("memory"),
    "a listening socket": lambda: sockets(socket.SOCK_STREAM, True),
    "a listening socket of TCP": lambda: sockets(socket.SOCK_STREAM, True, socket.AF_INET),
    "a socket of no use": lambda: sockets(socket.SOCK_STREAM),
    "datagrams": lambda: one_of(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "packets": lambda: one_of(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)),
    "UDP": lambda: sockets(socket.SOCK_DGRAM, False, socket.AF_INET),
}
"""What is no end of a pair."""

CLOEXEC = 0o2000000


def inherited(descriptor: int) -> bool:
    """Whether a program that is started would have it."""
    flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0]
    return not int(flags, 8) & CLOEXEC


class Lost(Protocol):
    """Notes whether it was connected, and how it ended."""

    made = False
    lost = False

    def connectionMade(self) -> None:
        self.made = True

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class DescriptorTests(TestCase):
    """Descriptors that come from a peer, real ones, by real sockets."""

    timeout = 60

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "keeper")

    async def settled(self, count: int) -> None:
        """As many are open as then."""
        await until(lambda: len(os.listdir("/proc/self/fd")) == count, 10, lambda: os.listdir("/proc/self/fd"))

    async def keeper(self) -> Keeper:
        keeper = Keeper(reactor, MemorySessionCache(reactor))
        port = reactor.listenUNIX(self.path, keeper, mode=0o600)
        self.addCleanup(port.stopListening)
        with socket.socket(socket.AF_UNIX) as first:
            # The reactor opens some of its own with the first.
            first.connect(self.path)
            await until(lambda: keeper.borrowers, 5)
        await until(lambda: not keeper.borrowers, 5)
        return keeper

    async def test_sent_to_a_keeper(self) -> None:
        """Of every kind, one and many, with a box, the half of one, and none: the link ends, and all is closed."""
        keeper = await self.keeper()
        hello = amp.AmpBox({b"_command": b"Hello", b"_ask": b"1", b"version": b"1"}).serialize()
        before = len(os.listdir("/proc/self/fd"))
        for kind, make in KINDS.items():
            for count in (1, 60):
                for data in (hello, hello[:7], b"\0\0"):
                    sent = [make() for _ in range(count)]
                    with socket.socket(socket.AF_UNIX) as link:
                        link.connect(self.path)
                        socket.send_fds(link, [data], sent)
                        for descriptor in sent:
                            os.close(descriptor)
                        await until(lambda: len(keeper.borrowers) <= 1, 5)
                        link.setblocking(True)
                        link.settimeout(5)
                        await deferToThread(self.drained, link)
                    await until(lambda: not keeper.borrowers, 5)
            self.assertEqual(len(os.listdir("/proc/self/fd")), before, kind)

    def drained(self, link: socket.socket) -> None:
        """Read up to the end of it, which must come."""
        try:
            while link.recv(1000):
                pass
        except ConnectionResetError:
            pass

    async def test_10_000_sent_to_a_keeper(self) -> None:
        keeper = await self.keeper()
        before = len(os.listdir("/proc/self/fd"))
        null = os.open(os.devnull, os.O_RDONLY)
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(self.path)
                await until(lambda: keeper.borrowers, 5)
                link.setblocking(False)
                try:
                    for _ in range(4):
                        socket.send_fds(link, [b"\0"], [null] * 50)
                except OSError:
                    pass  # the keeper has had enough
                await until(lambda: not keeper.borrowers, 5)
        os.close(null)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_adopted(self) -> None:
        """What is no end of a pair is refused, and closed; what is one is not inherited."""
        pairs = SocketPairs(reactor)
        with counted(self):
            for kind, make in KINDS.items():
                protocol = Lost()
                with self.assertRaises(OSError, msg=kind):
                    pairs.adopt(make(), protocol)
                self.assertFalse(protocol.made, kind)
        # The reactor opens some of its own with the first.
        one, other = Lost(), Lost()
        before = {int(name) for name in os.listdir("/proc/self/fd")}
        pairs.adopt(pairs.make(one), other)
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in before and os.path.exists(f"/proc/self/fd/{name}"):
                self.assertFalse(inherited(int(name)))
        self.assertTrue(one.made and other.made)
        for each in (one, other):
            each.transport.abortConnection()  # type: ignore[union-attr]
        await until(lambda: one.lost and other.lost, 5)

    async def borrow(self, lost: list[Any]) -> tuple[Wire, socket.socket]:
        """A borrower's end of a link, and the keeper's as a bare socket."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        listening.listen()
        wire = Wire(SocketPairs(reactor), lost.append, lambda _: None)
        await connectProtocol(UNIXClientEndpoint(reactor, self.path), wire)
        link, _ = listening.accept()
        listening.close()
        os.unlink(self.path)
        return wire, link

    async def test_sent_to_a_borrower(self) -> None:
        """They wait for their answer, inherited by nobody; when the link ends they are closed."""
        lost: list[Any] = []
        wire, link = await self.borrow(lost)
        wire.abort()
        await until(lambda: lost, 5)
        link.close()
        before = len(os.listdir("/proc/self/fd"))
        for kind, make in KINDS.items():
            lost.clear()
            wire, link = await self.borrow(lost)
            sent = [make() for _ in range(MAX_UNCLAIMED)]
            socket.send_fds(link, [b"\0"], sent)
            for descriptor in sent:
                os.close(descriptor)
            await until(lambda: len(wire._descriptors) == MAX_UNCLAIMED, 5)  # noqa: B023
            self.assertFalse(any(inherited(each) for each in wire._descriptors.values()), kind)
            link.close()
            await until(lambda: lost, 5)
            await self.settled(before)

    async def test_10_000_sent_to_a_borrower(self) -> None:
        """It lets go of a keeper that sends what belongs to nothing."""
        lost: list[Any] = []
        wire, link = await self.borrow(lost)
        wire.abort()
        await until(lambda: lost, 5)
        link.close()
        before = most = len(os.listdir("/proc/self/fd"))
        null = os.open(os.devnull, os.O_RDONLY)
        for _ in range(50):
            lost.clear()
            wire, link = await self.borrow(lost)
            link.setblocking(False)
            try:
                # In the middle of a box, which is none yet.
                link.send(b"\0\1x\xff\xff")
                for _ in range(4):
                    socket.send_fds(link, [b"x"], [null] * 50)
            except OSError:
                pass  # the borrower has had enough
            await until(lambda: lost, 5)
            most = max(most, len(os.listdir("/proc/self/fd")))
            link.close()
        os.close(null)
        await self.settled(before)
        self.assertLess(most, before + 2 * MAX_UNCLAIMED)

    async def test_end_of_the_process_that_sends(self) -> None:
        """Killed between the descriptor and its box: nothing is left of it."""
        keeper = await self.keeper()
        before = len(os.listdir("/proc/self/fd"))
        script = (
            "import os, socket, sys; link = socket.socket(socket.AF_UNIX); link.connect(sys.argv[1]);"
            "socket.send_fds(link, [b'\\0'], [0, 1, 2]); os.kill(os.getpid(), 9)"
        )
        for _ in range(5):
            ended = await deferToThread(subprocess.run, [sys.executable, "-c", script, self.path])
            self.assertEqual(ended.returncode, -9)
        await until(lambda: not keeper.borrowers, 5)
        await self.settled(before)
