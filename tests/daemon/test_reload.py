"""A keeper reads its configuration again: as a service, and as a process that is told to."""

from __future__ import annotations

import io
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from twisted.protocols.amp import AmpBox
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache import Limits, controlling
from mailcache.controlling import NoKeeper
from mailcache.daemon.config import load
from mailcache.daemon.service import KeeperService
from mailcache.remote.configuration import Configuration
from tests.remote.processes import ProcessCase, until

reactor: Any = _reactor


class ServiceTests(TestCase):
    """The service in this process."""

    timeout = 60

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: Any) -> None:
        if "line" in event or "path" in event:
            self.lines.append(event["log_format"].format(**event))

    def service(self, configuration: Configuration) -> KeeperService:
        made = KeeperService(reactor, f"unix:{self.folder}/keeper", configuration)
        made.startService()
        self.addCleanup(made.stopService)
        return made

    def test_reload(self) -> None:
        file = self.folder / "keeper.toml"
        file.write_text("[limits]\nsessions = 7\n")
        service = self.service(load(str(file)))
        keeper = service._keeper
        assert keeper is not None
        self.assertEqual(keeper._configuration.limits, Limits(sessions=7))  # type: ignore[union-attr]
        file.write_text("[limits]\nsessions = 0\ncolour = 1\n")
        service.reload()
        self.assertEqual(keeper._configuration.limits, Limits(sessions=7))  # type: ignore[union-attr]
        first, second, last = self.lines[-3:]
        self.assertTrue(first.startswith(f"{file}:2: limits.sessions: "))
        self.assertTrue(second.startswith(f"{file}:3: limits.colour: "))
        self.assertIn("stays as it was", last)
        file.write_text("[limits]\nsessions = 8\n")
        service.reload()
        self.assertEqual(keeper._configuration.limits, Limits(sessions=8))  # type: ignore[union-attr]
        self.assertIn("in force", self.lines[-1])

    def test_no_file(self) -> None:
        service = self.service(Configuration())
        service.reload()
        assert service._keeper is not None
        self.assertEqual(service._keeper._configuration, Configuration())


class ProcessTests(ProcessCase):
    """A keeper as a process, told by SIGHUP."""

    timeout = 120

    async def test_reload(self) -> None:
        """What is changed ends a session that is idle; what is wrong changes nothing, and is told line by line."""
        server = self.serve()
        keeper = await self.keeper()
        borrower = self.borrower()
        await borrower.does("send", "done", labels=["1@test"], at_once=1)
        self.configuration.write_text("[limits]\nsessions = 0\nmax_age = -1\n")
        out = io.StringIO()
        self.assertEqual(await deferToThread(controlling.reload, self.socket, out), 0)
        self.assertIn(f"process {keeper.pid} ", out.getvalue())
        await until(lambda: b"stays as it was" in keeper.output, 20)
        for words in (b"keeper.toml:2: limits.sessions: ", b"keeper.toml:3: limits.max_age: "):
            self.assertIn(words, keeper.output)
        await borrower.does("send", "done", labels=["2@test"], at_once=1)
        self.assertEqual((server.connection_count, server.open_count), (1, 1))
        self.configuration.write_text("[limits]\nmax_age = 100\n")
        await deferToThread(controlling.reload, self.socket, io.StringIO())
        await until(lambda: server.open_count == 0, 20)
        self.assertTrue(keeper.running)
        await borrower.does("send", "done", labels=["3@test"], at_once=1)
        self.check_outcomes([borrower], 3)


class NoKeeperTests(SynchronousTestCase):
    """Who listens there and is no keeper gets no signal."""

    def folder(self) -> str:
        """One with a short name: what a socket's address holds is little."""
        made = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, made)
        return made

    def listening(self, answer: bytes | None) -> str:
        """The path of a socket where somebody gives this answer, or none, and hangs up."""
        path = os.path.join(self.folder(), "socket")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(4096)
                if answer is not None:
                    link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join, 10)
        return path

    def check_refused(self, path: str, *words: str) -> None:
        self.patch(os, "kill", lambda *_: self.fail("a signal was sent"))
        with self.assertRaises(NoKeeper) as caught:
            controlling.reload(path, io.StringIO())
        for word in (path, *words):
            self.assertIn(word, str(caught.exception))

    def test_somebody_else(self) -> None:
        for answer in (None, b"220 smtp.example.com ready\r\n", b"\0\0", b"x" * 5000, AmpBox({b"a": b"b"}).serialize()):
            self.check_refused(self.listening(answer), "no keeper")

    def test_this_process(self) -> None:
        """It answers as a keeper does; but what opened the socket is not one to be sent a signal."""
        box = AmpBox({b"_answer": b"1", b"version": b"1"}).serialize()
        self.check_refused(self.listening(box), f"process {os.getpid()}")

    def test_nobody(self) -> None:
        path = os.path.join(self.folder(), "socket")
        self.check_refused(path, "No such file")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        self.check_refused(path, "refused")

    def test_silence(self) -> None:
        """What does not answer in time is no keeper that could be told."""
        self.patch(controlling, "PATIENCE", 0.1)
        path = os.path.join(self.folder(), "socket")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(path)
            silent.listen()
            self.check_refused(path, "no keeper answers")
