"""The one timer: it runs while there is something to look after, and at a pace that suits the shortest limit."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Limits, Timeouts
from mailcache.ticker import LONGEST, SHORTEST, Ticker, interval_for


class IntervalTests(SynchronousTestCase):
    def test_the_defaults_are_noticed_within_a_quarter_of_a_second(self) -> None:
        self.assertEqual(interval_for(Limits(), Timeouts()), LONGEST)

    def test_the_shortest_limit_of_all_is_noticed_at_most_a_tenth_late(self) -> None:
        for limits, timeouts, expected in (
            (Limits(idle_timeout=1), Timeouts(), 0.1),
            (Limits(idle_timeout_mx=2), Timeouts(), 0.2),
            (Limits(max_age=0.5), Timeouts(), 0.05),
            (Limits(wait_timeout=1.5), Timeouts(), 0.15),
            (Limits(), Timeouts(quit=1), 0.1),
            (Limits(idle_timeout=1), Timeouts(first_reply=0.3), 0.03),
        ):
            self.assertAlmostEqual(interval_for(limits, timeouts), expected)

    def test_it_never_ticks_more_than_a_hundred_times_a_second(self) -> None:
        self.assertEqual(interval_for(Limits(idle_timeout=0), Timeouts()), SHORTEST)
        self.assertEqual(interval_for(Limits(), Timeouts(mail=0.001)), SHORTEST)


class TickerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ticks: list[float] = []
        self.more = True

    def tick(self) -> bool:
        self.ticks.append(self.clock.seconds())
        return self.more

    def ticker(self) -> Ticker:
        return Ticker(self.clock, 0.25, self.tick)

    def test_it_ticks_at_its_interval_while_there_is_something_to_look_after(self) -> None:
        self.ticker().start()
        self.clock.pump([0.25] * 4)
        self.assertEqual(self.ticks, [0.25, 0.5, 0.75, 1.0])

    def test_it_rests_when_there_is_nothing_and_can_be_started_again(self) -> None:
        ticker = self.ticker()
        self.more = False
        ticker.start()
        self.clock.pump([0.25] * 4)
        self.assertEqual((self.ticks, self.clock.getDelayedCalls()), ([0.25], []))
        ticker.start()
        self.clock.advance(0.25)
        self.assertEqual(self.ticks, [0.25, 1.25])

    def test_to_start_it_again_changes_nothing(self) -> None:
        ticker = self.ticker()
        ticker.start()
        ticker.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_it_can_be_stopped_at_any_time(self) -> None:
        ticker = self.ticker()
        ticker.stop()
        ticker.start()
        ticker.stop()
        ticker.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_can_be_stopped_by_the_tick_itself(self) -> None:
        def tick() -> bool:
            ticker.stop()
            return False

        ticker = Ticker(self.clock, 0.25, tick)
        ticker.start()
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_can_be_started_by_the_tick_itself(self) -> None:
        def tick() -> bool:
            ticker.start()
            return True

        ticker = Ticker(self.clock, 0.25, tick)
        ticker.start()
        self.clock.advance(0.25)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_a_tick_that_raises_is_not_the_last(self) -> None:
        def tick() -> bool:
            self.ticks.append(self.clock.seconds())
            raise ZeroDivisionError

        Ticker(self.clock, 0.25, tick).start()
        for _ in range(2):
            with self.assertRaises(ZeroDivisionError):
                self.clock.advance(0.25)
        self.assertEqual(len(self.ticks), 2)
