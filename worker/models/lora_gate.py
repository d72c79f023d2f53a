"""The gate of adapters: answers to held-out questions, with the adapter, without it, and with the one that is live.

What counts is the next action: a sequence is right as far as each action, after the true ones before it, is the one
that greedy decoding would say. The strategies and the three verdicts are those of offline models: point values decide,
and the reasons say where the difference may be chance. Judged is by what was not asked in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from msgspec import Struct, to_builtins

from worker.learning.rates import p_words, rounded, wilson
from worker.learning.validation import Absolute, Improvement, Strategy, Verdict, strategy_of
from worker.models.gate import GateConfig, Weighed

Objective: TypeAlias = Literal["sft", "dpo"]

#: Chance of a difference at least as large where there is none, below which it is taken for real.
_SIGNIFICANT = 0.05
_DIGITS = 6


class Answered(Struct, frozen=True):
    """How one model did on one held-out example."""

    right: int  # decisions that greedy decoding makes as the answer has them
    decisions: int
    nll: float  # negative log-likelihood of the answer, per token
    prefers: bool | None = None  # dpo: the better answer is likelier than the worse one
    seen: bool = False  # the same was asked in training


class AnswerFigures(Struct, frozen=True, kw_only=True):
    """One model over several held-out examples."""

    next_action: float  # share of decisions that are right
    low: float  # its Wilson interval (95 %), over one observation an example, since its decisions hang together
    high: float
    exact: float  # share of answers that are right from end to end
    nll: float
    preferred: float | None  # dpo: share of pairs
    examples: int
    decisions: int


class Split(Struct, frozen=True, kw_only=True):
    """In how many examples the candidate does better than another model, and in how many worse."""

    better: int
    worse: int
    p_value: float  # exact McNemar test, two-sided


class Compared(Split, frozen=True, kw_only=True):
    """The candidate against another model, example by example; by right decisions first."""

    preferred: Split | None  # dpo: by whether the better answer is the likelier one
    nll_difference: float  # mean; below 0 the candidate is better
    nll_p_value: float  # paired, normal approximation


class _Measure(NamedTuple):
    """What an adapter of an objective is judged by."""

    what: str
    unit: str
    rate: Callable[[AnswerFigures], float]
    points: Callable[[Answered], int]  # of one example


_MEASURES: dict[Objective, _Measure] = {
    "sft": _Measure("next actions", "examples", lambda f: f.next_action, lambda a: a.right),
    "dpo": _Measure("preferred answers", "pairs", lambda f: f.preferred or 0.0, lambda a: bool(a.prefers)),
}


def figures(answers: Sequence[Answered]) -> AnswerFigures:
    """Sum up; at least one answer."""
    decisions = sum(each.decisions for each in answers)
    rate = sum(each.right for each in answers) / decisions
    low, high = wilson(rate * len(answers), len(answers))
    judged = [each.prefers for each in answers if each.prefers is not None]
    return AnswerFigures(
        next_action=rounded(rate),
        low=rounded(low),
        high=rounded(high),
        exact=rounded(sum(each.right == each.decisions for each in answers) / len(answers)),
        nll=round(sum(each.nll for each in answers) / len(answers), _DIGITS),
        preferred=rounded(sum(judged) / len(judged)) if judged else None,
        examples=len(answers),
        decisions=decisions,
    )


def compare(candidate: Sequence[Answered], other: Sequence[Answered]) -> Compared:
    """Paired: both on the same examples, in the same order."""
    right = _split(candidate, other, _MEASURES["sft"])
    judged = any(each.prefers is not None for each in candidate)
    differences = [mine.nll - theirs.nll for mine, theirs in zip(candidate, other, strict=True)]
    return Compared(
        better=right.better,
        worse=right.worse,
        p_value=right.p_value,
        preferred=_split(candidate, other, _MEASURES["dpo"]) if judged else None,
        nll_difference=round(sum(differences) / len(differences), _DIGITS),
        nll_p_value=rounded(_paired_p(differences)),
    )


def _split(candidate: Sequence[Answered], other: Sequence[Answered], measure: _Measure) -> Split:
    points = [(measure.points(mine), measure.points(theirs)) for mine, theirs in zip(candidate, other, strict=True)]
    better = sum(mine > theirs for mine, theirs in points)
    worse = sum(mine < theirs for mine, theirs in points)
    return Split(better=better, worse=worse, p_value=rounded(mcnemar(better, worse)))


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided McNemar test (1947): a fair coin's chance of a split at least as uneven; 1 where none differ."""
    number = better + worse
    tail = sum(math.comb(number, k) for k in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**number))


