"""The training loop: forward passes, one optimiser step, a checkpoint now and then. Deterministic on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from worker.errors import ConfigurationError
from worker.training.lora.checkpoints import Checkpoints
from worker.training.lora.schedule import Schedule
from worker.training.lora.tokens import Encoded
from worker.training.lora.world import World

#: One value per example of a batch.
Loss: TypeAlias = Callable[[Sequence[Encoded]], torch.Tensor]
#: Steps that are done, and the mean loss over the examples of the last one.
OnStep: TypeAlias = Callable[[int, float], None]

_MOST_GRADIENT = 1.0  # the norm beyond which a step is shortened


@dataclass(frozen=True, slots=True)
class Trained:
    """How it went."""

    steps: int
    resumed_at: int  # steps that an earlier attempt had done
    final_loss: float | None  # None where that one had done them all


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters, by name; the base is frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(
    model: nn.Module,
    examples: Sequence[Encoded],
    loss: Loss,
    *,
    schedule: Schedule,
    learning_rate: float,
    checkpoints: Checkpoints,
    checkpoint_steps: int,
    on_step: OnStep,
    world: World,
) -> Trained:
    """Make every step that no checkpoint has. `ConfigurationError` where the loss is no number any more."""
    parameters = trainable(model)
    optimiser = torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=0.0)
    done = resumed_at = checkpoints.load(parameters, optimiser)
    final: float | None = None
    model.train()
    for step in range(done, schedule.steps):
        final = _step(model, examples, loss, optimiser, schedule=schedule, step=step, world=world)
        if not math.isfinite(final):
            raise ConfigurationError(
                f"SWARM_LORA_LEARNING_RATE: {learning_rate:g} is too high: the loss is no number at step {step + 1}"
            )
        done = step + 1
        if world.rank == 0 and (done % checkpoint_steps == 0 or done == schedule.steps):
            checkpoints.save(done, parameters, optimiser)
        on_step(done, final)
    model.eval()
    return Trained(steps=schedule.steps, resumed_at=resumed_at, final_loss=final)


def _step(
    model: nn.Module,
    examples: Sequence[Encoded],
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    *,
    schedule: Schedule,
    step: int,
    world: World,
) -> float:
    """One optimiser step; its mean loss."""
    batches = schedule.batches(step)
    count = sum(len(batch) for batch in batches)
    total = torch.zeros((), device=next(model.parameters()).device)
    optimiser.zero_grad(set_to_none=False)
    for number, batch in list(enumerate(batches))[world.rank :: world.size]:
        torch.manual_seed(schedule.seed_of(step, number))
        found = loss([examples[place] for place in batch]).sum() / count
        found.backward()
        total += found.detach()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for parameter in parameters:
        if parameter.grad is None:  # this process had no part in the step
            parameter.grad = torch.zeros_like(parameter)
    world.add_up([*(parameter.grad for parameter in parameters), total])
    torch.nn.utils.clip_grad_norm_(parameters, _MOST_GRADIENT)
    optimiser.step()
    return float(total)
