"""Train triggers: whether to train now, from plain numbers (the original's). Pure and free of state of their own.

What a trigger remembers across restarts (the last training, its counts) comes in with the context, so a restart
changes nothing, and nothing fires without something that the last training did not see.
"""

# ruff: noqa: D102 - the methods are the protocol's, documented there; the builder's are named for what they build
from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from worker.durations import duration_text
from worker.learning.rates import normal_tail, two_proportion_z
from worker.learning.trigger_context import TriggerContext, TriggerError, TriggerMetrics

__all__ = [
    "AlwaysTrigger",
    "AndTrigger",
    "CountTrigger",
    "DriftTrigger",
    "ManualTrigger",
    "NeverTrigger",
    "OrTrigger",
    "QualityTrigger",
    "TimeTrigger",
    "TrainTrigger",
    "TriggerBuilder",
    "TriggerContext",
    "TriggerError",
    "TriggerMetrics",
]

_MINUTE_MS, _HOUR_MS = 60_000, 3_600_000

#: A drift is looked for from this many outcomes on either side.
DRIFT_MIN_SAMPLES = 30
#: Default significance of the drift test. It is asked again at every check, so it is far below the usual 5 %.
DRIFT_ALPHA = 0.01
#: The one-sided p-value of no fall at all.
_NO_FALL = 0.5


class TrainTrigger(Protocol):
    """A rule that says whether to train. Own ones may be given to the worker's builder."""

    def should_train(self, ctx: TriggerContext) -> bool:
        """Whether to train now; may raise `TriggerError`."""
        ...

    def name(self) -> str:
        """One word, for the record of who fired."""
        ...

    def describe(self) -> str:
        """The rule in words; of the built-in ones, text that parses back to the same rule."""
        ...


