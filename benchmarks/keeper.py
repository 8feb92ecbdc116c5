"""What borrowing from a keeper costs: the time of acquire() on a hit, and the CPU of both processes for a message.

Run it as ``python benchmarks/keeper.py``. The keeper is a real ``twist mailcache``, the server a third process. CPU is
that of the borrower and the keeper together, against the bare loop of ``kept_delivery.py``, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from kept_delivery import Bare, send_kept
from twisted.internet import reactor as _reactor
from twisted.internet import task
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.logger import globalLogBeginner

from mailcache import Destination, RemoteSessionCache, TLSPolicy

reactor: Any = _reactor
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_of(pid: int) -> float:
    """User and system seconds of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def latencies(cache: RemoteSessionCache, where: Destination, count: int) -> list[float]:
    """Seconds from acquire() to a session, each time from the keeper."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        lease = await cache.acquire(where)
        found.append(time.perf_counter() - began)
        lease.release()
    return found


async def run(options: argparse.Namespace) -> None:
    globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False)
    folder = tempfile.mkdtemp()
    server = subprocess.Popen(
        [sys.executable, "-m", "mailcache.testing"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    facts = json.loads(server.stdout.readline())
    ca_file = os.path.join(folder, "ca.pem")
    with open(ca_file, "w") as file:
        file.write(facts["certificate_authority"])
    configuration = os.path.join(folder, "keeper.toml")
    with open(configuration, "w") as file:
        file.write("[limits]\nidle_timeout = 300\n")
    path = os.path.join(folder, "keeper.sock")
    keeper = subprocess.Popen(
        [sys.executable, "-m", "twisted", "--log-level=warn", "mailcache", "--listen", f"unix:{path}:mode=600",
         "--config", configuration],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not os.path.exists(path):
        await task.deferLater(reactor, 0.05, lambda: None)
    where = Destination(f"[127.0.0.1]:{facts['port']}", tls=TLSPolicy("verify", ca_file=ca_file))
    context = optionsForClientTLS("localhost", trustRoot=Certificate.loadPEM(facts["certificate_authority"].encode()))
    bare = []
    for _ in range(options.senders):
        protocol = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", facts["port"]), Bare(context))
        await protocol.set_up()
        bare.append(protocol)
    each = options.messages // options.senders
    for name, linger in (("with linger", {}), ("a lease for each message", {"linger": 0.0})):
        cache = RemoteSessionCache(reactor, f"unix:{path}", fallback=None, **linger)
        await gatherResults([send_kept(cache, where, 20) for _ in range(options.senders)])
        ratios, costs = [], []
        for _ in range(options.turns):
            before = cpu_of(keeper.pid) + time.process_time()
            await gatherResults([send_kept(cache, where, each) for _ in range(options.senders)])
            cost = cpu_of(keeper.pid) + time.process_time() - before
            before = time.process_time()
            await gatherResults([protocol.send(each) for protocol in bare])
            ratios.append(cost / (time.process_time() - before))
            costs.append(cost / (each * options.senders) * 1e6)
        print(
            f"{name:26} {options.senders} senders: {statistics.median(costs):6.0f} us a message, "
            f"{statistics.median(ratios):.2f} times the bare loop"
        )
        if linger:
            found = sorted(await latencies(cache, where, 2000))
            print(f"acquire() on a hit: p50 {found[1000] * 1e6:.0f} us, p99 {found[1980] * 1e6:.0f} us")
        counts = await cache.statistics()
        assert counts["fallbacks"] == 0, counts
        await cache.close()
    for protocol in bare:
        protocol.transport.abortConnection()
    keeper.terminate()
    keeper.wait()
    server.stdin.close()
    server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=3200, help="in each turn")
    parser.add_argument("--senders", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    task.react(lambda _: Deferred.fromCoroutine(run(options)))


if __name__ == "__main__":
    main()
