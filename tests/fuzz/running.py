"""A target is fuzzed for some time, and what the engine has said of that is read."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs

from tests.fuzz import corpus
from tests.fuzz.target import Target

STUCK = 20
"""Seconds after which an input that does not even use the CPU is given up; `tests.fuzz.target.LONGEST` is the limit."""

MEMORY = 2_048
"""MiB that a process may have, atheris and what it instruments included."""

START_AND_END = 120
"""Seconds that a process may take beside its time: to start, to replay the corpus, and to end."""

FOR_A_SECOND = 8
"""Inputs, any of those that are known, which an engine is given for each second that it has: it tries them all before
it changes any, and the slowest targets are tried some fifty times a second, on a busy host twenty."""

ROOT = Path(__file__).parent.parent.parent


@attrs.frozen
class Run:
    """What came of a target's run.

    :ivar coverage: edges of the code that were reached.
    :ivar features: those, by how often they were passed, and values that were compared.
    :ivar new: inputs that have reached what those stored had not.
    :ivar crashes: inputs that have broken a promise, or hung.
    :ivar status: of the process; 0 if it came to its end.
    :ivar said: the end of what the engine has said, for who looks for the reason.
    """

    name: str
    executions: int
    seconds: float
    coverage: int
    features: int
    new: tuple[bytes, ...]
    crashes: tuple[bytes, ...]
    status: int
    said: str

    @property
    def failed(self) -> bool:
        """Whether a promise was broken, or it did not come to its end, or nothing was tried."""
        return bool(self.crashes or self.status) or not self.executions

    def __str__(self) -> str:
        pace = self.executions / max(self.seconds, 0.1)
        return (
            f"{self.name:<14} {self.executions:>10,} executions {pace:>8,.0f} a second   {len(self.new):>4} new seeds"
            f"   coverage {self.coverage:>5,}   features {self.features:>6,}   crashes {len(self.crashes)}"
        )


def fuzz(what: Target, seconds: int, seed: int) -> Run:
    """Fuzz a target, from the inputs that are known on."""
    name = what.name
    known = corpus.ordered([*what.beginnings, *corpus.load(name)])
    given = random.Random(seed).sample(known, min(len(known), FOR_A_SECOND * seconds))
    with tempfile.TemporaryDirectory(prefix="mailcache-fuzz-") as temporary:
        folder = Path(temporary)
        seeds, found = folder / "seeds", folder / "found"
        seeds.mkdir()
        found.mkdir()
        corpus.spread(given, seeds)
        words = folder / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in what.words), "ascii")
        command = [
            sys.executable, "-m", "tests.fuzz.engine", name, str(found), str(seeds), f"-max_total_time={seconds}",
            f"-seed={seed}", f"-max_len={what.max_input}", f"-timeout={STUCK}", f"-rss_limit_mb={MEMORY}",
            f"-dict={words}", "-use_value_profile=1", "-print_final_stats=1", "-len_control=20",
        ]  # fmt: skip
        began = time.monotonic()
        status, said = _run(command, seconds + START_AND_END, folder)
        taken = time.monotonic() - began
        new = tuple(data for data in corpus.gathered(seeds) if data not in set(known))
        # What was slow by the clock, on a host that was busy, is no crash: see `STUCK`.
        wrong = [path for path in sorted(found.iterdir()) if not path.name.startswith("slow-unit")]
        crashes = tuple(path.read_bytes() for path in wrong)
        return parsed(name, said, taken, new, crashes, status)


def _run(command: list[str], limit: int, folder: Path) -> tuple[int, str]:
    """The status of a command that may take ``limit`` seconds, and what it has said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PYTHONHASHSEED": "0"}
    with (folder / "said").open("w+b") as said:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=said, stderr=said, timeout=limit, check=False
            )
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = 124
        said.seek(0)
        return status, said.read().decode("utf-8", "backslashreplace")


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02X}" for byte in word)


def parsed(
    name: str, said: str, seconds: float, new: tuple[bytes, ...], crashes: tuple[bytes, ...], status: int = 0
) -> Run:
    """A run, from what libFuzzer has said."""
    reached = re.findall(r"cov: (\d+) ft: (\d+)", said) or [("0", "0")]
    executions = _number(r"stat::number_of_executed_units:\s*(\d+)", said) or _number(r"^#(\d+)\s", said)
    coverage, features = map(int, reached[-1])
    return Run(name, executions, seconds, coverage, features, new, crashes, status, said[-4_000:])


def _number(pattern: str, said: str) -> int:
    found = re.findall(pattern, said, re.MULTILINE)
    return int(found[-1]) if found else 0
