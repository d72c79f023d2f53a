"""Which examples each optimiser step sees: a function of the seed and the step, so that a killed training goes on.

Pure: no state is carried from step to step, so none has to be kept in a checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Steps over all epochs."""

    examples: int
    epochs: int
    batch_size: int  # examples in one forward pass
    accumulation: int  # forward passes per step
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch; its last may be a smaller one."""
        return math.ceil(self.examples / (self.batch_size * self.accumulation))

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.per_epoch

    def batches(self, step: int) -> list[list[int]]:
        """The forward passes of `step` (from 0), each as places of examples. Every epoch has an order of its own."""
        epoch, within = divmod(step, self.per_epoch)
        order = list(range(self.examples))
        random.Random(f"{self.seed}:{epoch}").shuffle(order)  # noqa: S311 - an order, no secret
        size = self.batch_size * self.accumulation
        mine = order[within * size : (within + 1) * size]
        return [mine[at : at + self.batch_size] for at in range(0, len(mine), self.batch_size)]

    def seed_of(self, step: int, batch: int) -> int:
        """What the dropout of one forward pass is drawn from."""
        digest = hashlib.sha256(f"{self.seed}:{step}:{batch}".encode()).digest()
        return int.from_bytes(digest[:7], "big")
