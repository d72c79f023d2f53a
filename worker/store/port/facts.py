"""Facts: cheap numbers about a scenario, and what its trigger remembers."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from worker.store.port.models import ModelKind


class ScenarioFacts(Struct, kw_only=True):
    """What is stored of one scenario, as plain numbers that cost the same however much is stored."""

    scenario: str
    records: int = 0
    batches: int = 0
    duplicate_batches: int = 0
    duplicate_records: int = 0
    unknown_fields: int = 0
    quarantined: int = 0
    sessions: int = 0
    counted_sessions: int = 0  # of these, whose learn stats and tasks the projections hold: what learning can see
    episodes: int = 0
    episodes_by_model: dict[str, int] = {}  # of these, by learn model
    open_tasks: int = 0  # tasks with records that no projection has taken yet
    trainings_completed: int = 0
    models_applied: int = 0
    last_batch_no: int = 0
    first_record_at_ms: int | None = None
    last_record_at_ms: int | None = None


class RollingOutcomes(Struct, frozen=True):
    """The newest closed episodes with a known outcome (the original's `TriggerMetrics`)."""

    sample_count: int
    success_rate: float
    avg_score: float


def trigger_key(scenario: str, kind: ModelKind) -> str:
    """Under which name a trigger's memory is kept: each kind of training has its own watermark and back-off.

    That of offline trainings is the scenario's own name; no scenario has a name like the others (a dot is in it).
    """
    return scenario if kind == "offline" else f"{scenario}.{kind}"


class TriggerState(Struct, kw_only=True):
    """What a scenario's trigger remembers across restarts, of one kind of training."""

    scenario: str  # or what `trigger_key` makes of it
    #: Facts at the start of the last successful run; None: never trained.
    trained_upto: int | None = None  # batch_no, the watermark
    trained_episodes: int = 0
    trained_sessions: int = 0
    trained_by_model: dict[str, int] = {}  # episodes by learn model
    last_success_at_ms: int | None = None
    last_attempt_at_ms: int | None = None
    failures: int = 0  # in a row
    not_before_ms: int = 0  # back-off and cool-down
    trigger_errors: int = 0
    last_trigger_error: str | None = None
    paused: bool = False  # by command


class Facts(Protocol):
    """Cheap numbers about a scenario, and what its trigger remembers."""

    async def scenarios(self) -> list[str]:
        """Every scenario that anything is stored of, by name."""
        ...

    async def facts(self, scenario: str) -> ScenarioFacts:
        """Its numbers; zeros for one that nothing is stored of."""
        ...

    async def rolling_outcomes(self, scenario: str, *, learn_model: str, sample: int) -> RollingOutcomes | None:
        """Over the newest `sample` episodes of a learn model whose outcome is known; None where there is none."""
        ...

    async def trigger_state(self, scenario: str) -> TriggerState:
        """What was saved last, or the state of one that was never trained."""
        ...

    async def save_trigger_state(self, state: TriggerState) -> None:
        """Replace it."""
        ...
