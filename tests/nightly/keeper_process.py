"""``twist mailcache`` as it is, with its arguments, that also tells of itself what only it can know: see `Orders`."""

from __future__ import annotations

import sys

from twisted.application.twist import _twist
from twisted.internet import stdio

from tests.nightly.orders import Orders, reactor


def main() -> None:
    reactor.callWhenRunning(stdio.StandardIO, Orders(), reactor=reactor)
    _twist.Twist.main(["twist", *sys.argv[1:]])


if __name__ == "__main__":
    main()
