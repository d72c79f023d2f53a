"""The recipe of adapters: what is frozen for a run stays the same at every attempt."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.unit.told_building import RULES, models_of, project, task, tell
from tests.unit.training_world import opened
from worker.errors import ApplyFailed
from worker.models.gate import GateConfig
from worker.store.port import Model, Run, Store
from worker.training.child import ChildLauncher
from worker.training.lora.inputs import HELD_OUT_FILE, TRAIN_FILE, LoraChampion, LoraConfig, read_lora_input
from worker.training.lora.recipe import LoraPlan, lora_recipe
from worker.training.recipe import Recipe

RUN = Run(
    run_id="11111111-1111-1111-1111-111111111111", scenario="S", kind="lora", state="running", trigger={},
    window_lo=1, window_hi=3, requested_at_ms=1,
)  # fmt: skip


class Champion:
    """A registry with one adapter, or none; its files are as `damaged` says."""

    def __init__(self, directory: Path | None = None, *, damaged: bool = False) -> None:
        self._directory = directory
        self._damaged = damaged

    async def champion(self, scenario: str, kind: Any) -> Model | None:
        if self._directory is None:
            return None
        return Model(
            model_id="m1", scenario=scenario, version=1, kind=kind, run_id="r", created_at_ms=1,
            uri=self._directory.as_uri(), sha256="abc", lineage={}, metrics={}, gate_verdict="blessed", gate_reasons=[],
        )  # fmt: skip

    async def read(self, model: Model) -> bytes:
        if self._damaged:
            raise ApplyFailed(f"model {model.model_id} was changed")
        return b"{}"


def recipe_over(
    store: Store, tmp_path: Path, registry: Any, *, outputs: str = "adapters", checkpoint_steps: int = 7, **config: Any
) -> Recipe:
    plan = LoraPlan(
        config=LoraConfig(base_model="base", **{"holdout": RULES.holdout, **config}),
        models_of=models_of,
        rules_of=lambda _: RULES,
        runs_dir=tmp_path / "data",
        outputs_dir=tmp_path / outputs,
        checkpoint_steps=checkpoint_steps,
        serving_base=tmp_path / "base.gguf",
    )
    return lora_recipe(store, registry, plan, ChildLauncher(timeout=1, memory_mb=0))


@asynccontextmanager
async def once_frozen(tmp_path: Path) -> AsyncIterator[tuple[Store, Recipe, Path]]:
    """A store with one task, a recipe over it, and the directory into which a run of it was frozen."""
    async with opened(tmp_path) as store:
        await tell(store, task("t1"))
        await project(store)
        recipe = recipe_over(store, tmp_path, Champion())
        run_dir = recipe.input_of(RUN.run_id)
        await recipe.freeze(RUN, run_dir)
        yield store, recipe, run_dir


async def test_a_run_freezes_what_is_stored_and_names_its_files_by_their_hashes(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for n in range(20):
            await tell(store, task(f"t{n}"), seq=n)
        await project(store)
        recipe = recipe_over(store, tmp_path, Champion(tmp_path))
        run_dir = recipe.input_of(RUN.run_id)
        frozen = await recipe.freeze(RUN, run_dir)
        given, _ = read_lora_input(run_dir)
        assert given.kind == "lora"
        assert given.champion == LoraChampion(sha256="abc", directory=str(tmp_path))
        assert (given.window.lo, given.window.hi, given.facts.last_batch_no) == (1, 20, 20)
        assert given.train_examples + given.held_out_examples == 40
        assert given.surroundings.output_dir == str(tmp_path / "adapters" / RUN.run_id)
        assert (given.surroundings.checkpoint_steps, given.surroundings.serving_base) == (
            7,
            str(tmp_path / "base.gguf"),
        )
        assert frozen.facts == given.facts
        assert frozen.manifest is not None
        assert frozen.manifest.is_file()
        assert frozen.lineage["data_sha256"] == given.manifest_sha256
        around = given.surroundings  # both decide what adapter.gguf is
        assert (frozen.lineage["converter"], frozen.lineage["serving_base"]) == (around.converter, around.serving_base)
        assert frozen.lineage["counts"]["examples"] == given.train_examples
        assert run_dir.stat().st_mode & 0o777 == 0o700


async def test_a_retry_sees_the_same_data_whatever_came_in_meanwhile(tmp_path: Path) -> None:
    async with once_frozen(tmp_path) as (store, recipe, run_dir):
        before = read_lora_input(run_dir)
        await tell(store, task("t2"), seq=1)
        await project(store)
        await recipe.freeze(RUN, run_dir)
        assert read_lora_input(run_dir) == before
        await recipe.freeze(msgspec.structs.replace(RUN, run_id="another"), run_dir)
        assert read_lora_input(run_dir)[0].train_examples + read_lora_input(run_dir)[0].held_out_examples == 4


async def test_an_output_directory_that_was_changed_meanwhile_is_the_one_that_is_written_to(tmp_path: Path) -> None:
    """The results are looked for in the new one."""
    async with once_frozen(tmp_path) as (store, _, run_dir):
        await recipe_over(store, tmp_path, Champion(), outputs="elsewhere").freeze(RUN, run_dir)
        assert read_lora_input(run_dir)[0].surroundings.output_dir == str(tmp_path / "elsewhere" / RUN.run_id)


async def test_a_run_whose_settings_were_changed_meanwhile_begins_anew_under_the_new_ones(tmp_path: Path) -> None:
    """Else it would train for days by what the operator took back, and its lineage alone would say so."""
    async with once_frozen(tmp_path) as (store, _, run_dir):
        before, _ = read_lora_input(run_dir)
        await tell(store, task("t2"), seq=1)
        await project(store)
        changed = recipe_over(store, tmp_path, Champion(), rank=8)
        with capture_logs() as logs:
            frozen = await changed.freeze(RUN, run_dir)
        after, _ = read_lora_input(run_dir)
        assert after.config.rank == 8
        assert after.train_examples + after.held_out_examples == 4  # what came in meanwhile too
        assert frozen.lineage["config_sha256"] == after.config.hash == changed.config_hash
        assert after.shape != before.shape  # so no checkpoint of before is gone on from
        (said,) = (entry for entry in logs if entry["event"] == "training_begins_anew")
        assert (said["run_id"], said["changed"]) == (RUN.run_id, ["rank"])
        with capture_logs() as logs:
            await changed.freeze(RUN, run_dir)
        assert logs == []


async def test_surroundings_that_were_changed_meanwhile_hold_and_the_training_goes_on(tmp_path: Path) -> None:
    """They change no adapter: how often it is checkpointed, what converts it, what it is checked against."""
    async with once_frozen(tmp_path) as (store, _, run_dir):
        before, _ = read_lora_input(run_dir)
        await tell(store, task("t2"), seq=1)
        await project(store)
        await recipe_over(store, tmp_path, Champion(), checkpoint_steps=3).freeze(RUN, run_dir)
        after, _ = read_lora_input(run_dir)
        around = msgspec.structs.replace(before.surroundings, checkpoint_steps=3)
        assert after == msgspec.structs.replace(before, surroundings=around)
        assert after.shape == before.shape  # so the checkpoint of before is gone on from


@pytest.mark.parametrize(
    "judged_by", [{"gate": GateConfig(strategy="absolute", threshold=0.9)}, {"min_examples": 3}], ids=["gate", "least"]
)
async def test_another_gate_judges_what_was_trained_without_training_it_again(
    tmp_path: Path, judged_by: dict[str, Any]
) -> None:
    """Whether an adapter is wanted shapes none of its weights; the data stays, or the checkpoint would be of other."""
    async with once_frozen(tmp_path) as (store, _, run_dir):
        before, _ = read_lora_input(run_dir)
        await tell(store, task("t2"), seq=1)
        await project(store)
        changed = recipe_over(store, tmp_path, Champion(), **judged_by)
        with capture_logs() as logs:
            frozen = await changed.freeze(RUN, run_dir)
        after, _ = read_lora_input(run_dir)
        assert after == msgspec.structs.replace(before, config=msgspec.structs.replace(before.config, **judged_by))
        assert after.shape == before.shape
        assert frozen.lineage["config_sha256"] == changed.config_hash != before.config.hash
        assert logs == []


@pytest.mark.parametrize(
    "shaping",
    [{"holdout": 0.4}, {"seed": 1}, {"max_episodes": 5}, {"objective": "dpo"}],
    ids=lambda one: next(iter(one)),
)
def test_what_decides_the_rows_or_the_steps_shapes_the_weights(shaping: dict[str, Any]) -> None:
    assert LoraConfig(base_model="base", **shaping).shape != LoraConfig(base_model="base").shape


async def test_torn_files_are_frozen_anew(tmp_path: Path) -> None:
    async with once_frozen(tmp_path) as (_, recipe, run_dir):
        before = read_lora_input(run_dir)
        for name in (TRAIN_FILE, HELD_OUT_FILE):
            (run_dir / name).unlink()
            (run_dir / name).write_bytes(b'{"torn')
        await recipe.freeze(RUN, run_dir)
        assert read_lora_input(run_dir) == before


async def test_a_champion_that_is_damaged_or_gone_is_not_compared_with(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await tell(store, task("t1"))
        await project(store)
        run_dir = tmp_path / "data" / RUN.run_id
        await recipe_over(store, tmp_path, Champion(tmp_path, damaged=True)).freeze(RUN, run_dir)
        assert read_lora_input(run_dir)[0].champion is None
        shutil.rmtree(run_dir)
        live = tmp_path / "live"
        live.mkdir()
        await recipe_over(store, tmp_path, Champion(live)).freeze(RUN, run_dir)
        live.rmdir()
        await recipe_over(store, tmp_path, Champion()).freeze(RUN, run_dir)
        assert read_lora_input(run_dir)[0].champion is None
