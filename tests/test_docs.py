"""The pages of docs/: the examples run, and the design names the modules that there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mailcache

PACKAGE = Path(mailcache.__file__).parent
ROOT = PACKAGE.parent
LIMIT = 120.0


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


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
        from mailcache import testing

        parts = {"CAPABILITIES", "Connection", "HIGH_WATER", "Issued", "MemoryTransport", "Message", "ServerTLS"}
        parts |= {"Verdict", "WINDOW"}
        for name in set(testing.__all__) - parts:
            self.assertIn(f"`{name}`", page("testing.md"))


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
