"""What can happen to a cache, whatever cache it is: the rules of the machines that try it."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailcache import Limits
from mailcache.destination import Endpoint
from mailcache.envelope import NO_NEEDS, Needs
from mailcache.testing.faults import APPLICABLE, NEEDS_TLS, TLS_POINTS, Fault
from tests.cache_worlds.callers import Call
from tests.cache_worlds.servers import ENDPOINTS, HOUR, LOCAL, PLAIN, SECURE, SIZES, UTF8, WAIT
from tests.cache_worlds.world import World

SETTINGS = settings(
    deadline=None,
    database=None,
    print_blob=True,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
"""What is found is printed with a blob that finds it again. The profile says whether each run tries other worlds."""

LIMITS = st.builds(
    Limits,
    sessions=st.sampled_from([1, 2, 4, 8]),
    sessions_per_destination=st.sampled_from([1, 2, 3]),
    sessions_per_endpoint=st.sampled_from([1, 2, 4]),
    waiters=st.sampled_from([0, 3, 20, 20, 20, 20]),
    idle_timeout=st.sampled_from([1, 30]),
    idle_timeout_mx=st.sampled_from([0, 5, 30]),
    max_age=st.sampled_from([2, 60, 300]),
    max_uses=st.sampled_from([None, None, 1, 3]),
    wait_timeout=st.just(WAIT),
    keep=st.sampled_from(["always", "always", "busy"]),
)
AT = {
    SECURE: ("one", "two", "ann", "bert", "quick"),
    PLAIN: ("plain", "other stream"),
    LOCAL: ("local",),
}
LATENCY = st.sampled_from([0.0, 0.0, 0.01, 0.2])
ANY = st.integers(0, 1000)
WHO = st.integers(0, 2)
FAVOURITES = st.lists(
    st.sampled_from([*AT[SECURE], *AT[SECURE], *AT[PLAIN], *AT[PLAIN], *AT[LOCAL], *AT[LOCAL], "nowhere"]),
    min_size=1,
    max_size=3,
    unique=True,
)
"""Where messages go in one world: to few destinations, so that they meet there."""

POINTS = ("banner", "ehlo", "starttls", "ehlo2", "auth", "mail", "rcpt", "data", "dot", "rset", "quit")


LATE_POINTS = st.sampled_from(["content", "dot", "after_dot", "rset", "quit", "idle"])
"""Where it matters most how sure one is of what has become of a message, and of the session."""


def faults_at(where: str, point: str) -> list[tuple[Endpoint, Fault]]:
    """What can go wrong at ``point`` with a message to this destination."""
    return [
        (endpoint, Fault(point, kind))
        for endpoint, names in AT.items()
        for kind in sorted(APPLICABLE[point])
        if where in names and (endpoint is SECURE or not (kind in NEEDS_TLS or point in TLS_POINTS or point == "auth"))
    ]


AFTER = st.sampled_from([None, 0.0, 0.02, 0.1, 1.0, 5.0])
"""Seconds that pass behind a step; None: not even this turn of the reactor ends."""

ENDS = st.sampled_from(["release", "release", "release", "discard", "drop"])
AGAIN = st.sampled_from(["release", "discard", "send"])
"""What is tried with a lease that has ended."""

THEN = st.sampled_from([None, None, None, "cancel", "deliver", "acquire", "release", "discard", "drop", "close"])
"""What a caller does as soon as it hears, within the callback."""


class CacheMachine(RuleBasedStateMachine):
    """All that can happen to a cache; the world checks it after each step."""

    world: World
    favourites: list[str]
    abrupt: bool

    @initialize(
        limits=LIMITS,
        latency=LATENCY,
        slow_delay=st.sampled_from([0.5, 5.0]),
        restart_seconds=st.sampled_from([0.0, 1.0]),
        favourites=FAVOURITES,
        abrupt=st.booleans(),
    )
    def begin(
        self, limits: Limits, latency: float, slow_delay: float, restart_seconds: float, favourites: list[str],
        abrupt: bool,
    ) -> None:  # fmt: skip
        self.favourites = favourites
        self.abrupt = abrupt
        self.world = World(limits, latency, slow_delay, restart_seconds)

    @staticmethod
    def pick(among: Any, index: int) -> Any:
        return among[index % len(among)] if among else None

    def where(self, index: int) -> str:
        """The name of a destination."""
        return self.favourites[index % len(self.favourites)]

    # -- callers

    def do(self, what: str, who: int, where: int, index: int) -> None:
        """One of the things that a caller does without much thought."""
        world = self.world
        call, holding = self.pick(world.calls, index), self.pick(world.holdings, index)
        if what == "cancel" and call is not None:
            call.deferred.cancel()
        elif what == "deliver":
            world.deliver(who, self.where(where))
        elif what == "acquire":
            world.acquire(who, self.where(where))
        elif what == "close" and index % 97 == 89:
            world.close()
        elif what in ("release", "discard", "drop") and holding is not None:
            world.end(holding, what)

    def and_then(self, call: Call | None, then: str | None, who: int, where: int, index: int) -> None:
        if then is not None and call is not None and not call.fired:
            call.then = lambda: self.do(then, who, where, index)

    def wait(self, seconds: float | None) -> None:
        if seconds is not None:
            self.world.pass_time(seconds)

    @rule(
        who=WHO,
        where=ANY,
        size=st.sampled_from(SIZES),
        recipients=st.sampled_from([1, 1, 2, 4]),
        refused=st.sampled_from([0, 0, 1, 4]),
        source=st.sampled_from(["bytes", "bytes", "file", "pipe"]),
        deadline=st.sampled_from([None, None, 0.5, 5.0]),
        then=THEN,
        index=ANY,
        after=AFTER,
    )
    def deliver(
        self, who: int, where: int, size: int, recipients: int, refused: int, source: str, deadline: float | None,
        then: str | None, index: int, after: float | None,
    ) -> None:  # fmt: skip
        call = self.world.deliver(
            who, self.where(where), size=size, recipients=recipients, refused=refused, source=source, deadline=deadline
        )
        self.and_then(call, then, who, where, index)
        self.wait(after)

    @rule(who=WHO, where=ANY, times=st.integers(1, 6), after=AFTER)
    def deliver_several(self, who: int, where: int, times: int, after: float | None) -> None:
        for _ in range(times):
            self.world.deliver(who, self.where(where))
        self.wait(after)

    @rule(
        who=WHO,
        where=ANY,
        needs=st.sampled_from([NO_NEEDS, NO_NEEDS, UTF8]),
        fresh=st.booleans(),
        avoid=st.frozensets(st.sampled_from(ENDPOINTS), max_size=1),
        timeout=st.sampled_from([None, None, 0.0, 1.0]),
        then=THEN,
        index=ANY,
        after=AFTER,
    )
    def acquire(
        self, who: int, where: int, needs: Needs, fresh: bool, avoid: Any, timeout: float | None, then: str | None,
        index: int, after: float | None,
    ) -> None:  # fmt: skip
        call = self.world.acquire(who, self.where(where), needs=needs, fresh=fresh, avoid=avoid, timeout=timeout)
        self.and_then(call, then, who, where, index)
        self.wait(after)

    @rule(who=WHO, where=ANY, times=st.integers(1, 3))
    def acquire_plainly(self, who: int, where: int, times: int) -> None:
        for _ in range(times):
            self.world.acquire(who, self.where(where))
        self.wait(1.0)

    @precondition(lambda self: self.world.calls)
    @rule(index=ANY, after=AFTER)
    def cancel(self, index: int, after: float | None) -> None:
        self.pick(self.world.calls, index).deferred.cancel()
        self.wait(after)

    @rule(point=st.sampled_from(POINTS), what=THEN, who=WHO, where=ANY, index=ANY)
    def be_ready_to_act(self, point: str, what: str | None, who: int, where: int, index: int) -> None:
        """At a point of some conversation a caller does something."""
        self.world.traps[point] = lambda: self.do(what or "cancel", who, where, index)

    @precondition(lambda self: self.world.holdings)
    @rule(
        index=ANY, size=st.sampled_from(SIZES), recipients=st.integers(1, 2), then=THEN, who=WHO, where=ANY,
        after=AFTER,
    )  # fmt: skip
    def send(
        self, index: int, size: int, recipients: int, then: str | None, who: int, where: int, after: float | None
    ) -> None:
        call = self.world.send(self.pick(self.world.holdings, index), size=size, recipients=recipients)
        self.and_then(call, then, who, where, index)
        self.wait(after)

    @precondition(lambda self: self.world.holdings)
    @rule(
        index=ANY, how=st.sampled_from(["release", "release", "release", "discard", "drop"]), again=AGAIN, after=AFTER
    )
    def end_lease(self, index: int, how: str, again: str, after: float | None) -> None:
        holding = self.pick(self.world.holdings, index)
        lease = None if how == "drop" else holding.lease
        self.world.end(holding, how)
        del holding
        self.wait(after)
        if lease is not None:
            self.world.use_again(lease, again)

    @precondition(lambda self: self.world.ended)
    @rule(index=ANY, how=AGAIN)
    def use_an_ended_lease(self, index: int, how: str) -> None:
        self.world.use_again(self.pick(self.world.ended, index), how)

    # -- servers

    @rule(who=WHO, where=ANY, point=st.sampled_from(sorted(APPLICABLE)), what=ANY, after=AFTER)
    def go_wrong(self, who: int, where: int, point: str, what: int, after: float | None) -> None:
        self.strike(who, where, point, what, 1, SIZES[what % len(SIZES)])
        self.wait(after)

    @rule(
        who=WHO, where=ANY, point=LATE_POINTS, what=ANY, times=st.integers(1, 3), size=st.sampled_from(SIZES),
        after=AFTER,
    )  # fmt: skip
    def go_wrong_late(
        self, who: int, where: int, point: str, what: int, times: int, size: int, after: float | None
    ) -> None:
        self.strike(who, where, point, what, times, size)
        self.wait(after)

    def strike(self, who: int, where: int, point: str, what: int, times: int, size: int) -> None:
        """A message meets with a fault."""
        name = self.where(where)
        chosen = self.pick(faults_at(name, point), what)
        if chosen is None:
            return
        endpoint, fault = chosen
        note(f"{fault.kind} at {fault.point} of {name}")
        self.world.servers[endpoint].arm(attrs.evolve(fault, times=times))
        if fault.point == "idle":
            self.world.servers[endpoint].strike_idle()
        else:
            self.world.deliver(who, name, size=size)

    @rule(endpoint=st.sampled_from(ENDPOINTS), what=st.sampled_from(["restart", "stop", "go on", "go on", "be well"]))
    def serve(self, endpoint: Any, what: str) -> None:
        server = self.world.servers[endpoint]
        if what == "restart":
            server.restart()
        elif what == "stop":
            server.stop_listening()
        elif what == "be well":
            server.disarm()
        else:
            server.restart_over()
            if not server._ports:
                server.listen(endpoint.port, endpoint.address)

    # -- time

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.2, 1.0, 4.0, 15.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(hours=st.sampled_from([-1, 1]), who=WHO, after=AFTER)
    def set_the_wall_clock(self, hours: int, who: int, after: float | None) -> None:
        """It matters to those who want a proof."""
        self.world.deliver(who, "two")
        self.wait(1.0)
        self.world.jump += hours * HOUR
        self.world.deliver(who, "two")
        self.wait(after)

    # -- the end

    @rule(really=st.sampled_from([False] * 29 + [True]))
    def close(self, really: bool) -> None:
        if really:
            self.world.close()

    @invariant()
    def all_is_well(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish(self.abrupt)
