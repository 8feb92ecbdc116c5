"""Secrets: a canary as password or token, by every mechanism and however it ends, is in nothing that anybody can read.

What goes wrong in the content, at the codec or with wrong types is in `tests.remote.test_secrets`.
"""

from __future__ import annotations

import base64
import copy
import gc
import io
import json
import os
import pickle
import signal
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import CoroutineType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType, TracebackType
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure

from mailcache import (
    Credentials,
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    RemoteSessionCache,
    Timeouts,
    controlling,
    deliver,
)
from mailcache.testing import Fault
from mailcache.wire import sasl
from tests.helpers import SMALL, Bed, KeeperBed, ca_file, verifying
from tests.remote.processes import ROOT, ProcessCase, until
from tests.remote.test_secrets import Listening, forms, of_error

reactor: Any = _reactor

SECRET = "c4n4ry/93c7+5b1e-kanarienvogel~e02f=="
"""It looks different in each form, and is a password and a token alike."""

USER = "ann"

MECHANISMS = {
    **dict.fromkeys(sasl.FOR_PASSWORDS, Credentials(USER, SECRET)),
    **dict.fromkeys(sasl.FOR_TOKENS, Credentials(USER, token=SECRET)),
}
"""Every mechanism that has a secret, and the credentials for it."""


