"""What every `ISessionCache` must do, whatever process its sessions live in: `SessionCacheTests`.

A test case binds it to a cache:

    class MyCacheTests(SessionCacheTests, SynchronousTestCase):
        def make_cache(self, reactor, limits, timeouts, router):
            return MyCache(...)

All of it runs on the network in memory, and judges by what the server and the caller see.
"""

from tests.session_cache.cancelling import CancelTests
from tests.session_cache.closing import CloseTests
from tests.session_cache.endings import DeadSessionTests, HygieneTests
from tests.session_cache.identity import IdentityTests
from tests.session_cache.leases import LeaseTests
from tests.session_cache.limits import LimitTests
from tests.session_cache.reuse import ReuseTests
from tests.session_cache.sharing import SharingTests
from tests.session_cache.waiting import WaitingTests


class SessionCacheTests(
    ReuseTests,
    IdentityTests,
    SharingTests,
    LimitTests,
    WaitingTests,
    DeadSessionTests,
    HygieneTests,
    LeaseTests,
    CancelTests,
    CloseTests,
):
    """All of them; mix it into a test case that has `make_cache`."""
