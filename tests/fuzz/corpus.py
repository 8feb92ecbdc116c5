"""The inputs that are kept: one file for each target, one input in a line, the shortest first."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def path_of(name: str) -> Path:
    """The file with the inputs of the target ``name``."""
    return FOLDER / f"{name}.txt"


def load(name: str) -> list[bytes]:
    """The inputs that are stored for the target ``name``, beside those by hand."""
    path = path_of(name)
    return [base64.b85decode(line) for line in path.read_bytes().split()] if path.exists() else []


def store(name: str, inputs: Iterable[bytes]) -> None:
    """Keep these for the target ``name``, and no others."""
    lines = [base64.b85encode(data) for data in ordered(inputs) if data]
    path_of(name).write_bytes(b"".join(line + b"\n" for line in lines))


def ordered(inputs: Iterable[bytes]) -> list[bytes]:
    """Each once, in the order of the files."""
    return sorted(set(inputs), key=lambda data: (len(data), data))


def spread(inputs: Iterable[bytes], folder: Path) -> None:
    """Each in a file of its own, as fuzzers want them."""
    for data in inputs:
        (folder / hashlib.sha256(data).hexdigest()).write_bytes(data)


def gathered(folder: Path) -> list[bytes]:
    """What a fuzzer has left in ``folder``."""
    return ordered(path.read_bytes() for path in folder.iterdir())
