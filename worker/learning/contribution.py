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
from itertools import pairwise
from typing import TypeGuard, TypeVar

from worker.episodes.cut import Cut, cut, holdout, holdout_key
from worker.episodes.rules import Rules
from worker.episodes.task import TaskView
from worker.learning.counts import MICRO, BucketedCounts, CountBucket, CountKey, Counts, Source
from worker.wire.records import Failure, LearnStatsRecord, Outcome, Success, Timeout
from worker.wire.stats import LearnStats, parse_learn_stats

DAY_MS = 86_400_000
#: Lengths of the n-grams that are counted; a rebuild applies a change to what is stored.
NGRAM_SIZES = (3, 4)
#: Longest name that is counted (the wire's limit of an action's name); previous actions and strategies may be longer.
LONGEST_NAME = 256
#: No single value adds more than this in any measure's unit: it takes nine million absurd records to overflow int64.
LARGEST_ADDEND = 10**12

_T = TypeVar("_T")
_Names = TypeVar("_Names", bound=tuple[str, ...])


def task_counts(view: TaskView, rules: Rules) -> BucketedCounts:
    """The counts of a task's closed sequences, by the UTC day on which each ended and by holdout."""
    buckets: BucketedCounts = {}
    for sequence in cut(view, rules):
        counts = _bucket(buckets, sequence.ended_at_ms, held_out=sequence.holdout)
        _count_actions(counts, sequence)
        _count_sequence(counts, sequence)
    return buckets


def session_counts(
    record: LearnStatsRecord, received_at_ms: int, *, scenario: str = "", holdout_share: float = 0.0
) -> BucketedCounts:
    """The counts of one session's learn stats, on the day it ended.

    `scenario` and `holdout_share` put a session on the same side of the held-out split as its tasks; without them it is
    never held out. Raises `ValueError` where `stats_json` is no learn stats.
    """
    ended_at_ms = received_at_ms if record.timestamp_ms is None else record.timestamp_ms
    held_out = holdout(holdout_key(scenario, record.session_id), holdout_share)
    buckets: BucketedCounts = {}
    counts = _bucket(buckets, ended_at_ms, held_out=held_out)
    _add(counts, "sessions." + kind_of(record.outcome), (), 1)
    _add(counts, "sessions.ticks", (), record.total_ticks)
    _add(counts, "sessions.actions", (), record.total_actions)
    _count_stats(counts, parse_learn_stats(record.stats_json))
    return buckets


def kind_of(outcome: Outcome) -> str:
    """`success`, `failure`, `timeout` or `unknown`."""
    match outcome:
        case Success():
            return "success"
        case Failure():
            return "failure"
        case Timeout():
            return "timeout"
        case _:
            return "unknown"


def countable(name: str | None) -> TypeGuard[str]:
    """Whether this may name a count."""
    return name is not None and 0 < len(name) <= LONGEST_NAME


def _bucket(buckets: BucketedCounts, ended_at_ms: int, *, held_out: bool) -> Counts:
    return buckets.setdefault(CountBucket(ended_at_ms // DAY_MS, held_out), Counter())


def _add(counts: Counts, measure: str, names: tuple[str, ...], number: int, source: Source = "stats") -> None:
    if number:
        counts[CountKey(source, measure, names)] += max(-LARGEST_ADDEND, min(LARGEST_ADDEND, number))


def _count_actions(counts: Counts, sequence: Cut) -> None:
    """How each action went by itself, whatever became of the episode."""
    previous: str | None = None
    for placed, step in zip(sequence.actions, sequence.steps, strict=True):
        name = (step.action,)
        went = "successes" if step.ok else "failures"
        counts[CountKey("log", "action.visits", name)] += 1
        counts[CountKey("log", "action." + went, name)] += 1
        _add(counts, "action.discoveries", name, step.discoveries, "log")
        _add(counts, "action.duration_ms", name, step.duration_ms, "log")
        if step.kpi is not None:
            _add(counts, "action.kpi_micro", name, micro(step.kpi), "log")
            counts[CountKey("log", "action.kpi_count", name)] += 1
        sent = placed.record.previous_action
        context = sent if countable(sent) else previous
        if context is not None:
            counts[CountKey("log", "contextual.visits", (context, step.action))] += 1
            counts[CountKey("log", "contextual." + went, (context, step.action))] += 1
        if countable(step.selection_logic):
            counts[CountKey("log", "strategy.visits", (step.selection_logic,))] += 1
            counts[CountKey("log", "strategy." + went, (step.selection_logic,))] += 1
        previous = step.action


def _count_sequence(counts: Counts, sequence: Cut) -> None:
    """What followed what, by the outcome of the episode."""
    names = tuple(step.action for step in sequence.steps)
    kind = kind_of(sequence.outcome)
    counts[CountKey("log", "episodes." + kind, ())] += 1
    counts[CountKey("log", "start.visits", names[:1])] += 1
    for pair in pairwise(names):
        counts[CountKey("log", "transition.visits", pair)] += 1
    if kind == "unknown":
        return
    led_to = "success" if kind == "success" else "failure"
    counts[CountKey("log", "start." + led_to, names[:1])] += 1
    for pair in pairwise(names):
        counts[CountKey("log", "transition." + led_to, pair)] += 1
    for size in NGRAM_SIZES:
        for start in range(len(names) - size + 1):
            counts[CountKey("log", "ngram." + led_to, names[start : start + size])] += 1
    # The strategy in use at the end takes the credit, as the original's `record_episode_end` gives it.
    strategies = (step.selection_logic for step in reversed(sequence.steps))
    last = next((name for name in strategies if countable(name)), None)
    if last is not None:
        counts[CountKey("log", "strategy.episodes_" + led_to, (last,))] += 1


def micro(number: float) -> int:
    """A real number in millionths, kept to what may be added."""
    limit = LARGEST_ADDEND / MICRO
    return round(max(-limit, min(limit, number)) * MICRO)


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
