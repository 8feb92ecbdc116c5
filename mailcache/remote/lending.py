"""The keeper's end of the link with one borrower: its requests, and the sessions that are lent to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailcache.lease import Lease
from mailcache.remote import codec, commands
from mailcache.remote.codec import Facts, MalformedError
from mailcache.remote.commands import KeeperFault, KeeperRetiring
from mailcache.remote.guarded import GuardedAMP
from mailcache.remote.packed import Granted, Released, Wanted
from mailcache.remote.relay import Relay
from mailcache.remote.users import User
from mailcache.remote.watch import Watch
from mailcache.result import DeliveryError
from mailcache.session import Session

if TYPE_CHECKING:
    from mailcache.remote.keeper import Keeper

MAX_REQUESTS = 1_000
"""Requests of one borrower that wait at one time: as many as a cache lets wait by default."""

END_PATIENCE = 1.0
"""Seconds for the release, or the end of the link, that explains a pair's end."""

LOOKS = 5
"""How many looks of the keeper at who has a lease and says nothing end his link: a borrower that lives calls Ping three
times a second while it has one. Looks are counted, since a keeper that was stopped itself has heard nobody."""

ACCOUNTS_AT_A_TIME = 25
"""Accounts in one answer: of some 300 bytes each, 2,500 at most, and an answer holds 65,535."""


class _Pair:
    """A pair between one borrower and one session, kept over leases."""

    __slots__ = ("lease", "lease_number", "number", "relay", "session", "unexplained")

    def __init__(self, number: int, session: Session, on_end: Callable[[_Pair], None]) -> None:
        self.number = number
        self.session = session
        self.relay = Relay(Watch(session.key.endpoint.protocol == "lmtp"), lambda: on_end(self))
        self.lease: Lease | None = None
        self.lease_number = 0
        # Its end has come, and what that means has not been said.
        self.unexplained: IDelayedCall | None = None


