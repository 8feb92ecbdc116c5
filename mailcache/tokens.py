"""Tokens of destinations: suppliers are asked before anything else is done, and older tokens are noticed.

A token is part of the identity, so that its sessions serve nobody who has another one. Whoever comes with one that was
not seen before starts a new generation, and what the older ones have kept is of no use any more. One that was seen
before is not taken for newer: where several programs share a keeper, each has its own for a while.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mailcache.destination import Destination, Identity
from mailcache.result import DeliveryError

MAX_LINEAGES = 1_000
"""Logins whose tokens are remembered, the one longest unused forgotten first."""

MAX_GENERATIONS = 8
"""Tokens of one login that are remembered: programs that share a keeper have each one of their own for a while."""

_T = TypeVar("_T")


class Tokens:
    """The tokens of the destinations of one cache.

    :param limit: seconds that a supplier may take.
    """

    def __init__(self, clock: Any, limit: float) -> None:
        self._clock: IReactorTime = clock
        self._limit = limit
        self._seen: OrderedDict[Hashable, list[Identity]] = OrderedDict()
        self._known: OrderedDict[Hashable, Destination] = OrderedDict()
        self._asked: set[_Asked] = set()

    def with_token(self, destination: Destination, then: Callable[[Destination], Deferred[_T]]) -> Deferred[_T]:
        """What ``then`` gives, called with ``destination`` and the token that its supplier gives.

        Fails with a `DeliveryError` of the phase "auth" if there is none. Can be cancelled, as the supplier's Deferred
        and then that of ``then``.
        """
        asked = _Asked(destination, self._clock, self._limit)
        if asked.begin():
            return then(self._resolved(destination, asked.token))
        self._asked.add(asked)
        result: Deferred[Any] = asked.done
        result.addBoth(self._settled, asked)
        return result.addCallback(lambda token: then(self._resolved(destination, token)))

    def superseded(self, destination: Destination) -> list[Identity]:
        """The identities with older tokens, if the one of ``destination`` was not seen before."""
        lineage, identity = destination.lineage, destination.identity
        seen = self._seen.get(lineage)
        if seen is None:
            self._seen[lineage] = [identity]
            if len(self._seen) > MAX_LINEAGES:
                self._seen.popitem(last=False)
            return []
        self._seen.move_to_end(lineage)
        if identity in seen:
            return []
        older = list(seen)
        seen.append(identity)
        del seen[:-MAX_GENERATIONS]
        return older

    def close(self, error: DeliveryError) -> None:
        """Nobody waits for a supplier any more: all who do fail with ``error``."""
        for asked in list(self._asked):
            asked.fail(error)

    def _settled(self, outcome: Any, asked: _Asked) -> Any:
        self._asked.discard(asked)
        return outcome

    def _resolved(self, destination: Destination, token: str) -> Destination:
        """``destination`` with ``token``; the same object as long as it is the same token."""
        known = self._known.get(destination)
        credentials = destination.credentials
        assert credentials is not None
        if known is None or known.credentials is None or known.credentials.token != token:
            # The token was checked when it came.
            known = self._known[destination] = destination.with_credentials(credentials.with_token(token))
            if len(self._known) > MAX_LINEAGES:
                self._known.popitem(last=False)
        self._known.move_to_end(destination)
        return known


class _Asked:
    """A supplier that was asked for a token."""

    def __init__(self, destination: Destination, clock: IReactorTime, limit: float) -> None:
        credentials = destination.credentials
        assert credentials is not None and credentials.supplier is not None
        self.token = ""
        self._credentials = credentials
        self._destination = destination
        self._clock = clock
        self._limit = limit
        self._giving: Deferred[Any] | None = None
        self._timer: Any = None
        self.done: Deferred[str] = Deferred(lambda _: self._give_up())

    def begin(self) -> bool:
        """Ask; gives whether the token is there at once. Else ``done`` fires it, or an error."""
        supplier = self._credentials.supplier
        assert supplier is not None
        given: Any = None
        problem: BaseException | None = None
        try:
            given = supplier()
            if not isinstance(given, (str, Deferred)) and inspect.isawaitable(given):
                given = _deferred(given)
        except Exception as error:  # noqa: BLE001  (whatever the caller's code raises)
            problem = error
        if problem is not None:
            self.fail(self._failed(problem))
            return False
        if isinstance(given, Deferred):
            self._giving = given
            self._timer = self._clock.callLater(self._limit, self._expire)
            given.addCallbacks(self._given, lambda failure: self._not_given(failure.value))
            return False
        wrong = self._wrong(given)
        if wrong is not None:
            self.fail(wrong)
            return False
        self.token = given
        return True

    def fail(self, error: Exception) -> None:
        """There will be no token."""
        if not self.done.called:
            self._give_up()
            self.done.errback(Failure(error))

    def _give_up(self) -> None:
        """Whatever comes of the supplier is of no interest any more."""
        self._stop_timer()
        giving, self._giving = self._giving, None
        if giving is not None:
            giving.cancel()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _expire(self) -> None:
        self.fail(self._error(f"the supplier of the token has not given one within {self._limit:g} s"))

    def _given(self, token: Any) -> None:
        if self._giving is None:
            return
        self._giving = None
        wrong = self._wrong(token)
        if wrong is not None:
            self.fail(wrong)
        else:
            self._stop_timer()
            self.done.callback(token)

    def _not_given(self, error: BaseException) -> None:
        if self._giving is not None:
            self._giving = None
            self.fail(self._failed(error))

    def _failed(self, error: BaseException) -> DeliveryError:
        # What others put into their errors may be the secret: a type says enough. Those of ours are for reading.
        if isinstance(error, DeliveryError):
            return self._error(f"the supplier of the token failed: {error.args[0]}", error.retriable)
        return self._error(f"the supplier of the token failed with {type(error).__name__}")

    def _wrong(self, token: Any) -> DeliveryError | None:
        if not isinstance(token, str):
            return self._error(f"the supplier of the token gave no string, but {type(token).__name__}")
        problem = None
        try:
            self._credentials.with_token(token)
        except ValueError as error:
            problem = str(error)
        return None if problem is None else self._error(f"the supplier of the token gave what is none: {problem}")

    def _error(self, message: str, retriable: bool = True) -> DeliveryError:
        return DeliveryError(message, phase="auth", retriable=retriable)


def _deferred(given: Awaitable[Any]) -> Deferred[Any]:
    """A Deferred of an awaitable."""
    if asyncio.isfuture(given):
        return Deferred.fromFuture(given)

    async def wait() -> Any:
        return await given

    return Deferred.fromCoroutine(wait())
