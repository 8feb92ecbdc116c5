"""How the pool opens sessions: which endpoint, what a failure leads to, and who is left alone."""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from mailcache.destination import Endpoint
from mailcache.members import Candidate
from mailcache.result import DeliveryError
from mailcache.routing.route import Hop
from tests.pool_world import BARE, ENDPOINTS, UTF8, World, as_user, failure, to

A, B = ENDPOINTS[:2]
ONE, TWO = to("one.example"), to("two.example")


class FailureTests(SynchronousTestCase):
    def test_where_one_endpoint_fails_the_next_is_tried(self) -> None:
        world = World()
        request = world.ask(ONE)
        world.resolve(ONE, A, B)
        world.fail(world.openings[0])
        self.assertEqual(world.openings[0].candidate.endpoint, B)
        world.open(world.openings[0])
        self.assertIn(request, world.ended)

    def test_where_all_endpoints_fail_the_last_error_is_told(self) -> None:
        world = World()
        request = world.ask(ONE)
        world.resolve(ONE, A, B)
        world.fail(world.openings[0], failure("greeting"))
        last = failure("ehlo")
        world.fail(world.openings[0], last)
        self.assertIs(world.error(request), last)

    def test_at_most_five_endpoints_are_tried_for_one_request(self) -> None:
        world = World()
        request = world.ask(ONE)
        world.lookups.remove(ONE)
        world.know(ONE, *[Hop(Endpoint("smtp", f"192.0.2.{number}", 25), "mx.example") for number in range(1, 9)])
        for _ in range(5):
            world.fail(world.openings[0])
        self.assertEqual((world.openings, world.error(request).phase), ([], "connect"))

    def test_a_refused_opening_frees_its_place_and_wakes_the_next(self) -> None:
        world = World(sessions=1)
        first, second = world.ask(ONE), world.ask(TWO)
        world.resolve(ONE, A)
        world.resolve(TWO, B)
        world.fail(world.openings[0])
        self.assertIn(first, world.ended)
        world.open(world.openings[0])
        self.assertIn(second, world.ended)

    def test_a_refused_opening_keeps_its_place_until_its_socket_is_gone(self) -> None:
        world = World(sessions=1)
        world.ask(ONE)
        world.resolve(ONE, A, B)
        member = world.openings[0]
        world.fail(member, gone=False)
        self.assertEqual(world.openings, [])
        world.vanish(member)
        self.assertEqual(world.openings[0].candidate.endpoint, B)

    def test_who_has_nowhere_left_to_go_waits_if_a_session_that_may_serve_him_is_at_work(self) -> None:
        world = World()
        member = world.serve(ONE, A)
        request = world.ask(ONE)
        world.fail(world.openings[0], failure("greeting", code=421))
        self.assertNotIn(request, world.ended)
        world.release(member)
        self.assertIs(world.got(request), member)

    def test_who_has_nowhere_left_to_go_waits_if_a_session_that_may_serve_him_is_on_its_way(self) -> None:
        world = World()
        first, second = world.ask(ONE), world.ask(ONE)
        world.resolve(ONE, A)
        world.fail(world.openings[0])
        self.assertEqual(world.ended, {})
        world.fail(world.openings[0])
        self.assertEqual(list(world.ended), [first, second])

    def test_a_session_at_work_is_nothing_to_wait_for_if_it_can_not_serve(self) -> None:
        for more in ({"fresh": True}, {"needs": UTF8}, {"avoid": frozenset({A})}):
            world = World()
            world.serve(ONE, A, capabilities=BARE)
            world.know(ONE, Hop(A, "mx.example"), Hop(B, "mx.example"))
            request = world.ask(ONE, **more)
            while world.openings:
                world.fail(world.openings[0])
            self.assertIn(request, world.ended, more)

    def test_a_refused_password_is_not_tried_at_the_next_address(self) -> None:
        world = World()
        request = world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A, B)
        refused = failure("auth", code=535, retriable=False)
        world.fail(world.openings[0], refused)
        self.assertIs(world.error(request), refused)

    def test_a_log_in_that_failed_for_now_is_tried_at_the_next_address(self) -> None:
        world = World()
        world.ask(as_user("anne"))
        world.resolve(as_user("anne"), A, B)
        world.fail(world.openings[0], failure("auth", code=454))
        self.assertEqual(world.openings[0].candidate.endpoint, B)

    def test_the_opening_of_one_who_was_cancelled_goes_to_the_next_of_his_destination(self) -> None:
        world = World(sessions_per_destination=1)
        first, second = world.ask(ONE), world.ask(ONE)
        world.resolve(ONE, A)
        (member,) = world.openings
        world.cancel(first)
        world.open(member)
        self.assertIs(world.got(second), member)

    def test_the_opening_of_one_who_was_cancelled_goes_to_nobody_who_has_his_own(self) -> None:
        world = World(sessions_per_destination=2)
        requests = [world.ask(ONE) for _ in range(3)]
        world.resolve(ONE, A)
        first, second = world.openings
        world.cancel(requests[0])
        errors = failure("greeting"), failure("ehlo")
        world.fail(first, errors[0])
        world.fail(second, errors[1])
        self.assertEqual([world.error(request) for request in requests[1:]], [errors[1], errors[0]])

    def test_the_opening_of_one_who_was_cancelled_ends_if_nobody_else_can_use_it(self) -> None:
        world = World()
        first = world.ask(ONE)
        world.resolve(ONE, A)
        (member,) = world.openings
        world.cancel(first)
        self.assertEqual(world.closed_for, {member: "no longer wanted"})
        self.assertEqual(world.pool.health.last_error(member.candidate.way), None)

    def test_the_opening_of_one_who_was_cancelled_goes_to_one_who_had_hoped_for_it_after_failing_there(self) -> None:
        world = World()
        first, second = world.ask(ONE), world.ask(ONE)
        world.resolve(ONE, A)
        world.fail(world.openings[0])
        (member,) = world.openings
        world.cancel(second)
        world.open(member)
        self.assertIs(world.got(first), member)

    def test_an_opening_is_not_handed_on_to_one_who_avoids_its_endpoint(self) -> None:
        world = World(sessions_per_destination=1)
        first, _ = world.ask(ONE), world.ask(ONE, avoid=frozenset({A}))
        world.resolve(ONE, A, B)
        (member,) = world.openings
        world.cancel(first)
        self.assertEqual(world.closed_for, {member: "no longer wanted"})


