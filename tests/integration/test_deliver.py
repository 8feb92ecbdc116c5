"""Deliveries to real servers: every message arrives unchanged and once, over as few sessions as may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from mailcache import Destination, Envelope, Limits, MemorySessionCache, TLSPolicy, deliver
from tests.integration.case import ServerTestCase
from tests.integration.corpus import everything
from tests.integration.debian_exim import EximServer
from tests.integration.debian_postfix import PostfixServer
from tests.integration.servers import DOMAIN, AiosmtpdServer

SENDER = "sender@example.test"


class Tests(ServerTestCase):
    """What holds for each server."""

    #: How often the corpus is sent.
    times: ClassVar[int] = 20

    async def check_delivery(self, *, senders: int, limits: Limits) -> int:
        """
        Have the whole corpus delivered by so many senders at a time, all with one cache, over verified TLS.

        :returns: how many connections that took: each with one handshake and one QUIT, and nothing said on it
            but what a message needs.
        """
        server = self.server
        destination = Destination(
            f"[{server.address}]:{server.port}", tls=TLSPolicy("verify", ca_file=str(server.ca_file))
        )
        cache = MemorySessionCache(reactor, limits=limits)
        self.addCleanup(cache.close)
        messages = everything(self.times)
        waiting = iter(messages.items())
        reused: list[bool] = []

        async def send(some: Iterator[tuple[str, bytes]]) -> None:
            for label, message in some:
                recipient = f"{label}@{DOMAIN}"
                result = await deliver(cache, destination, Envelope(SENDER, [recipient]), message)
                self.assertEqual((list(result.accepted), dict(result.rejected)), ([recipient], {}), label)
                reused.append(result.session.reused)

        await gatherResults([Deferred.fromCoroutine(send(waiting)) for _ in range(senders)], consumeErrors=True)
        await cache.close()
        await self.check_stored(messages)
        await server.wait_closed(10)
        connections, count = server.connections(), len(messages)
        self.assertEqual(server.handshakes(), connections)
        self.assertEqual(
            server.command_counts(),
            Counter(
                ehlo=2 * connections,
                starttls=connections,
                mail=count,
                rcpt=count,
                data=count,
                quit=connections,
            ),
        )
        self.assertEqual(Counter(reused), Counter({True: count - connections, False: connections}))
        return connections

    async def test_oneSender(self) -> None:
        """One message after another: they all share one session."""
        self.assertEqual(await self.check_delivery(senders=1, limits=Limits()), 1)

    async def test_parallelSenders(self) -> None:
        """Many at a time share the sessions that the limit allows."""
        connections = await self.check_delivery(senders=20, limits=Limits(sessions_per_endpoint=5))
        self.assertGreater(connections, 1)
        self.assertLessEqual(connections, 5)


class PostfixTests(Tests):
    """Postfix, which pipelines."""

    kind = PostfixServer


class EximTests(Tests):
    """Exim, which has a process for each session and for each message."""

    kind = EximServer
    times = 5  # which makes it slow


class AiosmtpdTests(Tests):
    """aiosmtpd, which does not."""

    kind = AiosmtpdServer


del Tests  # has no server: not to be collected
