"""What a trigger waits for, in words a person reads in `status`: "57 of 100 episodes; or 12 min". Pure."""

from __future__ import annotations

from worker.learning.rates import p_words
from worker.learning.trigger_context import TriggerContext
from worker.learning.triggers import (
    AlwaysTrigger,
    AndTrigger,
    CountTrigger,
    DriftTrigger,
    ManualTrigger,
    NeverTrigger,
    OrTrigger,
    QualityTrigger,
    TimeTrigger,
    TrainTrigger,
)

_TWO_MINUTES, _TWO_HOURS = 120, 7_200


def waiting_text(trigger: TrainTrigger, ctx: TriggerContext) -> str:
    """What is missing until `trigger` fires."""
    match trigger:
        case OrTrigger(members) if members:
            return "; or ".join(_nested(member, ctx) for member in members)
        case AndTrigger(members) if members:
            return " and ".join(_nested(member, ctx) for member in members)
        case CountTrigger(count):
            return f"{min(ctx.new_episodes, count)} of {count} new episodes"
        case TimeTrigger(interval_ms):
            left = interval_ms - (ctx.elapsed_ms or 0)
            return "the next check" if left <= 0 else f"{in_words(left)} more"
        case QualityTrigger(threshold):
            newest = ctx.metrics
            known = "of none yet" if newest is None else f"{newest.success_rate:.0%} of {newest.sample_count}"
            return f"success below {threshold:.0%} (now {known})"
        case DriftTrigger(alpha):
            p = trigger.p_value(ctx)
            return f"a significant fall of success ({'p unknown' if p is None else p_words(p)}, needs {alpha:g})"
        case AlwaysTrigger():
            return "the next check"
        case ManualTrigger() | NeverTrigger():
            return "train-now"
        case _:
            return trigger.describe()


def in_words(wait_ms: float) -> str:
    """A wait, roughly: `40 s`, `12 min`, `3 h`."""
    seconds = max(1, round(wait_ms / 1000))
    if seconds < _TWO_MINUTES:
        return f"{seconds} s"
    return f"{round(seconds / 60)} min" if seconds < _TWO_HOURS else f"{round(seconds / 3600)} h"


def _nested(trigger: TrainTrigger, ctx: TriggerContext) -> str:
    text = waiting_text(trigger, ctx)
    return f"({text})" if isinstance(trigger, OrTrigger | AndTrigger) else text
