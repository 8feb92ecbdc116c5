"""The pages of docs/: their examples run, their tables are true, and the design names the modules that there are."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

import mailcache
from mailcache import Credentials, DeliveryError, Limits, Timeouts, TLSPolicy, cli, testing
from mailcache.authentication import REMEMBERED
from mailcache.choosing import MAX_ADDRESSES
from mailcache.daemon.config import load
from mailcache.daemon.options import Options
from mailcache.demand import BACK_TO_BACK
from mailcache.memory import CLOSE_LIMIT
from mailcache.misses import miss_reason
from mailcache.remote.codec import MAX_DESTINATION
from mailcache.remote.fallback import FALLBACK_LIMITS
from mailcache.remote.link import FIRST_PAUSE, LONGEST_PAUSE, PING_PATIENCE
from mailcache.routing import health
from mailcache.testing import Authority, Fault
from mailcache.trust.opportunism import PATIENCE
from mailcache.trust.policy import LEVELS
from mailcache.wire import one_flight, sasl
from mailcache.wire.content import CHUNK
from tests.helpers import Bed, ca_file
from tests.pages import (
    KEEPER,
    LIMIT,
    ROOT,
    Stage,
    blocks,
    compiled,
    page,
    real_keeper,
    run_program,
    scripted_server,
    table,
)

PACKAGE = Path(mailcache.__file__).parent
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
OTHERWISE = {"testing.md", "dropins.md"}
"""Pages whose examples are run by tests of their own, below."""


class ExampleTests(SynchronousTestCase):
    """All Python that is on a page, but for the pages with tests of their own."""

    def play(self, name: str) -> None:
        """The blocks of a page that are no programs, on a network in memory."""
        stage = Stage(self.patch)
        for block in blocks(name, "python"):
            stage.play(name, block)
        stage.leave()
        self.assertEqual(stage.server.violations, [])

    def run_programs(self, name: str) -> None:
        """The programs of a page, as processes, with what the page says that they print."""
        for number, program in enumerate(blocks(name, "python", "program")):
            with scripted_server() as (port, seen):
                file = Path(self.mktemp())
                if KEEPER in program.text:
                    with real_keeper() as path:
                        done = run_program(program.text, file, port=str(port), keeper=path)
                else:
                    done = run_program(program.text, file, port=str(port))
                self.assertEqual((done.stderr, done.stdout), ("", program.output), f"program {number} of {name}")
                self.assertEqual(seen()["violations"], [])

    def test_api(self) -> None:
        self.play("api.md")

    def test_api_testing(self) -> None:
        self.play("api_testing.md")

    def test_authentication(self) -> None:
        self.play("authentication.md")

    def test_delivery(self) -> None:
        self.play("delivery.md")

    def test_embedding(self) -> None:
        self.play("embedding.md")

    def test_limits(self) -> None:
        self.play("limits.md")

    def test_sharing(self) -> None:
        self.play("sharing.md")

    def test_tutorial(self) -> None:
        self.play("tutorial.md")

    def test_programs_of_embedding(self) -> None:
        self.run_programs("embedding.md")

    def test_programs_of_tutorial(self) -> None:
        self.run_programs("tutorial.md")

    def test_none_is_left_out(self) -> None:
        """Every page with examples has a test, and no block is of a kind that nobody runs."""
        for name in set(PAGES) - OTHERWISE:
            for kind, test in (("", "test_"), ("program", "test_programs_of_")):
                if blocks(name, "python", kind):
                    self.assertTrue(hasattr(self, test + name.removesuffix(".md")), f"{name}: {kind}")
            for title in re.findall(r"(?m)^ *```(python.*)$", page(name)):
                self.assertIn(title, ("python", "python program", "python fragment"), name)

    def test_fragments(self) -> None:
        """What can't be run is Python at least; drop-ins has them behind its program."""
        for name in PAGES:
            for block in (*blocks(name, "python", "fragment"), *(blocks(name, "python") if name in OTHERWISE else ())):
                compiled(name, block)

    def test_a_wrong_example_is_noticed(self) -> None:
        """That is, the blocks do run, to their end."""
        stage = Stage(self.patch)
        (block, *_) = blocks("delivery.md", "python")
        spoilt = attrs.evolve(block, text=block.text + "assert server.message_count == 3\n")
        error = self.assertRaises(AssertionError, stage.play, "delivery.md", spoilt)
        line = page("delivery.md").splitlines().index("assert server.message_count == 2") + 2
        traceback: Any = error.__traceback__
        while traceback.tb_next is not None:
            traceback = traceback.tb_next
        self.assertEqual(traceback.tb_lineno, line)
        stage.leave()

    def test_configuration(self) -> None:
        for name in PAGES:
            for block in blocks(name, "toml"):
                file = Path(self.mktemp())
                file.write_text(block.text)
                load(str(file))

    def test_commands(self) -> None:
        """Those of mailcache are understood, whatever else a line does."""
        found = 0
        for name in PAGES:
            for line in "".join(block.text for block in blocks(name, "sh")).splitlines():
                words = shlex.split(line.partition(" < ")[0], comments=True)
                if words[:2] == ["twist", "mailcache"]:
                    given = [word for word in words[2:] if not word.endswith(".toml") and word != "--config"]
                    Options().parseOptions(given)
                    found += 1
                elif words[:1] == ["mailcache"]:
                    cli.parser().parse_args(words[1:])
                    found += 1
        self.assertEqual(found, 3)


