"""Flies a world through chance: one seed is one flight, from the first message to rest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.simulation.faults import DEATH_POINTS, PUBLISH_ENDS, TRAINING_ENDS
from tests.faults.simulation.invariants import Invariants
from tests.faults.simulation.node import IDLE, SCENARIOS
from tests.faults.simulation.process import Life
from tests.faults.simulation.traffic import KINDS
from tests.faults.simulation.world import World
from worker.wire.commands import Apply, Args, Pause, Rebuild, ReplayQuarantine, Resume, Rollback, Shutdown, TrainNow

NAMES = ("w1", "w2")
#: What the intake says of a pause by command.
PAUSED = "paused by command"
#: Virtual seconds within which everything must have drained once the faults stopped. The longest waits of the product
#: are a minute (a run that could not be carried out, an event that could not be sent), and they add up.
DRAINED_WITHIN = 600.0
#: I6: a fresh message is stored, a fresh training has its event, within so many virtual seconds.
STORED_WITHIN, TRAINED_WITHIN = 10.0, 30.0
#: And what can be gone back to is live again, though its worker is lost on the way.
BACK_WITHIN = 120.0
#: Arguments of commands, with how often each is drawn.
COMMANDS: tuple[tuple[int, str, Args], ...] = (
    (6, "train-now", TrainNow()),
    (4, "train-now", TrainNow(force=True)),
    (2, "train-now", TrainNow(force=True, apply=True)),
    (3, "apply", Apply()),
    (1, "apply", Apply(version=1, force=True)),
    (2, "rollback", Rollback()),
    (1, "rollback", Rollback(kind="lora")),
    (1, "rollback", Rollback(kind="offline")),
    (3, "replay-quarantine", ReplayQuarantine()),
    (2, "rebuild", Rebuild()),
    (1, "pause", Pause(what="all")),
    (1, "pause", Pause(what="training")),
    (2, "resume", Resume()),
)
_KIND_WEIGHTS = {"task": 40, "session": 20, "open": 8, "late": 8, "recut": 6, "same_seq": 3}


class Flight:
    """A world, its invariants, and the seeded chance that decides what happens next."""

    def __init__(self, seed: int, data_dir: Path, **parts: Any) -> None:
        """`parts` as `World` takes them."""
        self.random = Random(f"pilot {seed}")
        workers = NAMES if self.random.random() < 0.6 else NAMES[:1]
        self.world = World(seed, data_dir, **{"workers": workers, **parts})
        self.invariants = Invariants(self.world)
        acts: list[tuple[int, Callable[[], None]]] = [
            (30, self._publish),
            (7, self._send_again),
            (3, lambda: self.world.reorder(self._scenario())),
            (14, self._pass),
            (8, self._command),
            (8, lambda: self.world.faults.trainings.append(self.random.choice(TRAINING_ENDS))),
            (5, lambda: self.world.faults.publishes.append(self.random.choice(PUBLISH_ENDS))),
            (5, self._lose_connection),
            (4, self._die),
            (5, self._doom),
            (8, self._strike),
            (8, lambda: self.world.start(self._worker())),
            (3, lambda: self.world.freeze(self._worker())),
            (4, lambda: self.world.thaw(self._worker())),
            (5, self._trouble_store),
            (2, lambda: self.world.jump(self.random.choice((None, *workers)), self.random.choice((-3600, 3600)))),
            (1, lambda: self.world.stop(self._worker())),
        ]
        self._acts = [act for _, act in acts]
        self._weights = [weight for weight, _ in acts]

    def fly(self, steps: int) -> None:
        """Start, fail and go on for so many steps, then drain."""
        self.world.start("w1")
        for _ in range(steps):
            self.step()
        self.land()

    def step(self) -> None:
        """One thing happens, and the world goes on a little."""
        self.random.choices(self._acts, self._weights)[0]()
        self.world.run(turns=self.random.choice((0, 3, 10, 40, 200)))
        self.invariants.each_step()

    def land(self) -> None:
        """The faults stop; everything drains; a fresh message and a fresh training come through (I6)."""
        world, invariants = self.world, self.invariants
        world.faults.stop()
        for node in world.nodes.values():
            node.process.countdown = 0
        for name in world.workers:
            world.thaw(name)
        world.start("w1")
        world.command("resume", Resume(), scenario=None)
        for sent in world.traffic.sent:
            if not sent.confirmed:
                world.send(sent)
        end = world.loop.now + DRAINED_WITHIN
        while (unrest := invariants.unrest()) and world.loop.now < end:
            if all("open tasks" in each or "to project" in each for each in unrest):
                world.mend_clocks()
            self._supervise()
            world.run(seconds=1.0)
            invariants.each_step()
        assert not unrest, f"not drained after {DRAINED_WITHIN} s: {unrest}"
        self._go_back()
        fresh = world.publish("auto", "task")
        self._until(lambda: fresh not in invariants.unsettled, STORED_WITHIN, "a fresh message was not stored")
        told = len(invariants.delivered)
        for name in self.random.choice(((), world.workers)):
            world.doom(name, "after_run", self.random.randint(1, 2))  # of either kind
        if self.random.random() < 0.3:
            world.faults.trainings.extend(("blessed", "signal"))  # the second is the adapter's, and goes on
        world.command("train-now", TrainNow(force=True), scenario="auto")
        self._until(lambda: len(invariants.delivered) > told, TRAINED_WITHIN, "a fresh training told nobody")
        world.mend_clocks()
        world.run(seconds=IDLE)
        self._until(lambda: not invariants.unrest(), DRAINED_WITHIN, "it did not come to rest")
        invariants.at_rest()
        assert all(node.process.life is Life.ALIVE for node in world.nodes.values())

    def _go_back(self) -> None:
        """An operator takes back what is live, of each kind, while a worker, or each, is lost somewhere on the way.

        Where each was, those that are started carry on the same commands at once.
        """
        world, invariants = self.world, self.invariants
        asked = [
            world.command("rollback", Rollback(kind=kind), scenario=scenario)
            for (scenario, kind), history in invariants.registers.histories.items()
            if len(history) > 1
        ]
        turns = self.random.randint(1, 400)
        for name in self.random.choice(((self._worker(),), world.workers)):
            world.strike_after(name, turns, fatal=True)
        self._until(lambda: invariants.carried_out(asked), BACK_WITHIN, "a rollback was not carried out")
        for command_id in set(asked) - invariants.answers.keys():  # its worker died with the answer: one asks again
            world.command("rollback, again", Rollback(), scenario=None, again=command_id)
        self._until(lambda: invariants.answers.keys() >= set(asked), BACK_WITHIN, "a rollback was not answered")
        for command_id in asked:
            answer = invariants.answers[command_id]
            assert answer.startswith("done"), f"no way back: {answer}"

    def _until(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        end = self.world.loop.now + seconds
        while not condition():
            assert self.world.loop.now < end, f"{otherwise} within {seconds} s: {self.invariants.unrest()}"
            self._supervise()
            self.world.run(seconds=0.5)
            self.invariants.each_step()

    def _supervise(self) -> None:
        """Start again who ended, and resume who is paused, as what supervises a worker and an operator do."""
        for name in self.world.workers:
            self.world.start(name)
        intakes = [node.intake for node in self.world.nodes.values() if node.intake is not None]
        if any(PAUSED in intake.reasons(scenario) for intake in intakes for scenario in SCENARIOS):
            self.world.command("resume", Resume(), scenario=None)

    # ------------------------------------------------------------ what may happen

    def _scenario(self) -> str:
        return self.random.choice(SCENARIOS)

    def _worker(self) -> str:
        return self.random.choice(self.world.workers)

    def _publish(self) -> None:
        kind = self.random.choices(KINDS, [_KIND_WEIGHTS.get(kind, 3) for kind in KINDS])[0]
        self.world.publish(self._scenario(), kind, self._publish_end())

    def _publish_end(self) -> Any:
        return self.random.choices(PUBLISH_ENDS, (8, 1, 1, 0))[0]

    def _send_again(self) -> None:
        if self.world.traffic.sent:
            self.world.send(self.random.choice(self.world.traffic.sent), self._publish_end())

    def _pass(self) -> None:
        self.world.run(seconds=self.random.choice((0.05, 0.3, 1.0, 3.0, 9.0)))

    def _command(self) -> None:
        if self.world.commands and self.random.random() < 0.2:
            known = self.random.choice(list(self.world.commands))
            self.world.command("again", Resume(), scenario=None, again=known)
            return
        if self.random.random() < 0.03:
            self.world.command("shutdown", Shutdown(), scenario=None)
            return
        _, name, args = self.random.choices(COMMANDS, [weight for weight, *_ in COMMANDS])[0]
        self.world.command(name, args, scenario=self._scenario())

    def _lose_connection(self) -> None:
        if self.random.random() < 0.5:
            self.world.faults.lost_acks += 1
        elif self.world.nodes:
            self.world.nodes[self.random.choice(sorted(self.world.nodes))].cut()

    def _die(self) -> None:
        if self.world.nodes:
            self.world.kill(self.world.nodes[self.random.choice(sorted(self.world.nodes))].process)

    def _doom(self) -> None:
        self.world.doom(self._worker(), self.random.choice(DEATH_POINTS), self.random.randint(1, 4))

    def _strike(self) -> None:
        turns = self.random.choice((3, 10, 30, 100, 300))
        self.world.strike_after(self._worker(), self.random.randint(1, turns), fatal=self.random.random() < 0.5)

    def _trouble_store(self) -> None:
        seconds = self.random.choice((0.3, 2.0, 15.0))
        if self.random.random() < 0.6:
            self.world.faults.store_down_until = self.world.loop.now + seconds
        else:
            self.world.faults.store_slow_until = self.world.loop.now + seconds
        if self.random.random() < 0.4:  # while it lasts, the network fails too
            self.world.loop.call_later(seconds / 2, self.world.cut)


@contextmanager
def a_flight(seed: int, **parts: Any) -> Iterator[Flight]:
    """A flight in a folder of its own, in memory where the system has such a place; cleared away in the end."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made below it
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=memory if memory.is_dir() else None) as folder:
        flight = Flight(seed, Path(folder), **parts)
        try:
            yield flight
        finally:
            flight.world.close()
