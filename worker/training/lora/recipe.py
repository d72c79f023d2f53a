"""The recipe of adapters: examples of what worked in, a LoRA adapter out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog
from msgspec.structs import replace

from worker.durable import make_private_directory
from worker.episodes.rules import Rules
from worker.errors import ApplyFailed
from worker.learning.offline_model import Window
from worker.models.adapter import adapter_directory
from worker.models.registry import Registry
from worker.store.port import Facts, Run
from worker.training.child import ChildLauncher
from worker.training.episode_records import EpisodesAndRecords
from worker.training.inputs import FrozenFacts
from worker.training.lora.adapter_check import AdapterCheck
from worker.training.lora.base_shapes import base_on_this_machine
from worker.training.lora.data import ModelsOf, write_training_data
from worker.training.lora.inputs import (
    CHECKPOINT_DIR,
    HELD_OUT_FILE,
    MANIFEST_FILE,
    TRAIN_FILE,
    LoraChampion,
    LoraConfig,
    LoraInput,
    LoraSurroundings,
    read_lora_input,
    write_lora_input,
)
from worker.training.recipe import Frozen, Recipe

log = structlog.get_logger(__name__)


class LoraStore(EpisodesAndRecords, Facts, Protocol):
    """The roles of the store that are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPlan:
    """What all LoRA runs of a worker have in common."""

    config: LoraConfig
    models_of: ModelsOf
    rules_of: Callable[[str], Rules]
    runs_dir: Path  # what runs see
    outputs_dir: Path  # checkpoints and adapters in the making
    checkpoint_steps: int
    launched: bool = False  # by SWARM_LORA_LAUNCHER
    converter: str | None = None
    serving_base: Path | None = None


def lora_recipe(store: LoraStore, registry: Registry, plan: LoraPlan, launcher: ChildLauncher) -> Recipe:
    """Trainings of adapters."""

    async def freeze(run: Run, run_dir: Path) -> Frozen:
        given = await asyncio.to_thread(_frozen_before, run_dir, run, plan.config)
        if given is None:
            given = await _freeze(store, registry, plan, run, run_dir)
        else:
            given = await asyncio.to_thread(_as_set_now, given, run_dir, plan.config, _surroundings(plan, run))
        return Frozen(
            facts=given.facts, lineage=_lineage(given), manifest=run_dir / MANIFEST_FILE, check=partial(_check, given)
        )

    return Recipe(
        kind="lora", config_hash=plan.config.hash, launcher=launcher, runs_dir=plan.runs_dir,
        outputs_dir=plan.outputs_dir, freeze=freeze, checkpoint=CHECKPOINT_DIR, launched=plan.launched,
    )  # fmt: skip


async def _freeze(store: LoraStore, registry: Registry, plan: LoraPlan, run: Run, run_dir: Path) -> LoraInput:
    # The facts are read first: what comes in meanwhile counts as new later too.
    facts = await store.facts(run.scenario)
    champion = await _champion(registry, run.scenario)
    await asyncio.to_thread(make_private_directory, run_dir)
    manifest, sha256 = await write_training_data(
        store, run.scenario, run_dir, config=plan.config, models_of=plan.models_of, rules=plan.rules_of(run.scenario)
    )
    train, held_out = manifest.files[TRAIN_FILE], manifest.files[HELD_OUT_FILE]
    given = LoraInput(
        run_id=run.run_id,
        scenario=run.scenario,
        config=plan.config,
        surroundings=_surroundings(plan, run),
        champion=champion,
        window=Window(lo=run.window_lo, hi=max(run.window_hi, facts.last_batch_no)),
        facts=FrozenFacts(
            last_batch_no=facts.last_batch_no,
            records=facts.records,
            episodes=facts.episodes,
            episodes_by_model=facts.episodes_by_model,
            sessions=facts.counted_sessions,
        ),
        train_sha256=train.sha256,
        held_out_sha256=held_out.sha256,
        manifest_sha256=sha256,
        train_examples=train.examples,
        held_out_examples=held_out.examples,
    )
    await asyncio.to_thread(write_lora_input, run_dir, given)
    return given


async def _champion(registry: Registry, scenario: str) -> LoraChampion | None:
    """The live adapter; None also where its files are damaged, since only a new one can take its place."""
    live = await registry.champion(scenario, "lora")
    if live is None:
        return None
    try:
        await registry.read(live)
    except ApplyFailed as error:
        log.error("champion_unreadable", scenario=scenario, version=live.version, error=str(error))  # noqa: TRY400 - no trace
        return None
    return LoraChampion(sha256=live.sha256, directory=str(adapter_directory(live).parent))


def _surroundings(plan: LoraPlan, run: Run) -> LoraSurroundings:
    return LoraSurroundings(
        output_dir=str((plan.outputs_dir / run.run_id).absolute()),
        checkpoint_steps=plan.checkpoint_steps,
        converter=plan.converter,
        serving_base=None if plan.serving_base is None else str(plan.serving_base.absolute()),
    )


def _frozen_before(run_dir: Path, run: Run, config: LoraConfig) -> LoraInput | None:
    """What an earlier attempt of this run froze: a retry trains on the same data, and goes on from a checkpoint.

    None where settings that shape it are others now. Whoever changes them and starts the worker anew means this
    training too.
    """
    try:
        given, _ = read_lora_input(run_dir)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    if (given.run_id, given.scenario) != (run.run_id, run.scenario):
        return None
    if given.config.shape != config.shape:
        log.warning(
            "training_begins_anew", run_id=run.run_id, scenario=run.scenario, begun_with=given.config.hash,
            config_sha256=config.hash, changed=_changed(given.config, config),
        )  # fmt: skip
        return None
    # The champion of then may have been retired since.
    gone = given.champion is not None and not Path(given.champion.directory).is_dir()
    return None if gone else given


def _as_set_now(given: LoraInput, run_dir: Path, config: LoraConfig, around: LoraSurroundings) -> LoraInput:
    """With what changes no adapter as it is now: the training goes on where it was, and another gate judges it."""
    now = replace(given, config=config, surroundings=around)
    if now != given:
        write_lora_input(run_dir, now)
    return now


def _changed(before: LoraConfig, now: LoraConfig) -> list[str]:
    return [name for name in LoraConfig.__struct_fields__ if getattr(before, name) != getattr(now, name)]


def _check(given: LoraInput, content: bytes, adapter: Path) -> None:
    # Only now: a base of the hub was downloaded by the training.
    serving = given.surroundings.serving_base
    check = AdapterCheck(base_on_this_machine(given.config.base_model), None if serving is None else Path(serving))
    check(content, adapter)


def _lineage(given: LoraInput) -> dict[str, Any]:
    facts = given.facts
    return {
        "window": {"lo": given.window.lo, "hi": given.window.hi},
        "counts": {
            "records": facts.records, "episodes": facts.episodes, "sessions": facts.sessions,
            "examples": given.train_examples, "held_out_examples": given.held_out_examples,
        },
        "data_sha256": given.manifest_sha256,
        "config_sha256": given.config.hash,
        "config": msgspec.to_builtins(given.config),
        "seed": given.config.seed,
        "converter": given.surroundings.converter,
        "serving_base": given.surroundings.serving_base,
    }  # fmt: skip
