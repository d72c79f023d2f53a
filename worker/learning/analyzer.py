"""The offline analysis: from what was counted to an offline model, by the original's simple rule.

Deterministic: equal input gives an equal model, to the byte. It is the control that deeper methods are measured
against, and fills the fields that they leave open.
"""

from __future__ import annotations

from collections import Counter
from statistics import fmean, median
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from worker.learning.action_order import OrderChoice, PlacedGraph, choose_order
from worker.learning.bounds import LEFT_OUT
from worker.learning.counts import CountKey, CountRow, Counts
from worker.learning.evidence import best_source, snapshot_of_counts
from worker.learning.merging import merge_snapshots
from worker.learning.model_rows import action_rows, transition_rows
from worker.learning.offline_model import (
    OfflineModel,
    OptimalParameters,
    RecommendedPath,
    StrategyConfig,
    Window,
)
from worker.learning.paths import extract_paths
from worker.learning.rates import rounded
from worker.learning.selection import ERROR_RATE_THRESHOLD, MATURITY_THRESHOLD, THOMPSON, UCB1, SelectionPerformance
from worker.learning.snapshots import LearningSnapshot, snapshot_of_session
from worker.learning.tally import countable
from worker.wire.records import LearnStatsRecord

#: ucb1_c: exploit where things go well, explore where they go badly.
_C_GOOD, _C_MIDDLE, _C_BAD = 1.0, 1.41, 2.0
_GOOD, _BAD = 0.8, 0.5
#: The two weights grow from the base to their largest value as evidence reaches `_ENOUGH`.
_BASE_WEIGHT, _LEARNING_WEIGHT, _NGRAM_WEIGHT, _ENOUGH = 0.3, 0.5, 1.0, 100
#: A trigram counts for ngram_weight from this many observations on.
_TRIGRAM_SUPPORT = 3
#: A strategy may become the initial one from this many episodes on.
_STRATEGY_EPISODES = 2


class EndedSession(Struct, frozen=True, kw_only=True):
    """A session's learn stats, and when they came in (Unix ms)."""

    record: LearnStatsRecord
    received_at_ms: int


class AnalysisInput(Struct, frozen=True, kw_only=True):
    """All that an analysis may look at, in a form that is JSON as it stands (`msgspec.json`).

    `counts` and `sessions` are without what was held out for the gate; `counts` without names are the rest of a family
    that has more names than one training takes (`worker.learning.bounds`); `sessions` are the newest `max_sessions`,
    `graphs` the newest dependency-graph records, both in any order. `updated_at_ms` is the time up to which the
    evidence goes, not the time of the run, so that the same evidence gives the same model.
    """

    scenario: str
    counts: list[CountRow] = []
    sessions: list[EndedSession] = []
    graphs: list[PlacedGraph] = []
    previous: OfflineModel | None = None
    window: Window = Window()
    updated_at_ms: int = 0


class NothingToLearn(Struct, frozen=True):
    """No model came of it, and that is no error."""

    reason: str


