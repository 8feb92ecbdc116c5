"""``python -m tests.nightly.tenants``: tenants of one keeper send at the same time, and the server sees who each is.

Each tenant has a user to log in as, a HELO name and a local address of its own, and writes its name into its messages.
Processes that send for all of them at once share the sessions of a keeper, of which there are too few for all; now and
then the server resets one. Whatever the server takes has to come from the tenant's address, name and user.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from random import Random, SystemRandom
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from mailcache import Credentials, Destination
from mailcache.demo.senders import Keeper, shares
from mailcache.testing import Connection, Message, SMTPServer
from tests.helpers import authority, ca_file, verifying
from tests.remote.processes import ROOT, Process

TENANTS = 8
PROCESSES = 4
AT_ONCE = 4
"""Messages of one process that are under way together."""

SESSIONS = 40
"""What the keeper may have open: enough to keep some for each tenant, and too few for all that one may want at once."""

CUT_EVERY = 50
"""Messages after which the server resets a connection, so that sessions are made and replaced all the time."""

MESSAGES = 50_000
HEADER = b"X-Tenant: "


@attrs.frozen
class Tenant:
    """One of them, by number."""

    number: int

    @property
    def name(self) -> str:
        return f"tenant-{self.number}"

    @property
    def seen(self) -> tuple[str, str, str, str]:
        """As whom the server has to see it: address, HELO name, user and sender."""
        return f"127.7.0.{self.number + 1}", f"{self.name}.example", self.name, f"{self.name}@example.com"

    @property
    def secret(self) -> str:
        return f"secret of {self.name}"

    def destination(self, port: int, ca_path: str) -> Destination:
        """Where its mail goes, and on whose behalf."""
        address, helo, user, _ = self.seen
        return Destination(
            f"[127.0.0.1]:{port}",
            bind_address=address,
            helo_name=helo,
            credentials=Credentials(user, self.secret),
            tls=attrs.evolve(verifying(), ca_file=ca_path),
        )

    def content(self, label: str) -> bytes:
        return HEADER + f"{self.name}\r\nMessage-ID: <{label}@example.com>\r\n\r\nhello\r\n".encode()


ALL = tuple(Tenant(number) for number in range(TENANTS))


def seen_of(message: Message) -> tuple[str, str | None, str | None, str]:
    """As whom the server has seen who sent this."""
    record = message.connection
    peer: Any = record.peer
    return peer.host, record.helo_name, record.user, message.sender


def tenant_of(message: Message) -> Tenant:
    """Whose message this is, as it says itself."""
    name = message.content.removeprefix(HEADER).partition(b"\r\n")[0].decode()
    return next(tenant for tenant in ALL if tenant.name == name)


@attrs.define
class Figures:
    """What has come of it.

    :ivar sent: labels of messages that their senders were told are taken.
    :ivar uncertain: of those of which they were told that nobody can know.
    :ivar failed: of those which certainly were not taken, with the reason.
    :ivar taken: of those that the server has taken, and how often.
    :ivar by_tenant: how many it has taken of each.
    :ivar mixed: messages that came as somebody else's, in words.
    :ivar cuts: connections that the server has reset.
    """

    sent: set[str] = attrs.Factory(set)
    uncertain: set[str] = attrs.Factory(set)
    failed: dict[str, str] = attrs.Factory(dict)
    taken: dict[str, int] = attrs.Factory(dict)
    by_tenant: dict[str, int] = attrs.Factory(dict)
    mixed: list[str] = attrs.Factory(list)
    cuts: int = 0
    connections: int = 0
    violations: list[str] = attrs.Factory(list)

    def told(self, number: int, facts: dict[str, Any]) -> None:
        """Count what one of the processes says."""
        for where, labels in ((self.sent, facts["sent"]), (self.uncertain, facts["uncertain"])):
            where.update(f"{number}-{label}" for label in labels)
        self.failed |= {f"{number}-{label}": why for label, why in facts["failed"].items()}

    def look(self, server: SMTPServer) -> None:
        """Count what the server has."""
        self.connections, self.violations = server.connection_count, server.violations
        for message in server.messages:
            tenant, seen = tenant_of(message), seen_of(message)
            if seen != tenant.seen:
                self.mixed.append(f"of {tenant.name}: {seen}")
            if message.committed:
                label = message.content.split(b"<", 1)[1].split(b"@", 1)[0].decode()
                self.taken[label] = self.taken.get(label, 0) + 1
                self.by_tenant[tenant.name] = self.by_tenant.get(tenant.name, 0) + 1

    @property
    def doubles(self) -> int:
        return sum(count > 1 for count in self.taken.values())

    @property
    def lost(self) -> set[str]:
        """Reported as taken, and not there."""
        return self.sent - self.taken.keys()

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept."""
        return [
            said
            for said, wrong in (
                ("a message came as somebody else's", self.mixed),
                ("a message came twice", self.doubles),
                ("a message is lost", self.lost),
                ("a message was taken that was reported as not delivered", self.taken.keys() & self.failed),
                ("more is in doubt, or has failed, than was cut", len(self.uncertain) + len(self.failed) > self.cuts),
                ("the server had to complain", self.violations),
                ("a tenant has sent nothing", len(self.by_tenant) != TENANTS),
            )
            if wrong
        ]

    def lines(self) -> list[str]:
        """One for each figure."""
        return [
            f"tenants: {len(self.by_tenant)}",
            f"messages reported as taken: {len(self.sent):,}",
            f"messages that the server has taken: {len(self.taken):,}",
            f"of them reported as such: {len(self.taken.keys() & self.sent):,}",
            f"of them reported as in doubt: {len(self.taken.keys() & self.uncertain):,} of {len(self.uncertain):,}",
            f"of them reported as not delivered: {len(self.taken.keys() & self.failed):,} of {len(self.failed):,}",
            f"messages that are lost: {len(self.lost):,}",
            f"messages that it has taken twice: {self.doubles:,}",
            f"connections that it has reset: {self.cuts:,}",
            f"connections: {self.connections:,}",
            f"messages that came from another address, name or user than their tenant's: {len(self.mixed):,}",
            *self.mixed[:5],
            *self.violations[:5],
        ]


