"""The pool's limits: how many, for how long, how often, who waits and who makes room."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mailcache.envelope import Needs
from mailcache.result import DeliveryError
from mailcache.routing.route import Hop
from mailcache.wire.capabilities import Capabilities
from tests.pool_world import BARE, ENDPOINTS, UTF8, World, as_user, failure, to

A, B, C = ENDPOINTS[:3]
ONE, TWO, THREE = to("one.example"), to("two.example"), to("three.example")


class HowManyTests(SynchronousTestCase):
    def test_at_most_so_many_sessions_for_one_destination_at_all_its_endpoints(self) -> None:
        world = World(sessions_per_destination=2, sessions_per_endpoint=1)
        for _ in range(5):
            world.ask(ONE)
        world.resolve(ONE, A, B, C)
        self.assertEqual([member.candidate.endpoint for member in world.openings], [A, B])

    def test_at_most_so_many_sessions_with_one_endpoint_whosever_they_are(self) -> None:
        world = World(sessions_per_endpoint=2)
        for destination in (ONE, TWO, as_user("anne")):
            world.ask(destination)
            world.resolve(destination, A)
        self.assertEqual(len(world.openings), 2)
        self.assertEqual(world.pool.waiting, 3)

    def test_at_most_so_many_sessions_in_all(self) -> None:
        world = World(sessions=2)
        for destination, endpoint in ((ONE, A), (TWO, B), (THREE, C)):
            world.ask(destination)
            world.resolve(destination, endpoint)
        self.assertEqual(len(world.openings), 2)

    def test_a_place_is_free_when_the_socket_is_gone_and_not_before(self) -> None:
        world = World(sessions_per_destination=1)
        member = world.serve(ONE)
        world.ask(ONE)
        world.release(member, reusable=False)
        self.assertEqual(world.openings, [])
        world.vanish(member)
        self.assertEqual(len(world.openings), 1)

    def test_a_limit_of_one_destination_holds_up_no_other(self) -> None:
        world = World(sessions_per_destination=1)
        world.serve(ONE, A)
        world.ask(ONE)
        world.ask(TWO)
        world.resolve(TWO, A)
        self.assertEqual(len(world.openings), 1)

    def test_a_request_that_only_a_full_endpoint_can_serve_holds_up_no_other_of_its_destination(self) -> None:
        world = World(sessions_per_endpoint=1)
        world.serve(TWO, A)
        first = world.ask(ONE, avoid=frozenset({B}))
        second = world.ask(ONE)
        world.resolve(ONE, A, B)
        world.open(world.openings[0])
        self.assertIn(second, world.ended)
        self.assertNotIn(first, world.ended)

    def test_free_places_go_round_by_how_long_each_has_waited(self) -> None:
        world = World(sessions=1)
        member = world.serve(ONE, A)
        order = [world.ask(ONE), world.ask(as_user("anne")), world.ask(ONE), world.ask(as_user("anne"))]
        world.resolve(as_user("anne"), A)
        for request in order:
            world.release(member, reusable=False)
            world.vanish(member)
            world.open(world.openings[0])
            member = world.got(request)


class MakingRoomTests(SynchronousTestCase):
    def test_at_the_limit_of_all_the_idle_session_longest_unused_makes_room(self) -> None:
        world = World(sessions=3)
        first, second, third = world.serve(ONE, A), world.serve(TWO, B), world.serve(THREE, C)
        for member in (second, first, third):
            world.release(member)
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        self.assertEqual(world.closed_for, {second: "room"})
        self.assertEqual(world.openings, [])
        world.vanish(second)
        self.assertEqual(len(world.openings), 1)
        self.assertEqual(world.pool.evictions, {"room": 1})

    def test_at_the_limit_of_an_endpoint_one_of_its_own_makes_room(self) -> None:
        world = World(sessions_per_endpoint=1)
        elsewhere, here = world.serve(ONE, B), world.serve(TWO, A)
        world.release(elsewhere)
        world.release(here)
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        self.assertEqual(world.closed_for, {here: "room"})

    def test_at_the_limit_of_a_destination_one_of_its_own_makes_room(self) -> None:
        world = World(sessions_per_destination=1)
        world.release(world.serve(TWO, B))
        member = world.serve(ONE, A, capabilities=BARE)
        world.know(ONE, Hop(A, "mx.example"), Hop(B, "mx.example"))
        world.release(member)
        world.ask(ONE, needs=UTF8)
        self.assertEqual(world.closed_for, {member: "room"})

    def test_who_waits_has_one_evicted_and_not_one_more_each_time_something_happens(self) -> None:
        world = World(sessions=2)
        members = [world.serve(ONE, A), world.serve(ONE, A)]
        for member in members:
            world.release(member)
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        world.pass_time(0.25)
        world.pass_time(0.25)
        self.assertEqual(len(world.closed_for), 1)

    def test_a_place_that_is_about_to_be_free_is_waited_for_before_another_is_evicted(self) -> None:
        world = World(sessions=2, max_age=100)
        old = world.serve(ONE, A)
        world.pass_time(99)
        young = world.serve(ONE, A)
        world.release(old)
        world.pass_time(1)
        world.release(young)
        self.assertEqual(world.closed_for, {old: "age"})
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        self.assertEqual(world.closed_for, {old: "age"})
        second = world.ask(as_user("bert"))
        world.resolve(as_user("bert"), A)
        self.assertEqual(world.closed_for, {old: "age", young: "room"})
        world.cancel(second)

    def test_one_whose_place_was_taken_by_a_retry_has_another_evicted(self) -> None:
        world = World(sessions=1)
        member = world.serve(ONE, A)
        world.release(member)
        patient = world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        retry = world.ask(as_user("bert"), fresh=True)
        world.resolve(as_user("bert"), A)
        world.vanish(member)
        other = world.openings[0]
        world.open(other)
        self.assertIs(world.got(retry), other)
        world.release(other)
        self.assertEqual(world.closed_for[other], "room")
        world.vanish(other)
        world.open(world.openings[0])
        self.assertIn(patient, world.ended)

    def test_another_endpoint_is_used_before_anybody_is_evicted(self) -> None:
        world = World(sessions_per_endpoint=1)
        world.release(world.serve(ONE, A))
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A, B)
        self.assertEqual(world.closed_for, {})
        self.assertEqual(world.openings[0].candidate.endpoint, B)

    def test_nobody_is_evicted_for_a_request_that_can_not_be_helped(self) -> None:
        world = World(sessions=1)
        world.release(world.serve(ONE, A))
        for number in range(3):
            world.pool.health.failed((B, None, None), failure(), world.now, began=world.now + number)
        request = world.ask(TWO)
        world.resolve(TWO, B)
        self.assertIn("left alone", str(world.error(request)))
        self.assertEqual(world.closed_for, {})

    def test_the_leased_are_never_evicted(self) -> None:
        world = World(sessions=1)
        world.serve(ONE, A)
        request = world.ask(TWO)
        world.resolve(TWO, B)
        self.assertEqual(world.closed_for, {})
        self.assertNotIn(request, world.ended)

    def test_a_session_that_was_parked_makes_room_for_one_who_waits_already(self) -> None:
        world = World(sessions=1)
        member = world.serve(ONE, A)
        world.ask(TWO)
        world.resolve(TWO, B)
        world.release(member)
        self.assertEqual(world.closed_for, {member: "room"})


class TurnTests(SynchronousTestCase):
    """A busy stream at a limit that another waits for too."""

    def test_a_session_has_its_turn_before_it_makes_room_for_one_who_has_waited_longer(self) -> None:
        world = World(sessions=1)
        member = world.serve(ONE, A)
        other = world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        for _ in range(3):
            later = world.ask(ONE)
            world.pass_time(0.3)
            world.release(member)
            self.assertIs(world.got(later), member)
        later = world.ask(ONE)
        world.pass_time(0.2)
        world.release(member)
        self.assertEqual(world.closed_for, {member: "room"})
        world.vanish(member)
        world.open(world.openings[0])
        self.assertIn(other, world.ended)
        self.assertNotIn(later, world.ended)

    def test_it_makes_room_for_nobody_who_came_later(self) -> None:
        world = World(sessions=1)
        member = world.serve(ONE, A)
        world.pass_time(5)
        earlier = world.ask(ONE)
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        world.release(member)
        self.assertIs(world.got(earlier), member)

    def test_it_makes_room_for_nobody_whom_that_would_not_help(self) -> None:
        world = World(sessions_per_endpoint=1)
        world.serve(TWO, B)
        member = world.serve(ONE, A)
        world.pass_time(5)
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), B)
        later = world.ask(ONE)
        world.release(member)
        self.assertIs(world.got(later), member)

    def test_one_session_only_makes_room_for_one_who_waits(self) -> None:
        world = World(sessions=2)
        members = [world.serve(ONE, A), world.serve(ONE, A)]
        world.pass_time(5)
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        for _ in range(2):
            world.ask(ONE)
        for member in members:
            world.release(member)
        self.assertEqual(world.closed_for, {members[0]: "room"})

    def test_a_fresh_request_does_not_wait_for_the_end_of_a_turn(self) -> None:
        world = World(sessions_per_destination=1)
        member = world.serve(ONE)
        world.ask(ONE)
        world.ask(ONE, fresh=True)
        world.release(member)
        self.assertEqual(world.closed_for, {member: "room"})


class HowLongTests(SynchronousTestCase):
    def test_an_idle_session_ends_after_the_idle_time_of_its_kind_of_next_hop(self) -> None:
        for destination, seconds in ((ONE, 5), (to("[mail.example]"), 30)):
            world = World(idle_timeout=30, idle_timeout_mx=5)
            member = world.serve(destination)
            world.release(member)
            world.pass_time(seconds - 0.1)
            self.assertEqual(world.closed_for, {})
            world.pass_time(0.1)
            self.assertEqual(world.closed_for, {member: "idle"})
            self.assertEqual(world.pool.evictions, {"idle": 1})

    def test_an_idle_session_ends_at_its_age(self) -> None:
        world = World(idle_timeout_mx=100, max_age=10)
        member = world.serve(ONE)
        world.pass_time(9)
        world.release(member)
        world.pass_time(1)
        self.assertEqual(world.closed_for, {member: "age"})

    def test_a_busy_session_ends_at_its_age_when_it_is_released_and_not_before(self) -> None:
        world = World(max_age=10)
        member = world.serve(ONE)
        world.pass_time(50)
        self.assertEqual(world.closed_for, {})
        waiting = world.ask(ONE)
        world.release(member)
        self.assertEqual(world.closed_for, {member: "age"})
        self.assertNotIn(waiting, world.ended)

    def test_a_session_past_its_age_is_not_handed_out_although_no_tick_has_noticed(self) -> None:
        world = World(idle_timeout_mx=100, max_age=10)
        world.release(world.serve(ONE))
        world.now += 10.1
        self.assertNotIn(world.ask(ONE), world.ended)
        self.assertEqual(world.pending[0].miss, "limit")

    def test_ages_are_spread_by_a_fifth_so_that_sessions_opened_together_do_not_end_together(self) -> None:
        world = World(idle_timeout_mx=1000, max_age=100)
        members = []
        for spread in (-1.0, 0.0, 1.0):
            members.append(world.serve(ONE, spread=spread))
        for member in members:
            world.release(member)
        for seconds, ended in ((79, 0), (1, 1), (19, 1), (1, 2), (19, 2), (1, 3)):
            world.pass_time(seconds)
            self.assertEqual(len(world.closed_for), ended)

    def test_with_no_age_allowed_each_session_serves_once(self) -> None:
        world = World(max_age=0)
        for _ in range(2):
            member = world.serve(ONE)
            world.release(member)
            self.assertEqual(world.closed_for[member], "age")

    def test_with_no_idle_time_allowed_nothing_is_kept(self) -> None:
        world = World(idle_timeout_mx=0)
        member = world.serve(ONE)
        world.release(member)
        world.pass_time(0)
        self.assertEqual(world.closed_for, {member: "idle"})


class HowOftenTests(SynchronousTestCase):
    def uses(self, world: World, capabilities: Capabilities) -> int:
        member = world.serve(ONE, capabilities=capabilities)
        for count in range(1, 100):
            world.release(member)
            if member in world.closed_for:
                self.assertEqual(world.closed_for[member], "uses")
                return count
            self.assertIs(world.got(world.ask(ONE)), member)
        return 100

    def test_a_session_ends_after_its_uses_by_our_limit_or_the_servers_whichever_is_lower(self) -> None:
        announced = Capabilities({"LIMITS": ("MAILMAX=5",)})
        for ours, capabilities, expected in ((3, BARE, 3), (None, announced, 5), (3, announced, 3), (9, announced, 5)):
            self.assertEqual(self.uses(World(max_uses=ours), capabilities), expected)
        self.assertEqual(self.uses(World(), BARE), 100)


class WaitersTests(SynchronousTestCase):
    def full(self, **limits: int) -> World:
        world = World(sessions_per_destination=1, **limits)
        world.serve(ONE, A)
        return world

    def test_who_waits_too_long_is_told_so(self) -> None:
        world = self.full()
        request = world.ask(ONE, timeout=10)
        world.pass_time(9.9)
        self.assertNotIn(request, world.ended)
        world.pass_time(0.1)
        error = world.error(request)
        self.assertEqual((error.phase, error.retriable), ("waiting", True))
        self.assertIn("none became free in time", str(error))

    def test_who_will_not_wait_is_told_at_once(self) -> None:
        world = self.full()
        error = world.error(world.ask(ONE, timeout=0))
        self.assertEqual(error.phase, "waiting")

    def test_nobody_is_evicted_for_one_who_will_not_wait(self) -> None:
        world = World(sessions=1)
        world.release(world.serve(ONE, A))
        world.know(as_user("anne"), Hop(A, "mx.example"))
        self.assertEqual(world.error(world.ask(as_user("anne"), timeout=0)).phase, "waiting")
        self.assertEqual(world.closed_for, {})

    def test_with_no_waiters_allowed_another_still_makes_room(self) -> None:
        world = World(sessions=1, waiters=0)
        member = world.serve(ONE, A)
        world.release(member)
        world.know(as_user("anne"), Hop(A, "mx.example"))
        world.ask(as_user("anne"))
        world.vanish(member)
        self.assertEqual(len(world.openings), 1)

    def test_who_will_not_wait_for_a_place_waits_for_an_opening(self) -> None:
        world = World()
        request = world.ask(ONE, timeout=0)
        world.resolve(ONE, A)
        world.pass_time(100)
        world.open(world.openings[0])
        self.assertIn(request, world.ended)

    def test_the_time_that_an_opening_takes_is_no_time_of_waiting(self) -> None:
        world = World(sessions_per_endpoint=1)
        world.serve(TWO, B)
        request = world.ask(ONE, timeout=10)
        world.resolve(ONE, A, B)
        world.pass_time(60)
        world.fail(world.openings[0])
        for _ in range(40):
            world.pass_time(0.25)
            self.assertNotIn(request, world.ended)
        world.pass_time(0.25)
        self.assertEqual(world.error(request).phase, "waiting")

    def test_after_an_opening_in_vain_the_waiting_begins_anew(self) -> None:
        world = World(sessions_per_endpoint=1)
        here, there = world.serve(TWO, A), world.serve(THREE, B)
        request = world.ask(as_user("anne"), timeout=10)
        world.resolve(as_user("anne"), A, B)
        world.pass_time(9)
        world.release(here, reusable=False)
        world.vanish(here)
        world.pass_time(60)
        world.fail(world.openings[0])
        world.pass_time(0.25)
        world.pass_time(9)
        self.assertNotIn(request, world.ended)
        world.release(there, reusable=False)
        world.vanish(there)
        world.open(world.openings[0])
        self.assertIn(request, world.ended)

    def test_the_error_of_one_who_waited_carries_his_own_last_real_one(self) -> None:
        world = World(sessions_per_endpoint=1)
        world.serve(TWO, B)
        request = world.ask(ONE, timeout=10)
        world.resolve(ONE, A, B)
        refused = failure("greeting", code=554)
        world.fail(world.openings[0], refused)
        world.pass_time(0.25)
        world.pass_time(10)
        self.assertEqual(world.error(request).phase, "waiting")
        self.assertIs(world.error(request).__cause__, refused)
        self.assertIn("554", str(world.error(request)))

    def test_the_error_of_one_who_waited_carries_that_of_others_if_he_has_none(self) -> None:
        world = self.full()
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        refused = failure("greeting", code=421)
        world.fail(world.openings[0], refused)
        late = world.ask(ONE, timeout=1)
        world.pass_time(1)
        cause = world.error(late).__cause__
        assert isinstance(cause, DeliveryError)
        self.assertEqual((str(cause), vars(cause)), (str(refused), vars(refused)))
        # Theirs is theirs: it knows their frames.
        self.assertIsNot(cause, refused)

    def test_no_more_may_wait_than_the_limit(self) -> None:
        world = self.full(waiters=2)
        waiting = [world.ask(ONE) for _ in range(2)]
        error = world.error(world.ask(ONE))
        self.assertIn("too many wait already", str(error))
        self.assertEqual(world.pending, waiting)

    def test_with_no_waiters_allowed_who_finds_a_place_is_still_served(self) -> None:
        world = World(waiters=0)
        self.assertIn(world.serve(ONE), world.leases)

    def test_a_retry_is_not_sent_away_because_others_wait(self) -> None:
        world = self.full(waiters=1)
        world.ask(ONE)
        self.assertNotIn(world.ask(ONE, fresh=True), world.ended)

    def test_who_came_last_is_sent_away_when_the_route_is_known_and_too_many_must_wait(self) -> None:
        world = World(sessions_per_destination=1, waiters=2)
        requests = [world.ask(ONE) for _ in range(5)]
        self.assertEqual(world.ended, {})
        world.resolve(ONE, A)
        self.assertEqual(world.pending, requests[:3])
        for request in requests[3:]:
            self.assertIn("too many wait already", str(world.error(request)))

    def test_who_has_somebody_make_room_is_not_sent_away_when_the_route_is_known(self) -> None:
        world = World(sessions=1, waiters=0)
        member = world.serve(ONE, A)
        world.release(member)
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A)
        self.assertEqual(world.closed_for, {member: "room"})
        world.vanish(member)
        self.assertEqual(len(world.openings), 1)

    def test_those_who_wait_for_a_route_are_bounded_too(self) -> None:
        world = World(sessions=3, waiters=2)
        requests = [world.ask(ONE) for _ in range(6)]
        self.assertEqual(list(world.ended), requests[5:])

    def test_a_waiting_request_that_is_cancelled_leaves_its_turn_to_the_next(self) -> None:
        world = self.full()
        first, second = world.ask(ONE), world.ask(ONE)
        world.cancel(first)
        world.release(next(iter(world.leases)))
        self.assertIn(second, world.ended)

    def test_size_alone_is_a_need(self) -> None:
        world = World()
        world.release(world.serve(ONE, A, capabilities=Capabilities({"SIZE": ("1000",)})))
        self.assertEqual(world.error(world.ask(ONE, needs=Needs(size=1001))).phase, "needs")
        self.assertIn(world.ask(ONE, needs=Needs(size=1000)), world.ended)
