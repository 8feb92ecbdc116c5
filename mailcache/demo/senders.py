"""Processes that send over the sessions of one keeper, and what they have cost together."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from mailcache.demo.measuring import DemoFailed, Measured
from mailcache.demo.processes import Helper, cpu_seconds_of
from mailcache.demo.server import Server

PROCESSES = 4
"""How many share the keeper."""

KEEPER = (sys.executable, "-m", "mailcache.demo.keeper_process")
SENDER = (sys.executable, "-m", "mailcache.demo.sender_process")
"""What runs each of them."""

GRACE = 2.0
"""Seconds in which a keeper shows that it has ended, after a sender has missed it."""


def shares(whole: int, parts: int) -> list[int]:
    """``whole`` divided into ``parts`` that differ by one at most, larger ones first."""
    each, over = divmod(whole, parts)
    return [each + (part < over) for part in range(parts)]


class Keeper(Helper):
    """A keeper: ``twist mailcache`` with a socket of its own.

    :param sessions: how many it keeps with the server at most.
    """

    pid: int
    path: str | None = None

    def __init__(self, sessions: int) -> None:
        super().__init__("the keeper", (*KEEPER, str(sessions)))

    def wait_ready(self) -> dict[str, Any]:
        facts = super().wait_ready()
        self.pid, self.path = facts["pid"], facts["path"]
        return facts

    def kill(self) -> None:
        # Its standard input ends first: then it ends in order, with its sessions and its folder.
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.has_ended(within=10.0)
        super().kill()
        if self.path is not None:
            shutil.rmtree(Path(self.path).parent, ignore_errors=True)


class SharedKeeper:
    """The way of sending by a keeper: four processes that share its sessions. To be used in a ``with`` statement."""

    def __init__(self, senders: int) -> None:
        self._senders = senders
        self._keeper = Keeper(senders)
        self._processes = [Helper("a sender", SENDER) for _ in range(PROCESSES)]

    def __enter__(self) -> SharedKeeper:
        with ExitStack() as stack:
            for helper in (self._keeper, *self._processes):
                stack.enter_context(helper)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait_ready(self) -> None:
        """Wait until the keeper listens and the senders wait for their orders.

        :raises DemoFailed: if one of them does not start.
        """
        for helper in (self._keeper, *self._processes):
            helper.wait_ready()

    async def measure(self, reactor: Any, server: Server, messages: int, done: Callable[[int], None]) -> Measured:
        """Send it all, and tell what that took: CPU is the keeper's and the senders' together.

        :param done: called with how many are sent.
        :raises DemoFailed: if a message was not taken, or a process was lost.
        """
        sent = [0] * PROCESSES

        def count(which: int, number: int) -> None:
            sent[which] = number
            done(sum(sent))

        conversations = []
        first = 1
        for which, (process, share, senders) in enumerate(
            zip(self._processes, shares(messages, PROCESSES), shares(self._senders, PROCESSES), strict=True)
        ):
            order = {
                "keeper": self._keeper.path,
                "port": server.port,
                "ca_file": server.ca_file,
                "first": first,
                "messages": share,
                "senders": max(1, senders),
            }
            conversations.append(_Conversation(process, order, partial(count, which)))
            first += share
        try:
            cpu, started = cpu_seconds_of(self._keeper.pid), time.perf_counter()
            for conversation in conversations:
                conversation.begin(reactor)
            measured = await gatherResults([each.reported for each in conversations], consumeErrors=True)
            seconds, cpu = time.perf_counter() - started, cpu_seconds_of(self._keeper.pid) - cpu
        except FirstError as error:
            if not error.subFailure.check(CancelledError) and self._keeper.has_ended(GRACE):
                raise self._keeper.broke_down() from error
            error.subFailure.raiseException()
        except OSError as error:  # of the keeper's clock
            raise self._keeper.broke_down() from error
        finally:
            for conversation in conversations:
                conversation.end()
        done(messages)
        return Measured(
            seconds, cpu + sum(each.cpu_seconds for each in measured), sum(each.waited for each in measured)
        )


class _Conversation(LineOnlyReceiver):
    """What is said with one sender: its order, how far it is, and its report, which `reported` gives."""

    delimiter = b"\n"

    def __init__(self, process: Helper, order: dict[str, Any], sent: Callable[[int], None]) -> None:
        self._process = process
        self._order = order
        self._sent = sent
        self.reported: Deferred[Measured] = Deferred()

    def begin(self, reactor: Any) -> None:
        """Give the order."""
        assert self._process.process.stdin is not None and self._process.process.stdout is not None
        # Descriptors of its own, for it closes them.
        output, to = os.dup(self._process.process.stdout.fileno()), os.dup(self._process.process.stdin.fileno())
        transport: Any = StandardIO
        transport(self, stdin=output, stdout=to, reactor=reactor).write(json.dumps(self._order).encode("ascii") + b"\n")

    def end(self) -> None:
        """Listen no longer, whether it has reported or not."""
        self.reported.cancel()
        if self.transport is not None:
            self.transport.loseConnection()

    def lineReceived(self, line: bytes) -> None:
        facts = json.loads(line)
        if "sent" in facts:
            self._sent(facts["sent"])
        elif not self.reported.called:
            if "measured" in facts:
                self.reported.callback(Measured(**facts["measured"]))
            else:
                self.reported.errback(DemoFailed(facts["failed"]))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.reported.called:
            self._process.has_ended(GRACE)
            self.reported.errback(self._process.broke_down())
