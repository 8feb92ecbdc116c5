"""Whether a wheel has all of mailcache/, the plugin for twist, the licence and the command, and nothing else."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    modules = [*Path("mailcache").rglob("*.py"), *Path("twisted/plugins").glob("*.py")]
    wanted = {str(path) for path in modules} | {"mailcache/py.typed"}
    has = {name for name in names if ".dist-info/" not in name}
    if has != wanted:
        sys.exit(f"missing: {sorted(wanted - has)}; too much: {sorted(has - wanted)}")
    if not any(name.endswith("/LICENSE") for name in names):
        sys.exit("no LICENSE")
    if "mailcache = mailcache.cli:main" not in entry_points:
        sys.exit(f"no command: {entry_points}")


if __name__ == "__main__":
    main(*sys.argv[1:])
