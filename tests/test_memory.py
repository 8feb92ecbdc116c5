"""The cache in memory: all that a session cache does, and what only this one can be asked."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailcache import DeliveryError, Destination, Limits, MemorySessionCache, Timeouts, TLSPolicy
from mailcache.connection import Connection
from mailcache.interfaces import IRouter
from mailcache.routing.route import Route
from mailcache.testing import Fault, MemoryReactor
from mailcache.tls import TLSLayer
from tests.helpers import PORT, Outcome, TableRouter, hop, memory_cache, verifying
from tests.session_cache import SessionCacheTests
from tests.session_cache.case import CacheCase


class Memory(CacheCase):
    def make_cache(self, reactor: MemoryReactor, limits: Any, timeouts: Any, router: Any) -> Any:
        return memory_cache(reactor, limits, timeouts, router)


class MemorySessionCacheTests(Memory, SessionCacheTests, SynchronousTestCase):
    """See `tests.session_cache`."""


class LogTests(Memory, SynchronousTestCase):
    FIELDS = ("host", "address", "version", "cipher", "verdict", "use", "age")

    def events(self, word: str, logged: Any) -> list[tuple[Any, ...]]:
        found = [event for event in logged if word in (event.get("log_format") or "")]
        for event in found:
            self.assertEqual(event["log_level"].name, "info")
            self.assertIsInstance(event["log_time"], float)
            self.assertIn(event["session"], event["log_format"].format(**event))
        return [tuple(event[name] for name in self.FIELDS) for event in found]

    def test_a_session_is_logged_when_it_is_made_and_at_each_use_with_all_that_tls_has_shown(self) -> None:
        bed = self.bed(router=TableRouter(one=[hop()]))
        with capturedLogs() as logged:
            for _ in range(3):
                self.sent(bed, destination=bed.to("one.example"))
                bed.reactor.run_for(1)
        made = self.events("made in", logged)
        reused = self.events("reused", logged)
        facts = ("mx.example.com", "127.0.0.1", "TLSv1.3", "TLS_AES_256_GCM_SHA384", "verified for mx.example.com")
        self.assertEqual(made, [(*facts, 1, 0.0)])
        self.assertEqual(reused, [(*facts, 2, 1.0), (*facts, 3, 2.0)])

    def test_the_verdict_that_is_logged_is_the_borrowers_own(self) -> None:
        bed = self.bed(router=TableRouter(one=[hop()], two=[hop()]))
        with capturedLogs() as logged:
            self.sent(bed, destination=bed.to("one.example"))
            self.sent(bed, destination=bed.to("two.example", tls=verifying(match=("mx.test",))))
        self.assertEqual(self.events("reused", logged)[0][4], "verified for mx.test")

    def test_clear_text_is_called_by_its_name(self) -> None:
        bed = self.bed(server={"certificate": None}, tls=TLSPolicy("may"))
        with capturedLogs() as logged:
            self.sent(bed)
        self.assertEqual(self.events("made in", logged)[0][2:5], ("clear text", "", "clear"))

    def test_a_session_that_could_not_be_opened_is_logged_with_its_reason(self) -> None:
        bed = self.bed(faults=[Fault("banner", "5xx")])
        with capturedLogs() as logged:
            bed.deliver()
        (event,) = [event for event in logged if "no session with" in (event.get("log_format") or "")]
        self.assertEqual(event["endpoint"], f"smtp:[127.0.0.1]:{PORT}")
        self.assertIn("554", event["error"])


class StatisticsTests(Memory, SynchronousTestCase):
    def test_hits_misses_and_ends_are_counted_by_their_reasons(self) -> None:
        bed = self.bed(limits=Limits(max_uses=2))
        other = bed.to(f"[127.0.0.1]:{PORT}", namespace="another")
        for destination in (bed.destination, bed.destination, bed.destination, other):
            self.sent(bed, destination=destination)
        bed.server.abort_connections()
        self.settle(bed)
        self.assertEqual(
            bed.statistics(),
            {
                "leased": 0,
                "idle": 0,
                "opening": 0,
                "waiting": 0,
                "hits": 1,
                "handshakes": 3,
                "fallbacks": 0,
                "misses": {"route": 2, "none idle": 1},
                "evictions": {"uses": 1, "reset": 2},
                "transactions": 4,
                "saved_handshakes": 1,
                "saved_seconds": 0.0,
            },
        )


class ReentryTests(Memory, SynchronousTestCase):
    """Callers who do things in the middle of what the cache does."""

    def bed_with_slow_routes(self) -> Any:
        router = SlowRouter()
        bed: Any = self.bed(router=router, latency=0.01)
        bed.router = router
        return bed

    def two_sessions(self, bed: Any) -> None:
        leases = [bed.acquire(bed.to("two.example")) for _ in range(2)]
        for lease in leases:
            bed.finish(lease).release()
        self.assertEqual(bed.counts(), (0, 2, 0, 0))

    def test_one_who_is_granted_a_session_may_cancel_the_next(self) -> None:
        bed = self.bed_with_slow_routes()
        self.two_sessions(bed)
        bed.router.slow = True
        where = bed.to("one.example")
        first, second = bed.cache.acquire(where), bed.cache.acquire(where)
        leases: list[Any] = []

        def granted(lease: Any) -> None:
            leases.append(lease)
            second.cancel()

        first.addCallback(granted)
        bed.router.answer()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(bed.counts(), (1, 1, 0, 0))
        leases[0].release()

    def test_one_who_is_granted_a_session_may_cancel_what_is_to_be_opened_for_the_next(self) -> None:
        bed = self.bed_with_slow_routes()
        self.lease(bed, bed.to("two.example")).release()
        bed.router.slow = True
        where = bed.to("one.example")
        first, second = bed.cache.acquire(where), bed.cache.acquire(where)
        first.addCallback(lambda lease: second.cancel() or lease)
        bed.router.answer()
        self.failureResultOf(second, CancelledError)
        self.assert_counts(bed, 1, 0, 0, 0)
        self.successResultOf(first).release()
        self.assertEqual(bed.server.open_count, 1)

    def test_one_who_has_failed_may_close_the_cache_and_the_others_hear_of_their_own_failure_first(self) -> None:
        bed = self.bed_with_slow_routes()
        bed.router.slow = True
        heard: list[str] = []
        requests = [bed.cache.acquire(bed.to("one.example")) for _ in range(2)]
        requests[0].addErrback(lambda _: bed.cache.close().addCallback(lambda _: heard.append("closed")))
        requests[1].addErrback(lambda failure: heard.append(failure.value.phase))
        bed.router.waiting.errback(DeliveryError("no route", phase="routing"))
        self.assertEqual(heard, ["routing", "closed"])

    def test_one_who_is_granted_a_session_may_close_the_cache(self) -> None:
        bed = self.bed_with_slow_routes()
        self.two_sessions(bed)
        bed.router.slow = True
        where = bed.to("one.example")
        closed: list[Outcome] = []
        requests = [bed.cache.acquire(where) for _ in range(3)]
        requests[0].addCallback(lambda lease: (closed.append(Outcome(bed.cache.close())), lease.release()))
        outcomes = [Outcome(request) for request in requests]
        bed.router.answer()
        self.assertFalse(closed[0].done)
        outcomes[1].value.release()
        self.assertIn("closed", str(outcomes[2].value))
        bed.finish(closed[0], 1)
        self.assertEqual(bed.counts(), (0, 0, 0, 0))

    def test_any_number_may_give_their_session_back_from_the_call_that_gave_it_to_them(self) -> None:
        bed = self.bed(limits=Limits(sessions_per_destination=1))
        lease = self.lease(bed)
        outcomes = [Outcome(bed.cache.acquire(bed.destination).addCallback(_give_back)) for _ in range(900)]
        lease.release()
        self.assertEqual([outcome.value for outcome in outcomes], ["given back"] * 900)
        self.assertEqual(bed.counts(), (0, 1, 0, 0))

    def test_one_whose_request_has_failed_may_ask_again_at_once(self) -> None:
        bed = self.bed()
        bed.server.stop_listening()
        again: list[Outcome] = []
        bed.acquire().deferred.addCallback(lambda _: again.append(bed.acquire()))
        bed.reactor.run_until(lambda: again and again[0].done, 5)
        self.assertEqual(again[0].value.phase, "connect")
        self.assert_counts(bed, 0, 0, 0, 0)

    def test_one_who_hears_that_the_cache_is_closed_may_ask_again_in_vain(self) -> None:
        bed = self.bed(latency=1)
        again: list[Outcome] = []
        bed.acquire().deferred.addCallback(lambda _: again.append(bed.acquire()))
        bed.finish(Outcome(bed.cache.close()), 1)
        self.assertIn("closed", str(again[0].value))


def _give_back(lease: Any) -> str:
    lease.release()
    return "given back"


@implementer(IRouter)
class SlowRouter:
    """Everything is at mx.example.com; answers at once, or when it is told to."""

    def __init__(self) -> None:
        self.slow = False
        self.waiting: Deferred[Route] | None = None

    def route(self, destination: Destination) -> Deferred[Route]:
        if not self.slow:
            return succeed(Route((hop(),), 60))
        self.waiting = Deferred()
        return self.waiting

    def answer(self) -> None:
        waiting, self.waiting = self.waiting, None
        assert waiting is not None
        waiting.callback(Route((hop(),), 60))


@implementer(IRouter)
class BadRouter:
    """A router with a defect."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def route(self, destination: Destination) -> Any:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