def all_forms(secret: str) -> frozenset[str]:
    """`forms`, and what programs make of a text on its way into URLs, JSON and Python."""
    data = secret.encode()
    shapes = {urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
    shapes.add(secret[2:-2].replace("/", "\\/"))
    urlsafe = {base64.urlsafe_b64encode(b"\0" * before + data).decode()[4:-4] for before in range(3)}
    return frozenset(forms(secret) | shapes | urlsafe | {data.hex().upper(), data.hex(" "), data.hex(":")})


FORMS = all_forms(SECRET)


def ours(value: object) -> bool:
    """Whether it is an object of the library's, which has a repr of its own."""
    return type(value).__module__.startswith("mailcache") and not type(value).__module__.startswith("mailcache.testing")


STOPS = (ModuleType, type, str, bytes, int, TracebackType, FrameType, CoroutineType, GeneratorType)
"""What is not walked through: a frame has the secret that its function was given, and shows it to nobody."""


def reachable(*roots: object) -> Iterator[object]:
    """All of the library's objects that can be reached from these, and Deferreds, whose repr has their result's."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, STOPS):
            continue
        seen.add(id(value))
        if ours(value) or isinstance(value, (Deferred, Failure)):
            yield value
        elif not isinstance(value, (dict, list, tuple, set, frozenset, FunctionType, MethodType)) and (
            type(value).__module__ not in ("builtins", "collections", "functools")
        ):
            continue
        if isinstance(value, FunctionType):
            waiting += [cell.cell_contents for cell in value.__closure__ or () if gc.is_tracked(cell)]
        else:
            waiting += gc.get_referents(value)


class SecretCase(Listening):
    """Hears all that is logged; nothing of it, nor of what else is checked, may have the secret."""

    def check_texts(self, *texts: str) -> None:
        self.check(texts, FORMS)  # type: ignore[arg-type]

    def check_all(self, *roots: object) -> int:
        """Each object's texts, and its pickle if it has one; gives how many there were."""
        count = 0
        for value in reachable(*roots):
            count += 1
            self.check_texts(repr(value), str(value))
            if isinstance(value, BaseException):
                self.check_texts(*of_error(value))
        self.check_texts(*self.texts)
        return count


class FormTests(SecretCase):
    """What is looked for is found."""

    def test_forms(self) -> None:
        data = SECRET.encode()
        for text in (
            f"x{SECRET}y", data.hex(), data.hex().upper(), base64.b64encode(data).decode(),
            base64.b64encode(b"\0ann\0" + data).decode(), base64.urlsafe_b64encode(b"n,a=ann" + data).decode(),
            urllib.parse.quote(SECRET), urllib.parse.quote(SECRET, safe=""), urllib.parse.urlencode({"p": SECRET}),
            json.dumps([SECRET]), repr(data),
        ):  # fmt: skip
            self.assertRaises(AssertionError, self.check_texts, text)

    def test_objects_are_reached(self) -> None:
        class Holder:
            __module__ = "mailcache.somewhere"

            def __repr__(self) -> str:
                return SECRET

        kept = Holder()
        for root in ([kept], {"a": (kept,)}, lambda: kept, Deferred().addCallback(lambda _: kept)):
            self.assertRaises(AssertionError, self.check_all, root)


class MechanismTests(SecretCase):
    """Every mechanism, however it ends, in memory and with a keeper."""

    def bed(self, name: str, kind: type[Bed], fault: Fault | None = None, secret: str = SECRET) -> Bed:
        bed = kind(
            faults=[] if fault is None else [fault],
            timeouts=Timeouts(auth=2, dot=2),
            credentials=MECHANISMS[name],
            server={"mechanisms": (name,), "users": {USER: secret}},
        )
        self.addCleanup(bed.close)
        return bed

    def each(self) -> Iterator[tuple[str, type[Bed]]]:
        for name in MECHANISMS:
            for kind in (Bed, KeeperBed):
                yield name, kind

    def check_bed(self, bed: Bed, value: Any, *, phase: str | None) -> None:
        """:param phase: where the delivery has failed; ``None`` if it has not."""
        if phase is None:
            self.assertIsInstance(value, DeliveryResult)
        else:
            self.assertEqual(getattr(value, "phase", None), phase, repr(value))
        counts = bed.statistics()
        keeper = getattr(bed, "keeper", None)
        borrowers = [] if keeper is None else list(keeper.borrowers)
        accounts = list(bed.kept.accounts()) if isinstance(bed, KeeperBed) else list(bed.cache.accounts())
        found = self.check_all(bed.cache, bed.destination, keeper, borrowers, value, accounts)
        self.assertGreater(found, 20)
        self.check_texts(repr(counts), json.dumps(counts), repr(value), str(value), repr(accounts))
        if isinstance(value, BaseException):
            self.check_texts(*of_error(value), *of_error(Failure(value).value))

    def test_success(self) -> None:
        for name, kind in self.each():
            bed = self.bed(name, kind)
            for _ in range(2):
                self.check_bed(bed, bed.deliver(), phase=None)
            self.assertEqual(bed.server.connections[0].commands.count(f"AUTH {name}"), 1)
            self.assertEqual(bed.server.connections[0].user, USER)

    def test_in_the_middle(self) -> None:
        """While AUTH is under way everything is there: the mechanism, what was said, and who waits."""
        for name, kind in self.each():
            bed = self.bed(name, kind, Fault("auth", "slow"))
            outcome = bed.start()
            bed.reactor.run_until(lambda bed=bed: bed.server.fired)  # type: ignore[misc]
            self.assertFalse(outcome.done)
            self.check_all(bed.cache, getattr(bed, "keeper", None), outcome.deferred)
            bed.finish(outcome)

    def test_refused(self) -> None:
        for name, kind in self.each():
            bed = self.bed(name, kind, secret="another")
            self.check_bed(bed, bed.deliver(), phase="auth")

    def test_refused_with_the_secret_in_the_reply(self) -> None:
        """As it was said, which is in base64; and in clear."""
        for name, kind in self.each():
            # What crosses as it is: the other mechanisms have only said what was made of it.
            crossed = SECRET.encode() if name == "LOGIN" else MECHANISMS[name].makers()[name]().initial() or b""
            for said in (SECRET, base64.b64encode(crossed).decode()):
                bed = self.bed(name, kind)
                bed.server.verdict = lambda point, *_, said=said: (  # type: ignore[misc]
                    f"535 5.7.8 no {said}\r\n".encode() if point == "auth" else None
                )
                self.check_bed(bed, bed.deliver(), phase="auth")

    def test_time_out_and_cut(self) -> None:
        for name, kind in self.each():
            for fault in ("silence", "rst", "garbage", "421"):
                bed = self.bed(name, kind, Fault("auth", fault, times=9))
                value = bed.deliver()
                self.assertIsInstance(value, DeliveryError)
                self.check_bed(bed, value, phase=value.phase)

    def test_cancelled(self) -> None:
        for name, kind in self.each():
            bed = self.bed(name, kind, Fault("auth", "silence"))
            outcome = bed.start()
            bed.reactor.run_until(lambda bed=bed: bed.server.fired)  # type: ignore[misc]
            outcome.deferred.cancel()
            self.check_all(bed.cache, bed.finish(outcome))
            self.check_texts(*of_error(outcome.value))

    def test_defect(self) -> None:
        """One in the exchange itself, where the secret is at hand, and logged with its traceback."""
        for name, kind in self.each():
            bed = self.bed(name, kind)

            def defect(*_: Any) -> bytes:
                raise RuntimeError("a defect")

            maker = type(MECHANISMS[name].makers()[name]())
            saved = maker.initial, maker.respond
            maker.initial = maker.respond = defect  # type: ignore[method-assign, assignment]
            try:
                value = bed.deliver()
            finally:
                maker.initial, maker.respond = saved  # type: ignore[method-assign]
            self.assertTrue(self.flushLoggedErrors(RuntimeError), name)
            self.assertIsInstance(value, Exception)
            self.check_all(bed.cache, value)
            self.check_texts(*of_error(value))

    def test_keeper_that_fails(self) -> None:
        """AMP's own errors: no descriptor, a link that ends, and a destination that it does not take."""
        for name in MECHANISMS:
            for failure in ("pair", "link", "version"):
                bed: Any = self.bed(name, KeeperBed, Fault("auth", "slow"))
                bed.pairs.failing = failure == "pair"
                outcome = bed.start()
                bed.reactor.run_until(lambda bed=bed: bed.server.fired)
                if failure == "link":
                    for borrower in list(bed.keeper.borrowers):
                        borrower.drop("the test has it")
                bed.pairs.failing = failure == "pair"
                self.check_all(bed.cache, bed.keeper, bed.finish(outcome))
                bed.pairs.failing = False


class PickleTests(SecretCase):
    """Who holds a secret is in no pickle."""

    def test_credentials(self) -> None:
        for credentials in (Credentials(USER, SECRET), Credentials(USER, token=SECRET)):
            for value in (
                credentials,
                Destination("[mx.test]", credentials=credentials),
                Destination("[mx.test]", credentials=credentials).identity,
            ):
                for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                    error = self.assertRaises(TypeError, pickle.dumps, value, protocol)
                    self.check_texts(*of_error(error))
                self.assertEqual(copy.deepcopy(value), value)
                self.assertEqual(copy.copy(value), value)

    def test_others(self) -> None:
        """What a delivery gives can be."""
        bed = Bed(credentials=Credentials(USER, SECRET), server={"users": {USER: SECRET}})
        result = bed.deliver()
        self.check_texts(repr(pickle.dumps(result)))
        for value in (bed.cache, bed.finish(bed.acquire())):
            self.assertRaises(Exception, pickle.dumps, value)  # noqa: B017  (whatever of it can't be)
        bed.close()


class ProcessTests(ProcessCase, SecretCase):
    """A keeper as a process that logs all there is, and what commands show of it."""

    async def test_keeper(self) -> None:
        """In its arguments, its environment, its log and its figures: nothing, after a reload with errors neither."""
        self.serve(users={USER: SECRET})
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        secret = folder / "secret"
        secret.touch(0o600)
        secret.write_text(SECRET)
        self.socket = f"/tmp/mailcache-{os.getpid()}-{id(self):x}.sock"
        self.addCleanup(lambda: os.path.lexists(self.socket) and os.unlink(self.socket))
        self.configuration = folder / "keeper.toml"
        right = (
            f'[anchors.ca]\nfile = "{ca_file()}"\n[credentials.relay]\nusername = "{USER}"\n'
            f'password_file = "{secret}"\nusers = [{os.getuid()}]\n'
            '[[next_hop]]\nmatch = "*"\ncredentials = "relay"\ntls.anchors = "ca"\n'
        )
        self.configuration.write_text(right)
        keeper = self._spawn(
            "-m", "twisted", f"--reactor={self.reactor_name}", "--log-level=debug", "mailcache",
            "--listen", f"unix:{self.socket}:mode=600", "--config", str(self.configuration),
        )  # fmt: skip
        await until(lambda: os.path.exists(self.socket) or not keeper.running, 20)
        cache = RemoteSessionCache(reactor, f"unix:{self.socket}", fallback=None)
        where = f"[127.0.0.1]:{self.server.port}"
        envelope = Envelope("a@example.com", ["b@example.com"])
        for destination in (
            Destination(where, tls=verifying()),
            Destination(where, tls=verifying(), namespace="own", credentials=Credentials(USER, SECRET)),
        ):
            try:
                await deliver(cache, destination, envelope, SMALL)
            except DeliveryError as error:
                self.check_texts(*of_error(error))
        self.assertEqual(self.server.connections[0].user, USER)
        await self.show(keeper.pid)
        for wrong in (
            f"{right}[credentials.other]\nusername = \"{USER}\"\npassword = '{SECRET}'\nusers = [1]\n",
            f"{right}x = '{SECRET}\n",
            f"[credentials.relay]\nusername = 5\npassword_file = ['{SECRET}']\nusers = '{SECRET}'\n",
        ):
            self.configuration.write_text(wrong)
            before = keeper.output.count(b"stays as it was")
            keeper.kill(signal.SIGHUP)
            await until(lambda before=before: keeper.output.count(b"stays as it was") > before, 20)  # type: ignore[misc]
            checked, err = io.StringIO(), io.StringIO()
            self.assertEqual(controlling.check(str(self.configuration), checked, err), os.EX_CONFIG)
            self.check_texts(checked.getvalue(), err.getvalue())
        self.configuration.write_text(right)
        await deferToThread(controlling.reload, self.socket, io.StringIO())
        await until(lambda: b"is in force" in keeper.output, 20)
        checked = io.StringIO()
        controlling.check(str(self.configuration), checked, checked)
        self.check_texts(checked.getvalue())
        await cache.close()
        keeper.kill(signal.SIGTERM)
        await keeper.ended
        self.assertIn(b"session", keeper.output)
        self.check_texts(keeper.output.decode(errors="replace"), *self.texts)

    async def show(self, pid: int) -> None:
        """What the system and `mailcache show` tell of the keeper, and of this process, which borrows."""
        for process in (pid, os.getpid()):
            for name in ("cmdline", "environ", "status", "comm"):
                self.check_texts(Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace"))
        for more in ((), ("--json",)):
            arguments = ("-m", "mailcache.cli", "show", "--cache", self.socket, *more)
            out, err, status = await getProcessOutputAndValue(
                sys.executable, arguments, {**os.environ, "PYTHONPATH": str(ROOT)}
            )
            self.assertEqual(status, 0, err)
            self.assertIn(b"127.0.0.1", out)
            self.check_texts(out.decode(), err.decode())
