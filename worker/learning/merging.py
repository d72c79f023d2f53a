"""Merging snapshots: plain sums, sums that fade with age, or sums weighted by success (the original's)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from msgspec import Struct

from worker.learning.rates import success_rate
from worker.learning.selection import SelectionPerformance, StrategyStats
from worker.learning.snapshots import LearningSnapshot, SnapshotMetadata
from worker.learning.statistics import ActionStats, EpisodeTransitions, NgramStats, OkBad

_K = TypeVar("_K")
_S = TypeVar("_S", ActionStats, OkBad, StrategyStats)


class Additive(Struct, frozen=True):
    """Plain sums; the default. Exact and associative."""


class TimeDecay(Struct, frozen=True):
    """A session i sessions older than the newest weighs 0.5 ** (i / half_life_sessions); sums are rounded."""

    half_life_sessions: int

    def __post_init__(self) -> None:
        if self.half_life_sessions < 1:
            raise ValueError(f"half_life_sessions is {self.half_life_sessions}; it must be at least 1")


class SuccessWeighted(Struct, frozen=True):
    """A session weighs its own success rate over its episodes, 0.5 if it has none; sums are rounded."""


MergeStrategy: TypeAlias = Additive | TimeDecay | SuccessWeighted


def merge_snapshots(snapshots: Sequence[LearningSnapshot], strategy: MergeStrategy | None = None) -> LearningSnapshot:
    """One snapshot of many; None is `Additive`. No snapshots give an empty one.

    Give them oldest first: switch histories follow each other as given, and the strategy in use is the last one's. Age
    goes by `created_at`, then session id. Metadata are sums and the latest time, never weighted.
    """
    if not snapshots:
        return LearningSnapshot()
    weighted = list(zip(snapshots, _weights(snapshots, strategy or Additive()), strict=True))
    transitions = [(snap.episode_transitions, weight) for snap, weight in weighted]
    grams = [(snap.ngram_stats, weight) for snap, weight in weighted]
    return LearningSnapshot(
        metadata=_metadata([snap.metadata for snap in snapshots]),
        episode_transitions=EpisodeTransitions(
            success_transitions=_sum_numbers((part.success_transitions, w) for part, w in transitions),
            failure_transitions=_sum_numbers((part.failure_transitions, w) for part, w in transitions),
            success_starts=_sum_numbers((part.success_starts, w) for part, w in transitions),
            failure_starts=_sum_numbers((part.failure_starts, w) for part, w in transitions),
            success_episodes=_total((part.success_episodes, w) for part, w in transitions),
            failure_episodes=_total((part.failure_episodes, w) for part, w in transitions),
        ),
        ngram_stats=NgramStats(
            trigrams=_sum_stats(OkBad, ((part.trigrams, w) for part, w in grams)),
            quadgrams=_sum_stats(OkBad, ((part.quadgrams, w) for part, w in grams)),
        ),
        selection_performance=_selection(weighted),
        contextual_stats=_sum_stats(ActionStats, ((snap.contextual_stats, w) for snap, w in weighted)),
        action_stats=_sum_stats(ActionStats, ((snap.action_stats, w) for snap, w in weighted)),
    )


def _weights(snapshots: Sequence[LearningSnapshot], strategy: MergeStrategy) -> Sequence[float]:
    match strategy:
        case Additive():
            return [1] * len(snapshots)  # integers: sums stay exact however large
        case TimeDecay(half_life):
            made = [(snap.metadata.created_at, snap.metadata.session_id or "") for snap in snapshots]
            newest_first = sorted(range(len(made)), key=lambda index: made[index], reverse=True)
            ages = {index: age for age, index in enumerate(newest_first)}
            return [0.5 ** (ages[index] / half_life) for index in range(len(made))]
        case SuccessWeighted():
            parts = [snap.episode_transitions for snap in snapshots]
            return [success_rate(one.success_episodes, one.success_episodes + one.failure_episodes) for one in parts]


def _total(weighted: Iterable[tuple[int, float]]) -> int:
    return round(sum(number * weight for number, weight in weighted))


def _sum_numbers(tables: Iterable[tuple[Mapping[_K, int], float]]) -> dict[_K, int]:
    sums: dict[_K, float] = {}
    for table, weight in tables:
        for key, number in table.items():
            sums[key] = sums.get(key, 0) + number * weight
    return {key: rounded for key, number in sums.items() if (rounded := round(number))}


def _sum_stats(kind: Callable[..., _S], tables: Iterable[tuple[Mapping[_K, _S], float]]) -> dict[_K, _S]:
    sums: dict[_K, dict[str, float]] = {}
    for table, weight in tables:
        for key, stats in table.items():
            fields = sums.setdefault(key, {})
            for name in stats.__struct_fields__:
                fields[name] = fields.get(name, 0) + getattr(stats, name) * weight
    merged: dict[_K, _S] = {}
    for key, fields in sums.items():
        rounded: dict[str, Any] = {name: round(number) for name, number in fields.items()}
        if any(rounded.values()):
            merged[key] = kind(**rounded)
    return merged


def _selection(weighted: Sequence[tuple[LearningSnapshot, float]]) -> SelectionPerformance:
    parts = [(snap.selection_performance, weight) for snap, weight in weighted]
    newest = next((part for part, _ in reversed(parts) if part.current_strategy is not None), SelectionPerformance())
    return SelectionPerformance(
        strategy_stats=_sum_stats(StrategyStats, ((part.strategy_stats, weight) for part, weight in parts)),
        switch_history=[switch for part, _ in parts for switch in part.switch_history],
        current_strategy=newest.current_strategy,
        strategy_start_visits=newest.strategy_start_visits,
        strategy_start_success_rate=newest.strategy_start_success_rate,
    )


def _metadata(parts: Sequence[SnapshotMetadata]) -> SnapshotMetadata:
    if len(parts) == 1:
        return parts[0]
    return SnapshotMetadata(
        scenario_name=_common(part.scenario_name for part in parts),
        task_description=_common(part.task_description for part in parts),
        created_at=max(part.created_at for part in parts),
        session_count=sum(part.session_count for part in parts),
        total_episodes=sum(part.total_episodes for part in parts),
        total_actions=sum(part.total_actions for part in parts),
        total_ticks=sum(part.total_ticks for part in parts),
        phase=_common(part.phase for part in parts),
        group_id=_common(part.group_id for part in parts),
    )


def _common(values: Iterable[str | None]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
