"""Supervised fine-tuning: the negative log-likelihood of the wanted answers, per token; prompts are not learnt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from worker.training.lora.forward import answers
from worker.training.lora.tokens import Encoded


def sft_loss(model: nn.Module, batch: Sequence[Encoded], *, pad: int) -> torch.Tensor:
    """One value per example, so that a long answer weighs no more than a short one."""
    return -answers(model, [each.chosen for each in batch], pad=pad).mean()
