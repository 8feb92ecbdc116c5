"""Level "may": never clear text at once where TLS fails, and clear text at last."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, DeliveryError, DeliveryResult, Limits, TLSPolicy
from mailcache.destination import Endpoint
from mailcache.testing import Fault
from mailcache.trust import opportunism as module
from mailcache.trust.opportunism import PATIENCE, Opportunism
from tests.helpers import Bed, keeper_cache, memory_cache

HERE, THERE = Endpoint("smtp", "192.0.2.1", 25), Endpoint("smtp", "192.0.2.2", 25)
LONG = Limits(max_age=100_000, idle_timeout=100_000)
BROKEN = ("garbage", "rst", "fin", "silence")
CREDENTIALS = Credentials("user", "correct horse")


class OpportunismTests(SynchronousTestCase):
    def test_clear_text_from_when_tls_has_failed_for_so_long_until_it_is_to_be_tried_again(self) -> None:
        known = Opportunism()
        known.failed(HERE, 1000.0)
        for after, clear in ((0, False), (1, False), (PATIENCE - 1, False), (PATIENCE, True), (2 * PATIENCE - 1, True),
                             (2 * PATIENCE, False)):  # fmt: skip
            self.assertIs(known.clear(HERE, 1000.0 + after), clear, f"after {after} s")
            self.assertFalse(known.clear(THERE, 1000.0 + after))

    def test_the_first_failure_counts_and_the_last(self) -> None:
        known = Opportunism()
        for after in (0, 100, 200):
            known.failed(HERE, 1000.0 + after)
        self.assertTrue(known.clear(HERE, 1000.0 + PATIENCE))
        self.assertTrue(known.clear(HERE, 1199.0 + 2 * PATIENCE))
        self.assertFalse(known.clear(HERE, 1200.0 + 2 * PATIENCE))

    def test_one_success_and_all_is_forgotten(self) -> None:
        known = Opportunism()
        known.failed(HERE, 1000.0)
        known.worked(HERE)
        known.worked(THERE)
        known.failed(HERE, 1000.0 + PATIENCE)
        self.assertFalse(known.clear(HERE, 1000.0 + PATIENCE))

    def test_no_more_than_so_many_are_remembered(self) -> None:
        self.patch(module, "MAX_REMEMBERED", 1)
        known = Opportunism()
        known.failed(HERE, 1000.0)
        known.failed(THERE, 1000.0)
        self.assertFalse(known.clear(HERE, 1000.0 + PATIENCE))
        self.assertTrue(known.clear(THERE, 1000.0 + PATIENCE))


class DeliveryTests(SynchronousTestCase):
    """What becomes of deliveries to a server whose STARTTLS does not work."""

    def bed(self, kind: str = "garbage", times: int = 1000, make_cache: Any = memory_cache, **more: Any) -> Bed:
        more.setdefault("tls", TLSPolicy("may"))
        return Bed(faults=[Fault("handshake", kind, times=times)], limits=LONG, make_cache=make_cache, **more)

    def failed(self, bed: Bed, **more: Any) -> None:
        """A delivery that fails over one connection."""
        before = bed.server.connection_count
        error = bed.deliver(**more)
        self.assertIsInstance(error, DeliveryError)
        self.assertEqual((error.phase, error.retriable), ("tls", True))
        self.assertEqual(bed.server.connection_count, before + 1)

    def sent(self, bed: Bed) -> DeliveryResult:
        result = bed.deliver()
        self.assertIsInstance(result, DeliveryResult, result)
        return result  # type: ignore[no-any-return]

    def test_in_clear_after_so_long_and_not_before(self) -> None:
        for make_cache in (memory_cache, keeper_cache):
            for kind in BROKEN:
                bed = self.bed(kind, make_cache=make_cache)
                began = bed.reactor.seconds()
                self.failed(bed)
                failed_at = bed.reactor.seconds()
                bed.reactor.advance(began + PATIENCE - 1 - failed_at)
                self.failed(bed) if kind != "silence" else None
                bed.reactor.advance(max(0, failed_at + PATIENCE - bed.reactor.seconds()))
                result = self.sent(bed)
                self.assertIsNone(result.session.tls)
                self.assertEqual(self.sent(bed).session.uses, 2)

    def test_what_is_in_clear_instead_of_tls_is_used_for_so_long(self) -> None:
        """However long others are; then TLS is tried again when its time has come, by one delivery."""
        bed = self.bed()
        self.failed(bed)
        bed.reactor.advance(PATIENCE)
        first = self.sent(bed)
        bed.reactor.advance(PATIENCE - 1)
        self.assertEqual(self.sent(bed).session.id, first.session.id)
        bed.reactor.advance(2)
        self.failed(bed)
        second = self.sent(bed)
        self.assertIsNone(second.session.tls)
        self.assertNotEqual(second.session.id, first.session.id)

    def test_what_is_in_clear_since_starttls_was_refused_is_used_for_so_long(self) -> None:
        for kind in ("4xx", "5xx"):
            bed = Bed(tls=TLSPolicy("may"), limits=LONG, faults=[Fault("starttls", kind, times=1)])
            self.assertIsNone(self.sent(bed).session.tls)
            bed.reactor.advance(PATIENCE - 1)
            self.assertIsNone(self.sent(bed).session.tls)
            bed.reactor.advance(2)
            self.assertIsNotNone(self.sent(bed).session.tls)
            self.assertEqual(bed.server.connection_count, 2)

    def test_what_never_was_offered_tls_lives_as_long_as_others(self) -> None:
        bed = Bed(tls=TLSPolicy("may"), limits=LONG, server={"certificate": None})
        self.sent(bed)
        bed.reactor.advance(2 * PATIENCE)
        self.assertEqual(self.sent(bed).session.uses, 2)

    def test_tls_that_works_again_is_used_again(self) -> None:
        bed = self.bed(times=1)
        self.failed(bed)
        self.assertIsNotNone(self.sent(bed).session.tls)
        bed.reactor.advance(PATIENCE)
        self.assertIsNotNone(self.sent(bed).session.tls)

    def test_credentials_never_go_in_clear(self) -> None:
        bed = self.bed(credentials=CREDENTIALS, server={"users": {"user": "correct horse"}})
        for _ in range(4):
            self.failed(bed)
            bed.reactor.advance(PATIENCE / 2)

    def test_levels_that_demand_tls_never_go_in_clear(self) -> None:
        bed = self.bed(tls=TLSPolicy("encrypt"))
        for _ in range(4):
            self.failed(bed)
            bed.reactor.advance(PATIENCE / 2)

    def test_what_demands_tls_of_every_hop_never_goes_in_clear(self) -> None:
        """REQUIRETLS that a server offers in clear text means nothing (RFC 8689 2)."""
        bed = Bed(tls=TLSPolicy("may"), server={"certificate": None, "capabilities": ("PIPELINING", "REQUIRETLS")})
        error = bed.deliver(requiretls=True)
        self.assertEqual((error.phase, error.retriable), ("needs", False))
        self.assertEqual(bed.server.message_count, 0)
