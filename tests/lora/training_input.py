"""A LoRA run's directory as the worker freezes it, with examples that teach one order of actions."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.lora.tiny import TARGETS, question
from worker.episodes.worker_decision_sequence import AVAILABLE_ACTIONS
from worker.episodes.worker_task import ARROW
from worker.learning.offline_model import Window
from worker.models.gate import GateConfig
from worker.training.inputs import FrozenFacts
from worker.training.lora.inputs import (
    HELD_OUT_FILE,
    MANIFEST_FILE,
    TRAIN_FILE,
    LoraChampion,
    LoraConfig,
    LoraExample,
    LoraInput,
    LoraSurroundings,
    write_lora_input,
)

#: The trainer as it is, but that it takes its share of the processors: on a busy machine it would wait for minutes.
PROMPT_TRAINER = (
    sys.executable, "-P", "-s", "-c",
    (
        "import sys; from worker.training import limits, trainer; limits._give_way = lambda: None; "
        "sys.exit(trainer.main(['--file-mb', '0', *sys.argv[1:]]))"
    ),
)  # fmt: skip
#: What the adapter is to answer, whatever the target.
WANTED = (AVAILABLE_ACTIONS[2], AVAILABLE_ACTIONS[0], AVAILABLE_ACTIONS[-1])


def example(target: str, *, actions: Sequence[str] = WANTED, rejected: Sequence[str] | None = None) -> LoraExample:
    """One row."""
    system, user = (message["content"] for message in question(target))
    return LoraExample(
        prompt=user,
        system=system,
        chosen=ARROW.join(actions),
        rejected=None if rejected is None else ARROW.join(rejected),
        learn_model="worker_decision_sequence",
        actions=list(actions),
        episodes=[target],
    )


def examples(targets: Sequence[str] = TARGETS, *, dpo: bool = False) -> list[LoraExample]:
    """One per target; with `dpo` against an answer in the opposite order."""
    chance = random.Random(7)
    shuffled = [tuple(chance.sample(WANTED[:-1], 2)[::-1]) for _ in targets]
    return [
        example(target, rejected=(*AVAILABLE_ACTIONS[4:6], *order) if dpo else None)
        for target, order in zip(targets, shuffled, strict=True)
    ]


def config(base: Path, **settings: Any) -> LoraConfig:
    """Settings with which the tiny base learns in seconds."""
    quick = {"rank": 8, "alpha": 16.0, "epochs": 6, "batch_size": 4, "gradient_accumulation": 1, "device": "cpu",
        "learning_rate": 5e-3, "min_examples": 4, "gate": GateConfig(min_samples=4)}  # fmt: skip
    return LoraConfig(base_model=str(base), **{**quick, **settings})


def write_run(
    place: Path,
    config: LoraConfig,
    *,
    train: Sequence[LoraExample],
    held_out: Sequence[LoraExample],
    run_id: str = "r1",
    champion: LoraChampion | None = None,
    checkpoint_steps: int = 50,
) -> LoraInput:
    """`<place>/run` with everything in it; results are to come into `<place>/out`."""
    run_dir = place / "run"
    run_dir.mkdir(parents=True)
    (place / "out").mkdir(exist_ok=True)
    hashes = {}
    for name, rows in ((TRAIN_FILE, train), (HELD_OUT_FILE, held_out), (MANIFEST_FILE, [])):
        data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows) or b"{}\n" * (name == MANIFEST_FILE)
        (run_dir / name).write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    given = LoraInput(
        run_id=run_id,
        scenario="S",
        config=config,
        surroundings=LoraSurroundings(output_dir=str(place / "out"), checkpoint_steps=checkpoint_steps),
        champion=champion,
        window=Window(lo=1, hi=2),
        facts=FrozenFacts(last_batch_no=1, records=1, episodes=1, episodes_by_model={}, sessions=1),
        train_sha256=hashes[TRAIN_FILE],
        held_out_sha256=hashes[HELD_OUT_FILE],
        manifest_sha256=hashes[MANIFEST_FILE],
        train_examples=len(train),
        held_out_examples=len(held_out),
    )
    write_lora_input(run_dir, given)
    return given
