"""What a model's advice would have been worth on decisions that it never saw: replay over the held-out counts.

Per context (the previous action, or the start) the decisions that agree with the model's first choice tell what the
choice is worth there (replay, Li et al. 2011). They are weighted back to how often the context came up, which is the
inverse of the logged policy's own share of that choice, so a policy that rarely tried it does not hide it. Where the
model has no advice, or nobody followed it, the logged behaviour stands. So every model's value and the logged one's are
over the same decisions and can be compared.

It values one decision at a time, with all others as logged, and takes the action's context to be the previous action
alone. Estimators over whole episodes are a later matter; see Precup 2000, Dudik et al. 2011.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from worker.learning.advice import Advice
from worker.learning.counts import Counts, Source
from worker.learning.evidence import best_source, episodes_of
from worker.learning.offline_model import OfflineModel
from worker.learning.rates import rounded, wilson
from worker.learning.statistics import OkBad

#: Per context and action, how the held-out decisions went.
_Decisions: TypeAlias = dict[str | None, dict[str, OkBad]]


class HeldOut(Struct, frozen=True, kw_only=True):
    """The value of a policy on held-out decisions, 0-1, with its Wilson interval (95 %).

    The interval is over at most one independent observation an episode, since decisions of one episode share its
    outcome. It says nothing of the choice of context.
    """

    value: float
    low: float
    high: float
    #: Decisions that agree with the policy, and what they are worth after weighting (Kish's effective sample size).
    samples: int
    effective_samples: float
    #: All held-out decisions with a known result, and the share of them in contexts that the samples speak of.
    decisions: int
    coverage: float
    #: Held-out episodes with a known outcome.
    episodes: int
    #: What is a success: the decision's episode, or, where no outcome is known, the action itself.
    measure: Literal["episodes", "actions"]


def evaluate_on_holdout(model: OfflineModel, counts: Counts) -> HeldOut:
    """The value of following `model` where it has advice; `counts` are those of the held-out side."""
    return _evaluate(Advice(model), counts)


def logged_on_holdout(counts: Counts) -> HeldOut:
    """The value of what was really done: the baseline of a first model."""
    return _evaluate(None, counts)


def _evaluate(advice: Advice | None, counts: Counts) -> HeldOut:
    decisions, episodes, measure = _decisions(counts)
    total = successes = 0.0
    matched = covered = 0
    matched_weight2 = weight2 = 0.0  # sums of squared weights
    for context in sorted(decisions, key=lambda name: (name is not None, name or "")):
        options = decisions[context]
        seen = sum(option.seen for option in options.values())
        best = None if advice is None else advice.best(context)
        agreed = OkBad() if best is None else options.get(best, OkBad())
        total += seen
        if agreed.seen:
            successes += seen * agreed.ok / agreed.seen
            matched += agreed.seen
            covered += seen
            matched_weight2 += seen * seen / agreed.seen
            weight2 += seen * seen / agreed.seen
        else:
            successes += sum(option.ok for option in options.values())
            weight2 += seen
    if advice is None:  # the logged policy agrees with itself everywhere
        matched, covered, matched_weight2 = int(total), int(total), weight2
    value = successes / total if total else 0.0
    independent = total * total / weight2 if weight2 else 0.0
    if measure == "episodes":
        independent = min(independent, float(episodes))
    low, high = wilson(value * independent, independent)
    return HeldOut(
        value=rounded(value),
        low=rounded(low),
        high=rounded(high),
        samples=matched,
        effective_samples=round(covered * covered / matched_weight2, 1) if matched_weight2 else 0.0,
        decisions=int(total),
        coverage=rounded(covered / total) if total else 0.0,
        episodes=episodes,
        measure=measure,
    )


def _decisions(counts: Counts) -> tuple[_Decisions, int, Literal["episodes", "actions"]]:
    source = best_source(counts)
    if source is None:
        return {}, 0, "episodes"
    known = episodes_of(counts, source)
    episodes = known["success"] + known["failure"] + known["timeout"]
    by_episode = _table(counts, source, {"start": ("success", "failure"), "transition": ("success", "failure")})
    if by_episode:
        return by_episode, episodes, "episodes"
    return _table(counts, source, {"contextual": ("successes", "failures")}), episodes, "actions"


def _table(counts: Counts, source: Source, families: dict[str, tuple[str, str]]) -> _Decisions:
    table: _Decisions = {}
    for key, number in counts.items():
        family, _, measure = key.measure.partition(".")
        if key.source != source or number <= 0 or measure not in families.get(family, ()):
            continue
        # The rest, under no names, is a context that no model knows: there the logged behaviour stands.
        *before, action = key.names or ("", "")
        options = table.setdefault(before[-1] if before else None, {})
        seen = options.get(action, OkBad())
        went_well = measure == families[family][0]
        options[action] = OkBad(seen.ok + number, seen.bad) if went_well else OkBad(seen.ok, seen.bad + number)
    return table
