"""The fault matrix varied one axis at a time: which rows there are on each axis, and where the right verdict differs.

An axis is a way to speak with a server. A row is left out where its fault can't exist there; a verdict differs where
one of `Rule` says so, and why. Everything else must come out as `fault_matrix.tsv` has it, which is written for
STARTTLS, PIPELINING, two flights and one recipient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs

from mailcache import DeliveryError, DeliveryResult, TLSPolicy, UncertainDelivery
from mailcache.testing import CAPABILITIES
from mailcache.testing.faults import NEEDS_TLS, TLS_POINTS
from mailcache.wire.one_flight import MAX_CONTENT
from tests.helpers import LARGE, SMALL, Bed, KeeperBed, verdict_of
from tests.test_fault_matrix import PROBE, MatrixCase, add_tests, rows

Row = dict[str, str]

RECIPIENTS = ("first@example.com", "second@example.com", "last@example.com")
"""Of a message over LMTP: a fault at RCPT strikes the first one's reply, at the end of content the last one's."""


@attrs.frozen
class Rule:
    """What must come of some rows on an axis in place of what the table says."""

    points: frozenset[str]
    kinds: frozenset[str] | None
    verdicts: frozenset[str]
    changed: Row
    why: str
    phases: frozenset[str] = frozenset({"fresh", "reused"})

    def holds(self, row: Row) -> bool:
        return (
            row["point"] in self.points
            and (self.kinds is None or row["fault"] in self.kinds)
            and row["message"] in self.verdicts
            and row["phase"] in self.phases
        )


def rule(points: str, kinds: str | None, verdicts: str, why: str, **changed: str) -> Rule:
    """A `Rule`; ``points``, ``kinds`` (``None``: all of them) and ``verdicts`` are words with spaces between."""
    some = None if kinds is None else frozenset(kinds.split())
    return Rule(frozenset(points.split()), some, frozenset(verdicts.split()), changed, why)


@attrs.frozen
class Axis:
    """One way to speak with a server.

    :ivar settings: what a `Bed` is made with.
    :ivar lacks_points: points of the conversation that are never reached.
    :ivar lacks_kinds: kinds of faults that can't be made.
    :ivar rules: where the verdict differs; the first that holds.
    :ivar kept_by_keeper: where it differs with a keeper in between, in place of these.
    """

    settings: dict[str, Any]
    lacks_points: frozenset[str] = frozenset()
    lacks_kinds: frozenset[str] = frozenset()
    rules: tuple[Rule, ...] = ()
    kept_by_keeper: tuple[Rule, ...] = ()

    def rows(self, keeper: bool = False) -> Iterator[Row]:
        """The rows that exist on it, as they must come out."""
        for row in rows():
            if row["point"] in self.lacks_points or row["fault"] in self.lacks_kinds:
                continue
            differing = self.rule_for(row, keeper)
            yield row if differing is None else {**row, **differing.changed}

    def rule_for(self, row: Row, keeper: bool) -> Rule | None:
        """The rule that holds for this row, if one does."""
        candidates = self.kept_by_keeper + self.rules if keeper else self.rules
        return next((each for each in candidates if each.holds(row)), None)


AXES = {
    # No TLS at all. Nothing below EHLO is there, and what breaks TLS can't strike.
    "plain text": Axis(
        {"tls": TLSPolicy("none"), "server": {"certificate": None, "auth_in_clear": True}},
        lacks_points=TLS_POINTS,
        lacks_kinds=NEEDS_TLS,
        rules=(
            rule(
                "ehlo",
                "5xx",
                "NEXT",
                "a server that refuses EHLO is greeted with HELO (RFC 5321 3.2), where nobody demands an extension",
                message="SENT",
                session="KEEP",
            ),
        ),
    ),
    # TLS from the first byte: the handshake comes before the greeting, and EHLO is said once.
    "TLS from the first byte": Axis(
        {"protocol": "smtps", "server": {"implicit_tls": True}},
        lacks_points=frozenset({"starttls", "ehlo2"}),
    ),
    # One reply for each recipient; see `LMTPCase` for what that makes of a verdict.
    "LMTP": Axis({"protocol": "lmtp", "server": {"lmtp": True}}),
    # Each command waits for the reply to the one before.
    "no PIPELINING": Axis(
        {"server": {"capabilities": [word for word in CAPABILITIES if word != "PIPELINING"]}},
        kept_by_keeper=(
            rule(
                "rset",
                "4xx 5xx",
                "NONE RETRY",
                "nothing is owed when the borrower gives the session up: the keeper may say QUIT",
                session="QUIT",
            ),
        ),
    ),
    # MAIL, RCPT and content in one write: there is no DATA. See `docs/design.md`, "A transaction".
    "one flight": Axis(
        {"one_flight": True},
        lacks_points=frozenset({"data"}),
        rules=(
            rule(
                "mail rcpt",
                "421",
                "NEXT RETRY",
                "421 to MAIL or RCPT is before the content: the server reads no more",
            ),
            rule(
                "mail rcpt",
                "nul longline",
                "NEXT RETRY",
                "the content is written, so what a strange reply says counts, and costs the session only",
                message="SENT",
            ),
            rule(
                "content",
                "nul longline",
                "NEXT RETRY",
                "the server says 250 before it has all of the content: without a 354 nobody can see that it lies",
                message="BELIEVED",
            ),
            rule(
                "content",
                "421 4xx 5xx",
                "TEMP PERM",
                "the refusal races the end of content, which is written: the session has either fate",
                session="EITHER",
            ),
            rule(
                "mail rcpt content",
                None,
                "NEXT RETRY",
                "all of the message is written before the first reply: whatever else breaks off leaves doubt",
                message="UNKNOWN",
            ),
            rule(
                "dot after_dot",
                "early dup unsolicited",
                "SENT",
                "which reply of the flight is the one too many nobody can know",
                message="UNKNOWN",
            ),
        ),
        kept_by_keeper=(
            Rule(
                points=frozenset({"mail", "rcpt", "content", "dot", "after_dot"}),
                kinds=None,
                verdicts=frozenset({"NEXT", "SENT", "TEMP", "PERM"}),
                changed={},
                why="who borrows a session does not know what the server has said last: the first message of a lease "
                "goes in two flights, and comes out as the table has it",
                phases=frozenset({"fresh"}),
            ),
        ),
    ),
}


class AxisCase(MatrixCase):
    """The rows of one axis."""

    axis: Axis

    def settings(self) -> dict[str, Any]:
        return dict(self.axis.settings)


class LMTPCase(AxisCase):
    """Three recipients: what the server has said of each stays true, whatever comes of the others."""

    recipients = RECIPIENTS

    def words(self, row: Row) -> tuple[str, str, str]:
        """The right verdict on each recipient, in their order."""
        point, word = row["point"], row["message"]
        if word == "RETRY":
            word = "SENT"
        if point == "rcpt" and word in ("TEMP", "PERM"):
            return word, "SENT", "SENT"
        if point == "after_dot" or (point == "dot" and word in ("TEMP", "PERM")):
            return "SENT", "SENT", word
        return word, word, word

    def check_verdict(self, bed: Bed, row: Row, value: Any, connections_before: int) -> None:
        told = [word_for(value, recipient) for recipient in RECIPIENTS]
        self.assertEqual(tuple(told), self.words(row), f"{value!r}: {bed.server.log}")
        self.check_attempts(bed, row, connections_before)
        taken = [
            recipient for message in bed.server.messages if message.sender == PROBE for recipient in message.accepted
        ]
        for recipient, word in zip(RECIPIENTS, told, strict=True):
            self.assertIn(taken.count(recipient), {"SENT": (1,), "UNKNOWN": (0, 1)}.get(word, (0,)), recipient)


class UnpipelinedCase(AxisCase):
    """MAIL waits for the reply to RSET, so that a refused one has nothing behind it."""

    refuses_rset = property(lambda _: False, lambda _, __: None)  # type: ignore[assignment]


class OneFlightCase(AxisCase):
    """Content is cut as the network does it: the last of 64 KiB is in another segment than MAIL."""

    _refuses = False

    @property
    def refuses_rset(self) -> bool:  # type: ignore[override]
        """With BDAT the server's transaction is over, so that MAIL behind a refused RSET does not nest."""
        return self._refuses and self.make_bed is KeeperBed

    @refuses_rset.setter
    def refuses_rset(self, refuses: bool) -> None:
        self._refuses = refuses

    def content_for(self, row: Row) -> bytes:
        if row["point"] != "content":
            return SMALL
        if self.make_bed is KeeperBed and row["phase"] == "fresh":
            return LARGE
        line = b"This is one line of many that fill one flight.\r\n"
        return (line * (MAX_CONTENT // len(line) + 1))[: MAX_CONTENT - 2] + b"\r\n"

    def check_verdict(self, bed: Bed, row: Row, value: Any, connections_before: int) -> None:
        if row["message"] != "BELIEVED":
            super().check_verdict(bed, row, value, connections_before)
            return
        self.assertEqual(verdict_of(value), "SENT", f"{value!r}: {bed.server.log}")
        self.check_attempts(bed, row, connections_before)
        self.assertNotIn(PROBE, [message.sender for message in bed.server.messages])


def word_for(value: Any, recipient: str) -> str:
    """The fault matrix's word for what came of a delivery to one of its recipients."""
    if isinstance(value, DeliveryError):
        return "NEXT"
    assert isinstance(value, (DeliveryResult, UncertainDelivery)), value
    if recipient in value.accepted:
        return "SENT"
    if recipient in value.rejected:
        return "TEMP" if value.rejected[recipient].transient else "PERM"
    return "UNKNOWN"


CASES: dict[str, type[AxisCase]] = {
    "LMTP": LMTPCase,
    "no PIPELINING": UnpipelinedCase,
    "one flight": OneFlightCase,
}


def tests_of(
    axis: str, make_bed: type[Bed] = Bed, wanted: Callable[[int], bool] = lambda number: True
) -> type[AxisCase]:
    """A test case with a test for each row of this axis, or for those whose numbers are ``wanted``."""
    keeper = make_bed is KeeperBed
    name = "".join(word[0].upper() + word[1:] for word in axis.split()) + ("OverKeeper" if keeper else "")
    case: type[AxisCase] = type(name, (CASES.get(axis, AxisCase),), {"axis": AXES[axis], "make_bed": make_bed})
    add_tests(case, (row for number, row in enumerate(AXES[axis].rows(keeper)) if wanted(number)))
    return case
