"""The memory that a file of 1 GB costs whoever sends it: in memory, and through a keeper, over TLS.

Run it as ``python benchmarks/huge_file.py``. The server is a process of its own that keeps no content. Printed is how
far the peak of each process is above what it had before, after a small message over the same session; more than
`ALLOWED` is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner

from mailcache import Destination, Envelope, MemorySessionCache, RemoteSessionCache, TLSPolicy, deliver

ALLOWED = 40 * 1024 * 1024
"""Bytes: some buffers of 64 KiB at each hand, and whatever an allocator does not give back."""

SMALL = b"Subject: small\r\n\r\nhello\r\n"
ENVELOPE = Envelope("a@example.com", ["b@example.com"])
reactor: Any = _reactor


def reset_peak(pid: int) -> int:
    """Forget the peak so far; gives the bytes that are resident now."""
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")
    return peak(pid)


def peak(pid: int) -> int:
    """The peak of resident memory, in bytes."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


async def measure(cache: Any, where: Destination, megabytes: int, pids: dict[str, int]) -> bool:
    """Send the file; gives whether nobody has taken too much for it."""
    await deliver(cache, where, ENVELOPE, SMALL)
    with tempfile.TemporaryFile() as file:
        file.truncate(megabytes * 1024 * 1024)
        before = {name: reset_peak(pid) for name, pid in pids.items()}
        began = time.perf_counter()
        result = await deliver(cache, where, ENVELOPE, file)
        seconds = time.perf_counter() - began
    assert result.accepted and result.session.reused, result
    grown = {name: peak(pid) - before[name] for name, pid in pids.items()}
    told = ", ".join(f"{name} {bytes_ / 1024:,.0f} KiB" for name, bytes_ in grown.items())
    print(f"{megabytes:,} MiB in {seconds:.1f} s; above what they had before: {told}")
    return max(grown.values()) < ALLOWED


async def run(options: argparse.Namespace) -> None:
    globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False)
    folder = tempfile.mkdtemp()
    server = subprocess.Popen(
        [sys.executable, "-m", "mailcache.testing", "--size", "0", "--discard"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    facts = json.loads(server.stdout.readline())
    ca_file = os.path.join(folder, "ca.pem")
    with open(ca_file, "w") as file:
        file.write(facts["certificate_authority"])
    where = Destination(f"[127.0.0.1]:{facts['port']}", tls=TLSPolicy("verify", ca_file=ca_file))
    path = os.path.join(folder, "keeper.sock")
    keeper = subprocess.Popen(
        [sys.executable, "-m", "twisted", "--log-level=warn", "mailcache", "--listen", f"unix:{path}:mode=600"],
        stdout=subprocess.DEVNULL,
    )
    while not os.path.exists(path):
        await task.deferLater(reactor, 0.05, lambda: None)
    good = True
    for name, cache, pids in (
        ("in memory", MemorySessionCache(reactor), {"the sender": os.getpid()}),
        (
            "through a keeper",
            RemoteSessionCache(reactor, f"unix:{path}", fallback=None),
            {"the sender": os.getpid(), "the keeper": keeper.pid},
        ),
    ):
        print(f"{name}: ", end="", flush=True)
        good = await measure(cache, where, options.megabytes, pids) and good
        await cache.close()
    keeper.terminate()
    keeper.wait()
    server.stdin.close()
    seen = json.loads(server.stdout.readline())
    server.wait()
    assert seen["messages"] == 4, seen
    assert seen["octets"] >= 2 * options.megabytes * 1024 * 1024, seen
    if not good:
        sys.exit(f"more than {ALLOWED / 1024 / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    options = parser.parse_args()
    task.react(lambda _: Deferred.fromCoroutine(run(options)))


if __name__ == "__main__":
    main()
