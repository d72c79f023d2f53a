"""What goes wrong in a simulated world: armed by the pilot, met by the store, the network and the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeAlias, get_args

from tests.faults.simulation.process import Process

#: Where a process may be lost: around what leaves it.
DeathPoint: TypeAlias = Literal[
    "before_commit",
    "after_commit",
    "after_run",
    "before_ack",
    "half_acked",
    "after_ack",
    "before_publish",
    "after_publish",
]
DEATH_POINTS: tuple[DeathPoint, ...] = get_args(DeathPoint)
#: What becomes of a publish: `lost_confirm` is routed, the others of the three that fail are not.
PublishEnd: TypeAlias = Literal["confirmed", "lost_confirm", "nacked", "returned"]
PUBLISH_ENDS: tuple[PublishEnd, ...] = get_args(PublishEnd)
#: How a training ends. `never` is ended by the launcher's time limit, or by whoever cancels it.
TrainingEnd: TypeAlias = Literal[
    "blessed", "rejected", "nothing", "signal", "oom", "exit", "garbage", "another_run", "no_process", "never"
]
TRAINING_ENDS: tuple[TrainingEnd, ...] = get_args(TrainingEnd)


@dataclass
class Faults:
    """The present state of what can fail. `fired` counts what really happened, for the check that tests test."""

    random: Random
    kill: Callable[[Process], None]
    #: Virtual times until which the store refuses, or takes its time.
    store_down_until: float = 0.0
    store_slow_until: float = 0.0
    #: Who dies where, and at which hit.
    doomed: dict[Process, tuple[DeathPoint, int]] = field(default_factory=dict)
    #: Ends of the next publishes and trainings; what is not planned goes well.
    publishes: deque[PublishEnd] = field(default_factory=deque)
    trainings: deque[TrainingEnd] = field(default_factory=deque)
    #: How many of the next acknowledgements never reach the broker.
    lost_acks: int = 0
    #: The server of adapters refuses and forgets.
    server_unsteady: bool = True
    fired: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        """It happened once more."""
        self.fired[what] = self.fired.get(what, 0) + 1

    def dies(self, process: Process, point: DeathPoint) -> bool:
        """Whether the process is lost here and now."""
        doom = self.doomed.get(process)
        if doom is None or doom[0] != point:
            return False
        if doom[1] > 1:
            self.doomed[process] = (point, doom[1] - 1)
            return False
        del self.doomed[process]
        self.note(f"died {point}")
        self.kill(process)
        return True

    def publish_end(self) -> PublishEnd:
        """Of the publish that is under way."""
        end = self.publishes.popleft() if self.publishes else "confirmed"
        self.note(f"publish {end}")
        return end

    def training_end(self) -> TrainingEnd:
        """Of the training that begins."""
        end = self.trainings.popleft() if self.trainings else "blessed"
        self.note(f"training {end}")
        return end

    def stop(self) -> None:
        """From now on nothing new goes wrong."""
        self.store_down_until = self.store_slow_until = 0.0
        self.doomed.clear()
        self.publishes.clear()
        self.trainings.clear()
        self.lost_acks = 0
        self.server_unsteady = False
