"""Prompts whose answers show whether the adapter is in force, and the answers with it and without it.

Without it may also be with the adapter that it is to replace: a server may keep that one. They are decoded here as the
server will: greedily. The server's base may be quantised, so those are taken whose words were the surest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel

from worker.models.adapter import Before, Probe
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
    """A prompt, and how surely the adapter's answer parts from the base's, and from that of the adapter before it."""

    probe: Probe
    base: float | None  # smallest lead of a word up to there (logits); None where the answers are the same
    before: float | None  # the same; None too where there is no adapter before

    @property
    def sureness(self) -> float:
        """Of the less sure one."""
        return min((lead for lead in (self.base, self.before) if lead is not None), default=0.0)


@dataclass(frozen=True, slots=True)
class _Decoded:
    text: str
    ids: list[int]
    leads: list[float]  # of each token before the next likeliest


def probes_of(
    model: PeftModel, examples: Sequence[Encoded], encoder: Encoder, *, before: str | None = None
) -> list[Probe]:
    """At most three of the first examples; none where no answer changed.

    `before` is the SHA-256 of the model.json of the champion, where that is loaded beside the candidate.
    """
    tried = (_try(model, each, encoder, before) for each in examples[:_TRIED])
    return [one.probe for one in chosen(tried, before=before is not None)]


def chosen(tried: Iterable[Tried], *, before: bool) -> list[Tried]:
    """Those first that part from both, then the surest; one at least that parts from each, where there is one.

    No more is tried than it takes. Where none parts from the adapter before it (`before`: there is one) they are the
    same as without that: the same training gives the same probes.
    """
    looked = list(_until_enough(tried, lambda one: one.base is not None and (one.before is not None or not before)))
    if not any(one.before is not None for one in looked):
        looked = list(_until_enough(looked, lambda one: one.base is not None))
    order = sorted(
        (one for one in looked if one.base is not None or one.before is not None),
        key=lambda one: (one.base is None or one.before is None, -one.sureness),
    )
    first = [
        next((one for one in order if one.base is not None), None),
        next((one for one in order if one.before is not None), None),
    ]
    taken = list(dict.fromkeys(one for one in (*first, *order) if one is not None))[:_MOST_PROBES]
    return sorted(taken, key=order.index)


def _until_enough(tried: Iterable[Tried], tells: Callable[[Tried], bool]) -> Iterator[Tried]:
    """Up to the last of as many as are wanted that surely tell what they should."""
    enough = 0
    for one in tried:
        yield one
        enough += tells(one) and one.sureness >= _SURE
        if enough == _MOST_PROBES:
            return


def _try(model: PeftModel, each: Encoded, encoder: Encoder, before: str | None) -> Tried:
    with_adapter = _decode(model, each, encoder)
    with model.disable_adapter():
        without = _decode(model, each, encoder)
    champion: _Decoded | None = None
    if before is not None:
        model.set_adapter(CHAMPION)
        champion = _decode(model, each, encoder)
        model.set_adapter(CANDIDATE)
    parts = None if champion is None else _sureness(with_adapter, champion)
    return Tried(
        probe=Probe(
            prompt=encoder.prompt_to_send(each.example),
            expected=with_adapter.text,
            base=without.text,
            before=(
                None
                if before is None or champion is None or parts is None
                else Before(sha256=before, answer=champion.text)
            ),
            max_tokens=_TOKENS,
        ),
        base=_sureness(with_adapter, without),
        before=parts,
    )


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
