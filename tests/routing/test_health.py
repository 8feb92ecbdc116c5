"""Back-off: what fails is left alone for longer and longer, by everybody, and forgiven at once."""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from mailcache.result import DeliveryError
from mailcache.routing.health import MAX_REMEMBERED, Health, as_remembered
from mailcache.wire.replies import Reply

ERROR = DeliveryError("refused", phase="connect")


class Sick:
    """A subject that fails whenever it is tried, and it is tried whenever that is allowed."""

    def __init__(self) -> None:
        self.health = Health()
        self.now = 0.0

    def fail(self, seconds: float = 0.001) -> float:
        """One attempt that takes so long; gives the pause after it."""
        began = self.now
        self.now += seconds
        self.health.failed("it", ERROR, self.now, began=began)
        return self.health.blocked("it", self.now)


class PauseTests(SynchronousTestCase):
    def test_pauses_grow_from_a_quarter_of_a_second_after_the_third_failure_to_a_minute(self) -> None:
        sick = Sick()
        pauses = []
        for _ in range(13):
            pause = sick.fail()
            pauses.append(pause)
            sick.now += pause
        self.assertEqual([round(pause, 6) for pause in pauses], [0, 0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60])

    def test_after_the_fifth_failure_there_is_at_most_one_attempt_a_second(self) -> None:
        sick = Sick()
        times = []
        while sick.now < 600:
            times.append(sick.now)
            sick.now += sick.fail()
        self.assertTrue(all(after - before >= 1 for before, after in pairwise(times[4:])))

    def test_no_number_of_failures_is_too_great(self) -> None:
        sick = Sick()
        for _ in range(5000):
            pause = sick.fail()
            sick.now += pause + 1
        self.assertAlmostEqual(pause, 60)

    def test_a_pause_is_over_when_its_time_has_passed(self) -> None:
        sick = Sick()
        for _ in range(3):
            sick.fail()
        self.assertAlmostEqual(sick.health.blocked("it", sick.now + 0.2), 0.05)
        self.assertEqual(sick.health.blocked("it", sick.now + 0.25), 0)

    def test_attempts_that_fail_together_count_as_five_failures_at_most(self) -> None:
        health = Health()
        for _ in range(20):
            health.failed("it", ERROR, 10.0, began=9.0)
        self.assertEqual(health.blocked("it", 10.0), 1.0)
        health.failed("it", ERROR, 12.0, began=11.1)
        self.assertEqual(health.blocked("it", 12.0), 2.0)

    def test_an_attempt_that_began_before_the_last_failure_does_not_lengthen_the_pause(self) -> None:
        sick = Sick()
        for _ in range(5):
            sick.fail()
        sick.health.failed("it", ERROR, sick.now + 30, began=sick.now - 0.01)
        self.assertEqual(sick.health.blocked("it", sick.now + 30), 1.0)

    def test_success_is_forgiveness(self) -> None:
        sick = Sick()
        for _ in range(8):
            sick.fail()
        sick.health.worked("it")
        self.assertEqual(sick.health.blocked("it", sick.now), 0)
        self.assertIsNone(sick.health.last_error("it"))
        self.assertEqual(sick.fail(), 0)

    def test_one_subject_is_not_another(self) -> None:
        sick = Sick()
        for _ in range(8):
            sick.fail()
        self.assertEqual(sick.health.blocked("another", sick.now), 0)
        self.assertIsNone(sick.health.last_error("another"))


class AttemptsTests(SynchronousTestCase):
    def test_how_many_attempts_may_be_under_way(self) -> None:
        health = Health()
        self.assertEqual(health.attempts_allowed("it"), 5)
        health.worked("it")
        self.assertIsNone(health.attempts_allowed("it"))
        health.failed("it", ERROR, 1, began=0)
        self.assertEqual(health.attempts_allowed("it"), 1)
        health.worked("it")
        self.assertIsNone(health.attempts_allowed("it"))


class MemoryTests(SynchronousTestCase):
    def test_the_last_error_is_remembered(self) -> None:
        health = Health()
        last = DeliveryError("reset", phase="ehlo")
        health.failed("it", ERROR, 1, began=0)
        health.failed("it", last, 2, began=1)
        self.assertIs(health.last_error("it"), last)

    def test_what_is_remembered_of_an_error_says_the_same_and_holds_no_frames(self) -> None:
        reply = Reply(421, b"421 busy\r\n")
        try:
            raise DeliveryError("cut", phase="ehlo", retriable=False, endpoint="it", reply=reply) from OSError("reset")
        except DeliveryError as error:
            remembered = as_remembered(error)
            self.assertEqual((str(remembered), vars(remembered)), (str(error), vars(error)))
        self.assertIsNone(remembered.__traceback__)
        self.assertIsNone(remembered.__cause__)
        self.assertIsNone(remembered.__context__)

    def test_asking_remembers_nothing(self) -> None:
        health = Health()
        for number in range(10):
            health.blocked(number, 0)
            health.attempts_allowed(number)
            health.last_error(number)
        self.assertEqual(len(health._records), 0)

    def test_the_subject_longest_untried_is_forgotten_first(self) -> None:
        health = Health()
        health.failed("old", ERROR, 1, began=0)
        health.failed("busy", ERROR, 1, began=0)
        for number in range(MAX_REMEMBERED - 1):
            health.worked(number)
            if number == 100:
                health.failed("busy", ERROR, 2, began=1)
        self.assertIsNone(health.last_error("old"))
        self.assertIs(health.last_error("busy"), ERROR)
        self.assertEqual(len(health._records), MAX_REMEMBERED)
