"""The ``mailcache`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from mailcache import controlling, demo, sending, showing
from mailcache.trust.policy import LEVELS

ARGPARSE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; gives the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = parser().parse_args(given)
    except SystemExit as end:
        # argparse has told what is wrong; what stands in for sendmail says so in sysexits.h's words.
        if end.code == ARGPARSE_ERROR and given[:1] == ["send"]:
            return os.EX_USAGE
        raise
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

    demonstrating = commands.add_parser(
        "demo",
        help="send mail to a server of its own on loopback, with and without kept sessions, and compare",
        description="Send mail to a server of its own on loopback, first with a connection for each message, "
        "then over kept sessions, then from four processes that share the sessions of a keeper, and show what each "
        "has cost. Nothing leaves this machine.",
    )
    demonstrating.add_argument(
        "--messages",
        type=_whole(1, demo.MAX_MESSAGES),
        default=1000,
        metavar="N",
        help="how many are sent in each way (default: %(default)s)",
    )
    demonstrating.add_argument(
        "--senders",
        type=_whole(1, demo.MAX_SENDERS),
        default=4,
        metavar="N",
        help="how many send at a time, in each way (default: %(default)s)",
    )
    demonstrating.set_defaults(run=lambda options: demo.run(options.messages, options.senders, sys.stdout, sys.stderr))

    to_send = commands.add_parser(
        "send",
        help="deliver one message from a file or standard input",
        description="Deliver one message. The exit status is one of sysexits.h: 0 delivered, 75 try again, 69 refused, "
        "76 nobody can know, 64 wrong arguments, 66 the message can't be read.",
    )
    to_send.add_argument("recipients", nargs="+", metavar="RECIPIENT")
    to_send.add_argument("--to-host", required=True, metavar="NEXT_HOP", help="[host]:port, [address]:port, unix:/path")
    to_send.add_argument("--from", dest="sender", default="", metavar="ADDRESS", help="default: the null sender")
    to_send.add_argument("--tls", default="may", choices=LEVELS[:3] + LEVELS[4:], help="default: %(default)s")
    to_send.add_argument("--ca-file", metavar="FILE", help="trust anchors (PEM) instead of the platform's")
    to_send.add_argument("--file", default="-", metavar="FILE", help="the message; default: standard input")
    to_send.add_argument(
        "--notify", metavar="WORDS", help="when to report (DSN): never, or some of success,failure,delay"
    )
    to_send.add_argument("--ret", choices=("hdrs", "full"), help="what reports are to have of the message")
    to_send.add_argument("--envid", metavar="ID", help="what reports are to name the message by")
    to_send.add_argument("--cache", metavar="SOCKET", help="the socket of a keeper to borrow a session from")
    to_send.set_defaults(run=_send)

    checking = commands.add_parser(
        "check",
        help="check a keeper's configuration file",
        description="Check a keeper's configuration file, with the files that it names, as the keeper would read it. "
        "The exit status is 0 if it is fine, else 78, with a line for each error.",
    )
    checking.add_argument("file", metavar="FILE")
    checking.set_defaults(run=lambda options: controlling.check(options.file, sys.stdout, sys.stderr))

    reloading = commands.add_parser(
        "reload",
        help="have a keeper read its configuration file again",
        description="Have a keeper read its configuration file again, as SIGHUP does. Its log says what came of it. "
        "It takes the keeper's own user, or root.",
    )
    reloading.add_argument(
        "--cache", default=controlling.SOCKET, metavar="SOCKET", help="the keeper's socket (default: %(default)s)"
    )
    reloading.set_defaults(run=lambda options: controlling.reload(options.cache, sys.stdout))

    to_show = commands.add_parser(
        "show",
        help="show what a running keeper has kept and saved",
        description="Show the counts of a running keeper, and what it has saved by destination: of all users to root "
        "and to the keeper's own, to others of their own.",
    )
    to_show.add_argument(
        "--cache", default=controlling.SOCKET, metavar="SOCKET", help="the keeper's socket (default: %(default)s)"
    )
    to_show.add_argument("--json", action="store_true", help="print JSON")
    to_show.set_defaults(run=lambda options: showing.run(options.cache, options.json, sys.stdout, sys.stderr))
    return whole


def _send(options: argparse.Namespace) -> int:
    try:
        wanted = sending.order(
            options.to_host,
            options.sender,
            options.recipients,
            level=options.tls,
            ca_file=options.ca_file,
            file=options.file,
            keeper=options.cache,
            notify=None if options.notify is None else options.notify.upper().split(","),
            ret=None if options.ret is None else options.ret.upper(),
            envid=options.envid,
        )
    except ValueError as error:
        sys.stderr.write(f"mailcache send: {error}\n")
        return os.EX_USAGE
    return sending.run(wanted, sys.stdout, sys.stderr)


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
