"""Scores for action selection out of a snapshot, longest context first (the original's `ScoreModel`)."""

from __future__ import annotations

from msgspec import Struct

from worker.learning.rates import UNVISITED_RATE
from worker.learning.snapshots import LearningSnapshot

_ARROW = "->"


class ScoreModel(Struct, frozen=True, kw_only=True):
    """Scores by context; the keys of the last three join the actions by `->`, as the original's do.

    Action, contextual and n-gram scores are success rates in [0, 1]; a transition's is its value in [-1, 1].
    """

    action_scores: dict[str, float] = {}
    transition_scores: dict[str, float] = {}
    contextual_scores: dict[str, float] = {}
    ngram_scores: dict[str, float] = {}

    @classmethod
    def from_stats(cls, snapshot: LearningSnapshot) -> ScoreModel:
        """Every score that the snapshot supports."""
        transitions = snapshot.episode_transitions
        return cls(
            action_scores={action: stats.success_rate() for action, stats in snapshot.action_stats.items()},
            transition_scores={_ARROW.join(pair): transitions.transition_value(*pair) for pair in transitions.pairs()},
            contextual_scores={
                _ARROW.join(pair): stats.success_rate() for pair, stats in snapshot.contextual_stats.items()
            },
            ngram_scores={
                _ARROW.join(names): seen.ok / seen.seen
                for names, seen in snapshot.ngram_stats.trigrams.items()
                if seen.seen
            },
        )

    def compute_confidence(self, action: str, previous: str | None = None, before: str | None = None) -> float:
        """How likely `action` is to do well after `before` and `previous`, in [0, 1]; 0.5 where nothing is known.

        The longest context that was seen decides; a transition's value is moved to [0, 1].
        """
        if previous is not None:
            pair = previous + _ARROW + action
            if before is not None and (triple := before + _ARROW + pair) in self.ngram_scores:
                return self.ngram_scores[triple]
            if pair in self.contextual_scores:
                return self.contextual_scores[pair]
            if pair in self.transition_scores:
                return (1.0 + self.transition_scores[pair]) / 2.0
        return self.action_scores.get(action, UNVISITED_RATE)