class ReferenceTests(SynchronousTestCase):
    def check(self, name: str, package: Any) -> None:
        entries = re.split(r"(?m)^## ", page(name))[1:]
        by_name = {entry.splitlines()[0]: entry for entry in entries}
        for public in package.__all__:
            self.assertIn(public, by_name, f"{name} has no entry for it")
            entry = by_name[public]
            self.assertRegex(entry, rf"(?m)^\.\. \S+:: {package.__name__}\.{public}$")
            examples = re.findall(r"(?ms)^```python\n(.*?)^```$", entry)
            used = {node.id for text in examples for node in ast.walk(self.parsed(text)) if isinstance(node, ast.Name)}
            self.assertIn(public, used, f"{name} has no example of it")
            described = getattr(package, public)
            if isinstance(described, (type, FunctionType)):
                self.assertTrue(described.__doc__, public)

    @staticmethod
    def parsed(text: str) -> ast.AST:
        tree: ast.AST = compile(text, "example", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return tree

    def test_every_public_name_has_an_entry_with_an_example(self) -> None:
        self.check("api.md", mailcache)

    def test_every_name_for_tests_too(self) -> None:
        self.check("api_testing.md", testing)

    def test_every_page_is_in_the_index(self) -> None:
        listed = re.findall(r"(?m)^([a-z_-]+)$", "".join(block.text for block in blocks("index.md", "{toctree}")))
        self.assertEqual(sorted(f"{name}.md" for name in listed), sorted(set(PAGES) - {"index.md"}))


class TableTests(SynchronousTestCase):
    """What tables and sentences say is so."""

    def test_fields(self) -> None:
        """Each field of `Limits` and `Timeouts` with its default, in their order."""
        for heading, kind in (("## Limits", Limits), ("## Time-outs", Timeouts)):
            rows = [(name, default) for name, default, _ in table("limits.md", heading)]
            defaults = {None: "none", "always": '"always"'}
            fields = [
                (f"`{field.name}`", defaults.get(field.default, str(field.default))) for field in attrs.fields(kind)
            ]
            self.assertEqual(rows, fields)

    def test_phases(self) -> None:
        """Those that the docstring of `DeliveryError` has."""
        text = re.search(r"(?s):ivar phase:(.*?):ivar", DeliveryError.__doc__ or "")
        assert text is not None
        phases = [row[0].strip("`") for row in table("delivery.md", "## Errors")]
        self.assertEqual(phases, re.findall(r'"(\w+)"', text[1]))

    def test_statuses(self) -> None:
        for number, name, _ in table("embedding.md", "## From a shell"):
            self.assertEqual(getattr(os, name.strip("`")), int(number))

    def test_levels(self) -> None:
        self.assertEqual([row[0].strip("`") for row in table("sharing.md", "## TLS levels")], list(LEVELS))

    def policy(self, level: str) -> TLSPolicy:
        named = {"ca_file": ca_file()} if level in ("verify", "secure") else {}
        return TLSPolicy(level, fingerprints=["ab" * 32] if level == "fingerprint" else (), **named)

    def outcome(self, policy: TLSPolicy, **bed: Any) -> str:
        """In the table's words."""
        got = Bed(tls=policy, **bed).deliver()
        if isinstance(got, DeliveryError):
            self.assertTrue(got.retriable)
            return f"`{got.phase}`"
        return "TLS" if got.session.tls else "clear text"

    def test_what_happens_without_tls(self) -> None:
        _, _, below = page("sharing.md").partition("\n## TLS levels\n")
        rows = re.findall(r"(?m)^\| `(\w+)` \|((?:[^|\n]+\|){4})$", below)
        self.assertEqual([level for level, _ in rows], list(LEVELS))
        stranger = Authority().issue()
        for level, cells in rows:
            policy = self.policy(level)
            said = [cell.strip() for cell in cells.strip("|").split("|")]
            happens = [
                self.outcome(policy, server={"certificate": None}),
                self.outcome(policy, faults=[Fault("starttls", "4xx")]),
                self.outcome(policy, faults=[Fault("handshake", "garbage")]),
                self.outcome(policy, server={"certificate": stranger}),
            ]
            self.assertEqual(said, happens, level)
            if level != "none":
                self.assertEqual(self.outcome(policy, faults=[Fault("starttls", "421")]), "`starttls`")

    def test_credentials_stay_out_of_clear_text(self) -> None:
        for bed in ({"server": {"certificate": None}}, {"faults": [Fault("starttls", "4xx")]}):
            found = self.outcome(TLSPolicy("may"), credentials=Credentials("user", "secret"), **bed)
            self.assertEqual(found, "`auth`")

    def test_mechanisms(self) -> None:
        rows = [row[1] for row in table("authentication.md", "# Authentication")]
        lists = (sasl.FOR_PASSWORDS, sasl.FOR_PASSWORDS_IN_CLEAR, sasl.FOR_TOKENS, sasl.FOR_CERTIFICATES)
        self.assertEqual(rows, [", ".join(names) for names in lists])

    def test_misses(self) -> None:
        """The words of `miss_reason`, but for the fields of the key."""
        words = [row[0].strip("`") for row in table("sharing.md", "## Why a session was not shared")][:-1]
        for word in words:
            self.assertIn(f'"{word}"', miss_reason.__doc__ or "")
        self.assertEqual(len(words), 7)

    def test_numbers(self) -> None:
        """Where a page has a number, it is the one in the code."""
        for name, words, value, expected in (
            ("tutorial.md", "A session that nobody uses is kept for 30 seconds", Limits().idle_timeout, 30),
            ("tutorial.md", "A thousand may wait at one time", Limits().waiters, 1000),
            ("embedding.md", "30 seconds to come to their end", CLOSE_LIMIT, 30),
            ("embedding.md", "does not answer for a second", PING_PATIENCE, 1),
            ("embedding.md", "kept for two seconds", FALLBACK_LIMITS.idle_timeout, 2),
            ("embedding.md", "one session for each destination", FALLBACK_LIMITS.sessions_per_destination, 1),
            ("embedding.md", "again after half a second", FIRST_PAUSE, 0.5),
            ("embedding.md", "ten seconds at most", LONGEST_PAUSE, 10),
            ("embedding.md", "more than 32 KiB", MAX_DESTINATION, 32 * 1024),
            ("sharing.md", "have failed for 300 seconds", PATIENCE, 300),
            ("sharing.md", "is kept for 300 seconds at most", PATIENCE, 300),
            ("sharing.md", "600 seconds after the last failure", 2 * PATIENCE, 600),
            ("delivery.md", "the next address, five at most", MAX_ADDRESSES, 5),
            ("delivery.md", "a quarter of a second at first", health.FIRST_PAUSE, 0.25),
            ("delivery.md", "a minute at most", health.LONGEST_PAUSE, 60),
            ("delivery.md", "65,536 bytes at most", one_flight.MAX_CONTENT, 65_536),
            ("delivery.md", "less than a second old", one_flight.FRESH, 1),
            ("delivery.md", "pieces of 64 KiB", CHUNK, 64 * 1024),
            ("limits.md", "from the third failure in a row on", health.FREE_FAILURES + 1, 3),
            ("limits.md", "within a second of each other's end", BACK_TO_BACK, 1),
            ("authentication.md", "is remembered for an hour", REMEMBERED, 3600),
        ):
            self.assertIn(words, " ".join(page(name).split()), name)
            self.assertEqual(value, expected, f"{name}: {words}")


class TestingPageTests(SynchronousTestCase):
    def test_examples(self) -> None:
        """All of them, as the one file that the page says they are."""
        examples = re.findall(r"(?ms)^```python\n(.*?)^```$", page("testing.md"))
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "test_page.py").write_text("\n".join(examples))
        done = subprocess.run(
            [sys.executable, "-m", "twisted.trial", "test_page"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        self.assertIn("PASSED (successes=3)", done.stdout, done.stdout + done.stderr)

    def test_names(self) -> None:
        """Every public name is on the page, but for those that belong to another's description."""
        parts = {"CAPABILITIES", "Connection", "HIGH_WATER", "Issued", "MemoryTransport", "Message", "ServerTLS"}
        parts |= {"Verdict", "WINDOW"}
        for name in set(testing.__all__) - parts:
            self.assertIn(f"`{name}`", page("testing.md"))


class DropinsPageTests(SynchronousTestCase):
    def test_example(self) -> None:
        """The program runs, with nothing of it changed but the port: four messages over one session."""
        program, *_ = blocks("dropins.md", "python")
        with scripted_server() as (port, seen):
            done = run_program(program.text, Path(self.mktemp()), port=str(port))
            found = seen()
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.stdout.count("(1, [(b'b@example.com', 250, b'2.1.5 "), 4, done.stdout)
        self.assertEqual(found, {"connections": 1, "handshakes": 1, "messages": 4, "octets": 100, "violations": []})


class DesignPageTests(SynchronousTestCase):
    def test_layout(self) -> None:
        """It names every module and no other; testing/ has a page of its own."""
        (layout,) = re.findall(r"(?ms)^```\n(mailcache/\n.*?)^```$", page("design.md"))
        named = set()
        folder = ""
        for line in layout.splitlines()[1:]:
            entry = re.match(r"( +)((?:[a-z_]+(?:\.py|/) ?)+)", line)
            assert entry is not None, line
            if len(entry[1]) == 2:
                folder = ""
            for name in entry[2].split():
                if name.endswith("/"):
                    folder = name
                else:
                    named.add(folder + name)
        modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
        there = {name for name in modules if not re.match(r"testing/|\w+/__init__\.py", name)}
        self.assertEqual(named, there)
