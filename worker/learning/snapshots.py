"""A snapshot: the statistics of one session, one scenario or everything, as one document (the original's)."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

from msgspec import Struct, field

from worker.learning.selection import SelectionPerformance, StrategyStats, StrategySwitchEvent
from worker.learning.statistics import ActionStats, EpisodeTransitions, NgramStats, OkBad, Pair
from worker.wire.records import LearnStatsRecord, Outcome
from worker.wire.stats import LearnStats, parse_learn_stats
from worker.wire.times import happened_at

#: The original's document version.
SNAPSHOT_VERSION = 1

SessionGroupId = NewType("SessionGroupId", str)


def session_group_id(now_ms: int) -> SessionGroupId:
    """A fresh id in the original's form: `g` and Unix milliseconds, 0 for a clock before 1970."""
    return SessionGroupId(f"g{max(0, now_ms)}")


class LearningPhase(StrEnum):
    """What a group of sessions was run for."""

    BOOTSTRAP = "bootstrap"  # forced success with the correct graph, to gather data
    RELEASE = "release"  # autonomous, with the learned model
    VALIDATE = "validate"


class SnapshotMetadata(Struct, frozen=True, kw_only=True):
    """What the statistics are of. Times in Unix ms (the original's `created_at` is in seconds: decision c).

    `session_id`, `outcome` and `phase` are of the one session (or of all merged ones where they agree on a phase or
    group), else None. A phase that the domain does not name is kept as it was sent.
    """

    scenario_name: str | None = None
    task_description: str | None = None
    created_at: int = 0
    session_count: int = 0
    total_episodes: int = 0
    total_actions: int = 0
    total_ticks: int = 0
    session_id: str | None = None
    outcome: Outcome | None = None
    phase: str | None = None
    group_id: str | None = None


class LearningSnapshot(Struct, frozen=True, kw_only=True):
    """The original's `LearningSnapshot`; `contextual_stats` is keyed (previous action, action)."""

    version: int = SNAPSHOT_VERSION
    metadata: SnapshotMetadata = SnapshotMetadata()
    episode_transitions: EpisodeTransitions = field(default_factory=EpisodeTransitions)
    ngram_stats: NgramStats = field(default_factory=NgramStats)
    selection_performance: SelectionPerformance = field(default_factory=SelectionPerformance)
    contextual_stats: dict[Pair, ActionStats] = {}
    action_stats: dict[str, ActionStats] = {}


def snapshot_of_session(record: LearnStatsRecord, received_at_ms: int, scenario: str) -> LearningSnapshot:
    """One session's snapshot, every field kept (the original lost most of them).

    Learn stats hold no statistics by action alone: they are the sums over the previous action. Raises `ValueError`
    where `stats_json` is no learn stats; such a record never gets past the wire.
    """
    stats = parse_learn_stats(record.stats_json)
    transitions = stats.episode_transitions
    contextual = {
        pair: ActionStats(visits=seen.visits, successes=seen.successes, failures=seen.failures)
        for pair, seen in stats.contextual_stats.items()
    }
    return LearningSnapshot(
        metadata=SnapshotMetadata(
            scenario_name=scenario,
            created_at=happened_at(record.timestamp_ms, received_at_ms),
            session_count=1,
            total_episodes=transitions.success_episodes + transitions.failure_episodes,
            total_actions=record.total_actions,
            total_ticks=record.total_ticks,
            session_id=record.session_id,
            outcome=record.outcome,
            phase=record.phase,
            group_id=record.group_id,
        ),
        episode_transitions=EpisodeTransitions(
            success_transitions=transitions.success_transitions,
            failure_transitions=transitions.failure_transitions,
            success_episodes=transitions.success_episodes,
            failure_episodes=transitions.failure_episodes,
        ),
        ngram_stats=NgramStats(
            trigrams={names: OkBad(*tally) for names, tally in stats.ngram_stats.trigrams.items()},
            quadgrams={names: OkBad(*tally) for names, tally in stats.ngram_stats.quadgrams.items()},
        ),
        selection_performance=_selection(stats),
        contextual_stats=contextual,
        action_stats=by_action(contextual),
    )


def by_action(contextual: dict[Pair, ActionStats]) -> dict[str, ActionStats]:
    """Statistics of each action, summed over what came before it."""
    sums: dict[str, ActionStats] = {}
    for (_, action), seen in contextual.items():
        before = sums.get(action, ActionStats())
        sums[action] = ActionStats(
            visits=before.visits + seen.visits,
            successes=before.successes + seen.successes,
            failures=before.failures + seen.failures,
        )
    return sums


def _selection(stats: LearnStats) -> SelectionPerformance:
    sent = stats.selection_performance
    return SelectionPerformance(
        strategy_stats={
            name: StrategyStats(
                visits=one.visits,
                successes=one.successes,
                failures=one.failures,
                episodes_success=one.episodes_success,
                episodes_failure=one.episodes_failure,
            )
            for name, one in sent.strategy_stats.items()
        },
        switch_history=[
            StrategySwitchEvent(from_=one.from_, to=one.to, visits=one.visits, success_rate=float(one.success_rate))
            for one in sent.switch_history
        ],
        current_strategy=sent.current_strategy,
        strategy_start_visits=sent.strategy_start_visits,
        strategy_start_success_rate=float(sent.strategy_start_success_rate),
    )
