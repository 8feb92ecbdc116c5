"""The pool in random worlds: whatever happens, in whatever order, its promises hold."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from mailcache.envelope import NO_NEEDS, Needs
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import Capabilities
from tests.pool_world import BARE, ENCRYPTED, ENDPOINTS, RICH, UTF8, World, as_user, failure, to

DESTINATIONS = {
    "one": to("one.example"),
    "two": to("two.example"),
    "one, may": to("one.example", "may"),
    "two, encrypt": to("two.example", "encrypt"),
    "three, encrypt": to("three.example", "encrypt"),
    "anne's": as_user("anne"),
}
CAPABILITIES = (RICH, RICH, BARE, Capabilities({"SMTPUTF8": (), "LIMITS": ("MAILMAX=2",)}))
FAILURES = (
    failure("connect"),
    failure("greeting", code=421),
    failure("ehlo", code=550),
    failure("tls"),
    failure("trust"),
    failure("auth", code=454),
    failure("auth", code=535, retriable=False),
)
LIMITS = st.fixed_dictionaries(
    {
        "sessions": st.integers(1, 6),
        "sessions_per_destination": st.integers(1, 4),
        "sessions_per_endpoint": st.integers(1, 4),
        "waiters": st.integers(0, 6),
        "idle_timeout_mx": st.sampled_from([0, 5]),
        "max_age": st.sampled_from([0, 10, 300]),
        "max_uses": st.sampled_from([None, None, 1, 3]),
        "keep": st.sampled_from(["always", "always", "busy"]),
    }
)
ANY = st.integers(0, 1000)


class PoolMachine(RuleBasedStateMachine):
    """All that can happen to a pool; the world checks it after each step."""

    world: World

    @initialize(limits=LIMITS)
    def begin(self, limits: dict[str, Any]) -> None:
        self.world = World(**limits)

    @staticmethod
    def pick(among: Any, index: int) -> Any:
        several = list(among)
        return several[index % len(several)]

    # -- callers

    @rule(
        where=st.sampled_from(sorted(DESTINATIONS)),
        needs=st.sampled_from([NO_NEEDS, NO_NEEDS, UTF8]),
        fresh=st.booleans(),
        avoid=st.frozensets(st.integers(0, 2), max_size=2),
        timeout=st.sampled_from([0.0, 1.0, 30.0, 30.0]),
    )
    def ask(self, where: str, needs: Needs, fresh: bool, avoid: frozenset[int], timeout: float) -> None:
        avoided = frozenset(ENDPOINTS[number] for number in avoid)
        self.world.ask(DESTINATIONS[where], needs=needs, fresh=fresh, avoid=avoided, timeout=timeout)

    @rule(where=st.sampled_from(sorted(DESTINATIONS)), times=st.integers(1, 8))
    def ask_plainly(self, where: str, times: int) -> None:
        for _ in range(times):
            self.world.ask(DESTINATIONS[where])

    @precondition(lambda self: self.world.pending)
    @rule(index=ANY)
    def cancel(self, index: int) -> None:
        self.world.cancel(self.pick(self.world.pending, index))

    @precondition(lambda self: self.world.leases)
    @rule(index=ANY, reusable=st.sampled_from([True, True, True, False]), uses=st.sampled_from([0, 1, 1, 2]))
    def release(self, index: int, reusable: bool, uses: int) -> None:
        self.world.release(self.pick(self.world.leases, index), reusable=reusable, uses=uses)

    # -- the network

    @precondition(lambda self: self.world.lookups)
    @rule(
        index=ANY,
        endpoints=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True),
        ttl=st.sampled_from([1.0, 60.0, float("inf")]),
    )
    def resolve(self, index: int, endpoints: list[int], ttl: float) -> None:
        found = [ENDPOINTS[number] for number in endpoints]
        self.world.resolve(self.pick(self.world.lookups, index), *found, ttl=ttl)

    @precondition(lambda self: self.world.lookups)
    @rule(index=ANY)
    def fail_to_resolve(self, index: int) -> None:
        self.world.fail_to_resolve(self.pick(self.world.lookups, index))

    @precondition(lambda self: self.world.openings)
    @rule(
        index=ANY,
        capabilities=st.sampled_from(CAPABILITIES),
        encrypted=st.booleans(),
        spread=st.sampled_from([-1.0, 0.0, 1.0]),
    )
    def open(self, index: int, capabilities: Capabilities, encrypted: bool, spread: float) -> None:
        member = self.pick(self.world.openings, index)
        level = member.candidate.requirement.level
        tls = level == "encrypt" or (level == "may" and encrypted)
        self.world.open(member, capabilities=capabilities, evidence=ENCRYPTED if tls else CLEAR, spread=spread)

    @precondition(lambda self: self.world.openings)
    @rule(index=ANY, error=st.sampled_from(FAILURES), gone=st.booleans())
    def fail(self, index: int, error: Any, gone: bool) -> None:
        self.world.fail(self.pick(self.world.openings, index), error, gone=gone)

    @precondition(lambda self: self.world.idle)
    @rule(index=ANY)
    def lose_an_idle_one(self, index: int) -> None:
        self.world.lose(self.pick(self.world.idle, index))

    @precondition(lambda self: self.world.leases.keys() & self.world.places.keys())
    @rule(index=ANY)
    def lose_a_leased_one(self, index: int) -> None:
        alive = [member for member in self.world.leases if member in self.world.places]
        self.world.vanish(self.pick(alive, index))

    @precondition(lambda self: self.world.leaving)
    @rule(index=ANY)
    def vanish(self, index: int) -> None:
        self.world.vanish(self.pick(self.world.leaving, index))

    # -- time

    @rule(seconds=st.sampled_from([0.25, 0.25, 1.0, 4.0, 20.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @precondition(lambda self: not self.world.pool.closed)
    @rule(really=st.sampled_from([False] * 9 + [True]))
    def close(self, really: bool) -> None:
        if really:
            self.world.close()

    @invariant()
    def all_is_well(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    # -- the end

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for _ in range(60):
            self.settle()
            world.pass_time(1.0)
            if not (world.pending or world.openings or world.leases or world.lookups or world.leaving):
                break
        assert not world.pending, "somebody waits for ever"
        if not world.pool.closed:
            world.close()
        self.settle()
        world.check_nothing_is_left()

    def settle(self) -> None:
        """Everything that is under way comes to its end."""
        world = self.world
        while world.openings or world.leases or world.lookups or world.leaving:
            for destination in list(world.lookups):
                world.resolve(destination, ENDPOINTS[3])
            for member in list(world.openings):
                if member in world.openings:
                    world.fail(member)
            for member in list(world.leases):
                world.release(member)
            for member in list(world.leaving):
                world.vanish(member)


class ModelTests(SynchronousTestCase):
    def test_the_promises_hold_in_random_worlds(self) -> None:
        run_state_machine_as_test(
            PoolMachine, settings=settings(deadline=None, max_examples=400, stateful_step_count=60)
        )
