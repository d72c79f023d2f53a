"""What one task or one session adds to the aggregates: a pure function of its records, so that it can be taken back.

Measures, all integers (source `log` from a task, `stats` from a session's learn stats):

- `action.{visits,successes,failures,discoveries,duration_ms,kpi_micro,kpi_count}` by (action)
- `contextual.{visits,successes,failures}` by (previous action, action): how the action itself went
- `transition.{visits,success,failure}` by (from, to), `start.*` by (first action), `ngram.{success,failure}` by three
  and four actions: occurrences, by the outcome of their episode
- `strategy.{visits,successes,failures,episodes_success,episodes_failure}` by (selection logic)
- `episodes.{success,failure,timeout,unknown}`, `sessions.{success,failure,timeout,unknown,ticks,actions}`

A timeout is a failure to everything but `episodes.*` and `sessions.*`. An unknown outcome counts as exposure (`visits`)
and never as success or failure. Ends have no measure: an action's ends are its starts and arrivals less its departures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar

from worker.episodes.cut import cut, holdout, holdout_key
from worker.episodes.rules import Rules
from worker.episodes.task import UNNAMED, TaskView
from worker.learning.counts import BucketedCounts, CountBucket, CountKey, Counts
from worker.learning.tally import Tally, bounded, countable, kind_of
from worker.wire.records import LearnStatsRecord
from worker.wire.stats import LearnStats, parse_learn_stats
from worker.wire.times import happened_at

DAY_MS = 86_400_000
_T = TypeVar("_T")
_Names = TypeVar("_Names", bound=tuple[str, ...])


def task_counts(view: TaskView, rules: Rules) -> BucketedCounts:
    """The counts of a task's closed sequences, by the UTC day on which each ended, by holdout and by producer."""
    tallies: dict[CountBucket, Tally] = {}
    for sequence in cut(view, rules):
        bucket = CountBucket(sequence.ended_at_ms // DAY_MS, sequence.holdout, sequence.producer)
        tallies.setdefault(bucket, Tally()).add(sequence)
    return {bucket: tally.counts() for bucket, tally in tallies.items()}


def session_counts(
    record: LearnStatsRecord,
    received_at_ms: int,
    *,
    scenario: str = "",
    holdout_share: float = 0.0,
    producer: str = UNNAMED,
) -> BucketedCounts:
    """The counts of one session's learn stats, on the day it ended.

    `scenario` and `holdout_share` put a session on the same side of the held-out split as its tasks; without them it is
    never held out. Raises `ValueError` where `stats_json` is no learn stats.
    """
    ended_at_ms = happened_at(record.timestamp_ms, received_at_ms)
    held_out = holdout(holdout_key(scenario, record.session_id), holdout_share)
    counts: Counts = Counter()
    _add(counts, "sessions." + kind_of(record.outcome), (), 1)
    _add(counts, "sessions.ticks", (), record.total_ticks)
    _add(counts, "sessions.actions", (), record.total_actions)
    _count_stats(counts, parse_learn_stats(record.stats_json))
    return {CountBucket(ended_at_ms // DAY_MS, held_out, producer): counts}


def _add(counts: Counts, measure: str, names: tuple[str, ...], number: int) -> None:
    if number:
        counts[CountKey("stats", measure, names)] += bounded(number)


def _count_stats(counts: Counts, stats: LearnStats) -> None:
    transitions = stats.episode_transitions
    _add(counts, "episodes.success", (), transitions.success_episodes)
    _add(counts, "episodes.failure", (), transitions.failure_episodes)
    for led_to, table in (
        ("success", transitions.success_transitions),
        ("failure", transitions.failure_transitions),
    ):
        for pair, number in _countables(table):
            _add(counts, "transition.visits", pair, number)
            _add(counts, "transition." + led_to, pair, number)
    grams = stats.ngram_stats
    for names, (ok, bad) in (*_countables(grams.trigrams), *_countables(grams.quadgrams)):
        _add(counts, "ngram.success", names, ok)
        _add(counts, "ngram.failure", names, bad)
    for pair, seen in _countables(stats.contextual_stats):
        for measure in seen.__struct_fields__:
            _add(counts, "contextual." + measure, pair, getattr(seen, measure))
    for name, strategy in stats.selection_performance.strategy_stats.items():
        if countable(name):
            for measure in strategy.__struct_fields__:
                _add(counts, "strategy." + measure, (name,), getattr(strategy, measure))


def _countables(table: Mapping[_Names, _T]) -> Iterator[tuple[_Names, _T]]:
    return ((names, entry) for names, entry in table.items() if all(map(countable, names)))
