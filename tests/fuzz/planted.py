"""No target of the proof, but the proof of the engine: a defect that only an engine that sees coverage can find."""

from __future__ import annotations

from tests.fuzz.target import Target


def check(data: bytes) -> None:
    """Fails for inputs that begin with a certain word: by chance once in 2**48 times."""
    if data[:1] == b"d" and data[1:2] == b"e" and data[2:3] == b"f" and data[3:4] == b"e":
        assert data[4:6] != b"ct", "the planted defect"


TARGET = Target("planted", check, (b"hello",), (b"word",))
