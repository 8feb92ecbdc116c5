"""The processes of a long proof: servers, a keeper and senders, each alone, so that what is measured is of one."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.task import react
from twisted.protocols import amp

from mailcache.remote import codec, commands
from tests.nightly.figures import Report
from tests.remote.processes import ROOT, Process, until

START_LIMIT = 30.0
"""Seconds for a process to start on a machine that is busy."""

ORDER_LIMIT = 120.0
"""Seconds for what an order takes beyond the time that it names itself: a proof that hangs has failed."""


class Broken(Exception):  # noqa: N818
    """A process could not do what it was told; the text has its traceback."""


class Told(Process):
    """A process that carries out orders: see `tests.nightly.orders`."""

    async def do(self, name: str, **arguments: Any) -> Any:
        """Give an order, and wait for its result.

        :raises Broken: if it was not carried out.
        :raises TimeoutError: if it was not in time; see `ORDER_LIMIT`.
        """
        limit = ORDER_LIMIT + arguments.get("seconds", 0.0)
        answer = await self.does(name, name, **arguments).addTimeout(limit, reactor)  # type: ignore[arg-type]
        if "failed" in answer:
            raise Broken(f"{name}: {answer['failed']}")
        return answer[name]

    @property
    def complaints(self) -> list[str]:
        """What it has said that is no answer: lines of a log."""
        lines = [line for line in self.output.decode(errors="replace").split("\n") if line]
        return [line for line in lines if not line.startswith("{") or '"log_format"' in line]

    async def finish(self) -> None:
        """End it in order, with its standard input."""
        self.transport.loseConnection()  # type: ignore[attr-defined]
        await self.ended


@attrs.frozen
class Memory:
    """What a process has in memory, in KiB: resident, and its share of that."""

    rss: int
    pss: int


def memory_of(pid: int) -> Memory:
    """What the kernel says of it."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        found = dict(line.split(":", 1) for line in file if ":" in line and not line[0].isdigit())
    return Memory(*(int(found[name].split()[0]) for name in ("Rss", "Pss")))


def allow_descriptors() -> None:
    """As many as this user may have, here and in the processes that are started from here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def table(name: str, values: dict[str, Any]) -> str:
    """A table of TOML."""
    return "\n".join((f"[{name}]", *(f"{key} = {value}" for key, value in values.items()), ""))


def addresses(group: int, count: int) -> list[str]:
    """So many addresses of loopback, others for each group."""
    return [f"127.{10 + group}.{number // 250}.{1 + number % 250}" for number in range(count)]


class Stage:
    """Starts processes, and ends all of them with itself. To be used in an ``async with`` statement."""

    def __init__(self, reactor: Any) -> None:
        allow_descriptors()
        self._reactor = reactor
        self.folder = Path(tempfile.mkdtemp(prefix="mailcache-nightly-"))
        self.ca_file = str(self.folder / "ca.pem")
        self.socket = str(self.folder / "keeper.sock")
        Path(self.ca_file).touch()
        self._processes: list[Told] = []
        self._link: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._link is not None and self._link.transport is not None:
            self._link.transport.abortConnection()
        await gatherResults([process.end() for process in self._processes])
        shutil.rmtree(self.folder)

    def _spawn(self, *command: str) -> Told:
        process = Told()
        program = [sys.executable, *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._reactor.spawnProcess(process, program[0], program, env=environment, childFDs={0: "w", 1: "r", 2: "r"})
        self._processes.append(process)
        return process

    async def keeper(self, limits: dict[str, Any], timeouts: dict[str, Any] | None = None) -> Told:
        """A keeper that listens."""
        configuration = self.folder / "keeper.toml"
        configuration.write_text(table("limits", limits) + table("timeouts", timeouts or {}))
        process = self._spawn(
            "-m", "tests.nightly.keeper_process", "--log-level=warn", "mailcache",
            "--listen", f"unix:{self.socket}:mode=600", "--config", str(configuration),
        )  # fmt: skip
        await until(lambda: os.path.exists(self.socket) or not process.running, START_LIMIT)
        if not process.running:
            raise Broken(f"the keeper did not start: {process.output.decode(errors='replace')}")
        self._link = await connectProtocol(UNIXClientEndpoint(self._reactor, self.socket), amp.AMP())
        await self._link.callRemote(commands.Hello, version=codec.VERSION)
        return process

    async def ask_keeper(self) -> dict[str, Any]:
        """The keeper's counts: see `mailcache.interfaces.ISessionCache.statistics`."""
        answer = await self._link.callRemote(commands.Statistics).addTimeout(ORDER_LIMIT, self._reactor)
        return dict(json.loads(answer["counts"]))

    async def end_keeper(self, keeper: Told) -> None:
        """As a supervisor ends it."""
        self._link.transport.abortConnection()
        keeper.kill(signal.SIGTERM)
        await keeper.ended

    async def servers(self, where: Sequence[str], **settings: Any) -> tuple[Told, list[dict[str, Any]]]:
        """Servers at these addresses, and what senders are told of their destinations."""
        process = self._spawn("-m", "tests.nightly.servers_process")
        facts = await process.do("listen", addresses=list(where), **settings)
        clear = settings.get("tls") == "none"
        with open(self.ca_file, "a") as file:
            file.write(facts["authority"])
        next_hops = [f"[{address}]:{facts['port']}" for address in where]
        return process, [{"next_hop": hop, "ca_file": None if clear else self.ca_file} for hop in next_hops]

    async def senders(self, destinations: Sequence[dict[str, Any]], label: str, **settings: Any) -> Told:
        """A process that sends to these."""
        process = self._spawn("-m", "tests.nightly.senders_process")
        await process.do("open", destinations=list(destinations), label=label, **settings)
        return process


def command(run: Callable[[Any, argparse.Namespace, Report], Awaitable[None]], options: argparse.Namespace) -> None:
    """Run a proof as a program: it prints its figures, and ends with 1 if one of them breaks a promise."""

    async def ended(reactor: Any) -> None:
        report = Report()
        await run(reactor, options, report)
        raise SystemExit(report.status)

    react(lambda reactor: Deferred.fromCoroutine(ended(reactor)))
