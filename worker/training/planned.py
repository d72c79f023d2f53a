"""From settings to the recipes of what the processor mode trains."""

from __future__ import annotations

from collections.abc import Callable

from worker.episodes.rules import Rules
from worker.models.gate import GateConfig
from worker.models.registry import Registry
from worker.settings import Settings
from worker.store.port import ModelKind, Store
from worker.training.child import ChildLauncher
from worker.training.inputs import TrainingConfig
from worker.training.lora.data import ModelsOf
from worker.training.lora.planned import lora_launcher, lora_plan
from worker.training.lora.recipe import lora_recipe
from worker.training.modes import ProcessorMode
from worker.training.offline import offline_recipe
from worker.training.recipe import Recipe


def recipes_of(
    settings: Settings,
    mode: ProcessorMode,
    store: Store,
    registry: Registry,
    *,
    models_of: ModelsOf,
    rules_of: Callable[[str], Rules],
) -> dict[ModelKind, Recipe]:
    """In the order in which the kinds are trained."""
    recipes: dict[ModelKind, Recipe] = {}
    for kind in mode.kinds:
        if kind == "lora":
            plan = lora_plan(settings, models_of=models_of, rules_of=rules_of)
            recipes[kind] = lora_recipe(store, registry, plan, lora_launcher(settings))
        else:
            recipes[kind] = _offline(settings, store, registry)
    return recipes


def _offline(settings: Settings, store: Store, registry: Registry) -> Recipe:
    return offline_recipe(
        store,
        registry,
        launcher=ChildLauncher(timeout=settings.training_timeout, memory_mb=settings.training_memory_mb),
        config=TrainingConfig(
            max_sessions=settings.max_sessions,
            holdout=settings.holdout,
            producer_share=settings.producer_share,
            gate=GateConfig(strategy=settings.gate_strategy, threshold=settings.gate_threshold),
        ),
        runs_dir=settings.data_dir / "runs",
    )
