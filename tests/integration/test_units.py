"""The units in contrib/systemd, as systemd itself reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.debian import Software, UnavailableError, installation

UNITS = Path(__file__).parent.parent.parent / "contrib" / "systemd"
LIBRARIES = tuple(f"usr/lib/{machine}-linux-gnu/systemd" for machine in ("x86_64", "aarch64"))
SYSTEMD = Software(
    "systemd",
    packages=("systemd", "libsystemd-shared"),
    programs=("usr/bin/systemd-analyze",),
    libraries=LIBRARIES,
)


def analyzer() -> tuple[str, dict[str, str]]:
    """The path of systemd-analyze, the machine's own or an unpacked one, and the environment that it needs."""
    own = shutil.which("systemd-analyze")
    if own is not None:
        return own, {"SYSTEMD_UNIT_PATH": ""}
    try:
        found = installation(SYSTEMD)
    except UnavailableError as error:
        if os.environ.get("CI"):
            raise
        raise SkipTest(str(error)) from error
    return str(found.root / "usr/bin/systemd-analyze"), {
        "LD_LIBRARY_PATH": found.library_path,
        "SYSTEMD_UNIT_PATH": f"{found.root}/lib/systemd/system:{found.root}/usr/lib/systemd/system:",
    }


class UnitTests(SynchronousTestCase):
    timeout = 600  # the first run on a machine may have to fetch systemd

    def test_verified(self) -> None:
        """systemd has nothing to say about them; the programs that they start are such as are here."""
        program, environment = analyzer()
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        for unit in UNITS.iterdir():
            text = re.sub(r"(?m)^(Exec\w+=)/\S+", rf"\1{sys.executable}", unit.read_text())
            (folder / unit.name).write_text(text)
        environment["SYSTEMD_UNIT_PATH"] = f"{folder}:{environment['SYSTEMD_UNIT_PATH']}"
        done = subprocess.run(
            [program, "verify", "--man=no", *map(str, sorted(folder.iterdir()))],
            env={**os.environ, "LC_ALL": "C", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual((done.returncode, done.stderr, done.stdout), (0, "", ""))

    def test_options(self) -> None:
        """The keeper knows the options that it is started with."""
        from mailcache.daemon.options import Options

        (command,) = re.findall(
            r"(?m)^ExecStart=\S+ --log-format=text mailcache (.*)$", (UNITS / "mailcache.service").read_text()
        )
        options = Options()
        options.parseOptions(command.replace("/etc/mailcache.toml", str(UNITS.parent / "mailcache.toml")).split())
        self.assertEqual(options["listen"], "systemd")
        self.assertEqual((options["life"].retire_after, options["life"].max_memory), (604_800, 512 << 20))
