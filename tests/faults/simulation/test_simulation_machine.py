"""The simulation as a Hypothesis state machine (T2): what the seeded flights do by chance, here shrunk where it fails.

Fresh chance at each run of the suite, unless Hypothesis is told a seed; a failure prints the steps that lead to it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.simulation.faults import DEATH_POINTS, PUBLISH_ENDS, TRAINING_ENDS
from tests.faults.simulation.node import SCENARIOS
from tests.faults.simulation.pilot import COMMANDS, NAMES, Flight, a_flight
from tests.faults.simulation.traffic import KINDS
from worker.wire.commands import Resume, Shutdown

# What a killed process had open nobody closes here; in the world the kernel does.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

EXAMPLES = int(os.environ.get("SWARM_SIMULATION_EXAMPLES", "250"))
STEPS = 60

names = st.sampled_from(NAMES)
scenarios = st.sampled_from(SCENARIOS)
#: A producer's own publish: it is confirmed, or nobody knows.
sends = st.sampled_from(("confirmed", "confirmed", "lost_confirm", "nacked"))


class Simulation(RuleBasedStateMachine):
    """Producers, a broker, a store, two workers; see `World` for what each step does."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = ExitStack()
        self.flight: Flight | None = None

    @initialize(seed=st.integers(0, 2**16), workers=st.sampled_from((NAMES[:1], NAMES)))
    def begin(self, seed: int, workers: tuple[str, ...]) -> None:
        """The order of callbacks is drawn from `seed`."""
        self.flight = self.closing.enter_context(a_flight(seed, workers=workers))
        self.world = self.flight.world
        self.world.start("w1")

    # ------------------------------------------------------------ traffic

    @rule(scenario=scenarios, kind=st.sampled_from(KINDS), end=sends)
    def publish(self, scenario: str, kind: Any, end: Any) -> None:
        self.world.publish(scenario, kind, end)

    @rule(scenario=scenarios, kinds=st.lists(st.sampled_from(("task", "session", "late")), min_size=3, max_size=9))
    def publish_many(self, scenario: str, kinds: list[Any]) -> None:
        for kind in kinds:
            self.world.publish(scenario, kind)

    @precondition(lambda self: self.world.traffic.sent)
    @rule(data=st.data(), end=sends)
    def duplicate(self, data: st.DataObject, end: Any) -> None:
        place = data.draw(st.integers(0, len(self.world.traffic.sent) - 1))
        self.world.send(self.world.traffic.sent[place], end)

    @rule(scenario=scenarios)
    def reorder(self, scenario: str) -> None:
        self.world.reorder(scenario)

    @rule(command=st.sampled_from([(name, args) for _, name, args in COMMANDS]), scenario=scenarios)
    def command(self, command: Any, scenario: str) -> None:
        self.world.command(*command, scenario=scenario)

    @precondition(lambda self: self.world.commands)
    @rule(data=st.data())
    def command_again(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(sorted(self.world.commands)))
        self.world.command("again", Resume(), scenario=None, again=known)

    @rule()
    def shutdown(self) -> None:
        self.world.command("shutdown", Shutdown(), scenario=None)

    # ------------------------------------------------------------ time

    @rule(seconds=st.sampled_from((0.05, 0.5, 2.0, 9.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds=seconds)

    @rule(turns=st.sampled_from((1, 5, 20, 80, 300)))
    def callbacks_run(self, turns: int) -> None:
        self.world.run(turns=turns)

    @rule(name=st.one_of(st.none(), names), seconds=st.sampled_from((-3600, 3600)))
    def clock_jumps(self, name: str | None, seconds: int) -> None:
        self.world.jump(name, seconds)

    # ------------------------------------------------------------ faults

    @rule(name=names)
    def start(self, name: str) -> None:
        self.world.start(name)

    @precondition(lambda self: self.world.nodes)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.world.kill(self.world.nodes[data.draw(st.sampled_from(sorted(self.world.nodes)))].process)

    @rule(name=names, point=st.sampled_from(DEATH_POINTS), hit=st.integers(1, 4))
    def crash_at(self, name: str, point: Any, hit: int) -> None:
        self.world.doom(name, point, hit)

    @rule(name=names, turns=st.integers(1, 200), fatal=st.booleans())
    def struck(self, name: str, turns: int, fatal: bool) -> None:
        self.world.strike_after(name, turns, fatal=fatal)

    @rule(name=names)
    def freeze(self, name: str) -> None:
        self.world.freeze(name)

    @rule(name=names)
    def thaw(self, name: str) -> None:
        self.world.thaw(name)

    @rule(name=names)
    def sigterm(self, name: str) -> None:
        self.world.stop(name)

    @precondition(lambda self: self.world.nodes)
    @rule(data=st.data())
    def connections_are_cut(self, data: st.DataObject) -> None:
        self.world.nodes[data.draw(st.sampled_from(sorted(self.world.nodes)))].cut()

    @rule()
    def an_ack_is_lost(self) -> None:
        self.world.faults.lost_acks += 1

    @rule(seconds=st.sampled_from((0.3, 2.0, 15.0)), down=st.booleans(), cut=st.booleans())
    def store_in_trouble(self, seconds: float, down: bool, cut: bool) -> None:
        until = self.world.loop.now + seconds
        if cut:  # while it lasts, the network fails too
            self.world.loop.call_later(seconds / 2, self.world.cut)
        if down:
            self.world.faults.store_down_until = until
        else:
            self.world.faults.store_slow_until = until

    @rule(end=st.sampled_from(TRAINING_ENDS))
    def next_training(self, end: Any) -> None:
        self.world.faults.trainings.append(end)

    @rule(end=st.sampled_from(PUBLISH_ENDS))
    def next_publish(self, end: Any) -> None:
        self.world.faults.publishes.append(end)

    # ------------------------------------------------------------ what must hold

    @invariant()
    def holds(self) -> None:
        """After every step."""
        if self.flight is not None:
            self.flight.invariants.each_step()

    def teardown(self) -> None:
        """The faults stop, everything drains, nothing is missing, doubled or wrong."""
        with self.closing:
            if self.flight is not None:
                self.flight.land()


@pytest.mark.timeout(0)
def test_no_sequence_of_faults_breaks_an_invariant() -> None:
    """Publish, duplicate, reorder, crash, freeze, lose, delay, poison, command, jump: in any order."""
    run_state_machine_as_test(
        Simulation,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
