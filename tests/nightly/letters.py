"""Letters of which every byte follows from their label: whoever has one can say whether it is whole and unmixed."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from itertools import count

import attrs

FROM, TO = "@from.test", "@to.test"

REFUSED = "refused."
"""How the sender begins of a letter that servers refuse when they have read it."""

NO, LATER = "no", "later"
"""How recipients begin whom servers refuse, for good and for the moment."""

LINES = (b"", b".", b"..", b".hidden", b"From here", b"a line of an ordinary length, as letters have many of them")
"""What a letter is made of: dots where they matter, and none."""

SIZES = (2, 2, 2, 2, 2, 2, 20, 20, 20, 300)
"""Lines of a letter: most are small, and some take several segments."""

LARGE = "large-"
LARGE_LINES = 40_000
"""How the label begins of a letter that does not fit into any buffer on its way, and its lines."""


@attrs.frozen
class Letter:
    """One letter.

    :ivar content: as it is sent.
    :ivar arriving: as a server has it: its last line is ended.
    """

    label: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @property
    def arriving(self) -> bytes:
        return self.content if self.content.endswith(b"\r\n") else self.content + b"\r\n"


@lru_cache(maxsize=500)
def letter(label: str) -> Letter:
    """The letter of this label."""
    chance = random.Random(label)
    several = chance.choice((1, 1, 1, 1, 2, 3, 5))
    kinds = chance.choices(("ok", NO, LATER), weights=(20, 1, 1), k=several)
    recipients = tuple(f"{kind}{number}.{label}{TO}" for number, kind in enumerate(kinds))
    sender = (REFUSED if chance.random() < 0.03 else "") + label + FROM
    lines = chance.choices(LINES, k=LARGE_LINES if label.startswith(LARGE) else chance.choice(SIZES))
    body = b"".join(line + b"\r\n" for line in lines)
    end = b"the end of " + label.encode() + (b"\r\n" if chance.random() < 0.8 else b"")
    return Letter(label, sender, recipients, b"Message-ID: <" + label.encode() + b">\r\n\r\n" + body + end)


def accepted(what: Letter) -> bool:
    """Whether servers take it for all its recipients."""
    return not what.sender.startswith(REFUSED) and not any(map(_is_refused, what.recipients))


def refused(what: Letter) -> bool:
    """Whether servers refuse all its recipients."""
    return all(map(_is_refused, what.recipients))


def _is_refused(recipient: str) -> bool:
    return recipient.startswith((NO, LATER))


def label_for(prefix: str, wanted: Callable[[Letter], bool]) -> str:
    """The first label with this prefix whose letter is ``wanted``."""
    return next(label for number in count() if wanted(letter(label := f"{prefix}-{number}")))


def label_of(sender: str) -> str | None:
    """The label of the letter with this sender; ``None`` for a sender of something else."""
    if not sender.endswith(FROM):
        return None
    return sender[: -len(FROM)].removeprefix(REFUSED)


def verdict(point: str, argument: str, _connection: object) -> bytes | None:
    """What servers say of letters: see `mailcache.testing.server.Verdict`."""
    if point == "rcpt" and argument.startswith(NO):
        return b"550 5.1.1 nobody of that name"
    if point == "rcpt" and argument.startswith(LATER):
        return b"450 4.2.0 come back later"
    if point == "dot" and argument.startswith(REFUSED):
        return b"554 5.6.0 content refused"
    return None