class OfflineAnalyzer:
    """The analysis of one input: `analyze` for all of it, the other methods for its parts.

    The statistics come from the worker's own counts of the action log where it saw any action, else from the learn
    stats of the newest sessions; never from both, since they tell of the same steps. How strategies were switched is
    in learn stats only. Raises `ValueError` where a session's `stats_json` is no learn stats.
    """

    def __init__(self, given: AnalysisInput) -> None:
        self._given = given
        sessions = sorted(given.sessions, key=lambda one: (one.received_at_ms, one.record.session_id))
        self._sessions = [snapshot_of_session(one.record, one.received_at_ms, given.scenario) for one in sessions]
        merged = merge_snapshots(self._sessions)
        counts: Counts = Counter({CountKey(source, what, names): n for source, what, names, n in given.counts})
        self._counts = counts
        self._source: Literal["log", "stats"] = "log" if best_source(counts) == "log" else "stats"
        self.evidence: LearningSnapshot = (
            snapshot_of_counts(counts, "log", scenario=given.scenario, created_at=given.updated_at_ms)
            if self._source == "log"
            else merged
        )
        # Actions need not say how they were chosen; then the sessions may.
        self._selection = self.evidence.selection_performance
        if not self._selection.strategy_stats:
            self._selection = merged.selection_performance

    def analyze(self) -> OfflineModel | NothingToLearn:
        """The model. A stored action order is kept unless a better one was inferred."""
        given, evidence = self._given, self.evidence
        previous = given.previous
        choice = choose_order(given.graphs, None if previous is None else previous.action_order)
        if not evidence.action_stats and not evidence.metadata.total_episodes:
            if not choice.changed:
                return NothingToLearn(
                    f"no closed episode and no learn stats with content: {len(given.counts)} counts, "
                    f"{len(given.sessions)} sessions, {len(given.graphs)} dependency graphs ({_refusals(choice)})"
                )
            base = previous or OfflineModel(scenario=given.scenario)
            return replace(base, action_order=choice.order, window=given.window, updated_at_ms=given.updated_at_ms)
        actions, omitted_actions = action_rows(evidence)
        transitions, omitted_transitions = transition_rows(evidence)
        omitted = {
            "actions": omitted_actions + self._rest(f"action.{LEFT_OUT}"),
            "transitions": omitted_transitions + self._rest(f"start.{LEFT_OUT}") + self._rest(f"transition.{LEFT_OUT}"),
        }
        return OfflineModel(
            scenario=given.scenario,
            parameters=self.analyze_parameters(),
            recommended_paths=self.extract_paths(),
            strategy_config=self.analyze_strategy(),
            action_order=choice.order,
            actions=actions,
            transitions=transitions,
            omitted={name: number for name, number in omitted.items() if number},
            evidence=self._source,
            analyzed_sessions=len(self._sessions),
            analyzed_episodes=evidence.metadata.total_episodes,
            window=given.window,
            updated_at_ms=given.updated_at_ms,
        )

    def analyze_parameters(self) -> OptimalParameters:
        """Step 1: explore less where actions succeed, weigh what was learnt by how much of it there is."""
        contextual = self.evidence.contextual_stats.values()
        transitions = self.evidence.episode_transitions
        visits = sum(stats.visits for stats in contextual) + self._rest("contextual.visits")
        episodes = transitions.success_episodes + transitions.failure_episodes
        ucb1_c = _C_MIDDLE
        if visits or episodes:
            successes = transitions.success_episodes
            if visits:
                successes = sum(stats.successes for stats in contextual) + self._rest("contextual.successes")
            p = successes / (visits or episodes)
            ucb1_c = _C_GOOD if p > _GOOD else _C_BAD if p < _BAD else _C_MIDDLE
        trigrams = sum(seen.seen >= _TRIGRAM_SUPPORT for seen in self.evidence.ngram_stats.trigrams.values())
        return OptimalParameters(
            ucb1_c=ucb1_c,
            learning_weight=_grown(_LEARNING_WEIGHT, transitions.success_episodes),
            ngram_weight=_grown(_NGRAM_WEIGHT, trigrams),
        )

    def _rest(self, measure: str) -> int:
        """What was counted under no names: of those that are not here one by one."""
        return self._counts[CountKey("log", measure, ())] if self._source == "log" else 0

    def extract_paths(self) -> list[RecommendedPath]:
        """Step 2."""
        return extract_paths(self.evidence)

    def analyze_strategy(self) -> StrategyConfig:
        """Step 3: the most effective strategy first, and the switches that were made as thresholds."""
        best = _folded(self._selection).best_strategy(min_episodes=_STRATEGY_EPISODES)
        histories = [snap.selection_performance.switch_history for snap in self._sessions]
        first_switches = [history[0].visits for history in histories if history]
        failure_rates = [
            1.0 - switch.success_rate
            for history in histories
            for switch in history
            if switch.to.lower() == THOMPSON and 0.0 <= switch.success_rate <= 1.0
        ]
        return StrategyConfig(
            initial_strategy=UCB1 if best is None else best[0],
            maturity_threshold=round(median(first_switches)) if first_switches else MATURITY_THRESHOLD,
            error_rate_threshold=rounded(fmean(failure_rates)) if failure_rates else ERROR_RATE_THRESHOLD,
        )


def _grown(largest: float, evidence: int) -> float:
    return rounded(_BASE_WEIGHT + (largest - _BASE_WEIGHT) * min(1.0, evidence / _ENOUGH))


def _folded(selection: SelectionPerformance) -> SelectionPerformance:
    """Strategies in lower case: `UCB1` of an action and `ucb1` of learn stats are one."""
    folded = [
        SelectionPerformance(strategy_stats={name.lower(): stats})
        for name, stats in selection.strategy_stats.items()
        if countable(name)
    ]
    return merge_snapshots([LearningSnapshot(selection_performance=one) for one in folded]).selection_performance


def _refusals(choice: OrderChoice) -> str:
    refused = ", ".join(f"{number} {reason}" for reason, number in sorted(choice.refused.items()))
    return f"refused: {refused}" if refused else "none refused"
