"""The ground that the tests of a session cache stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailcache import DeliveryResult
from mailcache.testing import MemoryReactor
from tests.helpers import Bed, Outcome

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as Base
else:
    # A mixin: test loaders take whatever is a test case for one.
    Base = object

SETTLED = 0.5
"""Seconds after which a cache that hands sessions back late, to save a round trip of its own, has done so."""


class CacheCase(Base):
    """Makes test beds with the cache under test, and looks at what is left of them."""

    def make_cache(self, reactor: MemoryReactor, limits: Any, timeouts: Any, router: Any) -> Any:
        """The cache under test, with the time of ``reactor``; ``None`` means the default each time."""
        raise NotImplementedError

    def bed(self, **settings: Any) -> Bed:
        """A test bed; when the test is over nothing of it may be left, and no server may have had to complain."""
        bed = Bed(make_cache=self.make_cache, **settings)
        self.addCleanup(self.check_end, bed)
        return bed

    def check_end(self, bed: Bed) -> None:
        bed.close()
        bed.reactor.run_for(700)
        self.assertEqual([server.open_count for server in bed.servers], [0] * len(bed.servers))
        self.assertEqual([violation for server in bed.servers for violation in server.violations], [])
        self.assertEqual(bed.reactor.getDelayedCalls(), [])
        self.assertEqual(bed.reactor.connections, [])

    def sent(self, bed: Bed, **more: Any) -> DeliveryResult:
        """Deliver one message, which must succeed."""
        return self.success(bed.deliver(**more))

    def success(self, value: Any) -> DeliveryResult:
        self.assertIsInstance(value, DeliveryResult)
        self.assertFalse(value.rejected, value)
        return value

    def lease(self, bed: Bed, *arguments: Any, **more: Any) -> Any:
        """Acquire a session, which must succeed."""
        lease = bed.finish(bed.acquire(*arguments, **more))
        self.assertNotIsInstance(lease, Exception)
        return lease

    def settle(self, bed: Bed) -> None:
        """Let happen what is under way."""
        bed.reactor.run_for(SETTLED)

    def assert_counts(self, bed: Bed, leased: int, idle: int, opening: int, waiting: int) -> None:
        """What the cache says of itself when all has settled."""
        self.settle(bed)
        self.assertEqual(bed.counts(), (leased, idle, opening, waiting))

    def one_after_the_other(self, bed: Bed, count: int, **more: Any) -> list[DeliveryResult]:
        return [self.sent(bed, **more) for _ in range(count)]

    def all_together(self, bed: Bed, count: int, **more: Any) -> list[Any]:
        outcomes: list[Outcome] = [bed.start(**more) for _ in range(count)]
        return [bed.finish(outcome) for outcome in outcomes]
