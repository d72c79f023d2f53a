"""Learning events as outbox rows, made from runs, models and deployments. Their ids depend on those alone."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from worker.store.port import Deployment, Model, OutboxEvent, Run
from worker.wire.events import (
    Applied,
    EventData,
    EventType,
    Failed,
    Gate,
    RolledBack,
    Skipped,
    Trained,
    TrainedCounts,
    Trigger,
    Window,
    embeddable,
    encode_event,
    routing_key,
)
from worker.wire.served import Endpoint

#: Characters of a child's last words that travel in an event.
_DETAIL = 2_000


class Announcer:
    """Makes events in one worker's name."""

    def __init__(self, worker_id: str) -> None:
        self._source = f"/swarm-worker/{worker_id}"

    def trained(self, run: Run, model: Model, content: bytes, *, now_ms: int) -> OutboxEvent:
        """`learning.trained`, with the model itself where it is small."""
        window, counts = model.lineage["window"], model.lineage["counts"]
        data = Trained(
            scenario=run.scenario,
            run_id=run.run_id,
            model_id=model.model_id,
            model_version=model.version,
            kind=run.kind,
            trigger=Trigger(
                kind=str(run.trigger.get("kind")), values=run.trigger.get("values", {}), by=run.trigger.get("by")
            ),
            window=Window(lo=window["lo"], hi=window["hi"]),
            counts=TrainedCounts(
                records=counts["records"],
                episodes=counts["episodes"],
                sessions=counts["sessions"],
                # Models that an earlier version trained tell of no producers.
                producers=counts.get("producers") or None,
                capped=counts.get("capped") or None,
            ),
            metrics=model.metrics,
            gate=Gate(verdict=model.gate_verdict, reasons=model.gate_reasons),
            uri=model.uri,
            sha256=model.sha256,
            # An adapter is of no use without its files.
            model=embeddable(content) if model.kind == "offline" else UNSET,
        )
        return self._event("learning.trained", run.run_id, run.scenario, data, now_ms)

    def run_failed(self, run: Run, *, reason: str, detail: str, not_before_ms: int, now_ms: int) -> OutboxEvent:
        """`learning.failed` of a run; `reason` is short and stable, `detail` the child's last words."""
        details: dict[str, Any] = {
            "detail": detail[-_DETAIL:], "attempts": run.attempts, "not_before_ms": not_before_ms,
            "trigger": run.trigger.get("kind"), "window": {"lo": run.window_lo, "hi": run.window_hi},
        }  # fmt: skip
        data = Failed(scenario=run.scenario, reason=reason, run_id=run.run_id, details=details)
        return self._event("learning.failed", run.run_id, run.scenario, data, now_ms)

    def run_skipped(self, run: Run, *, now_ms: int) -> OutboxEvent:
        """`learning.skipped`: the run's reason is a word, a colon and an explanation."""
        word, _, explanation = (run.reason or "").partition(": ")
        data = Skipped(scenario=run.scenario, reason=word, run_id=run.run_id, details={"detail": explanation})
        return self._event("learning.skipped", run.run_id, run.scenario, data, now_ms)

    def applied(self, deployment: Deployment, model: Model, *, endpoint: Endpoint | None, now_ms: int) -> OutboxEvent:
        """`learning.applied`: the model is live and was verified; an adapter at `endpoint`."""
        data = Applied(
            scenario=model.scenario,
            model_id=model.model_id,
            model_version=model.version,
            kind=model.kind,
            previous_model_id=deployment.previous_model_id,
            applicator=deployment.applicator,
            target=deployment.target,
            verified=deployment.state == "verified",
            by=deployment.by,
            endpoint=UNSET if endpoint is None else endpoint,
        )
        return self._event("learning.applied", deployment.deployment_id, model.scenario, data, now_ms)

    def apply_failed(self, deployment: Deployment, model: Model, *, now_ms: int) -> OutboxEvent:
        """`learning.failed` of a deployment."""
        data = Failed(
            scenario=model.scenario,
            reason="apply_failed",
            run_id=model.run_id,
            details={**_of(deployment), "kind": model.kind, "detail": deployment.detail[-_DETAIL:]},
        )
        return self._event("learning.failed", deployment.deployment_id, model.scenario, data, now_ms)

    def rolled_back(
        self, deployment: Deployment, live: Model, *, reason: str, endpoint: Endpoint | None, now_ms: int
    ) -> OutboxEvent:
        """`learning.rolled_back`: `live` serves again, on purpose (`rollback`) or after a failure (`apply_failed`)."""
        details = {
            **_of(deployment), "kind": live.kind, "live_model_id": live.model_id, "live_model_version": live.version,
            "uri": live.uri, "sha256": live.sha256,
        }  # fmt: skip
        data = RolledBack(
            scenario=live.scenario, reason=reason, run_id=live.run_id, details=details,
            endpoint=UNSET if endpoint is None else endpoint,
        )  # fmt: skip
        return self._event("learning.rolled_back", deployment.deployment_id, live.scenario, data, now_ms)

    def _event(self, type_: EventType, subject_id: str, scenario: str, data: EventData, now_ms: int) -> OutboxEvent:
        event_id, body = encode_event(
            type_, subject_id=subject_id, scenario=scenario, data=data, source=self._source, time_ms=now_ms
        )
        return OutboxEvent(
            event_id=event_id, type=type_, scenario=scenario, routing_key=routing_key(type_, scenario), body=body,
            created_at_ms=now_ms,
        )  # fmt: skip


def _of(deployment: Deployment) -> dict[str, Any]:
    return {
        "deployment_id": deployment.deployment_id, "action": deployment.action, "model_id": deployment.model_id,
        "previous_model_id": deployment.previous_model_id, "applicator": deployment.applicator,
        "target": deployment.target, "by": deployment.by, "forced": deployment.forced,
    }  # fmt: skip
