"""The server that the mail goes to: a process of its own for each way of sending.

So its counts are of that way alone, and its CPU is nobody's here.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from mailcache.demo.measuring import DemoFailed
from mailcache.demo.processes import Helper
from mailcache.destination import Destination
from mailcache.trust.policy import TLSPolicy

COMMAND = (sys.executable, "-m", "mailcache.testing", "--tls", "starttls")
"""What runs the server."""


@attrs.frozen
class Counts:
    """What a server has seen."""

    connections: int
    handshakes: int
    messages: int
    violations: Sequence[str]
    octets: int = 0


class Server(Helper):
    """A server process."""

    port: int
    ca_file: str | None = None

    def __init__(self) -> None:
        super().__init__("the server", COMMAND)

    def wait_ready(self) -> dict[str, Any]:
        facts = super().wait_ready()
        self.port = facts["port"]
        handle, self.ca_file = tempfile.mkstemp(".pem", "mailcache-demo-")
        with os.fdopen(handle, "w") as file:
            file.write(facts["certificate_authority"])
        return facts

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, traceback)
        if self.ca_file is not None:
            Path(self.ca_file).unlink(missing_ok=True)

    def counts(self) -> Counts:
        """End the server; gives what it has seen."""
        said = self.finish()
        if not said:
            raise self.broke_down()
        return Counts(**json.loads(said))


def destination(port: int, ca_file: str | None) -> Destination:
    """Where that server is; its certificate must be right."""
    return Destination(f"[127.0.0.1]:{port}", tls=TLSPolicy("verify", ca_file=ca_file))


def check(name: str, counts: Counts, messages: int) -> None:
    """All mail must have arrived, and nothing in a wrong way.

    :raises DemoFailed: that says what is wrong.
    """
    if counts.messages != messages:
        raise DemoFailed(f"{name}: the server got {counts.messages:,} of {messages:,} messages")
    if counts.handshakes != counts.connections:
        raise DemoFailed(f"{name}: {counts.connections:,} connections, but {counts.handshakes:,} TLS handshakes")
    if counts.violations:
        raise DemoFailed(f"{name}: the server complains: {counts.violations[0]}")
