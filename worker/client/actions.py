"""Actions as a swarm node sees them (`ActionEvent` and its parts, the original's), and the record each becomes."""

from __future__ import annotations

from typing import Protocol, Self
from uuid import uuid4

from msgspec import Struct
from msgspec.structs import replace

from worker.client.event_ids import EventSequences
from worker.learning.action_order import LoraConfig
from worker.wire.records import ActionRecord, Record

__all__ = ["ActionContext", "ActionEvent", "ActionEventBuilder", "ActionEventResult", "EventSource", "LoraConfig"]


class EventSource(Protocol):
    """Whatever a record can be made of (the original's trait of this name)."""

    def to_record(self) -> Record:
        """The record that travels."""
        ...


class ActionEventResult(Struct, frozen=True, kw_only=True):
    """What came of an action. `kpi_contribution` is nearness to the goal: positive is closer, usually 0.0-1.0."""

    success: bool
    output: str | None = None
    error: str | None = None
    discoveries: int = 0
    kpi_contribution: float | None = None

    @classmethod
    def succeeded(cls, output: str | None = None) -> ActionEventResult:
        """A success (`success()` and `success_with_output(s)` of the original)."""
        return cls(success=True, output=output)

    @classmethod
    def failure(cls, error: str) -> ActionEventResult:
        """A failure and its message."""
        return cls(success=False, error=error)

    def with_discoveries(self, count: int) -> ActionEventResult:
        """The same with the number of nodes found."""
        return replace(self, discoveries=count)

    def with_kpi(self, contribution: float) -> ActionEventResult:
        """The same with its KPI contribution."""
        return replace(self, kpi_contribution=contribution)


class ActionContext(Struct, frozen=True, kw_only=True):
    """Why this action was chosen. `metadata` stays with the node: no record has a field for it."""

    selection_logic: str | None = None  # UCB1, Greedy, Thompson, ...
    from_guidance: bool = False
    previous_action: str | None = None
    lora: LoraConfig | None = None
    propensity: float | None = None  # probability with which the policy chose it, in (0, 1]
    candidates: tuple[str, ...] | None = None
    policy_version: str | None = None  # of the model that advised, its `model_id`
    metadata: dict[str, str] = {}


class ActionEvent(Struct, frozen=True, kw_only=True):
    """One step of one swarm worker. Make it with `ActionEventBuilder`."""

    id: int
    task_id: str
    tick: int
    worker_id: int
    action: str
    result: ActionEventResult
    context: ActionContext = ActionContext()
    duration_ms: int = 0
    target: str | None = None
    group_id: str | None = None
    session_id: str | None = None
    timestamp_ms: int | None = None

    def to_record(self) -> ActionRecord:
        """The record, with the event id, KPI, discoveries and output that the original dropped here (faults 24, 37)."""
        context, result = self.context, self.result
        return ActionRecord(
            task_id=self.task_id,
            tick=self.tick,
            worker_id=self.worker_id,
            action=self.action,
            event_id=self.id,
            session_id=self.session_id,
            group_id=self.group_id,
            target=self.target,
            success=result.success,
            error=result.error,
            duration_ms=self.duration_ms,
            timestamp_ms=self.timestamp_ms,
            kpi=result.kpi_contribution,
            discoveries=result.discoveries,
            output=result.output,
            selection_logic=context.selection_logic,
            from_guidance=context.from_guidance,
            previous_action=context.previous_action,
            lora=None if context.lora is None else context.lora.name or context.lora.id,
            propensity=context.propensity,
            candidates=None if context.candidates is None else list(context.candidates),
            policy_version=context.policy_version,
        )


#: Shared by all builders of the process, so that two of them never give one id.
_SEQUENCES = EventSequences()


class ActionEventBuilder:
    """Makes one event: `ActionEventBuilder(tick, worker, "look").task_id("t1").result(...).build()`."""

    def __init__(self, tick: int, worker_id: int, action: str, *, sequences: EventSequences = _SEQUENCES) -> None:
        self._sequences = sequences
        self._event = ActionEvent(
            id=0, task_id="", tick=tick, worker_id=worker_id, action=action, result=ActionEventResult.succeeded()
        )

    def task_id(self, task_id: str) -> Self:
        """The task it belongs to; a fresh one where this is never called."""
        return self._with(task_id=task_id)

    def group_id(self, group_id: str | None) -> Self:
        """The group of sessions."""
        return self._with(group_id=group_id)

    def session_id(self, session_id: str | None) -> Self:
        """The session, whose end closes the task's open sequences."""
        return self._with(session_id=session_id)

    def target(self, target: str | None) -> Self:
        """What the action acted on."""
        return self._with(target=target)

    def result(self, result: ActionEventResult) -> Self:
        """What came of it; a plain success where this is never called."""
        return self._with(result=result)

    def duration(self, milliseconds: int) -> Self:
        """How long it took."""
        return self._with(duration_ms=milliseconds)

    def context(self, context: ActionContext) -> Self:
        """Why it was chosen."""
        return self._with(context=context)

    def timestamp(self, unix_ms: int) -> Self:
        """When it happened."""
        return self._with(timestamp_ms=unix_ms)

    def build(self) -> ActionEvent:
        """The event with the next id of its worker and tick; raises `InvalidRecord` where there is none left."""
        event = self._event
        task_id = event.task_id or str(uuid4())
        return replace(event, task_id=task_id, id=self._sequences.next_id(task_id, event.tick, event.worker_id))

    def _with(self, **changes: object) -> Self:
        self._event = replace(self._event, **changes)
        return self
