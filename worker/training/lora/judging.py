"""How a trained adapter did beside the base and the live adapter: the gate's word, and prompts that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace
from peft import PeftModel

from worker.models.adapter import BaseModel, Probe
from worker.models.before import Before
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
) -> tuple[Weighed, list[Probe], Before | None]:
    """Ask all of them the same. The champion's weights are in `model` afterwards too, not in force.

    The probes follow from candidate and base; whatever has to do with the champion is in what comes after them.
    """
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
    gains = [mine.right - base.right for mine, base in zip(candidate, without, strict=True)]
    probes = probes_of(model, [*_first(gains, held_out), *examples], encoder)
    before: Before | None = None
    if champion is not None and live is not None:
        parts = [abs(mine.right - other.right) for mine, other in zip(candidate, live, strict=True)]
        telling = probes_of(model, [*_first(parts, held_out), *examples], encoder, from_champion=True)
        before = Before(sha256=champion.sha256, probes=telling) if telling else None
    return weighed, probes, before


def _first(weights: Sequence[int], held_out: Sequence[Encoded]) -> list[Encoded]:
    """Those examples that weigh something, the most first."""
    order = sorted(range(len(weights)), key=lambda place: -weights[place])
    return [held_out[place] for place in order if weights[place] > 0]
