"""``python -m tests.nightly.upstream_restart``: a server restarts that a keeper has very many sessions with.

All of its connections are reset. From then on messages come to it steadily. While it is down each new connection is
reset as well, and counted: others have to share a server that comes back, so it must not be besieged. Then it serves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.nightly.figures import Report
from tests.nightly.idle_sessions import FOREVER, WAVE, hold
from tests.nightly.stage import Stage, command

PROMISED_PURGE = 2.0
"""Seconds until none of the dead is kept."""

PROMISED_STORM = 10
"""Connections in any second to one server that is down."""

RATE = 100.0
"""Messages a second for it meanwhile: far more than may try it."""

LOOK = 0.01
"""Seconds between looks at what the keeper has."""


async def run(reactor: Any, options: argparse.Namespace, report: Report) -> None:
    for moment in ("purged", "unnoticed", "down"):
        async with Stage(reactor) as stage:
            await _Restart(reactor, options, report, stage).run(moment)


class _Restart:
    """One restart, and the first message behind it: once all is ``purged``, or ``unnoticed`` yet, or it is ``down``."""

    def __init__(self, reactor: Any, options: argparse.Namespace, report: Report, stage: Stage) -> None:
        self._reactor = reactor
        self._options = options
        self._report = report
        self._stage = stage

    async def run(self, moment: str) -> None:
        stage, sessions = self._stage, self._options.sessions
        limits = dict.fromkeys(("sessions", "sessions_per_destination", "sessions_per_endpoint"), sessions + WAVE)
        self._keeper = await stage.keeper({**limits, "idle_timeout": FOREVER, "max_age": FOREVER})
        self._server, where = await stage.servers(["127.0.0.1"])
        opener = await stage.senders(where, "opener", keeper=stage.socket)
        self._sender = await stage.senders(where, "sender", keeper=stage.socket)
        await hold(opener, sessions)
        await opener.do("free")
        await opener.do("close")
        await opener.finish()
        idle = (await stage.ask_keeper())["idle"]
        self._report.exactly(f"sessions parked when the server restarts ({moment})", idle, sessions)
        self._before = await self._server.do("counts")
        await getattr(self, f"_{moment}")()
        after = await self._server.do("counts")
        self._report.exactly(f"violations of the protocol ({moment})", after["violations"], [])
        await stage.end_keeper(self._keeper)
        self._report.exactly(f"lines that the keeper has complained with ({moment})", self._keeper.complaints, [])

    async def _purged(self) -> None:
        """The next message comes when the dead are gone."""
        began = time.monotonic()
        await self._server.do("abort")
        while (await self._stage.ask_keeper())["idle"]:
            await deferLater(self._reactor, LOOK)
        took = time.monotonic() - began
        self._report.at_most("seconds until all are purged", took, PROMISED_PURGE)
        await self._next_message("purged", connections=1, mails=1)

    async def _unnoticed(self) -> None:
        """The next message comes at once: it may be told of a session that is dead."""
        sent = self._sender.do("many", messages=1, at_once=1)
        aborted = self._server.do("abort")
        _, counts = await gatherResults([Deferred.fromCoroutine(each) for each in (aborted, sent)])
        self._report.exactly("what came of the next message (unnoticed)", counts, {"sent": 1})
        await self._tell("unnoticed", connections=1, mails=2)

    async def _next_message(self, moment: str, connections: int, mails: int) -> None:
        counts = await self._sender.do("many", messages=1, at_once=1)
        self._report.exactly(f"what came of the next message ({moment})", counts, {"sent": 1})
        await self._tell(moment, connections, mails)

    async def _tell(self, moment: str, connections: int, mails: int) -> None:
        after = await self._server.do("counts")
        more = {name: after[name] - self._before[name] for name in ("connections", "mails", "messages")}
        self._report.at_most(f"connections made for the next message ({moment})", more["connections"], connections)
        self._report.at_most(f"transactions begun for the next message ({moment})", more["mails"], mails)
        self._report.exactly(f"times that it was taken ({moment})", more["messages"], 1)

    async def _down(self) -> None:
        """Messages come all the time while the server is down."""
        seconds = self._options.seconds
        await self._server.do("arm", point="connect", kind="rst", times=10**9)
        await self._server.do("abort")
        counts = await self._sender.do("steadily", rate=RATE, seconds=seconds, seed=1, most=1000)
        self._report.exactly("messages that went out while the server was down", counts.get("sent", 0), 0)
        storm = (await self._server.do("accepted"))[self._before["connections"] :]
        self._report.say("messages that came while the server was down", sum(counts.values()))
        self._report.say("connections to it meanwhile", len(storm))
        # Those that were under way when the first failed are one event, however many had come together.
        later = [at for at in storm if at > storm[0] + 1]
        self._report.say("connections to it in the first second", len(storm) - len(later))
        self._report.at_most(
            "connections to it in the worst second later", _most_within_a_second(later), PROMISED_STORM
        )
        await self._server.do("calm")
        began = time.monotonic()
        reached = await self._sender.do("visit", at_once=1, limit=90.0)
        self._report.exactly("servers that a message reached when it was back", reached, 1)
        self._report.say("seconds until then", time.monotonic() - began)


def _most_within_a_second(times: Sequence[float]) -> int:
    """The most of these within a second from one of them on."""
    return max((sum(start <= at < start + 1 for at in times) for start in times), default=0)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.upstream_restart", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="that the server is down")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(run, parse())
