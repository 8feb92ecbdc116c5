"""Both sides of a run: what senders were told came of each message, and what servers have taken."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from tests.nightly.figures import Report


@attrs.frozen
class Sent:
    """One message as its sender knows it; times in seconds, of the monotonic clock where it began."""

    label: str
    outcome: str
    began: float
    took: float
    destination: int


def read_sent(paths: Iterable[Path]) -> Iterator[Sent]:
    """All lines that senders have written; see `tests.nightly.senders_process`."""
    for path in paths:
        with open(path) as file:
            for line in file:
                label, outcome, began, took, destination = line.split()
                yield Sent(label, outcome, float(began), float(took), int(destination))


def read_taken(paths: Iterable[Path]) -> Counter[str]:
    """How often servers have taken each message."""
    taken: Counter[str] = Counter()
    for path in paths:
        taken.update(json.loads(path.read_text()))
    return taken


def balance(report: Report, outcomes: Mapping[str, str], taken: Mapping[str, int]) -> None:
    """Print both sides: nothing lost, nothing twice, nothing wrongly called a failure.

    :param outcomes: of each message by its label.
    """
    for outcome in ("sent", "uncertain", "refused", "error"):
        report.say(f"messages that senders were told are {outcome}", sum(o == outcome for o in outcomes.values()))
    report.say("messages that servers have taken", len(taken))
    doubt = sum(outcomes.get(label) == "uncertain" for label in taken)
    report.say("of these, uncertain at the sender", doubt)
    lost = sum(outcome == "sent" and label not in taken for label, outcome in outcomes.items())
    report.exactly("lost: sent, and not taken", lost, 0)
    report.exactly("doubles: taken more than once", sum(count > 1 for count in taken.values()), 0)
    wrong = sum(outcomes.get(label) in ("refused", "error") for label in taken)
    report.exactly("taken, and called a failure", wrong, 0)
    report.exactly("taken, and never sent", sum(label not in outcomes for label in taken), 0)
    sent = sum(outcome == "sent" for outcome in outcomes.values())
    report.exactly("taken less what is uncertain", len(taken) - doubt, sent)
