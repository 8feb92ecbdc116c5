"""The pages of docs/ as programs: their blocks, and what runs them.

What stands behind "python" in a block's first line says what it is:

=============  ====================================================================================================
(nothing)      runs in the page's own namespace, behind the blocks before it; ``await`` works as in a coroutine
``program``    a file of its own; a block of text right behind it is what it prints
``fragment``   only compiled: what it is part of is not on the page
=============  ====================================================================================================
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

import mailcache
from mailcache import Envelope, MemorySessionCache, RemoteSessionCache, memory
from mailcache.remote import client, keeper
from mailcache.remote.keeper import Keeper
from mailcache.testing import MemoryPairs, MemoryReactor, SMTPServer
from tests.helpers import authority, ca_file

ROOT = Path(mailcache.__file__).parent.parent
LIMIT = 120.0
PORT = 2525
KEEPER = "/run/mailcache/mailcache.sock"
ADDRESS = "192.0.2.1"
NAMES = ("mail.example.com", "mx.example.com", "other.example.com", "localhost")

_FENCE = re.compile(r"(?ms)^```(?P<language>[^ \n]*)(?: (?P<kind>[^\n]*))?\n(?P<text>.*?)^```$\n?")


@attrs.frozen
class Block:
    """A fenced block of a page. ``output`` is what a program prints, where the page says so."""

    language: str
    kind: str
    text: str
    line: int
    output: str | None = None


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def blocks(name: str, language: str, kind: str = "") -> list[Block]:
    """The blocks of a page in ``language``, in their order."""
    text = page(name)
    found = []
    for fence in _FENCE.finditer(text):
        behind = _FENCE.match(text, fence.end() + 1)
        output = behind["text"] if behind is not None and behind["language"] == "text" else None
        line = text.count("\n", 0, fence.start()) + 2
        found.append(Block(fence["language"], fence["kind"] or "", fence["text"], line, output))
    return [block for block in found if (block.language, block.kind) == (language, kind)]


def table(name: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of a page, without the row of titles."""
    _, _, behind = f"\n{page(name)}".partition(f"\n{heading}\n")
    found = re.search(r"(?m)^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", behind)
    assert found is not None, f"{name} has no table under {heading!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def compiled(name: str, block: Block) -> Any:
    """The code of a block, with the page's own line numbers."""
    tree = compile(block.text, f"docs/{name}", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    ast.increment_lineno(tree, block.line - 1)
    return compile(tree, f"docs/{name}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


class Stage:
    """A network in memory on which a page is played: a strict server, a keeper, a cache and something to send.

    :param patch: replaces an attribute until the test ends.
    """

    def __init__(self, patch: Callable[[Any, str, Any], Any]) -> None:
        self.reactor = reactor = MemoryReactor(latency=0.01, hosts={name: [ADDRESS] for name in NAMES})
        # So that caches which the page makes have the network's time, and its pairs.
        patch(memory, "time", SimpleNamespace(monotonic=reactor.seconds, time=memory.time.time))
        patch(client, "time", SimpleNamespace(monotonic=reactor.seconds))
        pairs = MemoryPairs(reactor)
        patch(client, "SocketPairs", lambda _: pairs)
        patch(keeper, "SocketPairs", lambda _: pairs)
        certificate = authority().issue(names=NAMES, addresses=(ADDRESS,))
        self.server = SMTPServer(reactor, certificate=certificate, users={"user": "secret"})
        for port in (25, 587):
            self.server.listen(port, ADDRESS)
        self.keeper = Keeper(reactor, MemorySessionCache(reactor))
        reactor.listenUNIX(KEEPER, self.keeper)
        self.names: dict[str, Any] = {
            "reactor": reactor,
            "server": self.server,
            "ca_file": ca_file(),
            "cache": MemorySessionCache(reactor),
            "envelope": Envelope("a@example.com", ["b@example.com"]),
            "content": b"Subject: hi\r\n\r\nhello\r\n",
        }

    def play(self, name: str, block: Block) -> None:
        """Run a block, to the end of all that it awaits."""
        running = eval(compiled(name, block), self.names)
        if not inspect.iscoroutine(running):
            return
        ended: list[Any] = []
        Deferred.fromCoroutine(running).addBoth(ended.append)
        self.reactor.run_until(lambda: ended, 10_000)
        if isinstance(ended[0], Failure):
            ended[0].raiseException()

    def leave(self) -> None:
        """Close what the page has left open."""
        caches = [each for each in self.names.values() if isinstance(each, (MemorySessionCache, RemoteSessionCache))]
        for closing in (*[cache.close() for cache in caches], self.keeper.close()):
            ended: list[Any] = []
            closing.addBoth(ended.append)
            self.reactor.run_until(lambda ended=ended: ended)


@contextmanager
def scripted_server() -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """``python -m mailcache.testing``: its port, and what ends it and gives what it has seen."""
    with subprocess.Popen(
        [sys.executable, "-m", "mailcache.testing"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None

        def seen() -> dict[str, Any]:
            said, _ = process.communicate(timeout=LIMIT)
            return dict(json.loads(said))

        try:
            yield json.loads(process.stdout.readline())["port"], seen
        finally:
            process.kill()


@contextmanager
def real_keeper() -> Iterator[str]:
    """``twist mailcache``: the path where it listens."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/mailcache.sock"
        command = [sys.executable, "-m", "twisted", "mailcache", "--listen", f"unix:{path}:mode=600"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            try:
                said = b""
                while b"lending sessions" not in said:
                    line = process.stdout.readline()
                    assert line, said.decode(errors="replace")
                    said += line
                yield path
            finally:
                process.terminate()
                process.communicate(timeout=LIMIT)


def run_program(program: str, file: Path, **replaced: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a process of its own, with nothing of it changed but what is ``replaced``: port and path."""
    program = program.replace(str(PORT), replaced["port"]).replace(KEEPER, replaced.get("keeper", KEEPER))
    file.write_text(program)
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", file],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
