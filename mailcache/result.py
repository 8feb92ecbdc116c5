"""What came of a delivery: a result, or one of two exceptions that say how sure the failure is."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mailcache.wire.replies import Reply


@attrs.frozen(slots=True)
class SessionFacts:
    """The session that carried a message, for logs and for whoever asks why it was slow.

    ``uses`` counts the transactions on it, this one included; ``tls`` is ``None`` in clear text, else
    "TLSv1.3 TLS_AES_256_GCM_SHA384"; ``setup_seconds`` is what opening it took, connect to last EHLO or AUTH.
    """

    id: str
    peer: str
    reused: bool
    uses: int
    tls: str | None
    setup_seconds: float


@attrs.frozen(slots=True)
class DeliveryResult:
    """The server's verdict on one message; ``accepted`` and ``rejected`` cover all recipients.

    ``rejected`` maps each refused recipient to the reply that refused it: to its RCPT, or to MAIL, DATA or
    the end of content where that refused them all. ``reply`` is the last word on the message as a whole: where it
    took several transactions, that of the last one in which somebody was accepted. ``excess`` are those of the
    rejected whom the server took for one too many (452 after it had accepted others), so that another transaction
    may be what they need; `mailcache.deliver` does that, and leaves them only where it could not.
    """

    accepted: tuple[str, ...]
    rejected: Mapping[str, Reply]
    reply: Reply
    session: SessionFacts
    excess: tuple[str, ...] = ()


class DeliveryError(Exception):
    """Certainly not delivered.

    :ivar phase: where it ended: "waiting", "routing", "bind", "connect", "greeting", "ehlo", "starttls", "tls",
        "trust", "auth", "needs", "rset", "mail", "rcpt", "data", "content"; "deadline" if that passed.
    :ivar retriable: whether the same delivery may succeed later, or elsewhere, without a change by the caller.
    :ivar endpoint: where it happened, as text ("smtp:[192.0.2.1]:25"), or ``None`` before one was chosen.
    :ivar reply: the server's reply that caused it, if one did.
    """

    def __init__(
        self,
        message: str,
        *,
        phase: str,
        retriable: bool = True,
        endpoint: str | None = None,
        reply: Reply | None = None,
    ) -> None:
        super().__init__(message)
        self.phase = phase
        self.retriable = retriable
        self.endpoint = endpoint
        self.reply = reply

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        said = f": the server said {self.reply}" if self.reply is not None else ""
        return f"not delivered ({self.phase}{at}): {self.args[0]}{said}"


class UncertainDelivery(Exception):  # noqa: N818  (a public name: it states doubt, not an error)
    """Nobody can know whether the message was delivered: its end was written, and no verdict was read.

    It is never sent again by mailcache (RFC 1047). For LMTP, and where it took several transactions, ``accepted`` and
    ``rejected`` carry the recipients already answered for; ``undecided`` are the others that the server had accepted.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str | None = None,
        session: SessionFacts | None = None,
        accepted: tuple[str, ...] = (),
        rejected: Mapping[str, Reply] | None = None,
        undecided: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.session = session
        self.accepted = accepted
        self.rejected = dict(rejected or {})
        self.undecided = undecided

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"delivered or not, nobody can know{at}: {self.args[0]}"
