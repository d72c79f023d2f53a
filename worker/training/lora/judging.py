"""How a trained adapter did beside the base and the live adapter: the gate's word, and prompts that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace
from peft import PeftModel

from worker.models.adapter import BaseModel, Probe
from worker.models.gate import Weighed
from worker.models.lora_gate import Answered, weigh_adapter
from worker.training.lora.champion import CANDIDATE, CHAMPION, load_champion
from worker.training.lora.evaluate import evaluate, passes
from worker.training.lora.inputs import LoraInput
from worker.training.lora.probes import probes_of
from worker.training.lora.progress import JUDGED, TRAINED, Report
from worker.training.lora.tokens import Encoded, Encoder


def judge(
    model: PeftModel,
    given: LoraInput,
    base: BaseModel,
    encoder: Encoder,
    *,
    held_out: Sequence[Encoded],
    examples: Sequence[Encoded],
    report: Report,
) -> tuple[Weighed, list[Probe]]:
    """Ask all of them the same. The champion's weights are in `model` afterwards too, not in force."""
    config = given.config
    left_out = None if given.champion is None else load_champion(model, given.champion, base)
    champion = given.champion if left_out is None else None  # where it can be asked
    done, of = 0, passes(held_out, config.batch_size) * (2 if champion is None else 3)

    def on_batch() -> None:
        nonlocal done
        done += 1
        report(TRAINED + (JUDGED - TRAINED) * done / of, f"judging on {len(held_out)} held-out examples")

    ask = partial(evaluate, model, held_out, batch_size=config.batch_size, pad=encoder.pad, on_batch=on_batch)
    candidate = ask()
    with model.disable_adapter():
        without = ask()
    live: list[Answered] | None = None
    if champion is not None:
        model.set_adapter(CHAMPION)
        live = ask()
        model.set_adapter(CANDIDATE)
    weighed = weigh_adapter(config.gate, config.objective, candidate, without, live)
    if left_out is not None:
        reasons = [*weighed.verdict.reasons, f"not compared with the live adapter: {left_out}"]
        weighed = replace(weighed, verdict=replace(weighed.verdict, reasons=reasons))
    report(JUDGED, "looking for answers that changed")
    likeliest = [held_out[place] for place in _likeliest_to_differ(candidate, without, live or candidate)]
    before = None if champion is None else champion.sha256
    return weighed, probes_of(model, [*likeliest, *examples], encoder, before=before)


def _likeliest_to_differ(
    candidate: Sequence[Answered], without: Sequence[Answered], live: Sequence[Answered]
) -> list[int]:
    """Places of the examples that the adapter gained on, or does otherwise than the live one; most first."""
    differs = [
        max(mine.right - base.right, 0) + abs(mine.right - champion.right)
        for mine, base, champion in zip(candidate, without, live, strict=True)
    ]
    return [place for place in sorted(range(len(differs)), key=lambda each: -differs[each]) if differs[place]]
