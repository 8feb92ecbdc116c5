"""The ``mailcache`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from mailcache import demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; gives the exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return demo.INTERRUPTED
    except BrokenPipeError:
        # Whoever read this has gone; what is still in the buffer must not be tried again at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (demo.DemoFailed, OSError) as error:
        sys.stderr.write(f"mailcache {options.command}: {error}\n")
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """What the command understands: a sub-command each, with ``run`` set to what does it."""
    whole = argparse.ArgumentParser(prog="mailcache", description="Keeps SMTP sessions open between deliveries.")
    whole.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)

    showing = commands.add_parser(
        "demo",
        help="send mail to a server of its own on loopback, with and without kept sessions, and compare",
        description="Send mail to a server of its own on loopback, first with a connection for each message, "
        "then over kept sessions, and show what each has cost. Nothing leaves this machine.",
    )
    showing.add_argument(
        "--messages",
        type=_whole(1, demo.MAX_MESSAGES),
        default=1000,
        metavar="N",
        help="how many are sent in each way (default: %(default)s)",
    )
    showing.add_argument(
        "--senders",
        type=_whole(1, demo.MAX_SENDERS),
        default=4,
        metavar="N",
        help="how many send at a time, in each way (default: %(default)s)",
    )
    showing.set_defaults(run=lambda options: demo.run(options.messages, options.senders, sys.stdout, sys.stderr))
    return whole


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most:,}")
        return value

    return number


def _version() -> str:
    try:
        return metadata.version("mailcache")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
