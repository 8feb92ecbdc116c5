"""Tokens: who gives them and when, and what becomes of the sessions of older ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, DeliveryError, DeliveryResult, Destination, Timeouts
from mailcache.limits import Limits
from mailcache.tokens import MAX_GENERATIONS, MAX_LINEAGES, Tokens
from tests.helpers import PORT, Bed, KeeperBed, verifying
from tests.session_cache.case import CacheCase

HERE = f"[127.0.0.1]:{PORT}"
ONE, TWO, THREE = "ya29.c4n4ry-one", "ya29.c4n4ry-two", "ya29.c4n4ry-three"


class Supplier:
    """Gives what it is told to, and counts."""

    def __init__(self, gives: Any) -> None:
        self.gives = gives
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.gives() if callable(self.gives) else self.gives


class Base(CacheCase):
    bed_class: type[Bed] = Bed

    def bed(self, **settings: Any) -> Bed:
        self.users = {"robot": ONE, "other": ONE}
        bed = self.bed_class(server={"users": self.users, "mechanisms": ("PLAIN", "XOAUTH2")}, **settings)
        self.addCleanup(self.check_end, bed)
        return bed

    def to(self, bed: Bed, token: Any, name: str = "robot", **more: Any) -> Destination:
        return bed.to(HERE, credentials=Credentials(name, token=token), **more)

    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(self.check_events)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def check_events(self) -> None:
        for event in self.events:
            self.assertNotIn("c4n4ry", eventAsText(event) + repr(event))

    def failed(self, value: Any, *parts: str, retriable: bool = True) -> None:
        assert isinstance(value, DeliveryError), repr(value)
        self.assertEqual((value.phase, value.retriable), ("auth", retriable), str(value))
        for part in parts:
            self.assertIn(part, str(value))
        self.assertNotIn("c4n4ry", str(value) + repr(value) + repr(vars(value)))
        self.assertEqual((value.__cause__, value.__context__), (None, None))


class TokenTests(Base):
    """Whatever keeps the sessions."""

    def test_one_login_serves_for_all_messages(self) -> None:
        bed = self.bed()
        for token in (ONE, Supplier(ONE)):
            where = self.to(bed, token)
            for _ in range(100):
                self.sent(bed, destination=where)
        self.assertEqual(bed.server.connection_count, 1, "the token is the same, whoever gives it")
        assert isinstance(token, Supplier)
        self.assertEqual(token.calls, 100)

    def test_a_new_token_is_a_new_session_and_the_end_of_the_old_one(self) -> None:
        for given in ("text", "supplied"):
            bed = self.bed()
            supplier = Supplier(ONE)
            for token in (ONE, TWO, THREE):
                supplier.gives = self.users["robot"] = token
                where = self.to(bed, token if given == "text" else supplier)
                for _ in range(3):
                    self.sent(bed, destination=where)
                self.settle(bed)
            self.assertEqual(bed.server.connection_count, 3)
            ended = [record.quit_seen for record in bed.server.connections]
            self.assertEqual(ended, [True, True, False], "at once, long before it would have been idle too long")
            self.assertEqual(bed.statistics()["evictions"].get("token"), 2)

    def test_a_session_that_is_lent_ends_when_it_is_released(self) -> None:
        bed = self.bed()
        lease = self.lease(bed, self.to(bed, ONE))
        self.users["robot"] = TWO
        self.sent(bed, destination=self.to(bed, TWO))
        self.settle(bed)
        old, new = bed.server.connections
        self.assertEqual((old.closed, new.closed), (None, None))
        self.success(bed.finish(bed.send(lease)))
        lease.release()
        self.settle(bed)
        self.assertEqual((old.quit_seen, new.closed), (True, None))
        self.assert_counts(bed, 0, 1, 0, 0)

    def test_a_session_that_is_being_opened_ends_after_its_use(self) -> None:
        bed = self.bed(latency=0.1)
        old = bed.start(destination=self.to(bed, ONE))
        bed.reactor.run_for(0.5)
        self.assertEqual(bed.server.connection_count, 1)
        new = bed.start(destination=self.to(bed, TWO))
        self.success(bed.finish(old))
        self.assertEqual(bed.finish(new).phase, "auth")
        bed.reactor.run_for(2)
        self.assertTrue(bed.server.connections[0].quit_seen)
        self.assert_counts(bed, 0, 0, 0, 0)

    def test_a_token_that_was_seen_before_is_not_newer(self) -> None:
        """Two programs, each with a token of its own that is good: neither ends the sessions of the other for ever."""
        bed = self.bed()
        for _ in range(5):
            for token in (ONE, TWO):
                self.users["robot"] = token
                self.sent(bed, destination=self.to(bed, token))
                self.settle(bed)
        self.assertEqual([record.quit_seen for record in bed.server.connections], [True, False, False])

    def test_others_are_left_alone(self) -> None:
        """Another name or namespace is another login; another TLS policy is not."""
        bed = self.bed()
        others = [
            self.to(bed, ONE, "other"),
            self.to(bed, ONE, namespace="another"),
            self.to(bed, ONE, tls=verifying(min_version="TLSv1.3")),
        ]
        for where in (self.to(bed, ONE), *others):
            self.sent(bed, destination=where)
        self.settle(bed)
        self.users["robot"] = TWO
        self.sent(bed, destination=self.to(bed, TWO))
        self.settle(bed)
        self.assertEqual([record.quit_seen for record in bed.server.connections], [True, False, False, True, False])

    def test_accounts_of_one_name_with_two_providers(self) -> None:
        bed = self.bed()
        other = bed.add_server(PORT + 1, users={"robot": TWO}, mechanisms=("OAUTHBEARER",))
        for _ in range(3):
            self.sent(bed, destination=self.to(bed, ONE))
            self.sent(bed, destination=bed.to(f"[127.0.0.1]:{PORT + 1}", credentials=Credentials("robot", token=TWO)))
            self.settle(bed)
        self.assertEqual((bed.server.connection_count, other.connection_count), (1, 1))

    def test_whatever_can_be_awaited(self) -> None:
        async def coroutine() -> str:
            later: Deferred[None] = Deferred()
            bed.reactor.callLater(1, later.callback, None)
            await later
            return ONE

        def deferred() -> Deferred[str]:
            later: Deferred[str] = Deferred()
            bed.reactor.callLater(1, later.callback, ONE)
            return later

        class Other:
            def __await__(self) -> Any:
                return deferred().__await__()

        def other() -> Awaitable[str]:
            return Other()

        def future() -> Awaitable[str]:
            loop = asyncio.new_event_loop()
            self.addCleanup(loop.close)
            done = loop.create_future()
            done.set_result(ONE)
            loop.call_soon(loop.stop)
            bed.reactor.callLater(1, loop.run_forever)
            return done

        for supplier in (coroutine, deferred, other, future, lambda: succeed(ONE)):
            bed = self.bed()
            self.sent(bed, destination=self.to(bed, supplier))
            self.assertEqual(bed.server.connections[0].user, "robot")

    def test_a_supplier_that_fails(self) -> None:
        def raises() -> str:
            raise RuntimeError("the secret is c4n4ry")

        def fails() -> Deferred[str]:
            later: Deferred[str] = Deferred()
            bed.reactor.callLater(1, later.errback, RuntimeError("the secret is c4n4ry"))
            return later

        async def awaited() -> str:
            raise RuntimeError("the secret is c4n4ry")

        def own() -> str:
            raise DeliveryError("the account is locked", phase="elsewhere", retriable=False)

        for supplier in (raises, fails, awaited):
            bed = self.bed()
            error = bed.deliver(destination=self.to(bed, supplier))
            self.failed(error, "the supplier of the token failed with RuntimeError")
            self.assertEqual(bed.server.connection_count, 0)
            self.assert_counts(bed, 0, 0, 0, 0)
        bed = self.bed()
        self.failed(bed.deliver(destination=self.to(bed, own)), "failed: the account is locked", retriable=False)
        self.assertEqual(self.flushLoggedErrors(), [])  # type: ignore[attr-defined]

    def test_a_supplier_that_gives_no_token(self) -> None:
        for given, part in (
            (None, "gave no string, but NoneType"),
            (b"c4n4ry", "gave no string, but bytes"),
            ("", "gave what is none: credentials: a token is made of letters"),
            ("c4n4ry\r\nMAIL FROM:<>", "gave what is none"),
            ("c4n4ry\x01\x01", "gave what is none"),
            ("c4n4ry" * 3000, "gave what is none: credentials: AUTH must be at most 12288 bytes"),
        ):
            for supplier in (Supplier(given), Supplier(lambda given=given: succeed(given))):
                bed = self.bed()
                self.failed(bed.deliver(destination=self.to(bed, supplier)), part)
                self.assertEqual(bed.server.connection_count, 0)

    def test_a_supplier_that_hangs(self) -> None:
        cancelled: list[object] = []
        bed = self.bed(timeouts=Timeouts(auth=7))
        began = bed.reactor.seconds()
        supplier = Supplier(lambda: Deferred(cancelled.append))
        self.failed(bed.deliver(destination=self.to(bed, supplier)), "has not given one within 7 s")
        self.assertEqual((bed.reactor.seconds() - began, len(cancelled), supplier.calls), (7, 1, 1))

    def test_a_delivery_that_is_cancelled_while_it_waits_for_the_token(self) -> None:
        """Suppliers that can be cancelled are; what comes of others later is of no interest."""
        for late in (None, ONE, RuntimeError("c4n4ry")):
            giving: Deferred[Any] = Deferred()
            bed = self.bed()
            outcome = bed.start(destination=self.to(bed, lambda giving=giving: giving))
            bed.reactor.run_for(1)
            outcome.deferred.cancel()
            self.assertIsInstance(bed.finish(outcome), CancelledError)
            if late is not None:
                giving.callback(late) if isinstance(late, str) else giving.errback(late)
            self.assertEqual(bed.server.connection_count, 0)
        self.assertEqual(self.flushLoggedErrors(), [])  # type: ignore[attr-defined]

    def test_a_delivery_that_is_cancelled_after_the_token_came(self) -> None:
        bed = self.bed(latency=0.1)
        outcome = bed.start(destination=self.to(bed, lambda: succeed(ONE)))
        bed.reactor.run_for(0.3)
        outcome.deferred.cancel()
        self.assertIsInstance(bed.finish(outcome), CancelledError)

    def test_a_deadline_holds_for_the_supplier_too(self) -> None:
        bed = self.bed()
        error = bed.deliver(destination=self.to(bed, Deferred), deadline=3)
        self.assertEqual((error.phase, bed.reactor.seconds()), ("deadline", 3))

    def test_a_cache_that_is_closed_waits_for_no_supplier(self) -> None:
        bed = self.bed()
        supplier = Supplier(Deferred)
        outcome = bed.start(destination=self.to(bed, supplier))
        bed.close()
        self.assertEqual(bed.finish(outcome).phase, "waiting")
        self.assertEqual((bed.deliver(destination=self.to(bed, supplier)).phase, supplier.calls), ("waiting", 1))

    def test_a_refused_token_is_asked_for_and_tried_once(self) -> None:
        for supplier in (Supplier(TWO), Supplier(lambda: succeed(TWO))):
            bed = self.bed()
            self.failed_by_server(bed.deliver(destination=self.to(bed, supplier)))
            self.assertEqual((supplier.calls, bed.server.connection_count), (1, 1))

    def failed_by_server(self, value: Any) -> None:
        self.assertEqual((value.phase, value.retriable, value.reply.code), ("auth", False, 535))
        self.assertIn("(401)", str(value))

    def test_wrong_patience_is_told_at_once(self) -> None:
        bed = self.bed()
        supplier = Supplier(ONE)
        self.assertRaises(ValueError, bed.cache.acquire, self.to(bed, supplier), timeout=-1)
        self.assertEqual(supplier.calls, 0)

    def test_messages_at_once_wait_for_no_other_supplier(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_destination=2))
        later: list[Deferred[str]] = []

        def supplier() -> Deferred[str]:
            later.append(Deferred())
            return later[-1]

        outcomes = [bed.start(destination=self.to(bed, supplier)) for _ in range(5)]
        for giving in reversed(later):
            giving.callback(ONE)
        for outcome in outcomes:
            self.assertIsInstance(bed.finish(outcome), DeliveryResult)
        self.assertLessEqual(bed.server.connection_count, 2)


class MemoryTests(TokenTests, SynchronousTestCase):
    """In memory."""


class KeeperTests(TokenTests, SynchronousTestCase):
    """Over a keeper, which never hears of suppliers."""

    bed_class = KeeperBed

    def test_another_borrower_with_a_new_token_ends_the_sessions_of_the_old_one(self) -> None:
        bed = self.bed()
        assert isinstance(bed, KeeperBed)
        other = bed.borrower()
        self.sent(bed, destination=self.to(bed, ONE))
        self.settle(bed)
        self.users["robot"] = TWO
        mine, bed.cache = bed.cache, other
        self.sent(bed, destination=self.to(bed, Supplier(TWO)))
        self.settle(bed)
        self.assertEqual([record.quit_seen for record in bed.server.connections], [True, False])
        other.close()
        bed.cache = mine

    def test_without_a_keeper_the_supplier_is_asked_as_often(self) -> None:
        bed = self.bed()
        assert isinstance(bed, KeeperBed)
        bed.cache.close()
        bed.reactor.run_for(1)
        alone = KeeperBed.borrower(bed)
        for port in bed.keeper.borrowers.copy():
            port.transport.abortConnection()  # type: ignore[attr-defined]
        bed.keeper.closing = True
        supplier = Supplier(ONE)
        bed.cache = alone
        self.sent(bed, destination=self.to(bed, supplier))
        self.assertEqual((supplier.calls, bed.statistics()["fallbacks"]), (1, 1))


class Bounds(SynchronousTestCase):
    def test_no_more_is_remembered_than_is_said(self) -> None:
        tokens = Tokens(None, 1)
        for number in range(MAX_LINEAGES + 50):
            where = Destination(HERE, credentials=Credentials(f"user{number}", token=ONE))
            self.assertEqual(tokens.superseded(where), [])
        for number in range(MAX_GENERATIONS + 5):
            older = tokens.superseded(Destination(HERE, credentials=Credentials("robot", token=f"t{number}")))
            self.assertEqual(len(older), min(number, MAX_GENERATIONS))
        self.assertLessEqual(len(tokens._seen), MAX_LINEAGES)
        self.assertLessEqual(max(map(len, tokens._seen.values())), MAX_GENERATIONS)

    def test_the_same_token_is_the_same_destination(self) -> None:
        tokens = Tokens(None, 1)
        where = Destination(HERE, credentials=Credentials("user", token=Supplier(ONE)))
        found: list[Any] = []
        for _ in range(2):
            tokens.with_token(where, lambda known: succeed(found.append(known)))
        self.assertIs(found[0], found[1])
        self.assertEqual(found[0].identity.credentials.token, ONE)
