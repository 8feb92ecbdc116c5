"""A reply that is missing, or one too many, in a group of commands: no recipient is told what another one was told."""

from __future__ import annotations

from typing import Any

from mailcache import Timeouts
from mailcache.testing import Connection
from tests.security.callers import BORROWERS, MEMORY, Callers, SharingCase, to

RECIPIENTS = tuple(f"r{number}@example.com" for number in range(30))
KNOWN = tuple(each for number, each in enumerate(RECIPIENTS) if number % 3)
"""Those whom the server knows: wherever the replies are shifted, some get what is not theirs."""

POINTS = ("mail", *RECIPIENTS, "data")
EXTRA = b"250 2.1.5 one too many\r\n"
QUICK = Timeouts(mail=3, rcpt=3, data=3, first_reply=3)


def answer(point: str, argument: str) -> bytes | None:
    """The server's own: each of its replies names whom it is for."""
    if point != "rcpt":
        return None
    if argument in KNOWN:
        return f"250 2.1.5 <{argument}> ok\r\n".encode()
    return f"550 5.1.1 <{argument}> unknown\r\n".encode()


class Groups(SharingCase):
    def check(self, way: str, at: str, kind: str) -> None:
        """The second message on a kept session goes wrong at this point, on that session only."""

        def verdict(point: str, argument: str, record: Connection) -> bytes | None:
            reply = answer(point, argument)
            if record.number == 1 and record.transactions == 2 and at == (argument if point == "rcpt" else point):
                if kind == "missing":
                    self.leave_out(callers.bed.server._live[0])
                elif kind == "before":
                    return EXTRA + (reply or RIGHT[point])
                else:
                    return (reply or RIGHT[point]) + EXTRA
            return reply

        with self.callers(way, server={"verdict": verdict}, timeouts=QUICK) as callers:
            for which in (0, 1):
                self.assert_told_what_is_so(callers, callers.deliver(which, to(), recipients=RECIPIENTS))
            first, second = callers.connections
            taken = [sum(message.committed for message in record.messages) for record in (first, second)]
            self.assertEqual(taken, [1, 1])
            callers.bed.server.violations.clear()

    def leave_out(self, stream: Any) -> None:
        """The next reply of this connection is not written."""
        queue = stream.queue

        def once(reply: bytes, *rest: Any) -> None:
            del stream.queue
            queue(b"", *rest)

        stream.queue = once

    def assert_told_what_is_so(self, callers: Callers, result: Any) -> None:
        self.assertEqual(result.accepted, KNOWN)
        self.assertEqual(set(result.rejected), set(RECIPIENTS) - set(KNOWN))
        for recipient, reply in result.rejected.items():
            self.assertIn(f"<{recipient}> unknown", str(reply))
        self.assertEqual(callers.bed.server.messages[-1].recipients, KNOWN)

    def test_one_is_missing(self) -> None:
        for at in POINTS:
            with self.about(at):
                self.check(MEMORY, at, "missing")

    def test_one_is_too_many(self) -> None:
        for at in POINTS:
            for kind in ("before", "behind"):
                with self.about(at, kind):
                    self.check(MEMORY, at, kind)

    def test_through_a_keeper(self) -> None:
        for at in (POINTS[0], POINTS[1], POINTS[15], POINTS[-2], POINTS[-1]):
            for kind in ("missing", "before", "behind"):
                with self.about(at, kind):
                    self.check(BORROWERS, at, kind)


RIGHT = {"mail": b"250 2.1.0 ok\r\n", "data": b"354 go ahead\r\n"}
