"""What README.md shows works as it stands there. Its commands are run by .ci/run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mailcache

ROOT = Path(mailcache.__file__).parent.parent
LIMIT = 60.0


def blocks(language: str) -> list[str]:
    """The fenced blocks of README.md in ``language``."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text())


class ReadmeTests(SynchronousTestCase):
    def test_example(self) -> None:
        """Three messages over one session with TLS. Nothing of the example is changed but the port."""
        (example,) = blocks("python")
        self.assertEqual(example.count("2525"), 1)
        with subprocess.Popen(
            [sys.executable, "-m", "mailcache.testing"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            self.addCleanup(server.kill)
            assert server.stdout is not None
            port = json.loads(server.stdout.readline())["port"]
            folder = Path(self.mktemp())
            folder.mkdir()
            program = folder / "example.py"
            program.write_text(example.replace("2525", str(port)))
            done = subprocess.run(
                [sys.executable, program],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
            self.assertEqual(done.stderr, "")
            said, _ = server.communicate(timeout=LIMIT)
        self.assertEqual(
            done.stdout,
            "".join(f"250 2.0.0 ok: queued - use {use} of this session\n" for use in (1, 2, 3)),
        )
        seen = {"connections": 1, "handshakes": 1, "messages": 3, "octets": 66, "violations": []}
        self.assertEqual(json.loads(said), seen)
        self.assertEqual(done.returncode, 0)

    def test_commands(self) -> None:
        """There are two, a line each, to be pasted: the demonstration, then the tests."""
        demonstration, tests = blocks("sh")
        self.assertEqual((demonstration.count("\n"), tests.count("\n")), (1, 1))
        self.assertIn(" mailcache demo\n", demonstration.replace(".venv/bin/", " "))
        self.assertIn("-m twisted.trial tests\n", tests)

    def test_links(self) -> None:
        """Files that it points to are there."""
        links = re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text())
        self.assertIn("docs/design.md", links)
        for link in links:
            self.assertTrue((ROOT / link).is_file(), link)

    def test_pages(self) -> None:
        """It leads to every page of docs/ but the index, which is for readers of what Sphinx has built."""
        links = re.findall(r"\]\(docs/([^)]+)\)", (ROOT / "README.md").read_text())
        pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
        self.assertEqual(sorted(links), sorted(pages))
