"""
An SMTP server to be run as a process of its own: aiosmtpd with STARTTLS, which writes every message to a file
and everything that happens, one JSON object a line, to ``events`` in the same folder. It ends when its
standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO

from aiosmtpd.smtp import SMTP, Envelope, Session

Command = Callable[[Any, str], Awaitable[None]]


class Store:
    """What has happened, and the messages."""

    def __init__(self, folder: Path) -> None:
        self._messages = folder / "messages"
        self._messages.mkdir()
        self._events: TextIO = (folder / "events").open("a", buffering=1)
        self._numbers = itertools.count(1)

    def note(self, event: str, **details: object) -> None:
        self._events.write(json.dumps({"event": event, **details}) + "\n")

    # aiosmtpd's hooks

    def handle_STARTTLS(self, server: CountingSMTP, session: Session, envelope: Envelope) -> bool:
        self.note("handshake", session=server.number)
        return True

    async def handle_DATA(self, server: CountingSMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        number = next(self._numbers)
        partial = self._messages / f"{number:06}.partial"
        partial.write_bytes(content)
        partial.rename(partial.with_suffix(".eml"))
        return f"250 2.0.0 Ok: stored as {number}"


class CountingSMTP(SMTP):
    """Notes connections and the commands it knows, whether it accepts them or not."""

    #: The messages are to arrive, long lines or not: RFC 5321's limit of 1000 is for others to enforce.
    line_length_limit = 1 << 20

    _numbers = itertools.count(1)

    def __init__(self, store: Store, **options: Any) -> None:
        super().__init__(store, **options)
        self._store = store
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self.number:  # else the same connection, after its handshake
            self.number = next(self._numbers)
            self._store.note("connect", session=self.number)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._store.note("disconnect", session=self.number)
        super().connection_lost(error)


def _noted(name: str, command: Command) -> Command:
    @functools.wraps(command)
    async def noted(self: CountingSMTP, argument: str) -> None:
        self._store.note("command", session=self.number, name=name)
        await command(self, argument)

    return noted


for _method in [method for method in dir(SMTP) if method.startswith("smtp_")]:
    _name = _method.removeprefix("smtp_").lower()
    setattr(CountingSMTP, _method, _noted(_name, getattr(SMTP, _method)))


async def serve(folder: Path, address: str, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    store = Store(folder)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: CountingSMTP(
            store,
            tls_context=context,
            hostname="aiosmtpd.store.test",
            data_size_limit=None,
            enable_SMTPUTF8=True,
            loop=loop,
        ),
        address,
        0,
    )
    store.note("ready", port=server.sockets[0].getsockname()[1])
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)
    await over.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    parser.add_argument("certificate", type=Path, help="a PEM file with key and chain")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.folder, arguments.address, arguments.certificate))
