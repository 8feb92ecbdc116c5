"""What is shown."""

from __future__ import annotations

import io
import os

from twisted.trial.unittest import SynchronousTestCase

from mailcache.demo.measuring import Measured
from mailcache.demo.server import Counts
from mailcache.demo.table import Progress, Row, table


class ShownTests(SynchronousTestCase):
    def test_table(self) -> None:
        """Numbers stand under the end of their headings."""
        counts = Counts(connections=1000, handshakes=1000, messages=1000, violations=[])
        row = Row("kept", counts, Measured(seconds=0.5, cpu_seconds=0.25, waited=2.0))
        self.assertEqual(
            table([row]),
            "      connections  handshakes  messages/s  CPU ms/message  ms/message\n"
            "kept        1,000       1,000       2,000           0.250       2.000\n",
        )

    def test_bar(self) -> None:
        """It fits a narrow terminal, where it has no room it is numbers alone, and it is cleared."""
        for columns, expected in (("80", "[####################....................] 5/10"), ("16", "5/10")):
            self.patch(os, "environ", {**os.environ, "COLUMNS": columns})
            stream = io.StringIO()
            stream.isatty = lambda: True  # type: ignore[method-assign]
            bar = Progress(stream)
            bar.at("sending", 10, 5)
            bar.at("sending", 10, 6)  # too soon
            bar.clear()
            self.assertEqual(stream.getvalue(), f"\rsending {expected}\x1b[K\r\x1b[K")
