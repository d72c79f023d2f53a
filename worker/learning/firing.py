"""Asking a trigger: whether it fires, and the record of who fired and why (the original's)."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from worker.learning.trigger_context import TriggerContext, TriggerError
from worker.learning.triggers import (
    AndTrigger,
    CountTrigger,
    DriftTrigger,
    OrTrigger,
    QualityTrigger,
    TimeTrigger,
    TrainTrigger,
)


class Firing(Struct, frozen=True, kw_only=True):
    """Who fired, and why: what was measured, and the thresholds it was measured against."""

    #: The name of the trigger that fired, or of the members of a combined one that did, joined by `+`.
    kind: str
    #: The whole rule.
    rule: str
    values: dict[str, Any]
    thresholds: dict[str, Any]


def evaluate(trigger: TrainTrigger, ctx: TriggerContext) -> Firing | None:
    """The firing, or None. Without a new episode or session nothing fires. Any error is raised as `TriggerError`."""
    if not ctx.anything_new:
        return None
    try:
        if not trigger.should_train(ctx):
            return None
        fired = _fired_by(trigger, ctx)
        kind, rule = "+".join(dict.fromkeys(one.name() for one in fired)), trigger.describe()
    except TriggerError:
        raise
    except Exception as error:
        # The trigger may be the user's own: whatever goes wrong in it must not end the loop that asks all scenarios.
        raise TriggerError(f"{type(trigger).__name__} raised {type(error).__name__}: {error}") from error
    values: dict[str, Any] = {"new_episodes": ctx.new_episodes, "new_sessions": ctx.new_sessions}
    thresholds: dict[str, Any] = {}
    for one in fired:
        measured, limit = _figures(one, ctx)
        values |= measured
        thresholds |= limit
    return Firing(kind=kind, rule=rule, values=values, thresholds=thresholds)


def _fired_by(trigger: TrainTrigger, ctx: TriggerContext) -> list[TrainTrigger]:
    """The simple triggers that made a combined one say yes."""
    if isinstance(trigger, AndTrigger | OrTrigger) and trigger.members:
        return [one for member in trigger.members if member.should_train(ctx) for one in _fired_by(member, ctx)]
    return [trigger]


def _figures(trigger: TrainTrigger, ctx: TriggerContext) -> tuple[dict[str, Any], dict[str, Any]]:
    match trigger:
        case CountTrigger(count):
            return {}, {"new_episodes": count}
        case TimeTrigger(interval_ms):
            return {"elapsed_ms": ctx.elapsed_ms}, {"elapsed_ms": interval_ms}
        case QualityTrigger(threshold) if ctx.metrics is not None:
            newest = ctx.metrics
            return {"success_rate": newest.success_rate, "sample_count": newest.sample_count}, {
                "success_rate": threshold
            }
        case DriftTrigger(alpha) if ctx.metrics is not None and ctx.earlier is not None:
            rates = {"success_rate": ctx.metrics.success_rate, "earlier_success_rate": ctx.earlier.success_rate}
            return {"p_value": trigger.p_value(ctx), **rates}, {"p_value": alpha}
        case _:
            return {}, {}
