"""Recommended paths by the simple rule: follow the steps that mostly led to success (the original's)."""

from __future__ import annotations

from worker.learning.model_rows import path_row
from worker.learning.offline_model import MOST_PATHS, RecommendedPath
from worker.learning.rates import success_rate
from worker.learning.snapshots import LearningSnapshot
from worker.learning.statistics import EpisodeTransitions, OkBad
from worker.learning.tally import countable

#: A step is followed from this success rate and this many successes on.
LEAST_RATE = 0.6
LEAST_COUNT = 2
SHORTEST_PATH, LONGEST_PATH = 2, 10
#: An action is a start where at most this share of its departures were arrivals too ("never or rarely a target").
RARELY = 0.1


def extract_paths(snapshot: LearningSnapshot) -> list[RecommendedPath]:
    """The best paths, by success rate, then count, then names; at most `MOST_PATHS`.

    From each start a greedy walk over good steps; the longest context that was seen (three actions, two, one) says how
    good a step is, and a path is as good as its weakest step.
    """
    steps = _good_steps(snapshot.episode_transitions)
    if not steps:
        return []
    paths = {}
    for start in _starts(snapshot.episode_transitions, steps):
        actions, weakest = _walk(start, steps, snapshot)
        if len(actions) >= SHORTEST_PATH:
            paths[tuple(actions)] = weakest
    rows = [path_row(actions, seen.ok, seen.bad) for actions, seen in paths.items()]
    rows.sort(key=lambda row: (-row.success_rate, -row.occurrences, row.actions))
    return rows[:MOST_PATHS]


def _good_steps(transitions: EpisodeTransitions) -> dict[str, dict[str, OkBad]]:
    steps: dict[str, dict[str, OkBad]] = {}
    for start, end in sorted(transitions.success_transitions):
        seen = transitions.counts(start, end)
        if _is_good(seen) and countable(start) and countable(end):
            steps.setdefault(start, {})[end] = seen
    return steps


def _is_good(seen: OkBad) -> bool:
    return seen.ok >= LEAST_COUNT and success_rate(seen.ok, seen.seen) >= LEAST_RATE


def _starts(transitions: EpisodeTransitions, steps: dict[str, dict[str, OkBad]]) -> list[str]:
    """Where successful episodes began; where no good step leads on from there, actions that are rarely a target.

    In a world where every action follows some other, all of them are starts.
    """
    counted = [action for action in transitions.success_starts if action in steps]
    if counted:
        return sorted(counted)
    arrivals: dict[str, int] = {}
    departures: dict[str, int] = {}
    for (start, end), number in transitions.success_transitions.items():
        departures[start] = departures.get(start, 0) + number
        arrivals[end] = arrivals.get(end, 0) + number
    rare = [action for action in steps if arrivals.get(action, 0) <= RARELY * departures[action]]
    return sorted(rare or steps)


def _walk(start: str, steps: dict[str, dict[str, OkBad]], snapshot: LearningSnapshot) -> tuple[list[str], OkBad]:
    path = [start]
    weakest: OkBad | None = None
    while len(path) < LONGEST_PATH:
        options = [
            (seen, action)
            for action, pair in steps.get(path[-1], {}).items()
            if action not in path and _is_good(seen := _in_context(path, action, pair, snapshot))
        ]
        if not options:
            break
        best, action = min(options, key=lambda option: (*_rank(option[0]), option[1]))
        path.append(action)
        weakest = best if weakest is None else max(weakest, best, key=_rank)
    return path, weakest or OkBad()


def _rank(seen: OkBad) -> tuple[float, int]:
    """Smaller is better: success rate first, then how often it was seen."""
    return (-success_rate(seen.ok, seen.seen), -seen.seen)


def _in_context(path: list[str], action: str, pair: OkBad, snapshot: LearningSnapshot) -> OkBad:
    grams = snapshot.ngram_stats
    match path[-3:]:
        case [first, second, third] if quad := grams.quadgrams.get((first, second, third, action)):
            return quad
        case [*_, second, third] if triple := grams.trigrams.get((second, third, action)):
            return triple
    return pair
