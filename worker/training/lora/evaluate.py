"""What held-out answers look like to a model: one pass tells their likelihood, and what greedy decoding would say.

An answer whose every token is the likeliest after those before it is the one that greedy decoding gives, so nothing has
to be generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from worker.models.lora_gate import Answered
from worker.training.lora.dpo import rejected_of
from worker.training.lora.forward import answers
from worker.training.lora.tokens import Encoded, Tokens


def evaluate(
    model: nn.Module, examples: Sequence[Encoded], *, batch_size: int, pad: int, on_batch: Callable[[], None]
) -> list[Answered]:
    """One value per example, in order. `on_batch` is called after each pass, of which `passes` tells the number."""
    found: list[Answered] = []
    for at in range(0, len(examples), batch_size):
        found += _judged(model, examples[at : at + batch_size], pad=pad)
        on_batch()
    return found


def passes(examples: Sequence[Encoded], batch_size: int) -> int:
    """How many passes `evaluate` makes."""
    return -(-len(examples) // batch_size)


def _judged(model: nn.Module, batch: Sequence[Encoded], *, pad: int) -> list[Answered]:
    with torch.inference_mode():
        chosen = answers(model, [each.chosen for each in batch], pad=pad)
        means = (-chosen.mean()).tolist()
        right = [_right(each.chosen, row) for each, row in zip(batch, chosen.greedy.tolist(), strict=True)]
        prefers: list[bool | None] = [None] * len(batch)
        if batch[0].rejected is not None:
            rejected = answers(model, [rejected_of(each) for each in batch], pad=pad)
            prefers = (chosen.total() > rejected.total()).tolist()
    return [
        Answered(
            right=right[n],
            decisions=each.chosen.decisions[-1] + 1,
            nll=means[n],
            prefers=prefers[n],
            seen=each.example.seen,
        )
        for n, each in enumerate(batch)
    ]


def _right(tokens: Tokens, greedy: Sequence[bool]) -> int:
    """Decisions of which every token is the likeliest; `greedy` is aligned at the right."""
    wrong = {decision for decision, hit in zip(tokens.decisions, greedy[-tokens.answer :], strict=True) if not hit}
    return tokens.decisions[-1] + 1 - len(wrong)
