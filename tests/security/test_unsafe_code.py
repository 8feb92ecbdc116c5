"""A static gate: no bytes become objects or code but through JSON, TOML and structs."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mailcache

FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "jsonpickle", "cloudpickle", "joblib", "yaml"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
FORBIDDEN_PARTS = {"jelly", "banana", "pb", "persisted"}
"""What makes objects or code of bytes: a peer's bytes would be a program."""


def dangers(source: str) -> list[str]:
    """What of that a module uses."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_NAMES:
            found.append(f"{node.func.id}() in line {node.lineno}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            found.append(f"import_module() in line {node.lineno}")
        for name in names:
            parts = name.split(".")
            if FORBIDDEN_MODULES & set(parts) or (parts[0] == "twisted" and FORBIDDEN_PARTS & set(parts)):
                found.append(f"{name} in line {node.lineno}")  # type: ignore[attr-defined]
    return found


class SourceTests(SynchronousTestCase):
    """No bytes become objects or code but through JSON, TOML and structs."""

    def test_nothing_unsafe_is_used(self) -> None:
        root = Path(mailcache.__file__).parent
        modules = [*root.rglob("*.py"), *(root.parent / "twisted").rglob("*.py")]
        self.assertGreater(len(modules), 100)
        for module in modules:
            self.assertEqual(dangers(module.read_text()), [], module)

    def test_what_is_looked_for_is_found(self) -> None:
        for source in (
            "import pickle", "import os, marshal as m", "from shelve import open", "import yaml", "import dill",
            "from yaml import safe_load", "from twisted.spread import jelly",
            "from twisted.spread.banana import Banana",
            "def f():\n import jsonpickle", "eval('1')", "exec(x)", "__import__('os')", "importlib.import_module(x)",
            "from twisted.persisted import aot",
        ):  # fmt: skip
            self.assertEqual(len(dangers(source)), 1, source)
        self.assertEqual(dangers("import re\nre.compile('x')\nimport json\nself.eval()"), [])
