"""One target under atheris, in a process of its own: ``python -m tests.fuzz.engine NAME FOLDER LIBFUZZER-ARGUMENTS``.

Inputs that break a promise are written to FOLDER: by the engine itself, and before that here, since a process that ends
on a busy host may be stopped before the engine comes to it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    name, folder, *arguments = sys.argv[1:]
    tested = "tests" if name == "planted" else "mailcache"
    # The servers and networks of tests are not what is tested.
    ours = [f"mailcache.testing.{path.stem}" for path in (ROOT / "mailcache" / "testing").glob("*.py")]
    with atheris.instrument_imports(include=[tested], exclude=["mailcache.testing", *ours]):
        from tests.fuzz.table import target

        found = target(name)

    def run(data: bytes) -> None:
        try:
            found.run(data)
        except BaseException:
            # The name is that which libFuzzer gives it.
            Path(folder, f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], f"-artifact_prefix={folder}/", *arguments], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