class LeftAloneTests(SynchronousTestCase):
    def test_two_failures_in_a_row_cost_nothing(self) -> None:
        world = World()
        for _ in range(2):
            world.ask(ONE)
            if ONE in world.lookups:
                world.resolve(ONE, A)
            world.fail(world.openings[0])
        world.ask(ONE)
        self.assertEqual(len(world.openings), 1)

    def test_after_more_failures_nobody_tries_for_a_while_and_the_error_says_what_went_wrong(self) -> None:
        world = World()
        self.fail_often(world, 3, failure("greeting", code=421))
        request = world.ask(TWO)
        world.resolve(TWO, A)
        error = world.error(request)
        self.assertEqual((error.phase, error.retriable, error.endpoint), ("greeting", True, str(A)))
        self.assertEqual(error.reply.code if error.reply else None, 421)
        self.assertIn("left alone for another 0.2 s", str(error))
        world.pass_time(0.25)
        self.assertNotIn(world.ask(TWO), world.ended)

    def test_an_endpoint_that_is_left_alone_is_passed_over(self) -> None:
        world = World()
        self.fail_often(world, 3, failure())
        world.ask(TWO)
        world.resolve(TWO, A, B)
        self.assertEqual(world.openings[0].candidate.endpoint, B)

    def test_a_success_wipes_the_slate(self) -> None:
        world = World()
        self.fail_often(world, 3, failure())
        world.pass_time(0.25)
        world.serve(ONE)
        for _ in range(2):
            world.ask(ONE)
            world.fail(world.openings[0])
        world.ask(ONE)
        self.assertEqual(len(world.openings), 1)

    def test_what_was_asked_of_an_endpoint_is_left_alone_only_by_who_asks_the_same(self) -> None:
        for error in (failure("tls"), failure("trust"), failure("auth", code=454)):
            world = World()
            self.fail_often(world, 3, error)
            self.assertIn(world.ask(ONE), world.ended)
            world.ask(as_user("anne"))
            world.resolve(as_user("anne"), A)
            self.assertEqual(len(world.openings), 1)

    def test_an_address_that_can_not_be_bound_leaves_the_endpoint_to_others(self) -> None:
        world = World()
        bound = to("one.example", bind_address="192.0.2.99")
        for _ in range(3):
            world.ask(bound)
            if bound in world.lookups:
                world.resolve(bound, A)
            world.fail(world.openings[0], failure("bind"))
        self.assertIn(world.ask(bound), world.ended)
        world.ask(TWO)
        world.resolve(TWO, A)
        self.assertEqual(len(world.openings), 1)

    def test_a_new_endpoint_gets_five_attempts_at_a_time_until_one_has_succeeded(self) -> None:
        world = World()
        for _ in range(12):
            world.ask(ONE)
        world.resolve(ONE, A)
        self.assertEqual(len(world.openings), 5)
        world.open(world.openings[0])
        self.assertEqual(len(world.openings), 11)

    def test_a_new_user_of_a_proven_endpoint_gets_five_attempts_at_a_time_too(self) -> None:
        world = World()
        world.serve(ONE, A)
        requests = [world.ask(as_user("anne")) for _ in range(12)]
        world.resolve(as_user("anne"), A)
        self.assertEqual(len(world.openings), 5)
        for member in list(world.openings):
            world.fail(member, failure("auth", code=454))
        self.assertEqual(list(world.ended)[-12:], requests)
        self.assertEqual(world.openings, [])

    def test_after_a_failure_one_attempt_is_made_at_a_time_and_its_end_decides_for_all_who_wait(self) -> None:
        world = World()
        self.fail_often(world, 3, failure())
        world.pass_time(0.25)
        requests = [world.ask(ONE) for _ in range(4)]
        self.assertEqual(len(world.openings), 1)
        world.fail(world.openings[0])
        self.assertEqual(list(world.ended)[-4:], requests)

        world.pass_time(1)
        requests = [world.ask(ONE) for _ in range(4)]
        world.open(world.openings[0])
        self.assertEqual(len(world.openings), 3)

    def test_openings_refused_together_count_as_the_fifth_failure_and_not_as_many(self) -> None:
        world = World()
        world.release(world.serve(ONE))
        for _ in range(21):
            world.ask(ONE)
        world.know(ONE, Hop(A, "mx.example"))
        self.assertEqual(len(world.openings), 19)
        for member in list(world.openings):
            world.fail(member)
        self.assertAlmostEqual(world.pool.health.blocked((A, None, None), world.now), 1.0)

    def test_a_server_that_refuses_everybody_is_tried_once_a_second_at_most_after_the_fifth_time(self) -> None:
        world = World(sessions_per_destination=20)
        times: list[float] = []
        seen: set[int] = set()

        def attend(seconds: float) -> None:
            for _ in range(20 - len(world.pending)):
                world.ask(ONE)
            for member in list(world.openings):
                if id(member) not in seen:
                    seen.add(id(member))
                    times.append(world.now)
                if member in world.openings:
                    world.fail(member, failure("greeting", code=421))
            world.pass_time(seconds)

        world.ask(ONE)
        world.resolve(ONE, A)
        for _ in range(1200):
            attend(0.1)
        self.assertGreater(len(times), 8)
        self.assertTrue(all(after - before >= 0.999 for before, after in pairwise(times[4:])), times)

    def fail_often(self, world: World, times: int, error: DeliveryError) -> None:
        for _ in range(times):
            world.ask(ONE)
            if ONE in world.lookups:
                world.resolve(ONE, A)
            world.fail(world.openings[0], error)


class BlameTests(SynchronousTestCase):
    """For what an endpoint is left alone by everybody, and for what only by who asks the same of it."""

    def test_who_is_to_blame(self) -> None:
        candidate = Candidate(ONE, Hop(A, "mx.example"))
        for phase, code, everybody in (
            ("bind", None, True),
            ("connect", None, True),
            ("greeting", None, True),
            ("greeting", 554, True),
            ("ehlo", None, True),
            ("ehlo", 550, False),
            ("ehlo", 421, True),
            ("starttls", 454, False),
            ("starttls", 421, True),
            ("tls", None, False),
            ("trust", None, False),
            ("auth", 535, False),
            ("auth", 421, True),
        ):
            expected = candidate.way if everybody else candidate.subject
            self.assertEqual(candidate.blamed(failure(phase, code=code)), expected, (phase, code))
