"""Prompts whose answers show whether the adapter is in force, and the answers with it and without it.

They are decoded here as the server will: greedily. The server's base may be quantised, so those are taken whose words
were the surest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel

from worker.models.adapter import Probe
from worker.training.lora.tokens import Encoded, Encoder

_MOST_PROBES = 3
#: Examples that are tried for it, and tokens that are decoded of each.
_TRIED = 8
_TOKENS = 24
#: By how much the likeliest token has to lead the next one (logits), so that rounding does not turn it.
_SURE = 1.0


@dataclass(frozen=True, slots=True)
class _Decoded:
    text: str
    ids: list[int]
    leads: list[float]  # of each token before the next likeliest


def probes_of(model: PeftModel, examples: Sequence[Encoded], encoder: Encoder) -> list[Probe]:
    """At most three of the first examples, the surest first; none where no answer changed."""
    found: list[tuple[float, Probe]] = []
    for each in examples[:_TRIED]:
        with_adapter = _decode(model, each, encoder)
        with model.disable_adapter():
            without = _decode(model, each, encoder)
        if with_adapter.text.split() == without.text.split():
            continue
        probe = Probe(
            prompt=encoder.prompt_to_send(each.example),
            expected=with_adapter.text,
            base=without.text,
            max_tokens=_TOKENS,
        )
        found.append((_sureness(with_adapter, without), probe))
        if sum(sureness >= _SURE for sureness, _ in found) == _MOST_PROBES:
            break
    found.sort(key=lambda one: -one[0])
    return [probe for _, probe in found[:_MOST_PROBES]]


def _sureness(one: _Decoded, other: _Decoded) -> float:
    """The smallest lead, of either, up to the token in which they part."""
    common = next((n for n, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b), None)
    until = min(len(one.ids), len(other.ids)) if common is None else common + 1
    return min([*one.leads[:until], *other.leads[:until]], default=0.0)


def _decode(model: PeftModel, each: Encoded, encoder: Encoder) -> _Decoded:
    """What greedy decoding answers, up to the end mark."""
    device = next(model.parameters()).device
    tokens = each.chosen
    ids: list[int] = []
    leads: list[float] = []
    cache = None
    fed = torch.tensor([list(tokens.ids[: -tokens.answer])], device=device)
    with torch.inference_mode():
        while len(ids) < _TOKENS:
            out = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            first, second = out.logits[0, -1].float().topk(2).values.tolist()
            ids.append(int(out.logits[0, -1].argmax()))
            leads.append(first - second)
            if ids[-1] in encoder.ends(tokens):
                break
            fed = torch.tensor([[ids[-1]]], device=device)
    return _Decoded(encoder.text(ids), ids, leads)
