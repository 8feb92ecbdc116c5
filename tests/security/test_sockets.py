"""The keeper's socket: nobody connects to it who is not meant to, and nothing is lost to it that was there before."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

import mailcache
from mailcache import MemorySessionCache
from mailcache.daemon.listening import CannotListen, Listener, Place, check_path
from mailcache.remote.configuration import Configuration
from mailcache.remote.guarded import GuardedAMP
from mailcache.remote.keeper import Keeper
from mailcache.remote.users import Permission
from tests.integration.users import ACCESS, ONE, UsersCase
from tests.remote.processes import until

reactor: Any = _reactor

TRIES, STARTS = 10_000, 40
"""How often a stranger tries to connect, and how often a keeper is started meanwhile."""

STRANGER = """
import errno, json, os, socket, stat, sys
path, uid, tries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
said, open_modes, number = {}, [], 0
print("ready", flush=True)
os.set_blocking(0, False)
while number < tries or sys.stdin.buffer.read(1) is None:
    for name in (path, path + ".new"):
        with socket.socket(socket.AF_UNIX) as link:
            number += 1
            result = link.connect_ex(name)
            said[errno.errorcode.get(result, "0")] = said.get(errno.errorcode.get(result, "0"), 0) + 1
        try:
            mode = os.lstat(name).st_mode
            if mode & 0o077:
                open_modes.append(oct(mode))
        except OSError:
            pass
print(json.dumps({"said": said, "open": open_modes[:5], "tries": number}), flush=True)
"""
"""Another user's process, which tries to connect all the time, until its standard input ends."""

COMMAND = """
import os, sys
from mailcache import cli, controlling, showing
from twisted.internet import endpoints, reactor, task, unix
uid = int(sys.argv.pop(1))
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
sys.exit(cli.main(sys.argv[1:]))
"""
"""``mailcache`` as another user runs it."""

CALLER = """
import os, socket, sys
path, uid, data = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
with socket.socket(socket.AF_UNIX) as link:
    link.settimeout(10)
    link.connect(path)
    try:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    try:
        print(len(link.recv(1000)))
    except OSError:
        print(0)
"""
"""Another user's process, which says something, and tells how many bytes it has heard."""