async def run(reactor: Any, messages: int, seed: int, processes: int = PROCESSES) -> Figures:
    """Send so many messages through a keeper of their own.

    :raises mailcache.demo.measuring.DemoFailed: if the keeper does not start.
    """
    random = Random(seed)
    certificate = authority().issue(names=("localhost",), addresses=("127.0.0.1",))
    server = SMTPServer(reactor, certificate=certificate, users={tenant.name: tenant.secret for tenant in ALL})
    server.listen()

    figures = Figures()

    def cut() -> None:
        if server.open_count:
            figures.cuts += 1
            random.choice(server._live).abort()

    def now_and_then(point: str, _argument: str, _connection: Connection) -> None:
        if point == "dot" and len(server.messages) % CUT_EVERY == 0:
            reactor.callLater(0, cut)

    server.verdict = now_and_then
    senders: list[Process] = []
    try:
        with Keeper(SESSIONS) as keeper:
            keeper.wait_ready()
            order = {"keeper": keeper.path, "port": server.port, "ca_file": ca_file(), "at_once": AT_ONCE}
            for number, count in enumerate(shares(messages, processes)):
                senders.append(_sender(reactor, name=str(number), messages=count, seed=seed + number, **order))
            heard = [sender.hears(lambda facts: "sent" in facts) for sender in senders]
            for number, facts in enumerate(await gatherResults(heard)):
                figures.told(number, facts)
            await gatherResults([sender.ended for sender in senders])
    finally:
        for sender in senders:
            await sender.end()
        await server.close()
    figures.look(server)
    return figures


def _sender(reactor: Any, **order: Any) -> Process:
    process = Process()
    command = [sys.executable, "-m", "tests.nightly.tenant_process", json.dumps(order)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reactor.spawnProcess(process, command[0], command, env=environment, childFDs={0: "w", 1: "r", 2: "r"})
    return process


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.tenants", description=__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else SystemRandom().randrange(1 << 32)
    print(f"seed: {seed}", flush=True)

    async def go(reactor: Any) -> None:
        began = reactor.seconds()
        figures = await run(reactor, options.messages, seed)
        print(*figures.lines(), f"seconds: {reactor.seconds() - began:.0f}", sep="\n")
        for promise in figures.broken:
            print(f"BROKEN: {promise}")
        if figures.broken:
            raise SystemExit(1)

    react(lambda reactor: Deferred.fromCoroutine(go(reactor)))


if __name__ == "__main__":
    main()
