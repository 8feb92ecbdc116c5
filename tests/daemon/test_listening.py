"""Where a keeper listens: paths and who may have been there before, and sockets that systemd passes."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache.daemon import listening
from mailcache.daemon.listening import MAX_PATH, CannotListen, Listener, Place, adopted, check_path, make_folder
from mailcache.daemon.options import Options
from mailcache.daemon.plugin import makeService

reactor: Any = _reactor


def folder_of(case: SynchronousTestCase) -> str:
    """A folder with a short name: what a socket's address holds is little."""
    folder = tempfile.mkdtemp()
    case.addCleanup(shutil.rmtree, folder)
    return folder


class PlaceTests(SynchronousTestCase):
    def test_paths(self) -> None:
        for endpoint, path, mode in (
            ("unix:/run/x.sock", "/run/x.sock", 0o600),
            ("unix:/run/x.sock:mode=660", "/run/x.sock", 0o660),
            ("unix:address=/run/x.sock:mode=600", "/run/x.sock", 0o600),
            ("unix:mode=666:address=/run/x.sock", "/run/x.sock", 0o666),
            ("unix:/run/a\\:b.sock:mode=600", "/run/a:b.sock", 0o600),
        ):
            self.assertEqual(Place.parse(endpoint), Place(path, mode))

    def test_passed(self) -> None:
        for endpoint, name in (
            ("systemd", 0),
            ("systemd:domain=UNIX", 0),
            ("systemd:domain=UNIX:index=2", 2),
            ("systemd:name=mailcache", "mailcache"),
        ):
            self.assertEqual(Place.parse(endpoint), Place(None, name=name))

    def test_others(self) -> None:
        for endpoint in ("tcp:25", "unix", "unix:", "", "/run/x.sock", "unix:relative.sock", "unix:/" + "x" * 200,
                         "unix:/run/x.sock:colour=red", "unix:/run/x.sock:mode=rw", "unix:/run/x\0y",
                         "systemd:domain=INET:index=0", "systemd:index=first"):  # fmt: skip
            with self.assertRaises(CannotListen, msg=endpoint) as caught:
                Place.parse(endpoint)
            self.assertIn("unix:", str(caught.exception))


class PathTests(SynchronousTestCase):
    def test_folder_is_made_private(self) -> None:
        path = os.path.join(folder_of(self), "new", "keeper")
        make_folder(path)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)

    def test_folder_that_is_there_stays_as_it_is(self) -> None:
        folder = folder_of(self)
        os.chmod(folder, 0o755)
        make_folder(os.path.join(folder, "keeper"))
        self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o755)

    def test_folder_that_can_not_be_made(self) -> None:
        file = os.path.join(folder_of(self), "file")
        with open(file, "w"):
            pass
        with self.assertRaises(CannotListen) as caught:
            make_folder(os.path.join(file, "keeper"))
        self.assertIn(file, str(caught.exception))

    def test_nobody_there(self) -> None:
        path = os.path.join(folder_of(self), "keeper")
        for takeover in (False, True):
            self.assertIsNone(check_path(path, takeover=takeover))
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        for takeover in (False, True):
            self.assertIsNone(check_path(path, takeover=takeover))

    def test_live_socket(self) -> None:
        """Also one that nobody accepts at: a keeper that stands still."""
        path = os.path.join(folder_of(self), "keeper")
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(path)
            live.listen(0)
            for _ in range(4):
                with self.assertRaises(CannotListen) as caught:
                    check_path(path)
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
            for takeover in (False, True):
                with self.assertRaises(CannotListen) as caught:
                    check_path(path, takeover=takeover)
                self.assertIn(path, str(caught.exception))
            self.assertTrue(os.path.lexists(path))

    def test_plugin_says_why(self) -> None:
        """In a line, and with a status that is no success."""
        options = Options()
        options.parseOptions(["--listen", "tcp:25"])
        with self.assertRaises(SystemExit) as caught:
            makeService(options)
        self.assertIn("unix:PATH", str(caught.exception.code))


