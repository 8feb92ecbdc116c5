"""One message whose recipients are more than a server takes in one transaction: who is due, and what came of it all.

There are more transactions than one where the server says so beforehand (LIMITS RCPTMAX, RFC 9422), and where it
answers 452 to recipients after it has accepted others (RFC 5321 4.5.3.1.10). Each of them has a verdict of its own. A
transaction in which nobody was accepted is the last one for those who have a 452 already: that is their verdict.

What has been answered stays true whatever comes after it. So a failure that leaves no doubt is the verdict on those
who are still due, and no exception: their last 452, or where they have none the reply 451 4.4.2, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mailcache.result import DeliveryResult, UncertainDelivery
from mailcache.wire.replies import Reply


class Parts:
    """The account of such a message.

    :ivar due: the recipients that are still to be answered for; some of them may have a 452 meanwhile.
    """

    def __init__(self, recipients: tuple[str, ...]) -> None:
        self.due = recipients
        self._asked: tuple[str, ...] = ()
        self._most: int | None = None
        self._accepted: list[str] = []
        self._rejected: dict[str, Reply] = {}
        self._last: DeliveryResult | None = None

    def ask(self, most: int | None) -> tuple[str, ...]:
        """The recipients of the next transaction, with a server that takes ``most`` at a time."""
        limits = [limit for limit in (most, self._most) if limit is not None]
        self._asked = self.due[: min(limits)] if limits else self.due
        return self._asked

    def answered(self, result: DeliveryResult) -> None:
        """What came of the transaction for those who were asked last."""
        excess = result.excess
        self.due = (*excess, *self.due[len(self._asked) :])
        if excess:
            # No more at a time than came before the first of them: each flight would carry all the others in vain.
            self._most = self._asked.index(excess[0])
        self._settle(result.accepted, result.rejected)
        if self._last is None or result.accepted:
            self._last = result
        if not result.accepted:
            self.due = tuple([recipient for recipient in self.due if recipient not in self._rejected])

    def result(self) -> DeliveryResult:
        """The verdict on all, when nobody is due."""
        assert self._last is not None
        return attrs.evolve(
            self._last,
            accepted=tuple(self._accepted),
            rejected=self._rejected,
            excess=(),
        )

    def broken_off(self, why: str) -> DeliveryResult:
        """The verdict on all, where nothing more can be sent. Nobody who is due was accepted."""
        excess = tuple([recipient for recipient in self.due if recipient in self._rejected])
        self._refuse_due(why)
        return attrs.evolve(self.result(), excess=excess)

    def in_doubt(self, error: UncertainDelivery) -> UncertainDelivery:
        """``error``, which is that of those who were asked last, with what is known of all the others."""
        asked = frozenset(self._asked)
        self.due = tuple([recipient for recipient in self.due if recipient not in asked])
        self._settle(error.accepted, error.rejected)
        for recipient in error.undecided:
            self._rejected.pop(recipient, None)
        self._refuse_due("the transaction before it was cut")
        doubt = UncertainDelivery(
            error.args[0],
            endpoint=error.endpoint,
            session=error.session,
            accepted=tuple(self._accepted),
            rejected=self._rejected,
            undecided=error.undecided,
        )
        doubt.__cause__ = error.__cause__
        return doubt

    def _settle(self, accepted: tuple[str, ...], rejected: Mapping[str, Reply]) -> None:
        self._accepted += accepted
        for recipient in accepted:
            self._rejected.pop(recipient, None)
        self._rejected.update(rejected)

    def _refuse_due(self, why: str) -> None:
        reply = Reply.make(451, f"4.4.2 not sent to this recipient: {_printable(why)}")
        for recipient in self.due:
            self._rejected.setdefault(recipient, reply)


def _printable(text: str) -> str:
    return "".join([character if character.isprintable() else "?" for character in text[:400]])
