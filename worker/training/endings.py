"""How the end of a run changes what its scenario's trigger remembers. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from worker.store.port import Run, ScenarioFacts, TriggerState
from worker.training.inputs import FrozenFacts

_LONGEST_BACKOFF = 3600.0
#: Failed automatic runs of one window after which only new data, or a command, makes another.
MOST_FAILURES = 3


def after_success(state: TriggerState, *, facts: FrozenFacts, now_ms: int, cooldown: float) -> TriggerState:
    """The watermark moves to what the input held when it was frozen."""
    return replace(
        state,
        trained_upto=facts.last_batch_no,
        trained_episodes=facts.episodes,
        trained_sessions=facts.sessions,
        trained_by_model=facts.episodes_by_model,
        last_success_at_ms=now_ms,
        last_attempt_at_ms=now_ms,
        failures=0,
        not_before_ms=now_ms + round(cooldown * 1000),
    )


def after_failure(state: TriggerState, *, now_ms: int, first_backoff: float) -> TriggerState:
    """The watermark stays; the wait doubles with each failure in a row, to an hour at most."""
    wait = backoff(state.failures, first_backoff)
    return replace(
        state, last_attempt_at_ms=now_ms, failures=state.failures + 1, not_before_ms=now_ms + round(wait * 1000)
    )


def after_skip(state: TriggerState, *, now_ms: int, cooldown: float) -> TriggerState:
    """Neither success nor failure: the data stays new, and the trigger is not asked again at once."""
    return replace(state, last_attempt_at_ms=now_ms, not_before_ms=now_ms + round(cooldown * 1000))


def backoff(failures: int, first: float) -> float:
    """Seconds to wait after a failure, with `failures` before it in a row."""
    return float(min(_LONGEST_BACKOFF, first * 2 ** min(failures, 32)))


def has_news(state: TriggerState, facts: ScenarioFacts) -> bool:
    """Whether an episode or a session came that the last successful run did not see.

    Only what is projected counts: of what lies in the log alone, an analysis sees nothing.
    """
    return facts.episodes > state.trained_episodes or facts.counted_sessions > state.trained_sessions


def failures_of_window(failed: Iterable[Run], *, window_hi: int) -> int:
    """How many automatic runs of exactly this window failed."""
    return sum(run.window_hi == window_hi and run.trigger.get("kind") != "command" for run in failed)
