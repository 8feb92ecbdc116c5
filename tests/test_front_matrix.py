"""The fault matrix over the front: a stock sender meets every fault that `deliver` does, and hears as much."""

from __future__ import annotations

import io
from typing import Any

from twisted.internet.defer import Deferred
from twisted.mail.smtp import ESMTPSenderFactory, SMTPDeliveryError

from mailcache import DeliveryError, DeliveryResult, SessionEndpoint, UncertainDelivery
from mailcache.fronting import relaying
from mailcache.fronting.replies import refusal
from mailcache.result import SessionFacts
from mailcache.wire.replies import Reply
from tests import test_fault_matrix
from tests.helpers import SMALL, Bed, KeeperBed, Outcome
from tests.senders import DOUBT

NO_SESSION = SessionFacts("", "", False, 0, None, 0.0)


class SenderBed(Bed):
    """Delivers with a stock sender, and says what came of it in `deliver`'s words."""

    failed: DeliveryError | None = None

    def refusal(self, error: DeliveryError) -> Reply:
        """What the sender is told of ``error``, which may be no more than the server has said."""
        self.failed = error
        return refusal(error)

    def deliver(self, content: Any = SMALL, *, sender: str = "a@example.com", **_: Any) -> Any:
        self.failed = None
        sent: Deferred[Any] = Deferred()
        factory = ESMTPSenderFactory(
            None, None, sender, ["b@example.com"], io.BytesIO(content), sent, requireAuthentication=False
        )
        SessionEndpoint(self.cache, self.destination).connect(factory).addErrback(sent.errback)
        value = self.finish(Outcome(sent))
        if self.failed is not None:
            return self.failed
        if isinstance(value, SMTPDeliveryError):
            reply = Reply.make(value.code)
            if DOUBT in str(value):
                return UncertainDelivery(str(value))
            return DeliveryResult((), {"b@example.com": reply}, reply, NO_SESSION)
        if isinstance(value, Exception):
            return DeliveryError(repr(value), phase="connect")
        return DeliveryResult(("b@example.com",), {}, Reply.make(250), NO_SESSION)


class KeeperSenderBed(SenderBed, KeeperBed):
    """The same with a keeper in between."""


class FrontMatrixTests(test_fault_matrix.MatrixTests):
    """All rows."""

    make_bed: type[Bed] = SenderBed
    # MAIL waits for the reply to RSET here.
    refuses_rset = property(lambda _: False, lambda _, __: None)  # type: ignore[assignment]

    def bed(self, row: dict[str, str], transaction: int) -> Bed:
        bed = super().bed(row, transaction)
        assert isinstance(bed, SenderBed)
        self.patch(relaying, "refusal", bed.refusal)
        return bed


class KeeperFrontMatrixTests(FrontMatrixTests):
    """All rows with a keeper: it says QUIT where its borrower gives up a session to which nothing is owed."""

    make_bed = KeeperSenderBed

    def run_rset(self, row: dict[str, str]) -> None:
        super().run_rset({**row, "session": "QUIT"} if row["fault"] in ("4xx", "5xx") else row)
