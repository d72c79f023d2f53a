"""The gate's rules: whether what was learnt is good enough to apply (the original's), and when nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, TypeVar

from msgspec import Struct

from worker.learning.heldout import HeldOut, evaluate_on_holdout, logged_on_holdout
from worker.learning.rates import rounded

__all__ = [
    "Absolute",
    "HeldOut",
    "Improvement",
    "NoRegression",
    "Strategy",
    "ValidationResult",
    "Validator",
    "Verdict",
    "evaluate_on_holdout",
    "judge",
    "logged_on_holdout",
    "strategy_of",
]

_T = TypeVar("_T")

#: Least effective sample size on which a model is judged, and its least share of all held-out decisions.
MIN_SAMPLES = 30
MIN_SAMPLE_SHARE = 0.02


class NoRegression(Struct, frozen=True, tag_field="kind", tag="no_regression"):
    """At least as good as the baseline; the default."""

    def required(self, baseline: float) -> float:
        """The least value that passes."""
        return baseline


class Improvement(Struct, frozen=True, tag_field="kind", tag="improvement"):
    """At least `threshold` times as good as the baseline; ready-made +10 %."""

    threshold: float = 1.1

    def required(self, baseline: float) -> float:
        """The least value that passes."""
        return rounded(baseline * self.threshold)


class Absolute(Struct, frozen=True, tag_field="kind", tag="absolute"):
    """At least `threshold`, whatever the baseline; ready-made 80 %."""

    threshold: float = 0.8

    def required(self, baseline: float) -> float:  # noqa: ARG002 - the other strategies need it
        """The least value that passes."""
        return self.threshold


Strategy: TypeAlias = NoRegression | Improvement | Absolute


def strategy_of(name: Literal["no_regression", "improvement", "absolute"], threshold: float | None = None) -> Strategy:
    """The strategy of these settings; None takes its ready-made threshold."""
    match name:
        case "no_regression":
            return NoRegression()
        case "improvement":
            return Improvement() if threshold is None else Improvement(threshold)
        case "absolute":
            return Absolute() if threshold is None else Absolute(threshold)


class ValidationResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The original's result: rates are 0-1; no `failure_reason` where it passed."""

    passed: bool
    baseline: float
    current: float
    strategy: Strategy
    sample_count: int
    failure_reason: str | None = None

    def improvement(self) -> float:
        """By how many percent of the baseline the current value is better; 0 where the baseline is 0."""
        return (self.current - self.baseline) / self.baseline * 100.0 if self.baseline else 0.0


class Validator:
    """Compares a value on the later part of the data with a baseline on the earlier part."""

    def __init__(self, split_ratio: float, strategy: Strategy | None = None) -> None:
        if not 0.0 < split_ratio < 1.0:
            raise ValueError(f"split_ratio is {split_ratio}; it must lie between 0 and 1")
        self.split_ratio = split_ratio
        self.strategy = strategy or NoRegression()

    @classmethod
    def with_80_20_split(cls, strategy: Strategy | None = None) -> Validator:
        """Learn from the first 80 %, test on the rest."""
        return cls(0.8, strategy)

    @classmethod
    def with_70_30_split(cls, strategy: Strategy | None = None) -> Validator:
        """Learn from the first 70 %, test on the rest."""
        return cls(0.7, strategy)

    def validate(
        self,
        data: Sequence[_T],
        baseline: Callable[[Sequence[_T]], float],
        evaluate: Callable[[Sequence[_T]], float],
    ) -> ValidationResult:
        """`baseline` sees the first part of `data`, `evaluate` the rest; data too small to split do not pass."""
        split = int(len(data) * self.split_ratio)
        if not 0 < split < len(data):
            return self._failed(f"{len(data)} samples cannot be split at {self.split_ratio}")
        return self._result(baseline(data[:split]), evaluate(data[split:]), len(data) - split)

    def validate_with_baseline(
        self, data: Sequence[_T], baseline: float, evaluate: Callable[[Sequence[_T]], float]
    ) -> ValidationResult:
        """`evaluate` sees all of `data`, which was not learnt from; none does not pass."""
        if not data:
            return self._failed("there are no samples", baseline)
        return self._result(baseline, evaluate(data), len(data))

    def _result(self, baseline: float, current: float, sample_count: int) -> ValidationResult:
        required = self.strategy.required(baseline)
        passed = current >= required
        return ValidationResult(
            passed=passed,
            baseline=baseline,
            current=current,
            strategy=self.strategy,
            sample_count=sample_count,
            failure_reason=None if passed else f"{current:.4f} is below the required {required:.4f}",
        )

    def _failed(self, reason: str, baseline: float = 0.0) -> ValidationResult:
        return ValidationResult(
            passed=False, baseline=baseline, current=0.0, strategy=self.strategy, sample_count=0, failure_reason=reason
        )


class Verdict(Struct, frozen=True, kw_only=True):
    """What the gate says, with the figures it says so from."""

    verdict: Literal["blessed", "rejected", "not_evaluable"]
    reasons: list[str]


def judge(
    strategy: Strategy,
    candidate: HeldOut,
    baseline: HeldOut,
    champion: HeldOut | None = None,
    *,
    min_samples: int = MIN_SAMPLES,
) -> Verdict:
    """Whether `candidate` may be applied; all three are values on the same held-out counts.

    Point values are compared, and the reasons say where the difference may be chance.

    It is compared with the champion, or with the logged behaviour (`baseline`) where there is no champion or the
    held-out decisions say too little of it. Too few of them for the candidate: nobody can tell.
    """
    if not candidate.decisions:
        return _not_evaluable("no decision with a known result was held out; more sessions or episodes are needed")
    if not candidate.samples:
        return _not_evaluable(
            f"none of the {candidate.decisions} held-out decisions agrees with the model, so nothing tells its worth"
        )
    needed = max(float(min_samples), MIN_SAMPLE_SHARE * candidate.decisions)
    if candidate.effective_samples < needed:
        return _not_evaluable(
            f"{candidate.samples} of {candidate.decisions} held-out decisions agree with the model, worth "
            f"{candidate.effective_samples:g} after weighting; at least {needed:g} are needed"
        )
    reference, named = baseline, "the logged behaviour"
    if champion is not None and champion.effective_samples >= needed:
        reference, named = champion, "the champion"
    required = strategy.required(reference.value)
    passed = candidate.value >= required
    figures = (
        f"held-out value {candidate.value:.4f} [{candidate.low:.4f}, {candidate.high:.4f}] is "
        f"{'at least' if passed else 'below'} the required {required:.4f} ({strategy.__struct_config__.tag}; {named}: "
        f"{reference.value:.4f}, {candidate.samples} samples, {candidate.coverage:.0%} of decisions covered)"
    )
    reasons = [figures]
    if candidate.low <= required <= candidate.high:
        # Point values decide, so that a swarm of few sessions gets a model at all; nobody should take it for certain.
        reasons.append(f"not significant: {required:.4f} is within the interval of what was measured: it may be chance")
    return Verdict(verdict="blessed" if passed else "rejected", reasons=reasons)


def _not_evaluable(reason: str) -> Verdict:
    return Verdict(verdict="not_evaluable", reasons=[reason])
