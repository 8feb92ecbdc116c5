"""A borrower as a process that sends letters of which only the label is said: see `tests.nightly.letters`."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from mailcache import DeliveryError, Destination, Envelope, RemoteSessionCache, Timeouts, deliver
from tests.helpers import CREDENTIALS
from tests.nightly.ledger import told_by
from tests.nightly.letters import letter
from tests.remote import borrower_process
from tests.remote.borrower_process import Borrower, tell

SHORT = Timeouts(
    connect=2, greeting=1, ehlo=1, starttls=1, auth=1, mail=1, rcpt=1, data=1, content=1, dot=2, rset=1, quit=1,
    first_reply=0.5,
)  # fmt: skip
"""Seconds, for servers that stand still on purpose."""


PAUSE = 0.1
"""Seconds until the next letter of who was told that there is nothing to be had: as a queue waits, but shorter."""


class LetterWriter(Borrower):
    """Sends letters, and tells what came of each."""

    def __init__(self, keeper: str, next_hop: str, ca_file: str, domain: str) -> None:
        super().__init__(keeper, next_hop, ca_file, domain)
        self._keeper = keeper

    async def do_renew(
        self,
        fallback: bool = True,
        short: bool = False,
        login: bool = False,
        one_flight: bool = False,
        namespace: str = "default",
    ) -> None:
        """Have another cache, like a process that has just been started."""
        await self.cache.close()
        settings: dict[str, Any] = {} if fallback else {"fallback": None}
        self.cache = RemoteSessionCache(
            reactor, f"unix:{self._keeper}", timeouts=SHORT if short else Timeouts(), **settings
        )
        self.destination = Destination(
            self.destination.next_hop,
            tls=self.destination.tls,
            credentials=CREDENTIALS if login else None,
            one_flight=one_flight,
            namespace=namespace,
        )
        tell(renewed=True)

    async def do_post(self, labels: list[str], at_once: int = 1, patience: list[float] | None = None) -> None:
        """Send these letters.

        :param patience: seconds after which some of them are cancelled, in turn; 0 for those that are not.
        """
        waiting = iter(zip(labels, patience or [0.0] * len(labels), strict=True))

        async def some() -> None:
            for label, seconds in waiting:
                what = letter(label)
                delivering = deliver(self.cache, self.destination, Envelope(what.sender, what.recipients), what.content)
                if seconds:
                    reactor.callLater(seconds, delivering.cancel)  # type: ignore[attr-defined]
                try:
                    outcome: object = await delivering
                except Exception as error:  # noqa: BLE001  (told_by says which of them there may be)
                    outcome = error
                tell(label=label, report=told_by(outcome))
                if isinstance(outcome, DeliveryError):
                    await deferLater(reactor, PAUSE)  # type: ignore[arg-type]

        await gatherResults([Deferred.fromCoroutine(some()) for _ in range(at_once)])
        tell(posted=True)


if __name__ == "__main__":
    borrower_process.main(LetterWriter)
