"""What an offline model recommends in each context: the policy that nodes may follow and the gate evaluates."""

from __future__ import annotations

from worker.learning.offline_model import OfflineModel, TransitionStatistic
from worker.learning.rates import wilson


class Advice:
    """What a model recommends in each context, made once and asked often.

    In a context (the previous action, None at the start) the next actions are ranked by the lower Wilson bound of their
    success rate, ties by more support, then by name: 80 of 100 goes before 3 of 3, which the mean would put first.
    Episode results decide; where a context has none, the results of the actions themselves do.
    """

    def __init__(self, model: OfflineModel) -> None:
        by_context: dict[str | None, list[TransitionStatistic]] = {}
        for row in model.transitions:
            by_context.setdefault(row.previous, []).append(row)
        self._ranked = {previous: _ranked(rows) for previous, rows in by_context.items()}

    def next_actions(self, previous: str | None) -> list[str]:
        """Recommended actions after `previous`, best first; none where the model knows nothing."""
        return self._ranked.get(previous, [])

    def best(self, previous: str | None) -> str | None:
        """The first of `next_actions`."""
        ranked = self.next_actions(previous)
        return ranked[0] if ranked else None


def _ranked(rows: list[TransitionStatistic]) -> list[str]:
    by_episode = any(row.successes + row.failures for row in rows)
    scored: list[tuple[float, int, str]] = []
    for row in rows:
        ok, bad = (row.successes, row.failures) if by_episode else (row.step_successes, row.step_failures)
        if ok + bad:
            scored.append((-wilson(ok, ok + bad).low, -(ok + bad), row.action))
    return [action for _, _, action in sorted(scored)]
