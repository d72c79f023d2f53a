"""What a model gives to the answers of a batch: log-probabilities of their tokens, and whether it would say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from worker.training.lora.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Answers:
    """All of shape (answers, tokens of the longest one), aligned at the right; `present` marks what is no padding."""

    log_probs: torch.Tensor  # of each token, after those before it
    greedy: torch.Tensor  # whether it is the likeliest
    present: torch.Tensor

    def total(self) -> torch.Tensor:
        """Log-probability of each whole answer."""
        return (self.log_probs * self.present).sum(dim=1)

    def mean(self) -> torch.Tensor:
        """The same per token."""
        return self.total() / self.present.sum(dim=1)


def answers(model: nn.Module, batch: Sequence[Tokens], *, pad: int) -> Answers:
    """Look at the answers of `batch`, in one pass, on the device where `model` is.

    Padding is on the left, so that all answers end together and the logits of no prompt are made: with a vocabulary of
    150,000 they would be most of the memory.
    """
    device = next(model.parameters()).device
    longest = max(len(each.ids) for each in batch)
    ids = torch.tensor([[pad] * (longest - len(each.ids)) + list(each.ids) for each in batch], device=device)
    mask = torch.tensor([[0] * (longest - len(each.ids)) + [1] * len(each.ids) for each in batch], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    width = max(each.answer for each in batch)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=width + 1, use_cache=False)
    # The token at a place is foretold at the place before it.
    logits = out.logits[:, -width - 1 : -1].float()
    wanted = ids[:, -width:]
    log_probs = logits.log_softmax(dim=-1).gather(2, wanted.unsqueeze(2)).squeeze(2)
    present = torch.tensor([[0.0] * (width - each.answer) + [1.0] * each.answer for each in batch], device=device)
    return Answers(log_probs=log_probs, greedy=logits.argmax(dim=-1) == wanted, present=present)
