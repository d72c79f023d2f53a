"""The aggregates of a scenario as a snapshot, so that analysis reads one form whoever counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TypeAlias

from worker.learning.counts import CountKey, Counts, Source
from worker.learning.selection import SelectionPerformance, StrategyStats
from worker.learning.snapshots import LearningSnapshot, SnapshotMetadata, by_action
from worker.learning.statistics import ActionStats, EpisodeTransitions, NgramStats, OkBad

#: Per names, the numbers of one family of measures.
_Table: TypeAlias = dict[tuple[str, ...], dict[str, int]]

#: Measures of the counts, and the fields of `ActionStats` they fill.
_ACTION_FIELDS = {
    "visits": "visits",
    "successes": "successes",
    "failures": "failures",
    "discoveries": "discoveries",
    "duration_ms": "total_duration_ms",
    "kpi_micro": "kpi_micro",
    "kpi_count": "kpi_count",
}


#: Families whose counts have no names; of any other family that is the rest, which is nobody's in particular.
_UNNAMED = ("episodes.", "sessions.")


def best_source(counts: Counts) -> Source | None:
    """Whose counts to believe: the worker's own over the action log where it saw actions, else the swarm's, if any.

    Never both: a swarm that sends actions and learn stats tells the same steps twice.
    """
    sources = {key.source for key, number in counts.items() if number > 0 and _says_something(key)}
    if "log" in sources:
        return "log"
    return "stats" if "stats" in sources else None


def actions_seen(counts: Counts, most: int = 100) -> list[str]:
    """The names of the actions that were taken, in order of the alphabet; of more than `most` the most frequent."""
    visits: Counter[str] = Counter()
    for key, number in counts.items():
        if key.measure == "action.visits" and key.names:
            visits[key.names[0]] += number
    frequent = sorted(visits, key=lambda name: (-visits[name], name))[:most]
    return sorted(frequent)


def episodes_of(counts: Counts, source: Source) -> dict[str, int]:
    """Episodes by outcome: `success`, `failure`, `timeout`, `unknown`."""
    kinds = ("success", "failure", "timeout", "unknown")
    return {kind: counts.get(CountKey(source, f"episodes.{kind}", ()), 0) for kind in kinds}


def snapshot_of_counts(counts: Counts, source: Source, *, scenario: str | None, created_at: int) -> LearningSnapshot:
    """What `source` counted, as one snapshot. Switches of strategy are not counted, so their history is empty.

    Sessions, ticks and actions in the metadata come from learn stats, whichever source the statistics are of; without
    learn stats the actions are those of the log. `created_at` is in Unix ms.
    """
    fields: dict[str, _Table] = defaultdict(lambda: defaultdict(dict))
    for key, number in counts.items():
        if key.source == source and number and (key.names or key.measure.startswith(_UNNAMED)):
            family, _, measure = key.measure.partition(".")
            fields[family][key.names][measure] = number
    contextual = {_pair(names): _action_stats(seen) for names, seen in fields["contextual"].items()}
    actions = {names[0]: _action_stats(seen) for names, seen in fields["action"].items()} or by_action(contextual)
    known = episodes_of(counts, source)
    return LearningSnapshot(
        metadata=SnapshotMetadata(
            scenario_name=scenario,
            created_at=created_at,
            session_count=sum(_stats(counts, f"sessions.{k}") for k in ("success", "failure", "timeout", "unknown")),
            total_episodes=sum(known.values()),
            total_actions=_stats(counts, "sessions.actions")
            or sum(seen.visits for seen in actions.values()) + counts.get(CountKey(source, "action.visits", ()), 0),
            total_ticks=_stats(counts, "sessions.ticks"),
        ),
        episode_transitions=EpisodeTransitions(
            success_transitions=_pairs(fields["transition"], "success"),
            failure_transitions=_pairs(fields["transition"], "failure"),
            success_starts=_firsts(fields["start"], "success"),
            failure_starts=_firsts(fields["start"], "failure"),
            success_episodes=known["success"],
            failure_episodes=known["failure"] + known["timeout"],
        ),
        ngram_stats=_ngrams(fields["ngram"]),
        selection_performance=SelectionPerformance(
            strategy_stats={names[0]: StrategyStats(**seen) for names, seen in fields["strategy"].items()}
        ),
        contextual_stats=contextual,
        action_stats=actions,
    )


def _says_something(key: CountKey) -> bool:
    return key.measure == "action.visits" or key.source == "stats"


def _stats(counts: Counts, measure: str) -> int:
    return counts.get(CountKey("stats", measure, ()), 0)


def _pair(names: tuple[str, ...]) -> tuple[str, str]:
    first, second = names
    return first, second


def _pairs(table: _Table, measure: str) -> dict[tuple[str, str], int]:
    return {_pair(names): seen[measure] for names, seen in table.items() if measure in seen}


def _firsts(table: _Table, measure: str) -> dict[str, int]:
    return {names[0]: seen[measure] for names, seen in table.items() if measure in seen}


def _action_stats(seen: dict[str, int]) -> ActionStats:
    return ActionStats(**{_ACTION_FIELDS[measure]: number for measure, number in seen.items()})


def _ngrams(grams: _Table) -> NgramStats:
    stats = NgramStats()
    for names, seen in grams.items():
        tally = OkBad(seen.get("success", 0), seen.get("failure", 0))
        match names:
            case (first, second, third):
                stats.trigrams[(first, second, third)] = tally
            case (first, second, third, fourth):
                stats.quadgrams[(first, second, third, fourth)] = tally
    return stats
