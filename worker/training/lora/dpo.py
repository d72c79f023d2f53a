"""Direct preference optimisation (Rafailov et al. 2023): the better answer gains on the worse, measured by the base.

    -log sigmoid(beta * ((log p(chosen) - log p(rejected)) - (log q(chosen) - log q(rejected))))

p is the model with the adapter, q the one without; sums over tokens. `beta` says how strongly it holds on to q.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid

from worker.training.lora.forward import answers
from worker.training.lora.tokens import Encoded, Tokens


def dpo_loss(model: PeftModel, batch: Sequence[Encoded], *, beta: float, pad: int) -> torch.Tensor:
    """One value per pair."""
    both = [*(each.chosen for each in batch), *(rejected_of(each) for each in batch)]
    policy = answers(model, both, pad=pad).total()
    with torch.no_grad(), model.disable_adapter():
        reference = answers(model, both, pad=pad).total()
    return preference_loss(policy, reference, beta=beta)


def preference_loss(policy: torch.Tensor, reference: torch.Tensor, *, beta: float) -> torch.Tensor:
    """The formula; both hold the log-probabilities of the chosen answers, then of the rejected ones."""
    pairs = len(policy) // 2
    gained = policy - reference
    return -logsigmoid(beta * (gained[:pairs] - gained[pairs:]))


def rejected_of(encoded: Encoded) -> Tokens:
    """The worse answer, which every example of dpo has; ValueError otherwise."""
    if encoded.rejected is None:
        raise ValueError("an example without a rejected answer is none for dpo")
    return encoded.rejected