def weigh_adapter(
    config: GateConfig,
    objective: Objective,
    candidate: Sequence[Answered],
    base: Sequence[Answered],
    champion: Sequence[Answered] | None,
) -> Weighed:
    """Judge an adapter on prompts that it never saw, against the base and, where there is one, the live adapter.

    sft is judged by the share of right decisions, dpo by the share of pairs whose better answer is the likelier one;
    and each by a paired test of the same, example by example. What was asked in training is left to the figures.
    """
    if not candidate:
        verdict = Verdict(
            verdict="not_evaluable",
            reasons=["no example was held out; examples of two tasks (group_id, else session) are needed to tell"],
        )
        return Weighed(verdict=verdict, metrics={})
    asked = {"candidate": candidate, "base": base} | ({} if champion is None else {"champion": champion})
    unseen = {name: [each for each in answers if not each.seen] for name, answers in asked.items()}
    seen = {name: [each for each in answers if each.seen] for name, answers in asked.items()}
    metrics = _metrics(unseen) | ({"seen": _metrics(seen)} if seen["candidate"] else {})
    mine = unseen.pop("candidate")
    others = f"{len(candidate) - len(mine)} more do not count, since the same was asked in training"
    if len(mine) < config.min_samples:
        reason = (
            f"{len(mine)} {_MEASURES[objective].unit} were held out; at least {config.min_samples} are needed to tell "
            "(more tasks, or a larger SWARM_HOLDOUT)"
        )
        if len(mine) < len(candidate):
            reason += f"; {others} (one group_id for tasks that ask the same holds them out together)"
        return Weighed(verdict=Verdict(verdict="not_evaluable", reasons=[reason]), metrics=metrics)
    strategy = strategy_of(config.strategy, config.threshold)
    passed, reasons = True, []
    for name, answers in unseen.items():
        holds, said = _against(name, strategy, objective, mine, answers)
        passed = passed and holds
        reasons += said
    if len(mine) < len(candidate):
        reasons.append(f"judged on {len(mine)} held-out {_MEASURES[objective].unit}; {others}")
    return Weighed(verdict=Verdict(verdict="blessed" if passed else "rejected", reasons=reasons), metrics=metrics)


def _metrics(asked: Mapping[str, Sequence[Answered]]) -> dict[str, Any]:
    """The figures of each model, and of each but the candidate how that one compares; none where none was asked."""
    candidate = asked["candidate"]
    if not candidate:
        return {}
    found = {name: to_builtins(figures(answers)) for name, answers in asked.items()}
    for name in asked.keys() - {"candidate"}:
        found[name]["paired"] = to_builtins(compare(candidate, asked[name]))
    return found


def _against(
    name: str,
    strategy: Strategy,
    objective: Objective,
    candidate: Sequence[Answered],
    other: Sequence[Answered],
) -> tuple[bool, list[str]]:
    """Whether the candidate holds its own against one model, and why."""
    mine, theirs, measure = figures(candidate), figures(other), _MEASURES[objective]
    value, reference, split = measure.rate(mine), measure.rate(theirs), _split(candidate, other, measure)
    required = strategy.required(reference)
    # A tenth more than nothing is nothing: an improvement on 0 has to be one.
    passed = value >= required and (not isinstance(strategy, Improvement) or value > reference)
    said = (
        f"{measure.what} {value:.4f} {'at least' if passed else 'below'} the required {required:.4f} "
        f"({strategy.__struct_config__.tag}; {name}: {reference:.4f}; more in {split.better} examples, "
        f"fewer in {split.worse}, {p_words(split.p_value)}; negative log-likelihood {mine.nll:.4f}, {name}: "
        f"{theirs.nll:.4f})"
    )
    reasons = [said]
    # What is asked for absolutely is asked for whatever the others do.
    trouble = None if isinstance(strategy, Absolute) else _trouble(objective, candidate, other)
    if trouble:
        return False, [*reasons, f"against {name}: {trouble}"]
    if passed and split.p_value >= _SIGNIFICANT:
        reasons.append(f"not significant against {name}: it may be chance")
    return passed, reasons


def _trouble(objective: Objective, candidate: Sequence[Answered], other: Sequence[Answered]) -> str | None:
    """What speaks against an adapter whatever its rate."""
    paired = compare(candidate, other)
    if objective == "dpo":
        # Training on preferences may take likelihood from both answers, down to where neither is said any more: some
        # of it is its way, so what is said tells. It cannot where too little was said before for any loss to show.
        if _lost(paired):
            return f"right in fewer answers, {p_words(paired.p_value)}"
        if mcnemar(0, sum(each.right > 0 for each in other)) < _SIGNIFICANT:
            return None
    if paired.nll_difference > 0 and paired.nll_p_value < _SIGNIFICANT and not _won(paired):
        return f"the answers are less likely, {p_words(paired.nll_p_value)}"
    return None


def _won(split: Split) -> bool:
    return split.better > split.worse and split.p_value < _SIGNIFICANT


def _lost(split: Split) -> bool:
    return split.worse > split.better and split.p_value < _SIGNIFICANT


def _paired_p(differences: Sequence[float]) -> float:
    """Two-sided chance of a mean this far from 0; 1 for fewer than two differences or none at all."""
    number = len(differences)
    mean = sum(differences) / number
    variance = sum((each - mean) ** 2 for each in differences) / (number - 1) if number > 1 else 0.0
    if variance == 0.0:
        return 1.0 if number < 2 or mean == 0.0 else 0.0  # noqa: PLR2004 - one difference has no spread
    return math.erfc(abs(mean) / math.sqrt(variance / number) / math.sqrt(2))
