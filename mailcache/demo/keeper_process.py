"""``python -m mailcache.demo.keeper_process N``: ``twist mailcache`` on a socket of its own, for N sessions at most.

It prints one line of JSON when the keeper listens ("pid", "path"), and ends it when its own standard input ends: who
has started this may have been killed. The socket is in a folder that nobody else may enter, and that goes with it.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.internet.endpoints import quoteStringArgument

TWIST = (sys.executable, "-m", "twisted", "--log-file=+", "--log-format=text", "--log-level=warn", "mailcache")
"""The keeper's command line; it tells nothing but what is wrong, on its standard error."""

GLANCE = 0.02
"""Seconds between looks at whether it listens."""

END_LIMIT = 5.0
"""Seconds that it has to end its sessions with QUIT."""


def main(sessions: int) -> None:
    """Run the keeper until standard input ends, or the keeper itself does."""
    with tempfile.TemporaryDirectory(prefix="mailcache-demo-") as folder:  # mode 0700
        path = Path(folder, "keeper.sock")
        configuration = Path(folder, "keeper.toml")
        configuration.write_text(
            f"[limits]\nsessions_per_destination = {sessions}\nsessions_per_endpoint = {sessions}\n"
        )
        command = (*TWIST, "--listen", f"unix:{quoteStringArgument(str(path))}", "--config", str(configuration))
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as keeper:  # noqa: S603
            try:
                if _listens(path, keeper):
                    sys.stdout.write(json.dumps({"pid": keeper.pid, "path": str(path)}) + "\n")
                    sys.stdout.flush()
                    _ending(keeper)
            finally:
                _end(keeper)


def _listens(path: Path, keeper: subprocess.Popen[bytes]) -> bool:
    """Wait until it does; or it won't, for it has ended, or is to end."""
    while not _ending(keeper, GLANCE):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                continue  # not yet; if it never can, it says so and ends
            return True
    return False


def _ending(keeper: subprocess.Popen[bytes], within: float | None = None) -> bool:
    """Wait until standard input ends, or the keeper does: nothing else ever comes from either."""
    assert keeper.stdout is not None
    return bool(select.select([sys.stdin, keeper.stdout], [], [], within)[0])


def _end(keeper: subprocess.Popen[bytes]) -> None:
    keeper.terminate()
    try:
        keeper.wait(END_LIMIT)
    except subprocess.TimeoutExpired:
        keeper.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
