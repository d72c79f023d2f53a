"""Prompts whose answers show whether the adapter is in force, and the answers with it and without it.

Without it is with the base, or with the adapter that it is to replace: a server may keep that one. They are decoded
here as the server will: greedily. Its base may be quantised, so those are taken whose words were the surest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel

from worker.models.adapter import Probe
from worker.training.lora.champion import CANDIDATE, CHAMPION
from worker.training.lora.tokens import Encoded, Encoder

_MOST_PROBES = 3
#: Examples that are tried for it, and tokens that are decoded of each.
_TRIED = 8
_TOKENS = 24
#: By how much the likeliest token has to lead the next one (logits), so that rounding does not turn it.
_SURE = 1.0


@dataclass(frozen=True, slots=True)
class Tried:
    """A prompt, and how surely the adapter's answer parts from the other one."""

    probe: Probe
    sureness: float | None  # smallest lead of a word up to there (logits); None where the answers are the same


@dataclass(frozen=True, slots=True)
class _Decoded:
    text: str
    ids: list[int]
    leads: list[float]  # of each token before the next likeliest


def probes_of(
    model: PeftModel, examples: Sequence[Encoded], encoder: Encoder, *, from_champion: bool = False
) -> list[Probe]:
    """At most three of the first examples, which tell the candidate from the base; none where no answer changed.

    Or `from_champion`, whose weights are loaded beside it: then that one's answers stand in place of the base's.
    """
    return chosen(_try(model, each, encoder, from_champion=from_champion) for each in examples[:_TRIED])


def chosen(tried: Iterable[Tried]) -> list[Probe]:
    """The surest first. No more is tried than it takes."""
    found: list[tuple[float, Probe]] = []
    for one in tried:
        if one.sureness is not None:
            found.append((one.sureness, one.probe))
        if sum(sureness >= _SURE for sureness, _ in found) == _MOST_PROBES:
            break
    found.sort(key=lambda one: -one[0])
    return [probe for _, probe in found[:_MOST_PROBES]]


def _try(model: PeftModel, each: Encoded, encoder: Encoder, *, from_champion: bool) -> Tried:
    mine = _decode(model, each, encoder)
    if from_champion:
        model.set_adapter(CHAMPION)
        other = _decode(model, each, encoder)
        model.set_adapter(CANDIDATE)
    else:
        with model.disable_adapter():
            other = _decode(model, each, encoder)
    probe = Probe(prompt=encoder.prompt_to_send(each.example), expected=mine.text, base=other.text, max_tokens=_TOKENS)
    return Tried(probe, _sureness(mine, other))


def _sureness(one: _Decoded, other: _Decoded) -> float | None:
    """The smallest lead, of either, up to the token in which they part; None where they say the same."""
    if one.text.split() == other.text.split():
        return None
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
