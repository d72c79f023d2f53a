"""The rows of an offline model out of a snapshot: each with its counts, its rate and its Wilson interval."""

from __future__ import annotations

from collections.abc import Sequence

from worker.learning.offline_model import (
    MOST_ACTIONS,
    MOST_TRANSITIONS,
    ActionStatistic,
    RecommendedPath,
    TransitionStatistic,
)
from worker.learning.rates import rounded, success_rate, wilson
from worker.learning.snapshots import LearningSnapshot
from worker.learning.statistics import ActionStats
from worker.learning.tally import countable


def action_rows(snapshot: LearningSnapshot) -> tuple[list[ActionStatistic], int]:
    """The actions, most visited first, ties by name, and how many did not fit."""
    known = [(action, stats) for action, stats in snapshot.action_stats.items() if countable(action)]
    known.sort(key=lambda pair: (-pair[1].visits, pair[0]))
    return [_action_row(action, stats) for action, stats in known[:MOST_ACTIONS]], max(0, len(known) - MOST_ACTIONS)


def transition_rows(snapshot: LearningSnapshot) -> tuple[list[TransitionStatistic], int]:
    """Every step that was seen, best supported first, ties by names, and how many did not fit."""
    transitions = snapshot.episode_transitions
    rows = [
        _transition_row(
            None, action, transitions.success_starts.get(action, 0), transitions.failure_starts.get(action, 0)
        )
        for action in {*transitions.success_starts, *transitions.failure_starts}
        if countable(action)
    ]
    for previous, action in {*transitions.pairs(), *snapshot.contextual_stats}:
        if countable(previous) and countable(action):
            seen = transitions.counts(previous, action)
            step = snapshot.contextual_stats.get((previous, action), ActionStats())
            rows.append(_transition_row(previous, action, seen.ok, seen.bad, step))
    rows.sort(key=lambda row: (-_support(row), row.previous or "", row.action))
    return rows[:MOST_TRANSITIONS], max(0, len(rows) - MOST_TRANSITIONS)


def path_row(actions: Sequence[str], successes: int, failures: int) -> RecommendedPath:
    """A path with the figures of its weakest step."""
    seen = successes + failures
    low, high = wilson(successes, seen)
    return RecommendedPath(
        actions=list(actions),
        success_rate=rounded(success_rate(successes, seen)),
        occurrences=seen,
        successes=successes,
        low=rounded(low),
        high=rounded(high),
    )


def _support(row: TransitionStatistic) -> int:
    """Observations with a known result, of whichever kind there are more."""
    return max(row.successes + row.failures, row.step_successes + row.step_failures)


def _action_row(action: str, stats: ActionStats) -> ActionStatistic:
    low, high = wilson(stats.successes, stats.successes + stats.failures)
    kpi = stats.avg_kpi()
    return ActionStatistic(
        action=action,
        visits=stats.visits,
        successes=stats.successes,
        failures=stats.failures,
        success_rate=rounded(success_rate(stats.successes, stats.successes + stats.failures)),
        low=rounded(low),
        high=rounded(high),
        mean_duration_ms=round(stats.avg_duration(), 3),
        mean_kpi=None if kpi is None else rounded(kpi),
        discoveries=stats.discoveries,
    )


def _transition_row(
    previous: str | None, action: str, successes: int, failures: int, step: ActionStats | None = None
) -> TransitionStatistic:
    low, high = wilson(successes, successes + failures)
    return TransitionStatistic(
        previous=previous,
        action=action,
        successes=successes,
        failures=failures,
        success_rate=rounded(success_rate(successes, successes + failures)),
        low=rounded(low),
        high=rounded(high),
        step_successes=0 if step is None else step.successes,
        step_failures=0 if step is None else step.failures,
    )
