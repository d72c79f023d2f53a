"""The gate between a new model and its use: the settings as a rule, and the rule's word on one model.

Held out are whole sessions (or tasks without one), chosen by a hash of their id, so that no model saw them. A first
model is compared with the logged behaviour, later ones with the champion.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct, to_builtins

from worker.learning.counts import Counts
from worker.learning.offline_model import OfflineModel
from worker.learning.validation import (
    MIN_SAMPLES,
    Verdict,
    evaluate_on_holdout,
    judge,
    logged_on_holdout,
    strategy_of,
)

StrategyName: TypeAlias = Literal["no_regression", "improvement", "absolute"]


class GateConfig(Struct, frozen=True, kw_only=True):
    """The rule, as it is frozen into a run; `threshold` None is the strategy's ready-made one."""

    strategy: StrategyName = "no_regression"
    threshold: float | None = None
    min_samples: int = MIN_SAMPLES


class Weighed(Struct, frozen=True, kw_only=True):
    """The gate's word, and the figures on the held-out side it was given from."""

    verdict: Verdict
    metrics: dict[str, Any]


def weigh(config: GateConfig, model: OfflineModel, champion: OfflineModel | None, held_out: Counts) -> Weighed:
    """Judge a model on counts that it never saw."""
    candidate = evaluate_on_holdout(model, held_out)
    logged = logged_on_holdout(held_out)
    reigning = None if champion is None else evaluate_on_holdout(champion, held_out)
    verdict = judge(
        strategy_of(config.strategy, config.threshold), candidate, logged, reigning, min_samples=config.min_samples
    )
    figures = {"candidate": candidate, "logged": logged, "champion": reigning}
    return Weighed(
        verdict=verdict, metrics={name: to_builtins(value) for name, value in figures.items() if value is not None}
    )
