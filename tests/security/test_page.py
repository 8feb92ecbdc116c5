"""SECURITY.md: the tests that it names are there, and those that are there for it are named."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.pages import ROOT
from tests.security import test_wrong_reuse

PAGE = (ROOT / "SECURITY.md").read_text()


def named() -> set[str]:
    """The modules of tests that are named, in a row or a command."""
    return set(re.findall(r"\btests(?:\.\w+)+", PAGE))


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its titles."""
    _, _, below = PAGE.partition(f"\n## {heading}\n")
    lines = [line for line in below.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


class Page(SynchronousTestCase):
    def test_names_modules_that_exist(self) -> None:
        self.assertGreater(len(named()), 20)
        for module in named():
            self.assertTrue((ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module)

    def test_names_all_of_its_own(self) -> None:
        own = {f"tests.security.{path.stem}" for path in Path(__file__).parent.glob("test_*.py")}
        self.assertEqual(own - named(), set())

    def test_shows_for_every_promise_how_it_is_tested(self) -> None:
        promises = re.findall(r"(?m)^(\d+)\. \*\*", PAGE)
        self.assertEqual(promises, [str(number + 1) for number in range(len(promises))])
        table = rows("How it is tested")
        self.assertEqual({number for row in table for number in re.findall(r"\d+", row[0])}, set(promises))
        for _, tried, by in table:
            self.assertTrue(tried)
            self.assertTrue(re.search(r"\btests\.", by), tried)

    def test_counts_the_advisories(self) -> None:
        found = re.search(r"(\d+) mistakes from advisories", PAGE)
        assert found is not None
        self.assertEqual(int(found[1]), len(list(test_wrong_reuse.advisories(test_wrong_reuse.Advisories()))))
