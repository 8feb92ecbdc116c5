"""``python -m mailcache.testing``: the scripted server on loopback, in a process of its own.

It prints one line of JSON when it listens ("port", "certificate_authority" in PEM, with --chaos its "seed"), serves
until its standard input ends, and prints one more with what it has seen ("connections", "handshakes", "messages",
"octets" of their content, "violations", with --chaos the "faults" that have struck).
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import Any

from mailcache.testing.certificates import Authority
from mailcache.testing.chaos import Chaos
from mailcache.testing.server import CAPABILITIES, SMTPServer


def main() -> None:
    """Serve as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m mailcache.testing", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--interface", default="127.0.0.1")
    parser.add_argument("--tls", choices=("starttls", "implicit", "none"), default="starttls")
    parser.add_argument("--size", type=int, default=52_428_800, help="octets of the largest message; 0: no limit")
    parser.add_argument("--discard", action="store_true", help="count the content of messages, and do not keep it")
    parser.add_argument("--chaos", type=float, metavar="RATE", help="faults by chance, so probable at each point")
    parser.add_argument("--seed", type=int, help="of the chaos; default: any")
    options = parser.parse_args()
    if options.seed is not None and options.chaos is None:
        parser.error("--seed is of use with --chaos only")
    try:
        chaos = None if options.chaos is None else Chaos(options.chaos, seed=options.seed)
    except ValueError as error:
        parser.error(f"--chaos: {error}")

    from twisted.internet import reactor, stdio
    from twisted.internet.protocol import Protocol
    from twisted.python.failure import Failure

    loop: Any = reactor
    authority = Authority()
    certificate = None if options.tls == "none" else authority.issue(addresses=(options.interface,))
    capabilities = [f"SIZE {options.size}" if word.startswith("SIZE ") else word for word in CAPABILITIES]
    server = SMTPServer(
        loop,
        certificate=certificate,
        implicit_tls=options.tls == "implicit",
        capabilities=capabilities,
        keep_content=not options.discard,
        chaos=chaos,
    )
    server.listen(options.port, options.interface)

    class UntilEnd(Protocol):
        def connectionLost(self, reason: Failure | None = None) -> None:
            server.close().addBoth(lambda _: loop.stop())
            # Whoever has started this may have been killed: then nobody reads it, and this must end all the same.
            with suppress(BrokenPipeError):
                say(
                    connections=server.connection_count,
                    handshakes=server.handshake_count,
                    messages=server.message_count,
                    octets=sum(message.octets for message in server.messages),
                    violations=server.violations,
                    **({} if chaos is None else {"faults": len(server.fired)}),
                )

    stdio.StandardIO(UntilEnd(), reactor=loop)
    seed = {} if chaos is None else {"seed": chaos.seed}
    say(port=server.port, certificate_authority=authority.certificate_pem.decode("ascii"), **seed)
    loop.run()


def say(**facts: Any) -> None:
    """One line of JSON for whoever has started this."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
