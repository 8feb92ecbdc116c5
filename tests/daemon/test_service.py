"""The keeper as a service: what it does from its start to its end."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any, ClassVar

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mailcache import Destination, Envelope, RemoteSessionCache, deliver
from mailcache.daemon.config import Configuration, load
from mailcache.daemon.listening import CannotListen
from mailcache.daemon.retirement import Life
from mailcache.daemon.service import KeeperService
from mailcache.testing import SMTPServer
from tests.daemon.test_listening import folder_of
from tests.helpers import Outcome, authority, verifying

reactor: Any = _reactor


class ServiceTests(TestCase):
    timeout = 30

    def serve(self, **settings: Any) -> SMTPServer:
        certificate = authority().issue(names=("localhost",), addresses=("127.0.0.1",))
        server = SMTPServer(reactor, certificate=certificate, **settings)
        server.listen()
        self.addCleanup(server.close)
        return server

    def start(self, configuration: Configuration | None = None, **settings: Any) -> tuple[KeeperService, str]:
        """A service that runs, and its path."""
        path = os.path.join(folder_of(self), "keeper")
        settings.setdefault("environ", {})
        service = KeeperService(reactor, f"unix:{path}", configuration or Configuration(), **settings)
        service.startService()
        self.addCleanup(service.stopService)
        return service, path

    def listening_to(self) -> tuple[socket.socket, dict[str, str]]:
        """Where a supervisor hears, and the environment that says so."""
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(heard.close)
        path = os.path.join(folder_of(self), "notify")
        heard.bind(path)
        return heard, {"NOTIFY_SOCKET": path}

    async def test_life(self) -> None:
        """It listens for its own user only, lends, and leaves nothing behind."""
        folder = folder_of(self)
        path = os.path.join(folder, "private", "keeper")
        server = self.serve()
        for _ in range(2):
            service = KeeperService(reactor, f"unix:{path}", Configuration())
            service.startService()
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
            with self.assertRaises(CannotListen):
                KeeperService(reactor, f"unix:{path}", Configuration()).startService()
            cache = RemoteSessionCache(reactor, f"unix:{path}", fallback=None)
            where = Destination(f"[127.0.0.1]:{server.port}", tls=verifying())
            result = await deliver(cache, where, Envelope("a@x.test", ["b@y.test"]), b"Subject: x\r\n\r\n")
            self.assertTrue(result.accepted)
            await cache.close()
            await service.stopService()
            self.assertEqual(os.listdir(os.path.dirname(path)), [])
        self.assertTrue(all(record.quit_seen for record in server.connections))

    async def test_stopped_before_it_was_started(self) -> None:
        service = KeeperService(reactor, f"unix:{folder_of(self)}/keeper", Configuration())
        await service.stopService()

    async def test_retires_by_itself(self) -> None:
        """Then whoever has started it is told, once, and may stop it."""
        ended: Deferred[None] = Deferred()
        service, path = self.start(life=Life(retire_after=0.05), on_end=lambda: ended.callback(None))
        self.assertTrue(os.path.exists(path))
        await ended
        self.assertFalse(os.path.exists(path))
        await service.stopService()

    async def test_retires_for_its_memory(self) -> None:
        ended: Deferred[None] = Deferred()
        self.start(life=Life(max_memory=1), on_end=lambda: ended.callback(None))
        await ended

    async def test_told_to_retire_twice(self) -> None:
        """The second time it does not wait for what is lent."""
        server = self.serve()
        ended: Deferred[None] = Deferred()
        service, path = self.start(on_end=lambda: ended.callback(None))
        cache = RemoteSessionCache(reactor, f"unix:{path}", fallback=None)
        self.addCleanup(cache.close)
        lease = await cache.acquire(Destination(f"[127.0.0.1]:{server.port}", tls=verifying()))
        service.retire("SIGTERM")
        await lease.send(Envelope("a@x.test", ["b@y.test"]), b"Subject: x\r\n\r\n")
        self.assertEqual((server.message_count, ended.called), (1, False))
        service.retire("SIGTERM")
        await ended
        service.retire("SIGTERM")
        lease.release()

    async def test_supervisor_is_told(self) -> None:
        heard, environ = self.listening_to()
        environ |= {"WATCHDOG_USEC": "100000"}
        service, path = self.start(life=Life(drain_limit=7), environ=environ)
        await deferLater(reactor, 0)  # until the reactor runs
        self.assertEqual(heard.recv(4096).decode(), f"READY=1\nSTATUS=lending sessions on {path}")
        beats: Deferred[None] = Deferred()

        class Reader:
            words: ClassVar[list[bytes]] = []

            def fileno(self) -> int:
                return heard.fileno()

            def logPrefix(self) -> str:
                return "heard"

            def connectionLost(self, reason: Any) -> None:
                pass

            def doRead(self) -> None:
                self.words.append(heard.recv(4096))
                if len(self.words) == 3:
                    beats.callback(None)

        reader = Reader()
        reactor.addReader(reader)
        await beats
        reactor.removeReader(reader)
        self.assertEqual(reader.words, [b"WATCHDOG=1"] * 3)
        service.hang_up()
        await service.stopService()
        words = []
        while True:
            try:
                words.append(heard.recv(4096).decode().split("\n"))
            except BlockingIOError:
                break
        states = [each[0] for each in words if each[0] != "WATCHDOG=1"]
        self.assertEqual(states, ["RELOADING=1", "READY=1", "STOPPING=1"])
        self.assertIn("EXTEND_TIMEOUT_USEC=13000000", words[-1], "with QUIT and the farewell")
        service.hang_up()

    async def test_reloading(self) -> None:
        """What is wrong is told in the log, and the supervisor hears that all is as it was."""
        path = os.path.join(folder_of(self), "keeper.toml")
        for content in ("", "[limits]\nsessions = 0\n"):
            with open(path, "w") as file:
                file.write("")
            heard, environ = self.listening_to()
            service, _ = self.start(load(path), environ=environ)
            await deferLater(reactor, 0)
            with open(path, "w") as file:
                file.write(content)
            service.hang_up()
            words = [heard.recv(4096).split(b"\n")[0] for _ in range(3)]
            self.assertEqual(words, [b"READY=1", b"RELOADING=1", b"READY=1"])
            await service.stopService()

    async def test_stopped_while_it_retires(self) -> None:
        """Both wait for the same end."""
        server = self.serve()
        ended: Deferred[None] = Deferred()
        service, path = self.start(on_end=lambda: ended.callback(None))
        cache = RemoteSessionCache(reactor, f"unix:{path}", fallback=None)
        self.addCleanup(cache.close)
        lease = await cache.acquire(Destination(f"[127.0.0.1]:{server.port}", tls=verifying()))
        service.retire("SIGTERM")
        stopped = Outcome(service.stopService())
        self.assertFalse(stopped.done or ended.called)
        lease.release()
        await stopped.deferred
        self.assertEqual(stopped.fired, [None])
        await ended