class CountTrigger(Struct, frozen=True, tag=True):
    """At least `count` new episodes of the scenario's first learn model, the one that quality and drift go by."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count({self.count}) needs a number of at least 1")

    def should_train(self, ctx: TriggerContext) -> bool:
        return ctx.new_episodes >= self.count

    def name(self) -> str:
        return "count"

    def describe(self) -> str:
        return f"count({self.count})"


class TimeTrigger(Struct, frozen=True, tag=True):
    """At least `interval_ms` since the last training, or since the first record where there was none."""

    interval_ms: int

    def __post_init__(self) -> None:
        if self.interval_ms < 1:
            raise ValueError(f"every({self.interval_ms}ms) needs a duration of at least 1ms")

    @classmethod
    def hours(cls, hours: float) -> TimeTrigger:
        """From hours."""
        return cls(round(hours * _HOUR_MS))

    @classmethod
    def minutes(cls, minutes: float) -> TimeTrigger:
        """From minutes."""
        return cls(round(minutes * _MINUTE_MS))

    def should_train(self, ctx: TriggerContext) -> bool:
        return ctx.elapsed_ms is not None and ctx.elapsed_ms >= self.interval_ms

    def name(self) -> str:
        return "every"

    def describe(self) -> str:
        return f"every({duration_text(self.interval_ms)})"


class QualityTrigger(Struct, frozen=True, tag=True):
    """The success rate of the newest episodes is below `threshold`; unknown is not below."""

    threshold: float

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"quality({self.threshold}) needs a rate above 0 and at most 1")

    def should_train(self, ctx: TriggerContext) -> bool:
        return ctx.metrics is not None and ctx.metrics.sample_count > 0 and ctx.metrics.success_rate < self.threshold

    def name(self) -> str:
        return "quality"

    def describe(self) -> str:
        return f"quality({self.threshold!r})"


class DriftTrigger(Struct, frozen=True, tag=True):
    """The newest episodes succeed significantly less often than those before them.

    A one-sided two-proportion z-test at `alpha`, of counts that the store has anyway, so there is no detector whose
    state must be kept. Only a fall counts: success that rises after a model was applied is no reason to train again.
    """

    alpha: float = DRIFT_ALPHA

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < _NO_FALL:
            raise ValueError(f"drift({self.alpha}) needs a significance above 0 and below 0.5")

    def should_train(self, ctx: TriggerContext) -> bool:
        p = self.p_value(ctx)
        return p is not None and p < self.alpha

    def p_value(self, ctx: TriggerContext) -> float | None:
        """How likely such a fall is by chance; None where either side has too few outcomes."""
        new, old = ctx.metrics, ctx.earlier
        if new is None or old is None or min(new.sample_count, old.sample_count) < DRIFT_MIN_SAMPLES:
            return None
        successes = (one.success_rate * one.sample_count for one in (old, new))
        return normal_tail(two_proportion_z(next(successes), old.sample_count, next(successes), new.sample_count))

    def name(self) -> str:
        return "drift"

    def describe(self) -> str:
        return "drift" if self.alpha == DRIFT_ALPHA else f"drift({self.alpha!r})"


class ManualTrigger(Struct, frozen=True, tag=True):
    """Never by itself: somebody says train-now."""

    def should_train(self, ctx: TriggerContext) -> bool:  # noqa: ARG002 - the protocol's signature
        return False

    def name(self) -> str:
        return "manual"

    def describe(self) -> str:
        return "manual"


class NeverTrigger(Struct, frozen=True, tag=True):
    """No."""

    def should_train(self, ctx: TriggerContext) -> bool:  # noqa: ARG002 - the protocol's signature
        return False

    def name(self) -> str:
        return "never"

    def describe(self) -> str:
        return "never"


class AlwaysTrigger(Struct, frozen=True, tag=True):
    """Whenever there is anything new."""

    def should_train(self, ctx: TriggerContext) -> bool:  # noqa: ARG002 - the protocol's signature
        return True

    def name(self) -> str:
        return "always"

    def describe(self) -> str:
        return "always"


class AndTrigger(Struct, frozen=True, tag=True):
    """All members; none are satisfied. An error in a member propagates."""

    members: tuple[TrainTrigger, ...]

    def should_train(self, ctx: TriggerContext) -> bool:
        return all(member.should_train(ctx) for member in self.members)

    def name(self) -> str:
        return "and"

    def describe(self) -> str:
        # `and` binds closer than `or`; a nested `and` keeps its parentheses so that the text parses to the same rule.
        nested = AndTrigger | OrTrigger
        texts = [f"({one.describe()})" if isinstance(one, nested) else one.describe() for one in self.members]
        return " and ".join(texts) or "always"


class OrTrigger(Struct, frozen=True, tag=True):
    """Any member; none never fire. An error in a member that is asked propagates."""

    members: tuple[TrainTrigger, ...]

    def should_train(self, ctx: TriggerContext) -> bool:
        return any(member.should_train(ctx) for member in self.members)

    def name(self) -> str:
        return "or"

    def describe(self) -> str:
        texts = [f"({one.describe()})" if isinstance(one, OrTrigger) else one.describe() for one in self.members]
        return " or ".join(texts) or "never"


class TriggerBuilder:
    """The original's presets."""

    @staticmethod
    def every_n_episodes(n: int) -> TrainTrigger:
        return CountTrigger(n)

    @staticmethod
    def every_hours(hours: float) -> TrainTrigger:
        return TimeTrigger.hours(hours)

    @staticmethod
    def every_minutes(minutes: float) -> TrainTrigger:
        return TimeTrigger.minutes(minutes)

    @staticmethod
    def on_quality_drop(threshold: float) -> TrainTrigger:
        return QualityTrigger(threshold)

    @staticmethod
    def default_watch() -> TrainTrigger:
        """100 episodes or 1 hour."""
        return OrTrigger((CountTrigger(100), TimeTrigger.hours(1)))

    @staticmethod
    def manual() -> TrainTrigger:
        return ManualTrigger()

    @staticmethod
    def never() -> TrainTrigger:
        return NeverTrigger()

    @staticmethod
    def always() -> TrainTrigger:
        return AlwaysTrigger()