class RouterTests(Memory, SynchronousTestCase):
    def test_the_routers_of_these_tests_are_routers(self) -> None:
        for router in (SlowRouter(), TableRouter(), BadRouter(None)):
            verifyObject(IRouter, router)

    def test_a_router_with_a_defect_is_an_error_and_not_a_wait_for_ever(self) -> None:
        for what in (ZeroDivisionError("oops"), succeed(Route((), 60)), succeed(None), None, Route((), 60)):
            bed = self.bed(router=BadRouter(what))
            error = bed.finish(bed.acquire(), 1)
            self.assertIsInstance(error, DeliveryError)
            self.assertEqual((error.phase, error.retriable), ("routing", True))
            self.assert_counts(bed, 0, 0, 0, 0)

    def test_a_look_up_is_cancelled_when_the_cache_is_closed(self) -> None:
        router = SlowRouter()
        router.slow = True
        bed = self.bed(router=router)
        request = bed.acquire()
        bed.finish(Outcome(bed.cache.close()), 1)
        self.assertIsNotNone(router.waiting)
        self.assertTrue(router.waiting and router.waiting.called)
        self.assertIn("closed", str(request.value))

    def test_what_is_no_router_is_refused(self) -> None:
        with self.assertRaises(TypeError):
            MemorySessionCache(MemoryReactor(), router=object())


