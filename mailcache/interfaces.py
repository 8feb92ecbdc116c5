"""The contracts: what a cache, a session and a router promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IProtocol

    from mailcache.contents import Sendable
    from mailcache.destination import Destination, Endpoint
    from mailcache.envelope import Envelope, Needs
    from mailcache.result import DeliveryResult
    from mailcache.routing.route import Route
    from mailcache.trust.evidence import Evidence
    from mailcache.wire.capabilities import Capabilities


class ISession(Interface):
    """The lease of a session: its exclusive use by one borrower.

    It ends exactly once, by `release` or `discard`, whichever comes first; after that every use of it but these
    two raises `RuntimeError`, and these do nothing. A lease that is dropped without either is reclaimed when it is
    collected, which is logged as the defect it is.
    """

    capabilities: Capabilities = Attribute("What the server has offered, after TLS where there is TLS.")
    evidence: Evidence = Attribute("What TLS has shown; `CLEAR` without TLS.")
    endpoint: Endpoint = Attribute("Which server address this is a session with.")
    peer: str = Attribute("The server's address as text, for logs.")
    uses: int = Attribute("How many transactions were begun on the session, by anybody.")
    reused: bool = Attribute("Whether it was used or kept before this lease, so that it may be dead by now.")
    reusable: bool = Attribute("Whether it may carry another message: it is at a clean place, and not used up.")

    def send(envelope: Envelope, content: Sendable, *, one_flight: bool = False) -> Deferred[DeliveryResult]:
        """Send one message: one transaction, never repeated.

        With ``one_flight`` it is written at once where the server can take it so, and where `mailcache.wire.one_flight`
        sees nothing against it: one round trip instead of two, and doubt where two leave none.

        Fires after all that was read is parsed, so that whatever came with the last reply has been noticed.

        :raises RuntimeError: if the lease has ended, or the message before has no result yet.
        :raises ValueError: for content that can't be read or written, or contradicts the envelope.
        :return: fires a `DeliveryResult` with the server's verdict, whatever it is. Fails with `DeliveryError` if the
            message was certainly not delivered, with `UncertainDelivery` if nobody can know. Cancelling it ends the
            session, with `CancelledError` before the end of content was written and `UncertainDelivery` after.
        """

    def release() -> None:
        """End the lease; the session is kept if it stands at a clean place, and closed if not."""

    def discard() -> None:
        """End the lease and the session."""


class ISessionCache(Interface):
    """Where sessions come from, kept or new."""

    clock: Any = Attribute("The `IReactorTime` on which deadlines of deliveries run.")

    def acquire(
        destination: Destination,
        *,
        needs: Needs = ...,
        fresh: bool = False,
        avoid: frozenset[Endpoint] = ...,
        timeout: float | None = None,
    ) -> Deferred[ISession]:
        """Lease a session with ``destination``: a kept one where one serves, else a new one.

        :param needs: what the message demands of the server.
        :param fresh: only one that is opened now, since what was kept may be dead; it goes before all who wait.
        :param avoid: endpoints that are not wanted.
        :param timeout: seconds to wait for a place where limits leave none; ``None`` is the limits' wait_timeout.
        :return: fires the lease, fails with `DeliveryError` (phase, last real error). Cancelling it gives up its place.
        """

    def statistics() -> Deferred[dict[str, Any]]:
        """Fires counts: numbers under "leased", "idle", "opening", "waiting", "hits", "handshakes", "fallbacks", and of
        the leases that have ended under "transactions", "saved_handshakes" and "saved_seconds"; dicts by reason under
        "misses" and "evictions"."""

    def close() -> Deferred[None]:
        """End everything: idle sessions now, leased ones after their transaction (with a limit), those who wait with
        an error. Fires when all sockets are gone; may be called again."""


class IRouter(Interface):
    """Finds where a destination's mail goes."""

    def route(destination: Destination) -> Deferred[Route]:
        """Fires the `Route`, at least one hop; fails with a `DeliveryError` of phase "routing". Can be cancelled.

        It must come to an end by itself: requests wait for it without a time limit of their own.
        """


class IPairs(Interface):
    """Makes the pairs that sessions are lent through, and adopts the ends that come in."""

    def make(protocol: IProtocol) -> int:
        """Connect ``protocol`` to one end of a new pair; gives the descriptor of the other, to be sent and closed.

        :raises OSError: if there is none to be had.
        """

    def adopt(descriptor: int, protocol: IProtocol) -> None:
        """Connect ``protocol`` to the end that came in as ``descriptor``, which is closed in any case.

        :raises OSError: if it is no stream socket that lives.
        """

    def received(descriptor: int) -> None:
        """This has come in, whatever it is: no program that this one starts may inherit it.

        :raises OSError: if that can't be.
        """

    def close(descriptor: int) -> None:
        """Close an end that was sent, or that nobody wants."""
