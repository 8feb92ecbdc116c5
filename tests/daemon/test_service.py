"""The keeper as a service: the path it listens at, its folder, and who may have been there before."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache import Destination, Envelope, RemoteSessionCache, deliver
from mailcache.daemon.config import Configuration
from mailcache.daemon.options import Options
from mailcache.daemon.plugin import makeService
from mailcache.daemon.service import CannotListen, KeeperService, listening_path, take_path
from mailcache.testing import SMTPServer
from tests.helpers import authority, verifying

reactor: Any = _reactor


def folder_of(case: SynchronousTestCase) -> str:
    """A folder with a short name: what a socket's address holds is little."""
    folder = tempfile.mkdtemp()
    case.addCleanup(shutil.rmtree, folder)
    return folder


class PathTests(SynchronousTestCase):
    def test_endpoints(self) -> None:
        for endpoint, path in (
            ("unix:/run/x.sock", "/run/x.sock"),
            ("unix:/run/x.sock:mode=600", "/run/x.sock"),
            ("unix:address=/run/x.sock:mode=600", "/run/x.sock"),
            ("unix:mode=600:address=/run/x.sock", "/run/x.sock"),
            ("unix:/run/a\\:b.sock:mode=600", "/run/a:b.sock"),
        ):
            self.assertEqual(listening_path(endpoint), path)

    def test_other_endpoints(self) -> None:
        for endpoint in ("tcp:25", "unix", "unix:", "", "/run/x.sock", "unix:relative.sock", "unix:/" + "x" * 200,
                         "unix:/run/x.sock:colour=red", "unix:/run/x.sock:mode=rw", "unix:/run/x\0y"):  # fmt: skip
            with self.assertRaises(CannotListen, msg=endpoint) as caught:
                listening_path(endpoint)
            self.assertIn("unix:", str(caught.exception))

    def test_folder_is_made_private(self) -> None:
        path = os.path.join(folder_of(self), "new", "keeper")
        take_path(path)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)

    def test_folder_that_is_there_stays_as_it_is(self) -> None:
        folder = folder_of(self)
        os.chmod(folder, 0o755)
        take_path(os.path.join(folder, "keeper"))
        self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o755)

    def test_folder_that_can_not_be_made(self) -> None:
        file = os.path.join(folder_of(self), "file")
        with open(file, "w"):
            pass
        with self.assertRaises(CannotListen) as caught:
            take_path(os.path.join(file, "keeper"))
        self.assertIn(file, str(caught.exception))

    def test_stale_socket(self) -> None:
        path = os.path.join(folder_of(self), "keeper")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        take_path(path)
        self.assertFalse(os.path.lexists(path))

    def test_live_socket(self) -> None:
        """Also one that nobody accepts at: a keeper that stands still."""
        path = os.path.join(folder_of(self), "keeper")
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(path)
            live.listen(0)
            for _ in range(4):
                with self.assertRaises(CannotListen) as caught:
                    take_path(path)
                self.assertIn("another keeper", str(caught.exception))

    def test_no_socket(self) -> None:
        folder = folder_of(self)
        target = os.path.join(folder, "target")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(target)
        for name, make in (
            ("file", lambda path: open(path, "w").close()),
            ("folder", os.mkdir),
            ("link", lambda path: os.symlink(target, path)),
            ("pipe", os.mkfifo),
        ):
            path = os.path.join(folder, name)
            make(path)  # type: ignore[no-untyped-call]
            with self.assertRaises(CannotListen) as caught:
                take_path(path)
            self.assertIn(path, str(caught.exception))
            self.assertTrue(os.path.lexists(path))

    def test_plugin_says_why(self) -> None:
        """In a line, and with a status that is no success."""
        options = Options()
        options.parseOptions(["--listen", "tcp:25"])
        with self.assertRaises(SystemExit) as caught:
            makeService(options)
        self.assertIn("unix:PATH", str(caught.exception.code))


class ServiceTests(TestCase):
    async def test_life(self) -> None:
        """It listens for its own user only, lends, and leaves nothing behind."""
        folder = folder_of(self)
        path = os.path.join(folder, "private", "keeper")
        server = SMTPServer(reactor, certificate=authority().issue(names=("localhost",), addresses=("127.0.0.1",)))
        server.listen()
        self.addCleanup(server.close)
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
