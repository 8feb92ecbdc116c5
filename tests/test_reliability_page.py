"""docs/reliability.md: the commands of its figures are there, take the options that it gives, and none is left out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.pages import ROOT, page

NIGHTLY = Path(__file__).parent / "nightly"
COMMAND = re.compile(r"`python -m (tests\.[\w.]+)([^`]*)`")


def commands() -> dict[str, set[str]]:
    """The modules that are run, with the options of all their runs."""
    found: dict[str, set[str]] = {}
    for module, arguments in COMMAND.findall(page("reliability.md")):
        options = {word for word in shlex.split(arguments) if word.startswith("--")}
        found.setdefault(module, set()).update(options)
    return found


class ReliabilityPage(SynchronousTestCase):
    def test_the_commands_take_what_is_said(self) -> None:
        helps = {
            module: subprocess.Popen(
                [sys.executable, "-m", module, "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for module in commands()
        }
        self.assertGreater(len(helps), 10)
        for module, process in helps.items():
            said = process.communicate(timeout=60)[0].decode()
            self.assertEqual(process.returncode, 0, said)
            for option in commands()[module]:
                self.assertIn(option, said, module)

    def test_every_command_has_its_figures(self) -> None:
        there = {f"tests.nightly.{path.stem}" for path in NIGHTLY.glob("*.py") if is_command(path)}
        self.assertEqual(there - commands().keys(), set())


def is_command(path: Path) -> bool:
    """Whether people run it: it ends with a call of its main, and is no process of another one's."""
    text = path.read_text()
    return '__name__ == "__main__"' in text and f"python -m tests.nightly.{path.stem}" in text