class TakeoverTests(SynchronousTestCase):
    """Whose place is taken: only a keeper's, of the same user, in another process."""

    def refusal(self, path: str) -> str:
        with self.assertRaises(CannotListen) as caught:
            check_path(path, takeover=True)
        return str(caught.exception)

    def answering(self, path: str, answer: bytes | None) -> None:
        """Another process listens at ``path``, and gives this answer, or none."""
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                live = socket.socket(socket.AF_UNIX)
                live.bind(path)
                live.listen(5)
                os.write(tell, b"x")
                kept = []
                while True:
                    link, _ = live.accept()
                    kept.append(link)
                    if answer is not None and link.recv(1000):
                        link.sendall(answer)
            finally:
                os._exit(0)
        self.addCleanup(self.end, pid)
        os.read(ready, 1)
        self.other = pid
        os.close(ready)
        os.close(tell)

    def end(self, pid: int) -> None:
        os.kill(pid, 9)
        os.waitpid(pid, 0)

    def test_keeper(self) -> None:
        """It may be of another version, too, and be known by its refusal."""
        for number, answer in enumerate((
            b"\0\7_answer\0\x011\0\7version\0\x012\0\0",
            b"\0\6_error\0\x011\0\x0b_error_code\0\5FAULT\0\x12_error_description\0\x01x\0\0",
        )):  # fmt: skip
            path = os.path.join(folder_of(self), f"keeper{number}")
            self.answering(path, answer)
            self.assertEqual(check_path(path, takeover=True), self.other)

    def test_somebody_else(self) -> None:
        """What answers otherwise, or not within two seconds, is left alone."""
        self.patch(listening, "ANSWER_LIMIT", 0.2)
        for number, answer in enumerate((b"220 x ESMTP\r\n", b"\0\0", b"", None)):
            path = os.path.join(folder_of(self), f"other{number}")
            self.answering(path, answer)
            self.assertIn("does not answer as a keeper", self.refusal(path))

    def test_own_process(self) -> None:
        path = os.path.join(folder_of(self), "keeper")
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(path)
            live.listen()
            self.assertIn(f"process {os.getpid()}", self.refusal(path))

    def test_another_user(self) -> None:
        path = os.path.join(folder_of(self), "keeper")
        self.patch(os, "geteuid", lambda: 54_321)
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(path)
            live.listen()
            self.assertIn("user", self.refusal(path))


