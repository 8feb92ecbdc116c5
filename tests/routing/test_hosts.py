"""Finding hosts: literals and sockets as they are, names by their addresses, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailcache import DeliveryError, Destination
from mailcache.destination import Endpoint
from mailcache.interfaces import IRouter
from mailcache.routing.hosts import LOOKUP_LIMIT, MAX_ADDRESSES, TTL, HostRouter
from mailcache.routing.route import Hop, Route
from mailcache.testing import MemoryReactor
from tests.helpers import Outcome


@implementer(IHostResolution)
class Resolution:
    def __init__(self, name: str, cancel: Callable[[], None]) -> None:
        self.name = name
        self._cancel = cancel

    def cancel(self) -> None:
        self._cancel()


@implementer(IHostnameResolver)
class SlowResolver:
    """Answers when the test says so; whether it can be cancelled is the test's choice."""

    def __init__(self, *, can_cancel: bool = True) -> None:
        self.can_cancel = can_cancel
        self.cancelled = 0
        self.asked: list[str] = []
        self.receiver: Any = None

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, *_: Any, **__: Any) -> IHostResolution:
        self.asked.append(hostName)
        self.receiver = resolutionReceiver
        resolution = Resolution(hostName, self._cancel)
        resolutionReceiver.resolutionBegan(resolution)
        return resolution

    def _cancel(self) -> None:
        if not self.can_cancel:
            raise NotImplementedError
        self.cancelled += 1

    def answer(self, *addresses: Any) -> None:
        for address in addresses:
            self.receiver.addressResolved(address)
        self.receiver.resolutionComplete()


def hops(route: Route) -> list[tuple[str, int | None, str]]:
    return [(hop.endpoint.address, hop.endpoint.port, hop.host) for hop in route.hops]


class HostRouterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactor(hosts={"mx.test": ["192.0.2.1", "2001:db8::1", "192.0.2.2"]})
        self.router = HostRouter(self.reactor)

    def found(self, next_hop: str, **more: Any) -> Route:
        return self.successResultOf(self.router.route(Destination(next_hop, **more)))

    def slow(self, *, can_cancel: bool = True) -> SlowResolver:
        resolver = SlowResolver(can_cancel=can_cancel)
        self.reactor.installNameResolver(resolver)
        return resolver

    def test_it_is_a_router(self) -> None:
        verifyObject(IRouter, self.router)

    def test_an_address_is_its_own_endpoint_for_ever(self) -> None:
        for text, address in (("[192.0.2.7]:587", "192.0.2.7"), ("[2001:DB8:0::7]:587", "2001:db8::7")):
            route = self.found(text)
            self.assertEqual((hops(route), route.ttl), ([(address, 587, address)], float("inf")))

    def test_a_socket_is_its_own_endpoint_for_ever(self) -> None:
        route = self.found("unix:/run/lmtp", protocol="lmtp")
        self.assertEqual(route, Route((Hop(Endpoint("lmtp", "/run/lmtp", None), "localhost"),), float("inf")))

    def test_a_name_is_all_its_addresses_in_the_resolvers_order_for_a_minute(self) -> None:
        route = self.found("[mx.test]:587")
        addresses = ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
        self.assertEqual(hops(route), [(address, 587, "mx.test") for address in addresses])
        self.assertEqual(route.ttl, TTL)

    def test_the_port_and_the_protocol_are_the_destinations(self) -> None:
        for protocol, port in (("smtp", 25), ("lmtp", 24)):
            hop = self.found("[mx.test]", protocol=protocol).hops[0]
            self.assertEqual(hop.endpoint, Endpoint(protocol, "192.0.2.1", port))

    def test_an_address_found_twice_is_one_endpoint(self) -> None:
        self.reactor.hosts["twice.test"] = ["192.0.2.1", "192.0.2.1"]
        self.assertEqual(len(self.found("[twice.test]").hops), 1)

    def test_no_more_addresses_are_taken_than_could_be_tried(self) -> None:
        self.reactor.hosts["many.test"] = [f"192.0.2.{number}" for number in range(1, 100)]
        self.assertEqual(len(self.found("[many.test]").hops), MAX_ADDRESSES)

    def test_a_name_without_an_address_is_an_error_that_names_it(self) -> None:
        error = self.failureResultOf(self.router.route(Destination("[nowhere.test]")), DeliveryError).value
        self.assertEqual((error.phase, error.retriable), ("routing", True))
        self.assertIn("nowhere.test", str(error))

    def test_addresses_of_other_kinds_are_passed_over(self) -> None:
        resolver = self.slow()
        found = self.router.route(Destination("[mx.test]"))
        resolver.answer(UNIXAddress("/x"), IPv4Address("TCP", "192.0.2.9", 0), IPv6Address("TCP", "2001:db8::9", 0))
        self.assertEqual([address for address, _, _ in hops(self.successResultOf(found))], ["192.0.2.9", "2001:db8::9"])

    def test_a_look_up_that_takes_too_long_is_an_error_and_a_late_answer_is_nothing(self) -> None:
        for can_cancel in (True, False):
            resolver = self.slow(can_cancel=can_cancel)
            found = Outcome(self.router.route(Destination("[mx.test]")))
            self.reactor.advance(LOOKUP_LIMIT - 0.1)
            self.assertFalse(found.done)
            self.reactor.advance(0.1)
            self.assertEqual(found.value.phase, "routing")
            self.assertIn("20 s", str(found.value))
            self.assertEqual(resolver.cancelled, int(can_cancel))
            resolver.answer(IPv4Address("TCP", "192.0.2.1", 0))
            self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_look_up_can_be_cancelled_whether_the_resolver_can_or_not(self) -> None:
        for can_cancel in (True, False):
            resolver = self.slow(can_cancel=can_cancel)
            found = self.router.route(Destination("[mx.test]"))
            found.cancel()
            self.failureResultOf(found, CancelledError)
            self.assertEqual(resolver.cancelled, int(can_cancel))
            resolver.answer(IPv4Address("TCP", "192.0.2.1", 0))
            self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_nothing_is_left_running_after_an_answer(self) -> None:
        self.found("[mx.test]")
        self.assertEqual(self.reactor.getDelayedCalls(), [])
