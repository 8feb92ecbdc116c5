"""All targets."""

from __future__ import annotations

from importlib import import_module

from tests.fuzz.target import Target

NAMES = (
    "replies", "ehlo", "tls", "conversation", "boxes", "configuration", "answers", "watching", "codec", "sasl",
    "addresses", "front",
)  # fmt: skip
"""Each is a module of this package."""

MAIN = frozenset({"replies", "ehlo", "tls", "conversation", "boxes", "configuration"})
"""Those that are to have `ENOUGH` inputs stored."""

ENOUGH = 500


def target(name: str) -> Target:
    """The target ``name``. What it tests is imported only now, so that it can be instrumented before."""
    found: Target = import_module(f"tests.fuzz.{name}").TARGET
    return found
