"""One target under atheris, in a process of its own: ``python -m tests.fuzz.engine NAME LIBFUZZER-ARGUMENTS``."""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    name, *arguments = sys.argv[1:]
    tested = "tests" if name == "planted" else "mailcache"
    with atheris.instrument_imports(include=[tested], exclude=["mailcache.testing"]):
        from tests.fuzz.table import target

        found = target(name)
    atheris.Setup([sys.argv[0], *arguments], found.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
