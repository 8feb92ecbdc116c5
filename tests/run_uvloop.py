"""Runs trial on uvloop, by Twisted's asyncio reactor: ``python tests/run_uvloop.py [trial's arguments]``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from twisted.internet import asyncioreactor
from twisted.internet.process import reapAllProcesses
from twisted.scripts.trial import run

GLANCE = 0.05
"""Seconds between two looks for children that have ended: uvloop keeps SIGCHLD to itself."""


def reap(loop: asyncio.AbstractEventLoop) -> None:
    """Have Twisted hear of the servers' ends; by the loop's own timer, which trial does not take for a test's."""
    reapAllProcesses()
    loop.call_later(GLANCE, reap, loop)


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    asyncioreactor.install(loop)
    reap(loop)
    sys.path[0] = str(Path.cwd())  # as python -m has it: this file's own folder is no place to import from
    run()
