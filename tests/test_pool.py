"""Who gets which session: the pool's decisions, told one by one."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, Destination, TLSPolicy
from mailcache.destination import Endpoint
from mailcache.envelope import Needs
from mailcache.members import Close
from mailcache.routes import MAX_ROUTES
from mailcache.routing.route import Hop
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import Capabilities
from tests.pool_world import (
    BARE,
    ENCRYPTED,
    ENDPOINTS,
    FOREVER,
    RICH,
    UTF8,
    FakeSession,
    World,
    as_user,
    proof,
    to,
)

A, B, C = ENDPOINTS[:3]
ONE, TWO, THREE = to("one.example"), to("two.example"), to("three.example")


class ServingTests(SynchronousTestCase):
    def test_a_first_request_is_routed_then_opened_then_granted(self) -> None:
        world = World()
        request = world.ask(ONE)
        self.assertEqual(world.lookups, [ONE])
        world.resolve(ONE, A, B)
        (member,) = world.openings
        self.assertEqual(member.candidate.endpoint, A)
        world.open(member)
        self.assertIs(world.got(request), member)

    def test_a_released_session_serves_the_next_at_once(self) -> None:
        world = World()
        member = world.serve(ONE)
        world.release(member)
        self.assertIs(world.got(world.ask(ONE)), member)
        self.assertEqual((world.pool.hits, dict(world.pool.misses)), (1, {"route": 1}))

    def test_an_equal_destination_is_the_same_destination(self) -> None:
        world = World()
        world.release(world.serve(ONE))
        self.assertIs(world.got(world.ask(to("ONE.example."))), next(iter(world.leases)))

    def test_the_session_released_last_is_handed_out_first_so_that_the_others_may_end(self) -> None:
        world = World()
        first, last = world.serve(ONE), world.serve(ONE)
        world.release(first)
        world.release(last)
        self.assertIs(world.got(world.ask(ONE)), last)

    def test_a_leased_session_is_nobody_elses(self) -> None:
        world = World()
        member = world.serve(ONE)
        self.assertIsNot(world.serve(ONE), member)

    def test_those_who_wait_for_one_destination_are_served_in_the_order_in_which_they_came(self) -> None:
        world = World(sessions_per_destination=1)
        member = world.serve(ONE)
        waiting = [world.ask(ONE) for _ in range(3)]
        for request in waiting:
            world.release(member)
            self.assertIs(world.got(request), member)

    def test_a_freed_session_goes_to_who_has_waited_longest_of_all_destinations_it_serves(self) -> None:
        world = World(sessions_per_endpoint=1)
        member = world.serve(ONE)
        second = world.ask(TWO)
        world.resolve(TWO, A)
        third = world.ask(ONE)
        other_key = world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        world.release(member)
        self.assertIs(world.got(second), member)
        world.release(member)
        self.assertIs(world.got(third), member)
        self.assertNotIn(other_key, world.ended)

    def test_an_opened_session_goes_to_the_head_of_the_queue_and_the_others_opening_stands_in(self) -> None:
        world = World()
        first, second = world.ask(ONE), world.ask(ONE)
        world.resolve(ONE, A)
        slow, quick = world.openings
        world.open(quick)
        self.assertIs(world.got(first), quick)
        world.open(slow)
        self.assertIs(world.got(second), slow)

    def test_an_opening_that_nobody_needs_any_more_ends_as_an_idle_session(self) -> None:
        world = World()
        member = world.serve(ONE)
        waiting = world.ask(ONE)
        world.release(member)
        self.assertIs(world.got(waiting), member)
        world.open(world.openings[0])
        self.assertEqual(len(world.idle), 1)

    def test_a_session_is_granted_to_one_who_has_an_opening_of_his_own_too(self) -> None:
        world = World(sessions_per_destination=2, sessions_per_endpoint=1)
        shared = world.serve(ONE, A)
        first, second = world.ask(TWO), world.ask(TWO)
        world.resolve(TWO, A, B, C)
        at_b, at_c = world.openings
        world.release(shared)
        self.assertEqual(world.idle, [shared], "two openings are the limit")
        world.fail(at_c)
        self.assertIs(world.got(first), shared)
        world.open(at_b)
        self.assertIs(world.got(second), at_b)

    def test_of_several_idle_sessions_one_who_has_waited_gets_the_one_used_last(self) -> None:
        world = World()
        members = [world.serve(ONE), world.serve(ONE)]
        for member in members:
            world.release(member)
        request = world.ask(TWO)
        world.resolve(TWO, A)
        self.assertIs(world.got(request), members[1])

    def test_a_session_kept_unused_is_a_hit_for_whoever_gets_it(self) -> None:
        world = World()
        world.release(world.serve(ONE), uses=0)
        world.ask(TWO)
        world.resolve(TWO, A)
        self.assertEqual((world.pool.hits, dict(world.pool.misses)), (1, {"route": 1}))


class FreshTests(SynchronousTestCase):
    def test_a_fresh_request_gets_no_session_that_has_carried_a_message(self) -> None:
        world = World()
        world.release(world.serve(ONE))
        request = world.ask(ONE, fresh=True)
        world.open(world.openings[0])
        self.assertEqual(world.got(request).session.uses, 0)
        self.assertEqual(dict(world.pool.misses), {"route": 1, "fresh": 1})

    def test_a_fresh_request_gets_no_session_that_was_kept_although_it_was_never_used(self) -> None:
        world = World()
        world.release(world.serve(ONE), uses=0)
        self.assertNotIn(world.ask(ONE, fresh=True), world.ended)
        self.assertEqual(len(world.openings), 1)

    def test_a_fresh_request_takes_whatever_is_opened_next_whomever_that_is_for(self) -> None:
        world = World(sessions_per_endpoint=1)
        plain = world.ask(ONE)
        world.resolve(ONE, A)
        fresh = world.ask(ONE, fresh=True)
        world.open(world.openings[0])
        self.assertIn(fresh, world.ended)
        self.assertNotIn(plain, world.ended)

    def test_fresh_requests_go_before_all_who_wait_and_keep_their_order(self) -> None:
        world = World(sessions_per_endpoint=1)
        for destination in (ONE, TWO):
            world.ask(destination)
            world.resolve(destination, A)
        earlier, later = world.pending
        first, second, third = world.ask(TWO, fresh=True), world.ask(ONE, fresh=True), world.ask(TWO, fresh=True)
        for request in (first, second, third):
            member = world.openings[0]
            world.open(member)
            self.assertIs(world.got(request), member)
            world.release(member)
            if request is not third:
                self.assertEqual(world.closed_for[member], "room")
                world.vanish(member)
        self.assertIs(world.got(earlier), member)
        self.assertEqual(world.pending, [later])

    def test_who_comes_while_only_fresh_ones_wait_takes_an_idle_session(self) -> None:
        world = World(sessions_per_destination=1)
        member = world.serve(ONE)
        fresh = world.ask(ONE, fresh=True)
        world.release(member)
        world.vanish(member)
        self.assertEqual(world.closed_for[member], "room")
        self.assertNotIn(fresh, world.ended)

        world = World()
        member = world.serve(ONE)
        fresh = world.ask(ONE, fresh=True)
        world.release(member)
        self.assertIs(world.got(world.ask(ONE)), member)
        self.assertNotIn(fresh, world.ended)

    def test_the_place_of_a_dead_session_goes_to_the_fresh_request_and_not_to_who_waited_before(self) -> None:
        world = World(sessions_per_destination=1)
        dead = world.serve(ONE)
        waiting = world.ask(ONE)
        retry = world.ask(ONE, fresh=True)
        world.release(dead, reusable=False)
        world.vanish(dead)
        world.open(world.openings[0])
        self.assertIs(world.got(retry), next(iter(world.leases)))
        self.assertNotIn(waiting, world.ended)


class ChoiceTests(SynchronousTestCase):
    def test_an_endpoint_to_avoid_is_neither_reused_nor_opened(self) -> None:
        world = World()
        world.release(world.serve(ONE, A, B))
        request = world.ask(ONE, avoid=frozenset({A}))
        world.open(world.openings[0])
        self.assertEqual(world.got(request).candidate.endpoint, B)
        self.assertEqual(world.pool.misses["avoided"], 1)

    def test_where_all_endpoints_are_to_be_avoided_there_is_no_route(self) -> None:
        world = World()
        world.release(world.serve(ONE, A))
        error = world.error(world.ask(ONE, avoid=frozenset({A})))
        self.assertEqual((error.phase, error.retriable), ("routing", True))

    def test_a_live_session_with_a_later_endpoint_is_preferred_to_a_new_one_with_the_first(self) -> None:
        world = World()
        first = world.ask(ONE)
        world.resolve(ONE, A, B)
        world.fail(world.openings[0])
        world.open(world.openings[0])
        member = world.got(first)
        world.release(member)
        self.assertIs(world.got(world.ask(ONE)), member)
        self.assertEqual(member.candidate.endpoint, B)

    def test_a_session_whose_server_lacks_what_a_message_needs_does_not_serve_it(self) -> None:
        world = World()
        world.release(world.serve(ONE, A, B, capabilities=BARE))
        request = world.ask(ONE, needs=UTF8)
        self.assertEqual(world.pool.count("idle"), 1)
        world.open(world.openings[0], capabilities=RICH)
        self.assertEqual(world.got(request).candidate.endpoint, B)
        self.assertEqual(world.pool.misses["needs"], 1)

    def test_a_message_too_big_for_every_server_fails_for_good(self) -> None:
        world = World()
        small = Capabilities({"SIZE": ("1000",)})
        request = world.ask(ONE, needs=Needs(size=5000))
        world.resolve(ONE, A, B)
        world.open(world.openings[0], capabilities=small)
        world.open(world.openings[0], capabilities=small)
        error = world.error(request)
        self.assertEqual((error.phase, error.retriable), ("needs", False))
        self.assertIn("1000", str(error))
        self.assertEqual(len(world.idle), 2)

    def test_a_server_that_lacks_something_is_asked_again_after_five_minutes(self) -> None:
        world = World()
        world.release(world.serve(ONE, A, capabilities=BARE))
        self.assertEqual(world.error(world.ask(ONE, needs=UTF8)).phase, "needs")
        world.pass_time(301)
        self.assertNotIn(world.ask(ONE, needs=UTF8), world.ended)
        self.assertEqual(len(world.openings), 1)

    def test_where_one_server_lacks_something_and_the_other_is_down_a_retry_may_help(self) -> None:
        world = World()
        request = world.ask(ONE, needs=UTF8)
        world.resolve(ONE, A, B)
        world.open(world.openings[0], capabilities=BARE)
        world.fail(world.openings[0])
        self.assertEqual((world.error(request).phase, world.error(request).retriable), ("connect", True))

    def test_where_one_server_lacks_something_and_the_other_is_avoided_there_is_no_route(self) -> None:
        world = World()
        world.know(ONE, Hop(A, "mx.example"), Hop(B, "mx.example"))
        world.release(world.serve(ONE, capabilities=BARE))
        error = world.error(world.ask(ONE, needs=UTF8, avoid=frozenset({B})))
        self.assertEqual((error.phase, error.retriable), ("routing", True))

    def test_a_session_whose_certificate_has_expired_meanwhile_does_not_serve(self) -> None:
        world = World(idle_timeout_mx=1000)
        where = to("one.example", "verify")
        world.know(where, Hop(A, "mx.example"))
        member = world.serve(where, evidence=proof("mx.example", until=world.now + 60))
        world.release(member)
        world.pass_time(59)
        self.assertIs(world.got(world.ask(where)), member)
        world.release(member)
        world.pass_time(1)
        self.assertNotIn(world.ask(where), world.ended)
        self.assertEqual(world.pool.misses["trust"], 0)
        self.assertEqual(world.pending[0].miss, "trust")


LEVELS = ("none", "may", "encrypt")

SHARING = (
    # level of who opened it, TLS?, then whether it serves others at level none, may and encrypt
    ("none", False, (True, False, False)),
    ("may", False, (False, True, False)),
    ("may", True, (False, True, True)),
    ("encrypt", True, (False, True, True)),
)


class SharingTests(SynchronousTestCase):
    def test_a_session_serves_another_domain_only_where_its_demand_for_tls_is_met(self) -> None:
        for level, encrypted, expected in SHARING:
            for other, serves in zip(LEVELS, expected, strict=True):
                world = World()
                evidence = ENCRYPTED if encrypted else CLEAR
                world.release(world.serve(to("one.example", level), A, evidence=evidence))
                request = world.ask(to("two.example", other))
                world.resolve(to("two.example", other), A)
                self.assertEqual(request in world.ended, serves, f"{level}, TLS {encrypted}, for {other}")

    def test_a_shared_session_counts_for_whom_it_serves(self) -> None:
        world = World(sessions_per_destination=1)
        member = world.serve(ONE, A)
        world.release(member)
        self.assertIs(world.serve(TWO, A), member)
        self.assertIsNot(world.serve(ONE, A), member)

    def test_a_session_that_goes_to_another_leaves_its_place_to_who_waits_for_one(self) -> None:
        world = World(sessions_per_destination=2)
        world.know(ONE, Hop(A, "mx.example"), Hop(B, "mx.example"))
        world.know(TWO, Hop(A, "mx.example"))
        idle, ending = world.serve(ONE), world.serve(ONE)
        world.release(idle)
        world.release(ending, reusable=False)
        world.ask(ONE, avoid=frozenset({A}))
        self.assertEqual(world.openings, [])
        self.assertIs(world.got(world.ask(TWO)), idle)
        self.assertEqual([member.candidate.endpoint for member in world.openings], [B])

    def test_it_does_so_too_where_the_other_has_waited(self) -> None:
        world = World(sessions_per_destination=2)
        world.know(ONE, Hop(A, "mx.example"), Hop(B, "mx.example"))
        idle, ending = world.serve(ONE), world.serve(ONE)
        world.release(idle)
        world.release(ending, reusable=False)
        world.ask(ONE, avoid=frozenset({A}))
        other = world.ask(TWO)
        world.resolve(TWO, A)
        self.assertIs(world.got(other), idle)
        self.assertEqual([member.candidate.endpoint for member in world.openings], [B])

    def test_it_does_so_too_where_it_is_handed_over_when_it_is_freed(self) -> None:
        world = World(sessions_per_destination=1, sessions_per_endpoint=1)
        world.know(ONE, Hop(A, "mx.example"), Hop(B, "mx.example"))
        world.know(TWO, Hop(A, "mx.example"))
        member = world.serve(ONE)
        world.ask(ONE, avoid=frozenset({A}))
        other = world.ask(TWO)
        world.release(member)
        self.assertIs(world.got(other), member)
        self.assertEqual([member.candidate.endpoint for member in world.openings], [B])

    def test_a_session_is_not_shared_beyond_the_limit_of_who_wants_it(self) -> None:
        world = World(sessions_per_destination=1)
        world.serve(TWO, A)
        world.release(world.serve(ONE, A))
        self.assertNotIn(world.ask(TWO), world.ended)
        self.assertEqual(world.openings, [])

    def test_a_host_of_several_names_serves_whoever_trusts_one_of_them(self) -> None:
        world = World(sessions_per_endpoint=1)
        one, two, three = (to(f"{name}.example", "verify") for name in ("one", "two", "three"))
        world.know(one, Hop(A, "mx2.example"))
        world.know(two, Hop(A, "mx1.example"), Hop(A, "mx2.example"))
        world.know(three, Hop(A, "mx1.example"))
        member = world.serve(one, evidence=proof("mx2.example", until=FOREVER))
        stranger, waiting = world.ask(three), world.ask(two)
        world.release(member)
        self.assertIs(world.got(waiting), member)
        self.assertNotIn(stranger, world.ended)


def _one(**more: Any) -> Destination:
    return Destination("one.example", tls=TLSPolicy("none"), **more)


DIFFERENCES = (
    (_one(namespace="another"), "identity.namespace"),
    (_one(bind_address="192.0.2.99"), "identity.bind_address"),
    (_one(helo_name="other.example"), "identity.helo_name"),
    (_one(credentials=Credentials("anne", "secret")), "identity.credentials"),
    (to("one.example", "may"), "tls_class"),
    (_one(protocol="lmtp"), "none idle"),
)

TLS_DIFFERENCES = (
    (TLSPolicy("encrypt", min_version="TLSv1.3"), "tls_class.min_version"),
    (TLSPolicy("encrypt", ciphers="ECDHE+AESGCM"), "tls_class.ciphers"),
    (TLSPolicy("none"), "tls_class"),
    (TLSPolicy("verify"), "trust"),
)


class MissTests(SynchronousTestCase):
    def reason(self, first: Destination, other: Destination, **opened: Any) -> str:
        """Why a session for ``first`` does not serve ``other``, at the same address."""
        world = World()
        world.release(world.serve(first, A, **opened))
        world.know(other, Hop(Endpoint(other.protocol, A.address, A.port), "mx.example"))
        return world.ask(other).miss

    def test_a_miss_is_counted_under_the_field_in_which_the_nearest_session_differs(self) -> None:
        for other, expected in DIFFERENCES:
            self.assertEqual(self.reason(_one(), other), expected)
        for policy, expected in TLS_DIFFERENCES:
            other = Destination("one.example", tls=policy)
            self.assertEqual(self.reason(to("one.example", "encrypt"), other, evidence=ENCRYPTED), expected)

    def test_a_miss_says_what_else_was_wrong_with_the_nearest_session(self) -> None:
        world = World(sessions_per_destination=1)
        world.know(ONE, Hop(A, "mx.example"))
        self.assertEqual(world.ask(ONE).miss, "none idle")
        world.open(world.openings[0], capabilities=BARE)
        world.release(next(iter(world.leases)))
        self.assertEqual(world.ask(ONE, fresh=True).miss, "fresh")
        world = World(sessions_per_destination=1)
        world.release(world.serve(ONE, A, capabilities=BARE))
        self.assertEqual(world.ask(ONE, needs=UTF8).miss, "needs")
        self.assertEqual(world.ask(ONE, avoid=frozenset({A})).miss, "avoided")
        self.assertEqual(world.ask(TWO).miss, "route")
        world.serve(THREE, B)
        world.know(THREE, Hop(A, "mx.example"))
        self.assertEqual(world.ask(THREE).miss, "limit")


class RouteTests(SynchronousTestCase):
    def test_a_route_is_looked_for_once_for_all_who_wait(self) -> None:
        world = World()
        for _ in range(3):
            world.ask(ONE)
        self.assertEqual(world.lookups, [ONE])
        world.resolve(ONE, A)
        self.assertEqual(len(world.openings), 3)

    def test_a_route_is_looked_for_again_when_its_time_is_over(self) -> None:
        world = World()
        world.ask(ONE)
        world.resolve(ONE, A, ttl=60)
        world.open(world.openings[0])
        member = next(iter(world.leases))
        world.release(member)
        world.pass_time(4)
        self.assertIs(world.got(world.ask(ONE)), member)
        world.release(member)
        world.now += 57
        request = world.ask(ONE)
        self.assertEqual(world.lookups, [ONE])
        self.assertNotIn(request, world.ended)

    def test_a_kept_session_serves_whoever_has_waited_for_the_route_to_be_found_again(self) -> None:
        world = World(idle_timeout_mx=100)
        world.ask(ONE)
        world.resolve(ONE, A, ttl=1)
        world.open(world.openings[0])
        world.release(next(iter(world.leases)))
        world.pass_time(2)
        request = world.ask(ONE)
        world.resolve(ONE, B, A)
        self.assertEqual(world.got(request).candidate.endpoint, A)

    def test_an_opening_begun_on_a_good_route_serves_after_its_time_is_over(self) -> None:
        world = World()
        request = world.ask(ONE)
        world.resolve(ONE, A, ttl=1)
        world.pass_time(2)
        world.open(world.openings[0])
        self.assertIn(request, world.ended)

    def test_without_a_route_all_who_wait_fail_but_those_whose_session_is_being_opened(self) -> None:
        world = World(sessions_per_destination=1)
        first, second = world.ask(ONE), world.ask(ONE)
        world.resolve(ONE, A, ttl=1)
        world.pass_time(2)
        world.fail_to_resolve(ONE)
        self.assertEqual(world.error(second).phase, "routing")
        world.open(world.openings[0])
        self.assertIs(world.got(first), next(iter(world.leases)))

    def test_a_failed_look_up_is_not_remembered(self) -> None:
        world = World()
        world.ask(ONE)
        world.fail_to_resolve(ONE)
        world.ask(ONE)
        self.assertEqual(world.lookups, [ONE])

    def test_any_number_of_destinations_leaves_a_bounded_memory(self) -> None:
        world = World()
        for number in range(MAX_ROUTES + 100):
            world.know(to(f"d{number}.example"), Hop(A, "mx.example"))
        self.assertEqual(len(world.pool._known), MAX_ROUTES)
        self.assertNotIn(to("d99.example"), world.pool._known)


class EndTests(SynchronousTestCase):
    def test_a_lost_idle_session_is_not_handed_out_and_keeps_its_place_until_its_socket_is_gone(self) -> None:
        world = World(sessions_per_destination=1)
        member = world.serve(ONE)
        world.release(member)
        world.lose(member, "421")
        self.assertEqual(world.pool.evictions, {"421": 1})
        request = world.ask(ONE)
        self.assertEqual((world.openings, world.pool.count("idle")), ([], 0))
        world.vanish(member)
        world.open(world.openings[0])
        self.assertIn(request, world.ended)

    def test_the_place_of_a_leased_session_is_free_when_its_socket_is_gone(self) -> None:
        world = World(sessions_per_destination=1)
        member = world.serve(ONE)
        waiting = world.ask(ONE)
        world.vanish(member)
        world.open(world.openings[0])
        self.assertIn(waiting, world.ended)
        world.release(member, reusable=False)
        self.assertEqual(world.pool.evictions, {"discarded": 1})

    def test_closing_ends_the_idle_and_the_opening_and_those_who_wait_and_the_leased_at_their_release(self) -> None:
        world = World(sessions_per_destination=3)
        idle, leased = world.serve(ONE), world.serve(ONE)
        world.release(idle)
        request = world.ask(TWO)
        world.resolve(TWO, B)
        opening = world.openings[0]
        lookup = world.ask(THREE)
        world.close()
        for waiting in (request, lookup, world.ask(ONE)):
            self.assertEqual((world.error(waiting).phase, world.error(waiting).retriable), ("waiting", True))
        self.assertEqual(world.closed_for, {idle: "closing", opening: "closing"})
        world.release(leased)
        self.assertEqual(world.closed_for[leased], "closing")
        for member in (idle, leased, opening):
            world.vanish(member)
        world.check_nothing_is_left()

    def test_an_opening_that_succeeds_after_it_was_given_up_is_closed(self) -> None:
        world = World()
        request = world.ask(ONE)
        world.resolve(ONE, A)
        member = world.openings[0]
        world.cancel(request)
        (action,) = world.pool.opened(member, FakeSession(RICH, CLEAR), world.now)
        self.assertEqual(action, Close(member, "no longer wanted"))