class ListenerTests(TestCase):
    timeout = 30

    def listener(self, path: str, **settings: Any) -> tuple[Listener, list[Protocol]]:
        """A listener that listens, and what is connected to it."""
        accepted: list[Protocol] = []
        factory: Any = Factory()
        factory.noisy = False

        def build(_: object) -> Protocol:
            accepted.append(Protocol())
            return accepted[-1]

        factory.buildProtocol = build
        found = Listener(reactor, Place(path, **settings))
        found.open(factory)
        self.addCleanup(found.close)
        return found, accepted

    async def test_mode(self) -> None:
        """It is as asked, whatever the process's mask is, and the mask is as it was."""
        folder = folder_of(self)
        before = os.umask(0o022)
        self.addCleanup(os.umask, before)
        for mode in (0o600, 0o660, 0o666):
            path = os.path.join(folder, f"{mode:o}")
            self.listener(path, mode=mode)
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), mode)
        self.assertEqual(os.umask(0o022), 0o022)

    async def test_never_there_with_another_mode(self) -> None:
        """What is renamed to the path listens already, and has its mode."""
        path = os.path.join(folder_of(self), "keeper")
        rename = os.rename
        seen: list[tuple[int, bool]] = []

        def looking(new: str, to: str) -> None:
            with socket.socket(socket.AF_UNIX) as probe:
                seen.append((stat.S_IMODE(os.stat(new).st_mode), probe.connect_ex(new) == 0))
            rename(new, to)

        self.patch(os, "rename", looking)
        self.listener(path, mode=0o660)
        self.assertEqual(seen, [(0o660, True)])

    async def test_nothing_is_left(self) -> None:
        folder = folder_of(self)
        path = os.path.join(folder, "keeper")
        for left in (path, path + ".new"):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(left)
        found, _ = self.listener(path)
        self.assertEqual(os.listdir(folder), ["keeper"])
        await found.close()
        self.assertEqual(os.listdir(folder), [])
        await found.close()

    async def test_longest_path(self) -> None:
        folder = folder_of(self)
        path = os.path.join(folder, "k" * (MAX_PATH - len(folder) - 1))
        found, _ = self.listener(path)
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(path)
            await found.close()

    async def test_path_of_another(self) -> None:
        """Who has been taken over from leaves the path alone."""
        path = os.path.join(folder_of(self), "keeper")
        first, _ = self.listener(path)
        self.patch(listening, "check_path", lambda path, takeover: None)
        second, accepted = self.listener(path)
        await first.close()
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(path)
            await second.close()
        self.assertEqual(len(accepted), 1)
        self.assertFalse(os.path.lexists(path))

    async def test_path_that_is_gone(self) -> None:
        path = os.path.join(folder_of(self), "keeper")
        found, _ = self.listener(path)
        os.unlink(path)
        await found.close()

    async def test_those_that_wait_are_accepted(self) -> None:
        """Who has connected before the end is not cut off."""
        path = os.path.join(folder_of(self), "keeper")
        found, accepted = self.listener(path)
        links = [socket.socket(socket.AF_UNIX) for _ in range(120)]
        for link in links:
            self.addCleanup(link.close)
            link.connect(path)
        self.assertEqual(accepted, [])
        closed = found.close()
        self.assertEqual(len(accepted), 120)
        await closed
        for protocol in accepted:
            protocol.transport.abortConnection()  # type: ignore[union-attr]

    async def test_started_together(self) -> None:
        """One of them has it; the others hear so."""
        path = os.path.join(folder_of(self), "keeper")
        self.listener(path)
        with self.assertRaises(CannotListen):
            self.listener(path)

    async def test_folder_is_locked(self) -> None:
        """By one that is just being started: it is waited for, and not for ever; who ends leaves the path to it."""
        folder = folder_of(self)
        path = os.path.join(folder, "keeper")
        found, _ = self.listener(path)
        descriptor = os.open(folder, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.patch(listening, "LOCK_LIMIT", 0.05)
        with self.assertRaises(CannotListen) as caught:
            self.listener(os.path.join(folder, "other"))
        self.assertIn("locked", str(caught.exception))
        await found.close()
        self.assertTrue(os.path.lexists(path))
        self.patch(listening, "LOCK_LIMIT", 5.0)
        thread = Thread(target=self.later(lambda: fcntl.flock(descriptor, fcntl.LOCK_UN)))
        thread.start()
        self.listener(path)
        thread.join()

    def later(self, do: Callable[[], object]) -> Callable[[], None]:
        def wait() -> None:
            import time

            time.sleep(0.05)
            do()

        return wait


class PassedTests(TestCase):
    """Sockets of systemd's."""

    def live(self, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, str]:
        path = os.path.join(folder_of(self), "passed")
        found = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(found.close)
        found.bind(path)
        return found, path

    def test_adopted(self) -> None:
        found, path = self.live()
        found.listen()
        descriptor = os.dup(found.fileno())
        os.set_inheritable(descriptor, True)
        with adopted(descriptor) as passed:
            self.assertEqual((passed.getsockname(), passed.getblocking()), (path, False))
            self.assertFalse(passed.get_inheritable())

    def test_nothing_was_passed(self) -> None:
        for name in (0, 1, "mailcache.socket"):
            with self.assertRaises(CannotListen) as caught:
                Listener(reactor, Place(None, name=name)).check()
            self.assertIn(str(name), str(caught.exception))

    def test_no_listening_stream_socket(self) -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            found, _ = self.live(kind)
            with self.assertRaises(CannotListen) as caught:
                adopted(os.dup(found.fileno()))
            self.assertIn("ListenStream", str(caught.exception))
        with open(os.devnull) as file, self.assertRaises(CannotListen):
            adopted(file.fileno())

    async def test_its_path_is_left_alone(self) -> None:
        """Twisted's own port would give it mode 666, and remove it in the end. Who connects then waits there."""
        found, path = self.live()
        os.chmod(path, 0o640)
        found.listen()
        self.patch(listening, "passed_descriptor", lambda reactor, name: os.dup(found.fileno()))
        listener = Listener(reactor, Place(None))
        factory: Any = Factory.forProtocol(Protocol)
        factory.noisy = False
        made: Deferred[Any] = Deferred()
        factory.buildProtocol = lambda _: made.callback(None) or Protocol()
        listener.open(factory)
        link = await connectProtocol(UNIXClientEndpoint(reactor, path), Protocol())
        await made
        link.transport.abortConnection()
        with socket.socket(socket.AF_UNIX) as late:
            await listener.close()
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o640)
            late.connect(path)
            found.accept()[0].close()