def instructions(call: Callable[[], object]) -> int:
    """How many instructions of Python's are carried out for it."""
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # what is collected meanwhile would count
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


class ClockTests(Memory, SynchronousTestCase):
    def test_nothing_ticks_while_there_is_nothing_to_look_after(self) -> None:
        bed = self.bed(limits=Limits(idle_timeout=3))
        self.assertEqual(bed.reactor.getDelayedCalls(), [])
        self.sent(bed)
        self.assertEqual(len(bed.reactor.getDelayedCalls()), 1)
        bed.reactor.run_for(4)
        self.assertEqual(bed.reactor.getDelayedCalls(), [])
        self.sent(bed)

    def test_a_look_at_the_time_costs_the_same_however_many_sessions_are_idle(self) -> None:
        costs = []
        for idle in (1, 20):
            bed = self.bed()
            leases = [self.lease(bed) for _ in range(idle)]
            for lease in leases:
                lease.release()
            self.assert_counts(bed, 0, idle, 0, 0)
            bed.cache._tick()
            costs.append(instructions(bed.cache._tick))
        self.assertEqual(*costs)

    def test_settings_of_another_type_are_refused(self) -> None:
        for arguments in ({"limits": 5}, {"timeouts": {"mail": 5}}):
            with self.assertRaises(ValueError):
                MemorySessionCache(MemoryReactor(), **arguments)

    def test_a_limit_that_is_short_is_kept_to_the_tenth(self) -> None:
        bed = self.bed(faults=[Fault("mail", "silence")], timeouts=Timeouts(mail=0.5))
        before = bed.reactor.seconds()
        bed.deliver()
        self.assertLess(bed.reactor.seconds() - before, 0.56)


class ForgettingTests(Memory, SynchronousTestCase):
    """What failed is remembered for a long time, and of very many servers: what is dead must not stay with it."""

    def connections(self) -> int:
        gc.collect()
        return sum(isinstance(each, (Connection, TLSLayer)) for each in gc.get_objects())

    def test_nothing_is_left_of_a_connection_on_which_no_session_could_be_opened(self) -> None:
        for point, kind in (("banner", "5xx"), ("handshake", "rst"), ("ehlo2", "garbage"), ("ehlo2", "silence")):
            with self.subTest(point=point, kind=kind):
                bed = self.bed(faults=[Fault(point, kind, times=2)])
                before = self.connections()
                self.assertIsInstance(bed.deliver(), DeliveryError)
                bed.reactor.run_for(60)
                bed.server.forget()
                self.assertEqual(self.connections(), before)
