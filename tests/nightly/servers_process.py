"""Scripted servers at many addresses of loopback, in a process of their own: see `Orders`.

Each address is one server with its own faults. What they have seen is counted and forgotten every `HARVEST` seconds, so
that they can run for hours: which message was taken how often, by the number in its Message-ID, and whether each
connection has carried the messages of one tenant only, which is the sender's domain.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from twisted.internet.task import LoopingCall

from mailcache.testing import Authority, Chaos, Fault, Message, SMTPServer
from tests.nightly.orders import Orders, obey, reactor

HARVEST = 1.0
"""Seconds between counts."""

_LABEL = re.compile(rb"^Message-ID: <([^>]+)>", re.MULTILINE)


class Servers(Orders):
    """All of them; they listen at one port, which the first address has chosen."""

    def __init__(self) -> None:
        self.servers: list[SMTPServer] = []
        self.taken: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.mixed = 0
        self.mails = 0
        self.accepted: list[float] = []
        self._tenants: dict[tuple[str, int], str] = {}
        self._chaos = False

    async def do_listen(
        self,
        addresses: list[str],
        tls: str = "starttls",
        faults: list[dict[str, Any]] | None = None,
        port: int = 0,
        **settings: Any,
    ) -> dict[str, Any]:
        """Serve at ``addresses``; gives the port and the certificate of the authority."""
        authority = Authority()
        certificate = None if tls == "none" else authority.issue(addresses=addresses)
        for address in addresses:
            server = SMTPServer(
                reactor,
                certificate=certificate,
                implicit_tls=tls == "implicit",
                faults=[Fault(**fault) for fault in faults or []],
                hostname=f"mx-{address}.test",
                **settings,
            )
            port = server.listen(port, address).getHost().port
            self.servers.append(server)
        LoopingCall(self._harvest).start(HARVEST, now=False)
        return {"port": port, "authority": authority.certificate_pem.decode("ascii")}

    async def do_counts(self) -> dict[str, Any]:
        """Connections and messages so far, and what was wrong."""
        self._harvest(strike=False)
        return {
            "connections": sum(server.connection_count for server in self.servers),
            "open": sum(server.open_count for server in self.servers),
            "handshakes": sum(server.handshake_count for server in self.servers),
            "mails": self.mails,
            "messages": self.taken.total(),
            "faults": dict(self.faults),
            "violations": [f"{server.hostname}: {each}" for server in self.servers for each in server.violations],
            "mixed": self.mixed,
        }

    async def do_accepted(self) -> list[float]:
        """When each connection was accepted, in seconds."""
        self._harvest(strike=False)
        return self.accepted

    async def do_taken(self, path: str) -> int:
        """Write how often each message was taken to ``path``; gives how many messages that are."""
        self._harvest(strike=False)
        with open(path, "w") as file:
            json.dump(self.taken, file)
        return len(self.taken)

    async def do_arm(self, **fault: Any) -> None:
        """Arm one more fault everywhere."""
        for server in self.servers:
            server.arm(Fault(**fault))

    async def do_chaos(self, rate: float, seed: int) -> None:
        """Faults by chance from now on, so probable at each point; idle connections have theirs at each harvest."""
        self._chaos = True
        for number, server in enumerate(self.servers):
            server.chaos = Chaos(rate, seed=seed + number)

    async def do_calm(self) -> None:
        """No more faults."""
        self._chaos = False
        for server in self.servers:
            server.disarm()
            server.chaos = None

    async def do_strike_idle(self) -> int:
        """Let faults strike idle connections; gives how many were hit."""
        return sum(server.strike_idle() for server in self.servers)

    async def do_abort(self) -> None:
        """Reset all connections; go on listening."""
        for server in self.servers:
            server.abort_connections()

    def _harvest(self, strike: bool = True) -> None:
        for server in self.servers:
            for message in server.messages:
                self._count(server, message)
            self.mails += sum(text.startswith("MAIL ") for _, _, text in server.log)
            self.accepted += [at for at, _, text in server.log if text.startswith("connection from ")]
            self.faults.update(fault.kind for fault, _ in server.fired)
            server.forget()
            if strike and self._chaos:
                server.strike_idle()

    def _count(self, server: SMTPServer, message: Message) -> None:
        if not message.committed:
            return
        label = _LABEL.search(message.content)
        if label is not None:
            self.taken[label.group(1).decode("ascii")] += 1
        tenant = message.sender.partition("@")[2]
        if self._tenants.setdefault((server.hostname, message.connection.number), tenant) != tenant:
            self.mixed += 1


if __name__ == "__main__":
    obey(Servers())