def slowly(do: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with time for a stranger to try what he finds before it and behind it."""

    def done(*arguments: Any, **more: Any) -> Any:
        time.sleep(0.001)
        found = do(*arguments, **more)
        time.sleep(0.001)
        return found

    return done


class StrangerTests(UsersCase):
    """Another user, who may look into the folder."""

    async def test_no_moment_at_which_he_can_connect(self) -> None:
        """10,000 tries while keepers are started and ended, whatever the mask, and a real one too."""
        stranger = subprocess.Popen(
            [sys.executable, "-c", STRANGER, self.path, str(ONE), str(TRIES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(lambda: stranger.poll() is None and stranger.kill())
        assert stranger.stdout is not None and stranger.stdin is not None
        self.assertEqual(await deferToThread(stranger.stdout.readline), "ready\n")
        self.addCleanup(os.umask, os.umask(0))
        for where, name in ((os, "umask"), (socket.socket, "bind"), (os, "chmod"), (socket.socket, "listen"),
                            (os, "rename"), (os, "unlink")):  # fmt: skip
            self.patch(where, name, slowly(getattr(where, name)))
        for _ in range(STARTS):
            listener = Listener(reactor, Place(self.path, 0o600))
            listener.open(Keeper(reactor, MemorySessionCache(reactor)))
            self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
            await listener.close()
        await self.keeper(self.path)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        out, _ = await deferToThread(stranger.communicate)
        told = json.loads(out)
        self.assertGreaterEqual(told["tries"], TRIES)
        self.assertEqual((told["said"].pop("0", 0), told["open"]), (0, []))
        self.assertGreater(told["said"].get("EACCES", 0), 100, told)
        self.assertLessEqual(told["said"].keys(), {"EACCES", "ENOENT", "ECONNREFUSED"})

    async def test_connected_and_not_admitted(self) -> None:
        """Where the socket is open to all: his link ends before anything he says is read."""
        read: list[Any] = []
        self.patch(GuardedAMP, "dispatchCommand", lambda _, box: read.append(box))
        self.patch(GuardedAMP, "box_received", lambda _, box: read.append(box))
        keeper = Keeper(
            reactor, MemorySessionCache(reactor), configuration=Configuration(access=Permission(frozenset({0})))
        )
        port = reactor.listenUNIX(self.path, keeper, mode=0o666)
        self.addCleanup(port.stopListening)
        hello = amp.AmpBox({b"_command": b"Hello", b"_ask": b"1", b"version": b"1"}).serialize()
        arguments = [sys.executable, "-c", CALLER, self.path]
        for uid, heard in ((ONE, False), (0, True)):
            done = await deferToThread(
                subprocess.run, [*arguments, str(uid), (hello * 3).hex()], capture_output=True, text=True, timeout=20
            )
            self.assertEqual((done.stdout, done.stderr), ("0\n", ""))
            self.assertEqual(bool(read), heard, uid)
        await until(lambda: not keeper.borrowers, 5)

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command as another user gives it."""
        return await deferToThread(
            subprocess.run, [sys.executable, "-c", COMMAND, str(ONE), *arguments, "--cache", self.path],
            capture_output=True, text=True, timeout=30, cwd=Path(mailcache.__file__).parents[1],
        )  # fmt: skip

    async def test_reload_and_show(self) -> None:
        """Who can't connect can't have it reload, nor see its figures."""
        keeper = await self.keeper(self.path)
        before = keeper.output
        for command in ("reload", "show"):
            done = await self.command(command)
            self.assertEqual((bool(done.returncode), done.stdout), (True, ""), done.stderr)
            self.assertRegex(done.stderr, f"mailcache {command}: .*(?i:permission denied)")
        self.assertEqual((keeper.running, keeper.output), (True, before))

    async def test_reload_and_show_by_who_may_connect(self) -> None:
        """A signal is for the keeper's own user and root, and of the figures each has his own."""
        self.serve()
        keeper = await self.keeper(self.path, "666", ACCESS)
        await self.borrower().does("send", "done", labels=["1@test"], at_once=1)
        done = await self.command("reload")
        self.assertEqual((bool(done.returncode), done.stdout), (True, ""), done.stderr)
        self.assertIn("can't be told: Operation not permitted", done.stderr)
        done = await self.command("show", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        shown = json.loads(done.stdout)
        self.assertEqual((shown["transactions"], shown["destinations"]), (1, []))
        self.assertTrue(keeper.running)
        self.assertNotIn(b"in force", keeper.output)


class PathTests(SynchronousTestCase):
    """What is there already, and is no socket, is left as it is."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "keeper")

    def test_nothing_but_sockets_is_replaced(self) -> None:
        """At the path, and at the name by which a new socket comes there."""
        victim = os.path.join(self.folder, "victim")
        Path(victim).write_text("precious")
        dead = os.path.join(self.folder, "dead")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(dead)
        for suffix in ("", ".new"):
            place = self.path + suffix
            for make in (
                lambda at: Path(at).write_text("precious"),
                lambda at: os.symlink(victim, at),
                lambda at: os.symlink(dead, at),
                lambda at: os.symlink("/nowhere/at/all", at),
                os.mkdir,
                os.mkfifo,
                lambda at: self.foreign(at, os.mkdir),
                lambda at: self.foreign(at, lambda name: Path(name).write_text("precious")),
            ):
                make(place)  # type: ignore[no-untyped-call]
                before = os.lstat(place)
                for takeover in (False, True):
                    listener = Listener(reactor, Place(self.path), takeover=takeover)
                    error = self.assertRaises(CannotListen, listener.open, Keeper(reactor, MemorySessionCache(reactor)))
                    self.assertIn(place, str(error))
                after = os.lstat(place)
                self.assertEqual((before.st_ino, before.st_mode), (after.st_ino, after.st_mode))
                self.assertEqual(Path(victim).read_text(), "precious")
                os.rmdir(place) if stat.S_ISDIR(after.st_mode) else os.unlink(place)
        self.assertTrue(stat.S_ISSOCK(os.lstat(dead).st_mode))
        self.assertIsNone(check_path(self.path))

    def foreign(self, at: str, make: Callable[[str], object]) -> None:
        """Another user's, where this one can make such a thing."""
        make(at)
        if os.geteuid() == 0:
            os.chown(at, ONE, ONE)
