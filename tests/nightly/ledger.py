"""Both sides of the books: what callers were told of each recipient, and how often servers have taken the letter.

=============  ==================================================  =========================
told           when                                                servers may have it
=============  ==================================================  =========================
accepted       in a `DeliveryResult` or an `UncertainDelivery`     once
rejected       likewise                                            never
undecided      in an `UncertainDelivery`                           once, or never
error          `DeliveryError`                                     never
cancelled      `CancelledError`                                    never
unreported     nothing, for who was to tell it was killed          once, or never
=============  ==================================================  =========================
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.defer import CancelledError

from mailcache import DeliveryError, DeliveryResult, UncertainDelivery
from mailcache.testing import Message, SMTPServer
from mailcache.testing.faults import REFUSING
from tests.helpers import BEHIND_REFUSED_RSET
from tests.nightly.figures import Report
from tests.nightly.letters import label_of, letter

ALLOWED = {
    "accepted": (1,),
    "rejected": (0,),
    "undecided": (0, 1),
    "error": (0,),
    "cancelled": (0,),
    "unreported": (0, 1),
}
"""How often a letter may be at servers for a recipient of whom this was told."""

PARDONED = {"rset": BEHIND_REFUSED_RSET, "idle": "clear text where TLS should begin"}
"""What follows where a server refuses RSET, MAIL being pipelined with that, or says on its own in the middle of an
opening that it does not want to go on: that is read as the reply to STARTTLS, and QUIT is the answer."""

SHOWN = 20
"""Of what is wrong, no more than so much is told in detail."""


def told_by(outcome: object) -> dict[str, Any]:
    """What came of a delivery, as JSON can hold it.

    :raises TypeError: for an exception that no caller should ever see.
    """
    if isinstance(outcome, DeliveryResult):
        return {
            "outcome": "result",
            "accepted": list(outcome.accepted),
            "rejected": list(outcome.rejected),
            "reply": str(outcome.reply),
        }
    if isinstance(outcome, UncertainDelivery):
        return {
            "outcome": "uncertain",
            "accepted": list(outcome.accepted),
            "rejected": list(outcome.rejected),
            "undecided": list(outcome.undecided),
            "detail": str(outcome),
        }
    if isinstance(outcome, DeliveryError):
        return {"outcome": "error", "phase": outcome.phase, "detail": str(outcome)}
    if isinstance(outcome, CancelledError):
        return {"outcome": "cancelled"}
    raise TypeError(f"a caller was told {outcome!r}")


class Ledger:
    """The books, of which settled pages are thrown away.

    :ivar deliveries: how many ended in each way.
    :ivar told: how many recipients of each kind there were.
    :ivar taken: for how many of these a server has the letter.
    :ivar wrong: what must not be, in words.
    """

    def __init__(self) -> None:
        self.deliveries: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.doubles = self.lies = self.losses = self.mixed = self.violations = 0
        self._open: set[str] = set()
        self._reports: dict[str, dict[str, Any]] = {}
        self._at_servers: Counter[str] = Counter()

    def begin(self, label: str) -> None:
        """A delivery of the letter with this label begins."""
        assert label not in self._open and label not in self._reports
        self._open.add(label)

    def hear(self, label: str, report: dict[str, Any]) -> None:
        """This has come of it: see `told_by`."""
        self._open.remove(label)
        self._reports[label] = report

    def unreported(self) -> None:
        """Of those that are open nobody will ever tell anything."""
        for label in self._open:
            self._reports[label] = {"outcome": "unreported"}
        self._open.clear()

    def take(self, message: Message) -> None:
        """A server has read this to its end, and has taken it or not."""
        label = label_of(message.sender)
        if label is None:
            self._mixed(f"a sender nobody has: {message.sender}")
            return
        sent = letter(label)
        if message.sender != sent.sender or not set(message.recipients) <= set(sent.recipients):
            self._mixed(f"{label}: an envelope of several: {message!r}")
        elif message.content != sent.arriving:
            self._mixed(f"{label}: {len(sent.arriving)} octets were sent, and others have come: {message!r}")
        self._at_servers.update(message.accepted)

    def read(self, server: SMTPServer, name: str) -> None:
        """Enter all that this server has seen, and have it forget that."""
        for message in server.messages:
            self.take(message)
        pardoned = {
            f"connection {number}: {PARDONED[fault.point]}"
            for fault, number in server.fired
            if fault.point in PARDONED and fault.kind in REFUSING
        }
        violations = [what for what in server.violations if what not in pardoned]
        self.violations += len(violations)
        self.wrong += [f"{name}: {what}" for what in violations]
        server.violations.clear()
        server.forget()

    def _mixed(self, what: str) -> None:
        self.mixed += 1
        self.wrong.append(what)

    def settle(self) -> None:
        """Compare both sides, now that all is over, and forget what was compared."""
        self.wrong += [f"{label}: nothing has come of it" for label in self._open]
        for label, report in self._reports.items():
            outcome = report["outcome"]
            self.deliveries[outcome] += 1
            for recipient in letter(label).recipients:
                self._compare(label, recipient, self._word(outcome, report, recipient))
        for recipient, times in self._at_servers.items():
            self._mixed(f"{recipient}: taken {times} times, and sent by nobody")
        self._open.clear()
        self._reports.clear()
        self._at_servers.clear()

    @staticmethod
    def _word(outcome: str, report: dict[str, Any], recipient: str) -> str:
        if outcome not in ("result", "uncertain"):
            return outcome
        words = [word for word in ("accepted", "rejected", "undecided") if recipient in report.get(word, ())]
        return words[0] if len(words) == 1 else f"told {len(words)} things"

    def _compare(self, label: str, recipient: str, word: str) -> None:
        times = self._at_servers.pop(recipient, 0)
        self.told[word] += 1
        self.taken[word] += times > 0
        self.doubles += times > 1
        if times in ALLOWED.get(word, ()):
            return
        if word in ALLOWED and times == 1:
            self.lies += 1
        elif word == "accepted" and times == 0:
            self.losses += 1
        said = self._reports[label].get("reply") or self._reports[label].get("detail") or "nothing more"
        self.wrong.append(f"{label}: {recipient} was told {word}, and taken {times} times; what was said is {said!r}")

    # -- what is shown

    @property
    def balanced(self) -> bool:
        """Taken by servers = reported accepted + some of those of whom nothing is certain."""
        certain = {"accepted", "undecided", "unreported"}
        return self.taken["accepted"] == self.told["accepted"] and not any(
            times for word, times in self.taken.items() if word not in certain
        )

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return self.balanced and not (self.wrong or self.doubles)

    def __str__(self) -> str:
        lines: list[str] = []
        self.tell(Report(lines.append))
        return "\n".join(lines)

    def tell(self, report: Report) -> None:
        """Both sides, and what is wrong."""
        say_all(report, "deliveries, by what callers were told", self.deliveries)
        say_all(report, "recipients, by what callers were told", self.told)
        say_all(report, "recipients with the letter at a server", self.taken)
        report.exactly("taken twice (doubles)", self.doubles, 0)
        report.exactly("taken, though told otherwise (lies)", self.lies, 0)
        report.exactly("told accepted, and not taken (losses)", self.losses, 0)
        report.exactly("mixed, altered or truncated", self.mixed, 0)
        report.exactly("violations of the protocol", self.violations, 0)
        some, of = (sum(side[word] for word in ("undecided", "unreported")) for side in (self.taken, self.told))
        name = f"taken, less {some:,} of the {of:,} of whom nothing is certain: as many as reported accepted"
        report.exactly(name, sum(self.taken.values()) - some, self.told["accepted"])
        for what in self.wrong[:SHOWN]:
            report.exactly("WRONG", what, "nothing")


def say_all(report: Report, name: str, parts: Counter[str]) -> None:
    """The sum of them, and each."""
    report.say(name, sum(parts.values()))
    for part in sorted(parts):
        report.say(f"  {part}", parts[part])
