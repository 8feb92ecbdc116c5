"""A process that carries out orders: each is a line of JSON on its standard input, and so is each answer on the other.

An order names what is to be done as "do", with its arguments; the answer has the result under that name, or the
traceback as "failed". The process ends when its standard input does, so none outlives who has started it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet import stdio
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

reactor: Any = _reactor


def tell(**facts: Any) -> None:
    """One line for whoever has started this."""
    # Twisted's programs make a log of sys.stdout.
    output = sys.__stdout__
    assert output is not None
    output.write(json.dumps(facts) + "\n")
    output.flush()


class MallInfo(ctypes.Structure):
    """What mallinfo2(3) gives."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    )  # fmt: skip


class Orders(LineOnlyReceiver):
    """Carries them out: "name" is the coroutine ``do_name`` of a subclass, whose result is the answer."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 24

    def lineReceived(self, line: bytes) -> None:
        order = json.loads(line)
        name = order.pop("do")
        done = Deferred.fromCoroutine(getattr(self, f"do_{name}")(**order))
        done.addCallbacks(lambda result: tell(**{name: result}), lambda failure: tell(failed=failure.getTraceback()))

    def connectionLost(self, reason: Failure | None = None) -> None:
        with suppress(ReactorNotRunning):  # it may be ending already
            reactor.stop()

    async def do_timers(self) -> int:
        """How many delayed calls are pending in the reactor."""
        return len(reactor.getDelayedCalls())

    async def do_in_use(self) -> list[int]:
        """What is in use of memory, whatever is held in reserve besides: Python's blocks, and bytes of glibc's heap.

        What is in reserve is given back to the system first, as far as it can be.
        """
        gc.collect()
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallinfo2.restype = MallInfo
        found = library.mallinfo2()
        return [sys.getallocatedblocks(), found.uordblks + found.hblkhd]

    async def do_objects(self) -> dict[str, int]:
        """How many objects there are of each type of ours, after a full collection."""
        return live_objects()


def live_objects() -> dict[str, int]:
    """How many there are of each of mailcache's types, the scripted server's aside, after a full collection."""
    gc.collect()
    kinds = Counter(type(each) for each in gc.get_objects())
    # Of some classes of others __module__ is no text.
    named = {f"{kind.__module__}.{kind.__qualname__}": count for kind, count in kinds.items()}
    return {
        name: count
        for name, count in sorted(named.items())
        if name.startswith("mailcache.") and not name.startswith("mailcache.testing.")
    }


def obey(orders: Orders) -> None:
    """Run the reactor and carry out orders until standard input ends."""
    stdio.StandardIO(orders, reactor=reactor)
    reactor.run()
