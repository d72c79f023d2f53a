"""Statistics of actions, transitions and n-grams, with the names and formulas of the original.

They hold integers only: sums of real numbers are kept in millionths, so that merging is exact in any order. Rates of
episodes count a timeout as a failure (it is known not to have succeeded); unknown outcomes never enter them.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from worker.learning import rates
from worker.learning.counts import MICRO

Pair = tuple[str, str]
Triple = tuple[str, str, str]
Quadruple = tuple[str, str, str, str]


class OkBad(Struct, frozen=True, gc=False):
    """How often something was seen in a success and in a failure."""

    ok: int = 0
    bad: int = 0

    @property
    def seen(self) -> int:
        """Both together."""
        return self.ok + self.bad


class ActionStats(Struct, frozen=True, kw_only=True, gc=False):
    """What is known of one action (or of one action after another). Durations in ms, KPI in millionths."""

    visits: int = 0
    successes: int = 0
    failures: int = 0
    discoveries: int = 0
    total_duration_ms: int = 0
    kpi_micro: int = 0
    kpi_count: int = 0

    def success_rate(self) -> float:
        """0.5 with no visits (the original's rule)."""
        return rates.success_rate(self.successes, self.visits)

    def avg_duration(self) -> float:
        """Mean duration in milliseconds, 0 with no visits."""
        return self.total_duration_ms / self.visits if self.visits else 0.0

    def avg_discoveries(self) -> float:
        """Mean number of discoveries, 0 with no visits."""
        return self.discoveries / self.visits if self.visits else 0.0

    @property
    def kpi_total(self) -> float:
        """Sum of the KPIs that were reported, 0 when none was."""
        return self.kpi_micro / MICRO

    def avg_kpi(self) -> float | None:
        """Mean over the events that carry a KPI, None when none does."""
        return self.kpi_micro / MICRO / self.kpi_count if self.kpi_count else None


class EpisodeTransitions(Struct, kw_only=True):
    """Which action followed which, apart for episodes that succeeded and that failed.

    Starts (the first action of an episode) are ours. Ends need no counts of their own: an action's ends are what came
    in (transitions to it, and starts) less what went out.
    """

    success_transitions: dict[Pair, int] = {}
    failure_transitions: dict[Pair, int] = {}
    success_starts: dict[str, int] = {}
    failure_starts: dict[str, int] = {}
    success_episodes: int = 0
    failure_episodes: int = 0

    def counts(self, from_action: str, to_action: str) -> OkBad:
        """How often the step was taken in successes and in failures."""
        key = (from_action, to_action)
        return OkBad(self.success_transitions.get(key, 0), self.failure_transitions.get(key, 0))

    def success_transition_rate(self, from_action: str, to_action: str) -> float:
        """Probability of the step in successful episodes: ok(from, to) / sum of ok(from, .), 0 if none."""
        total = sum(n for (start, _), n in self.success_transitions.items() if start == from_action)
        return self.success_transitions.get((from_action, to_action), 0) / total if total else 0.0

    def transition_value(self, from_action: str, to_action: str) -> float:
        """(ok - bad) / (ok + bad) in [-1, 1], 0 if the step was never seen."""
        seen = self.counts(from_action, to_action)
        return rates.value(seen.ok, seen.bad)

    def recommended_next_actions(self, from_action: str) -> list[tuple[str, float]]:
        """(action, value) of every step seen from here, best first, ties by name."""
        nexts = {to for start, to in (*self.success_transitions, *self.failure_transitions) if start == from_action}
        return _best_first((to, self.transition_value(from_action, to)) for to in nexts)

    def pairs(self) -> list[Pair]:
        """Every transition that was seen, sorted."""
        return sorted({*self.success_transitions, *self.failure_transitions})


class NgramStats(Struct, kw_only=True):
    """Sequences of three and four actions, by the outcome of their episode."""

    trigrams: dict[Triple, OkBad] = {}
    quadgrams: dict[Quadruple, OkBad] = {}

    def trigram_success_rate(self, first: str, second: str, third: str) -> float | None:
        """Success share, ok / (ok + bad); None if never seen."""
        return _rate(self.trigrams.get((first, second, third)))

    def quadgram_success_rate(self, first: str, second: str, third: str, fourth: str) -> float | None:
        """Success share, ok / (ok + bad); None if never seen."""
        return _rate(self.quadgrams.get((first, second, third, fourth)))

    def trigram_value(self, first: str, second: str, third: str) -> float:
        """(ok - bad) / (ok + bad) in [-1, 1], 0 if never seen."""
        seen = self.trigrams.get((first, second, third), OkBad())
        return rates.value(seen.ok, seen.bad)

    def recommended_after(self, first: str, second: str) -> list[tuple[str, float]]:
        """(action, value) after these two, best first, ties by name."""
        return _best_first(
            (key[2], rates.value(seen.ok, seen.bad))
            for key, seen in self.trigrams.items()
            if key[:2] == (first, second)
        )

    def recommended_after_three(self, first: str, second: str, third: str) -> list[tuple[str, float]]:
        """(action, value) after these three, best first, ties by name."""
        return _best_first(
            (key[3], rates.value(seen.ok, seen.bad))
            for key, seen in self.quadgrams.items()
            if key[:3] == (first, second, third)
        )

    def trigram_count(self) -> int:
        """Distinct sequences of three."""
        return len(self.trigrams)

    def quadgram_count(self) -> int:
        """Distinct sequences of four."""
        return len(self.quadgrams)


def _rate(seen: OkBad | None) -> float | None:
    return seen.ok / seen.seen if seen is not None and seen.seen else None


def _best_first(scored: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))