class Borrower(GuardedAMP):
    """The keeper's end of the link with one borrower."""

    _log = Logger()
    COMMANDS = (commands.Hello, commands.Ping, commands.Acquire, commands.Statistics, commands.Accounts)
    TOLD: ClassVar = {commands.Withdraw: "withdraw", commands.Release: "release"}

    def __init__(self, keeper: Keeper) -> None:
        super().__init__(keeper.pairs)
        self._keeper = keeper
        self._requests: dict[int, Deferred[Any]] = {}
        self._lent: dict[int, _Pair] = {}
        self._by_session: dict[Session, _Pair] = {}
        self._next_pair = 1
        self._next_lease = 1
        self.greeted = False
        self._lost = False
        self._silent = 0
        self._unwelcome = False
        self.user = User(None)
        self.uid: int | None = None
        self.pid: int | None = None

    def __repr__(self) -> str:
        return f"<Borrower, process {self.pid} of user {self.uid}>"

    # -- the link ----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        super().connectionMade()
        self.pid, self.uid = self._keeper.identify(self.transport)
        self._keeper.borrowers.add(self)
        self.user = self._keeper.user(self.uid)
        if not self._keeper.admits(self.user):
            self.drop("the configuration lets this user not connect: see [access]")

    def reconsider(self) -> None:
        """The configuration is another: it may be another about this user, too."""
        self.user = self._keeper.user(self.uid)
        self._unwelcome = not self._keeper.admits(self.user)
        if self._unwelcome:
            self.retire()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._keeper.borrowers.discard(self)
        for request in list(self._requests.values()):
            request.cancel()
        for pair in list(self._lent.values()):
            self._end_pair(pair)
        super().connectionLost(reason)
        self._keeper.link_lost()

    def retire(self) -> None:
        """Nothing more is lent: say so, and let what waits be asked for elsewhere."""
        if self.greeted:
            self.callRemote(commands.Retiring)
        for request in list(self._requests.values()):
            request.cancel()

    def dataReceived(self, data: bytes) -> None:
        self._silent = 0
        super().dataReceived(data)

    def look(self) -> bool:
        """Time has passed; gives whether it has leases."""
        if not any(pair.lease for pair in self._lent.values()):
            return False
        self._silent += 1
        if self._silent > LOOKS:
            self.drop("it has leases, and stands still")
        return True

    def knows(self, name: bytes) -> bool:
        return self.greeted or name == commands.Hello.commandName

    # -- commands ----------------------------------------------------------------------------------------------

    @commands.Hello.responder
    def hello(self, version: int) -> dict[str, int]:
        if version != codec.VERSION:
            raise KeeperFault(f"the keeper speaks version {codec.VERSION} and the borrower {version}")
        if self._keeper.closing:
            raise KeeperRetiring("the keeper retires")
        self.greeted = True
        return {"version": codec.VERSION}

    @commands.Ping.responder
    def ping(self) -> dict[str, Any]:
        return {}

    @commands.Statistics.responder
    def statistics(self) -> Deferred[dict[str, bytes]]:
        counts: Deferred[dict[str, Any]] = self._keeper.cache.statistics()
        return counts.addCallback(lambda found: {"counts": json.dumps(found).encode("ascii")})

    @commands.Accounts.responder
    def accounts(self, start: int) -> dict[str, Any]:
        all_of_them = self.uid in (None, 0, os.getuid())
        found = [
            {"destination": name, "namespace": namespace, "user": uid, **account.facts()}
            for (name, namespace, uid), account in self._keeper.cache.accounts()
            if all_of_them or uid == self.uid
        ]
        end = max(0, start) + ACCOUNTS_AT_A_TIME
        rows = json.dumps(found[max(0, start) : end], separators=(",", ":")).encode("ascii")
        return {"rows": rows, "more": len(found) > end}

    @commands.Acquire.responder
    def acquire(self, destination: bytes, wanted: bytes) -> Deferred[dict[str, Any]] | dict[str, Any]:
        if self._keeper.closing or self._unwelcome:
            raise KeeperRetiring("the keeper retires")
        if len(self._requests) >= MAX_REQUESTS:
            raise KeeperFault(f"{MAX_REQUESTS} requests of this borrower wait already")
        try:
            asked = Wanted.decode(wanted)
            where = self._keeper.destination(destination, self.user)
        except MalformedError as error:
            raise KeeperFault(str(error)) from error
        except DeliveryError as error:
            return {"error": codec.encode_error(error)}
        most = self._keeper.most_leases
        if most is not None and self._keeper.in_use(self.uid) >= most:
            why = f"user {self.uid} has or waits for {most} sessions already, and may for no more"
            return {"error": codec.encode_error(DeliveryError(why, phase="waiting"))}
        number = asked.number
        if number in self._requests:
            raise KeeperFault(f"there is a request {number} already")

        def settle(outcome: Any) -> Any:
            self._requests.pop(number, None)
            return outcome

        def ask() -> Deferred[dict[str, Any]]:
            if self._keeper.closing or self._unwelcome:
                raise KeeperRetiring("the keeper retires")
            leasing = self._keeper.cache.acquire(
                where, needs=asked.needs, fresh=asked.fresh, avoid=asked.avoid, timeout=asked.timeout
            )
            self._requests[number] = leasing
            leasing.addBoth(settle)
            answer: Deferred[dict[str, Any]] = leasing.addCallbacks(self._grant, self._refuse, (ask,))
            return answer

        return ask()

    def withdraw(self, number: int) -> None:
        request = self._requests.get(number)
        if request is not None:
            request.cancel()

    def release(self, released: bytes) -> None:
        self._released(Released.decode(released))

    @property
    def in_use(self) -> int:
        """How many sessions it has or waits for."""
        return len(self._requests) + sum(pair.lease is not None for pair in self._lent.values())

    # -- leases ------------------------------------------------------------------------------------------------

    def _grant(
        self, lease: Lease, again: Callable[[], Deferred[dict[str, Any]]]
    ) -> dict[str, Any] | Deferred[dict[str, Any]]:
        if self._lost:
            lease.release()
            return {}
        session = lease.session
        if not session.connection.quiet:
            # Something has come, if only the half of it, since the cache has last looked.
            lease.discard()
            return again()
        try:
            return self._lend(lease, session)
        except Exception as error:
            pair = self._by_session.get(session)
            if pair is not None:
                self._forget(pair)
                pair.relay.abort()
            lease.release()
            if isinstance(error, OSError):
                raise KeeperFault(f"no pair could be made: {error}") from error
            raise

    def _lend(self, lease: Lease, session: Session) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        pair = self._by_session.get(session)
        if pair is not None and not pair.relay.fit:
            self._forget(pair)
            pair = None
        if pair is None:
            facts = _facts(session)
            pair = _Pair(self._next_pair, session, self._pair_ended)
            descriptor = self._keeper.pairs.make(pair.relay)
            self._next_pair += 1
            self._lent[pair.number] = self._by_session[session] = pair
            answer["descriptor"] = descriptor
            answer["facts"] = facts
            self.close_when_sent(descriptor)
        if self._keeper.changes_hands(session, self.uid):
            session.rset_due = True
        pair.relay.begin(session.connection, session.rset_due)
        self._keeper.ticker.start()
        pair.lease = lease
        pair.lease_number = self._next_lease
        self._next_lease += 1
        left = None if lease.max_uses is None else max(0, lease.max_uses - session.uses)
        if session.reused and not session.uses:
            answer["kept"] = b"yes"
        answer["granted"] = Granted(pair.lease_number, pair.number, session.uses, left, session.rset_due).encode()
        return answer

    def _refuse(self, failure: Failure) -> dict[str, Any]:
        error = failure.value
        if self._keeper.closing:
            raise KeeperRetiring("the keeper retires")
        if isinstance(error, CancelledError):
            error = DeliveryError("the request was withdrawn", phase="waiting")
        if not isinstance(error, DeliveryError):
            self._log.failure("while a session was acquired", failure)
            raise KeeperFault("a defect in the keeper")
        return {"error": codec.encode_error(error)}

    def _released(self, released: Released) -> None:
        pair = self._lent.get(released.pair)
        if pair is None or pair.lease is None or pair.lease_number != released.lease:
            return  # It was revoked meanwhile.
        settled = pair.relay.settled(released.sent, released.received)
        if settled and not released.discard:
            lease = self._take_back(pair)
            assert lease is not None
            if not pair.relay.fit:
                self._forget(pair)
            lease.release()
        else:
            self._end_pair(pair, settled)

    def _take_back(self, pair: _Pair) -> Lease | None:
        lease, pair.lease = pair.lease, None
        unexplained, pair.unexplained = pair.unexplained, None
        if unexplained is not None and unexplained.active():
            unexplained.cancel()
        if lease is not None:
            pair.relay.end()
            pair.session.returned(pair.relay.watch.transactions, pair.relay.watch.rset_due)
        return lease

    def _pair_ended(self, pair: _Pair) -> None:
        if pair.lease is None:
            self._forget(pair)
        else:
            pair.unexplained = self._keeper.reactor.callLater(END_PATIENCE, self._end_pair, pair)

    def _end_pair(self, pair: _Pair, settled: bool = False) -> None:
        """The session is not to be kept; nor is it to be told QUIT unless it is ``settled``."""
        self._forget(pair)
        lease = self._take_back(pair)
        pair.relay.abort()
        if lease is not None:
            if not settled:
                why = pair.relay.watch.spoiled or "its borrower has left it, or has not said how it stands"
                self._log.debug("session {session} is given up: {why}", session=pair.session.id, why=why)
                pair.session.connection.cut("aborted", why)
            lease.discard()

    def _forget(self, pair: _Pair) -> None:
        self._lent.pop(pair.number, None)
        if self._by_session.get(pair.session) is pair:
            del self._by_session[pair.session]

    def session_gone(self, session: Session) -> None:
        """The session has ended: so does its pair, behind what was relayed."""
        pair = self._by_session.get(session)
        if pair is not None:
            self._forget(pair)
            lease = self._take_back(pair)
            pair.relay.close()
            if lease is not None:
                lease.discard()


def _facts(session: Session) -> bytes:
    return codec.encode_facts(
        Facts(
            session.id,
            session.key.endpoint,
            session.host,
            session.capabilities,
            session.evidence,
            session.verdict.reason,
            session.setup_seconds,
        )
    )
