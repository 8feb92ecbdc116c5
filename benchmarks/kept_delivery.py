"""CPU of a delivery on a kept session, against a bare loop that only writes and counts replies.

Run it as ``python benchmarks/kept_delivery.py``. The server is another process, so what is measured is this one's CPU
(user and system, `time.process_time`). The bare loop is a Twisted protocol, with Twisted's own TLS, that writes
MAIL/RCPT/DATA and content and counts replies: what no client can do without. Both take turns, since machines are noisy;
the figure is the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet import task
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.logger import globalLogBeginner

from mailcache import Destination, Envelope, Limits, MemorySessionCache, TLSPolicy, deliver

CONTENT = b"Subject: a message of 4 KB\r\n\r\n" + (b"x" * 70 + b"\r\n") * 57
reactor: Any = _reactor


class Bare(Protocol):
    """Writes and counts line ends that end a reply; knows nothing else."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.awaited = 1
        self.waiting: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        for line in data.splitlines():
            if line[3:4] == b" ":
                self.awaited -= 1
        if self.awaited == 0:
            waiting = self.waiting
            waiting.callback(None)

    async def ask(self, data: bytes, replies: int) -> None:
        self.awaited = replies
        self.waiting = Deferred()
        self.transport.write(data)
        await self.waiting

    async def set_up(self) -> None:
        await self.waiting
        await self.ask(b"EHLO bare.test\r\n", 1)
        if self.context is not None:
            await self.ask(b"STARTTLS\r\n", 1)
            transport: Any = self.transport
            transport.startTLS(self.context)
            await self.ask(b"EHLO bare.test\r\n", 1)

    def send(self, count: int) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        content = CONTENT + b".\r\n"
        flight = b"MAIL FROM:<a@example.com> SIZE=%d\r\nRCPT TO:<b@example.com>\r\nDATA\r\n" % len(CONTENT)
        left = count
        in_content = True
        write = self.transport.write

        def step(_: object) -> None:
            nonlocal left, in_content
            self.waiting = Deferred()
            self.waiting.addCallback(step)
            if in_content:
                if left == 0:
                    done.callback(None)
                    return
                left -= 1
                in_content = False
                self.awaited = 3
                write(flight)
            else:
                in_content = True
                self.awaited = 1
                write(content)

        step(None)
        return done


def send_kept(cache: MemorySessionCache, where: Destination, count: int) -> Deferred[None]:
    done: Deferred[None] = Deferred()
    left = count
    # Made once, as the bare loop's flight is; the content is looked at and encoded anew for each message.
    envelope = Envelope("a@example.com", ["b@example.com"])

    def step(_: object) -> None:
        nonlocal left
        if left == 0:
            done.callback(None)
            return
        left -= 1
        delivery = deliver(cache, where, envelope, CONTENT)
        delivery.addCallbacks(step, done.errback)

    step(None)
    return done


async def compare(tls: bool, senders: int, messages: int, turns: int) -> dict[str, Any]:
    server = subprocess.Popen(
        [sys.executable, "-m", "mailcache.testing", "--tls", "starttls" if tls else "none"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    facts = json.loads(server.stdout.readline())
    authority = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115  (as long as the comparison)
    authority.write(facts["certificate_authority"].encode())
    authority.flush()
    policy = TLSPolicy("verify", ca_file=authority.name) if tls else TLSPolicy("none")
    where = Destination(f"[127.0.0.1]:{facts['port']}", tls=policy)
    cache = MemorySessionCache(
        reactor, Limits(sessions_per_destination=senders, sessions_per_endpoint=senders, idle_timeout=300)
    )
    context = (
        optionsForClientTLS("localhost", trustRoot=Certificate.loadPEM(facts["certificate_authority"].encode()))
        if tls
        else None
    )
    bare = []
    for _ in range(senders):
        protocol = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", facts["port"]), Bare(context))
        await protocol.set_up()
        bare.append(protocol)
    each = messages // senders
    kept_times, bare_times = [], []
    await gatherResults([send_kept(cache, where, 20) for _ in range(senders)])
    await gatherResults([protocol.send(20) for protocol in bare])
    for _ in range(turns):
        gc.collect()
        start = time.process_time()
        await gatherResults([send_kept(cache, where, each) for _ in range(senders)])
        kept_times.append((time.process_time() - start) / (each * senders) * 1e6)
        gc.collect()
        start = time.process_time()
        await gatherResults([protocol.send(each) for protocol in bare])
        bare_times.append((time.process_time() - start) / (each * senders) * 1e6)
    counts = await cache.statistics()
    assert counts["handshakes"] <= senders, counts
    await cache.close()
    for protocol in bare:
        protocol.transport.abortConnection()
    server.stdin.close()
    server.wait()
    return {
        "tls": tls,
        "senders": senders,
        "kept_us": statistics.median(kept_times),
        "bare_us": statistics.median(bare_times),
        "ratio": statistics.median(k / b for k, b in zip(kept_times, bare_times, strict=True)),
    }


async def run(options: argparse.Namespace) -> None:
    # As in an application that has started logging: before that Twisted keeps the last 65,536 events in memory.
    globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False)
    print(f"{'':6} {'senders':>7} {'kept us':>8} {'bare us':>8} {'ratio':>6}")
    for tls in (True, False):
        for senders in (1, 16):
            row = await compare(tls, senders, options.messages, options.turns)
            name = "TLS" if tls else "plain"
            print(f"{name:6} {senders:7} {row['kept_us']:8.1f} {row['bare_us']:8.1f} {row['ratio']:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1600, help="in each turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    task.react(lambda _: Deferred.fromCoroutine(run(options)))


if __name__ == "__main__":
    main()
