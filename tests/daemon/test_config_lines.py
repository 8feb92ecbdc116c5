"""The scanner that finds in which line of a TOML text a key stands."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.daemon.config_lines import Lines

TEXT = '''\
# [limits]
[limits]   # header = 1
sessions = 5
"max age" = 7 # idle = 3
 indented.key = """
[not.a.table]
no_key = 1
\\""" still
"""
after = [
  "a", # ] not the end
  "[b]", ["c",
  "d = 1"],
]
inline = { one = 1, two = "}" }

[[next_hop]]
match = 'a]['
[next_hop.tls]
level = "may"
[[ next_hop ]]
match = '\'\'\'
fake = 2
'\'\'\'
[next_hop . "t.l.s"]
level = 1.5
'''.replace("\\'", "'")


class LinesTests(SynchronousTestCase):
    def test_lines(self) -> None:
        tomllib.loads(TEXT)
        lines = Lines(TEXT)
        for path, line in (
            (("limits",), 2),
            (("limits", "sessions"), 3),
            (("limits", "max age"), 4),
            (("limits", "indented"), 5),
            (("limits", "indented", "key"), 5),
            (("limits", "after"), 10),
            (("limits", "inline"), 15),
            (("next_hop", 0), 17),
            (("next_hop", 0, "match"), 18),
            (("next_hop", 0, "tls"), 19),
            (("next_hop", 0, "tls", "level"), 20),
            (("next_hop", 1), 21),
            (("next_hop", 1, "match"), 22),
            (("next_hop", 1, "t.l.s"), 25),
            (("next_hop", 1, "t.l.s", "level"), 26),
        ):
            self.assertEqual(lines.of(path), line, path)

    def test_what_is_not_there(self) -> None:
        """Its table's line, else the first: so for keys of inline tables."""
        lines = Lines(TEXT)
        for path, line in (
            (("limits", "inline", "two"), 15),
            (("limits", "missing"), 2),
            (("next_hop", 1, "missing"), 21),
            (("fake",), 1),
            (("not", "a", "table"), 1),
            ((), 1),
        ):
            self.assertEqual(lines.of(path), line, path)

    def test_indented(self) -> None:
        """So may everything be, from the first line on."""
        lines = Lines("  [a]\n\tb = 1\n   [[c]]\n  d = 1\n  [[c]]\n  d = 2\n  ")
        self.assertEqual([lines.of(path) for path in (("a",), ("a", "b"), ("c", 0, "d"), ("c", 1, "d"))], [1, 2, 4, 6])

    def test_line_ends_of_windows(self) -> None:
        self.assertEqual(Lines("a = 1\r\n\r\n[b]\r\nc = 2\r\n").of(("b", "c")), 4)

    @given(
        st.lists(
            st.tuples(
                st.text(min_size=1, max_size=4),
                st.sampled_from(['"#["', "[1,\n 2]", "'''\n[x]\n'''", '"""a\n"" b"""', "0x1F", "{ a = [ 1 ] }", "1e3"]),
                st.sampled_from(["", " # [y]", "\n\n", "\n# z = 1"]),
            ),
            max_size=8,
            unique_by=lambda entry: entry[0],
        )
    )
    def test_any_keys(self, entries: list[tuple[str, str, str]]) -> None:
        """Every key is found in the line where it was written, whatever stands before it."""
        text = "[table]\n"
        expected: dict[str, int] = {}
        for key, value, more in entries:
            expected[key] = 1 + text.count("\n")
            text += f"{_quoted(key)} = {value}{more}\n"
        read: dict[str, Any] = tomllib.loads(text)["table"]
        self.assertEqual(set(read), set(expected))
        lines = Lines(text)
        self.assertEqual({key: lines.of(("table", key)) for key in expected}, expected)


def _quoted(key: str) -> str:
    return '"' + "".join(f"\\U{ord(character):08X}" for character in key) + '"'
