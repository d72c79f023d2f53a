"""The recipe of offline models: counts and sessions in, statistics and an exploration model out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from worker.errors import ApplyFailed
from worker.learning import offline_model
from worker.learning.offline_model import ModelUnreadable, OfflineModel
from worker.models.registry import Registry
from worker.store.port import Run
from worker.training.child import ChildLauncher
from worker.training.collect import ProjectionsAndFacts, collect, frozen_before
from worker.training.inputs import TrainingConfig, TrainingInput
from worker.training.recipe import Frozen, Recipe

log = structlog.get_logger(__name__)


def offline_recipe(
    store: ProjectionsAndFacts, registry: Registry, *, config: TrainingConfig, launcher: ChildLauncher, runs_dir: Path
) -> Recipe:
    """Trainings of offline models; `runs_dir` holds input and results of each."""

    async def freeze(run: Run, run_dir: Path) -> Frozen:
        given = await asyncio.to_thread(frozen_before, run_dir, run, config)
        if given is None:
            champion = await _champion(registry, run.scenario)
            given = await collect(store, run, config=config, champion=champion, run_dir=run_dir)
        return Frozen(facts=given.facts, lineage=_lineage(given))

    return Recipe(
        kind="offline", config_hash=config.hash, launcher=launcher, runs_dir=runs_dir, outputs_dir=runs_dir,
        freeze=freeze,
    )  # fmt: skip


async def _champion(registry: Registry, scenario: str) -> OfflineModel | None:
    """The live model; None also where its file is damaged, since only a new one can take its place."""
    live = await registry.champion(scenario, "offline")
    if live is None:
        return None
    try:
        return offline_model.decode(await registry.read(live))
    except (ApplyFailed, ModelUnreadable) as error:
        log.error("champion_unreadable", scenario=scenario, version=live.version, error=str(error))  # noqa: TRY400 - no trace
        return None


def _lineage(given: TrainingInput) -> dict[str, object]:
    window = given.analysis.window
    return {
        "window": {"lo": window.lo, "hi": window.hi},
        "counts": {
            "records": given.facts.records, "episodes": given.facts.episodes, "sessions": given.facts.sessions,
            "analyzed_sessions": len(given.analysis.sessions), "held_out_sessions": given.held_out_sessions,
            "producers": given.producers, "capped": given.capped,
        },
        "config_sha256": given.config.hash,
        "config": {"max_sessions": given.config.max_sessions, "holdout": given.config.holdout,
            "producer_share": given.config.producer_share,
        },
        "seed": given.config.seed,
    }  # fmt: skip
