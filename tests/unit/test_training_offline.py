"""The recipe of offline models: what is frozen for a run stays the same at every attempt under the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.unit.told_building import project, task, tell
from tests.unit.training_world import CONFIG, opened
from worker.store.port import Run, Store
from worker.training.child import ChildLauncher
from worker.training.inputs import TrainingConfig, read_head
from worker.training.offline import offline_recipe
from worker.training.recipe import Recipe

RUN = Run(
    run_id="11111111-1111-1111-1111-111111111111", scenario="S", kind="offline", state="running", trigger={},
    window_lo=1, window_hi=3, requested_at_ms=1,
)  # fmt: skip


class NoChampion:
    """A registry without a live model."""

    async def champion(self, scenario: str, kind: Any) -> None:
        """None."""


def recipe_over(store: Store, tmp_path: Path, config: TrainingConfig = CONFIG) -> Recipe:
    registry: Any = NoChampion()
    return offline_recipe(
        store, registry, config=config, launcher=ChildLauncher(timeout=1, memory_mb=0), runs_dir=tmp_path / "runs"
    )


async def test_a_retry_sees_the_same_data_unless_the_settings_were_changed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await tell(store, task("t1"))
        await project(store)
        recipe = recipe_over(store, tmp_path)
        run_dir = recipe.input_of(RUN.run_id)
        await recipe.freeze(RUN, run_dir)
        before = read_head(run_dir)
        await tell(store, task("t2"), seq=1)
        await project(store)
        await recipe.freeze(RUN, run_dir)
        assert read_head(run_dir) == before
        changed = recipe_over(store, tmp_path, replace(CONFIG, max_sessions=7))
        frozen = await changed.freeze(RUN, run_dir)
        assert read_head(run_dir).config.max_sessions == 7
        assert read_head(run_dir).facts.records == before.facts.records + 3
        assert frozen.lineage["config_sha256"] == changed.config_hash
