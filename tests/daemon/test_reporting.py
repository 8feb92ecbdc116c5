"""What a keeper logs of itself: Postfix's four lines."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import TLSPolicy
from mailcache.daemon.reporting import EVERY, Interval, Reporter
from tests.helpers import Bed, ca_file

NOTHING = {"by_destination": 0, "by_address": 0, "misses": 0, "destinations": 0, "addresses": 0, "connections": 0}


class IntervalTests(SynchronousTestCase):
    def test_lines(self) -> None:
        interval = Interval("Nov 22 03:41:05", 70, 10, 20, destinations=3, addresses=2, connections=7)
        self.assertEqual(
            interval.lines(),
            [
                "statistics: start interval Nov 22 03:41:05",
                "statistics: domain lookup hits=70 miss=30 success=70%",
                "statistics: address lookup hits=10 miss=20 success=33%",
                "statistics: max simultaneous domains=3 addresses=2 connection=7",
            ],
        )

    def test_what_says_nothing_is_left_out(self) -> None:
        self.assertEqual(Interval("now", **NOTHING).lines(), [])
        lines = Interval("now", **{**NOTHING, "by_destination": 2, "connections": 1}).lines()
        self.assertEqual([line.split()[1] for line in lines], ["start", "domain", "max"])


class ReporterTests(SynchronousTestCase):
    def test_each_interval_by_itself(self) -> None:
        bed = Bed()
        said: list[str] = []
        self.patch(Reporter, "_log", Log(said))
        reporter = Reporter(bed.reactor, bed.cache, lambda: f"at {bed.reactor.seconds():.0f}")
        reporter.start()
        other = bed.to("[127.0.0.1]:2525", tls=TLSPolicy("encrypt", ca_file=ca_file()))
        for destination in (bed.destination, bed.destination, other, other):
            bed.deliver(destination=destination)
        bed.reactor.advance(EVERY - bed.reactor.seconds())
        self.assertEqual(
            said,
            [
                "statistics: start interval at 0",
                "statistics: domain lookup hits=2 miss=2 success=50%",
                "statistics: address lookup hits=1 miss=1 success=50%",
                "statistics: max simultaneous domains=1 addresses=1 connection=1",
            ],
        )
        said.clear()
        bed.reactor.advance(EVERY)
        self.assertEqual([line.split()[1] for line in said], ["start", "max"], "one was there when it began")
        said.clear()
        bed.reactor.advance(EVERY)
        self.assertEqual(said, [])
        bed.deliver()
        reporter.stop()
        self.assertEqual(said[1:2], ["statistics: domain lookup hits=0 miss=1 success=0%"])
        reporter.stop()


class Log:
    def __init__(self, said: list[str]) -> None:
        self._said = said

    def info(self, _format: str, **values: Any) -> None:
        self._said.append(values["line"])
