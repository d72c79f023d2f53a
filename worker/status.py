"""What the worker is, does and waits for right now: one document for `status`, /status, /metrics and /ready."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from worker import __version__
from worker.broker.session import Session
from worker.broker.subscriber import Subscriber
from worker.broker.watchdog import Watchdog
from worker.clock import Clock
from worker.control.control import ControlStats
from worker.errors import StoreError
from worker.intake import Intake
from worker.models.applier import Applier
from worker.outbox import OutboxRelay
from worker.projector.projector import Projector
from worker.sink.quarantine_room import RoomReport
from worker.sink.sink import Sink
from worker.store.port import ModelKind, ModelRegistry, Store, TriggerState, alias_of, trigger_key
from worker.store.watch import WriteWatch
from worker.training.execution import Current
from worker.training.runs import RunManager
from worker.training.scheduler import TriggerScheduler

#: Damaged rows that are told one by one.
_DAMAGE_SHOWN = 5


#: Deployments of a scenario's adapters among which the newest that was verified is looked for.
_DEPLOYMENTS_READ = 100

#: Of the quarantine's report, what is a metric.
_ROOM_COUNTED = ("entries", "bytes", "moved", "file_bytes", "deleted")


@dataclass(slots=True, kw_only=True)
class StatusReporter:
    """Looks at all parts; changes none."""

    worker_id: str
    boot_id: str
    started_at_ms: int
    scenarios: Sequence[str]
    clock: Clock
    store: Store
    sink: Sink
    quarantine: Callable[[], Awaitable[RoomReport]]
    intake: Intake
    projector: Projector
    scheduler: TriggerScheduler
    runs: RunManager
    applier: Applier
    relay: OutboxRelay
    #: Why the journal of events is down, as far as is known.
    journal: Callable[[], str | None]
    write_watch: WriteWatch
    sessions: Sequence[Session]
    subscribers: Mapping[str, Subscriber]
    watchdogs: Mapping[str, Watchdog]
    triggers: Mapping[str, str]
    commands: Callable[[], ControlStats]
    #: Until records and commands are taken.
    starting: bool = True
    draining: bool = False

    def problems(self) -> list[str]:
        """Why the worker is not ready; empty when every consumer is registered, the store takes writes, no drain."""
        found = ["draining"] if self.draining else ["starting"] if self.starting else []
        store_down = self.sink.stats.store_down_reason or self.write_watch.reason
        if store_down is not None:
            found.append(f"store: {store_down}")
        # One for all three where they are told the same.
        found += [f"broker: {trouble}" for trouble in dict.fromkeys(one.trouble for one in self.sessions) if trouble]
        for name, watchdog in self.watchdogs.items():
            if not watchdog.healthy:
                found.append(f"{name}: {watchdog.reason}")
            found += [f"{name}: {reason}" for reason in self.intake.reasons(name)]
        damage = self.store.damage
        found += [f"store: {row}" for row in damage[:_DAMAGE_SHOWN]]
        if len(damage) > _DAMAGE_SHOWN:
            found.append(f"store: and {len(damage) - _DAMAGE_SHOWN} more damaged rows")
        return found

    async def report(self) -> dict[str, Any]:
        """The whole document."""
        problems = self.problems()
        oldest = self.relay.stats.oldest_created_at_ms
        now_ms = self.clock.now_ms()
        sink = self.sink.stats
        commands = self.commands()
        quarantine = await self._quarantine()
        journal = self.journal()
        scenarios = {name: await self._scenario(name) for name in self.scenarios}
        return {
            "worker_id": self.worker_id,
            "boot_id": self.boot_id,
            "version": __version__,
            "started_at_ms": self.started_at_ms,
            "uptime_ms": max(0, now_ms - self.started_at_ms),
            "ready": not problems,
            "problems": problems,
            # Nor is what is told here: records are taken in as well without an inference server.
            "warnings": [text for name, each in scenarios.items() if (text := _unserved(name, each)) is not None],
            "broker": {s.role: {"connected": s.connected, "version": s.version} for s in self.sessions},
            # It keeps nobody's events from him, so it is no reason not to be ready.
            "journal": {"up": journal is None, "reason": journal},
            "scenarios": scenarios,
            # Of the whole store.
            "quarantine": quarantine,
            # Since the start, unlike the scenarios' figures.
            "projector": asdict(self.projector.stats),
            "scheduler": asdict(self.scheduler.stats),
            "runs": asdict(self.runs.stats),
            "applier": asdict(self.applier.stats),
            "commands": asdict(commands),
            "counters": {
                "ready": int(not problems),
                "store_up": int(sink.store_down_reason is None and self.write_watch.reason is None),
                "messages": sink.messages,
                "groups": sink.groups,
                "commit_seconds": sink.commit_seconds,
                "stale": sink.stale,
                "in_flight": sink.in_flight,
                "suspects": sink.suspects,
                **{f"quarantine_{name}": quarantine[name] for name in _ROOM_COUNTED if name in quarantine},
                "events_sent": self.relay.stats.sent,
                "events_failed": self.relay.stats.failures,
                "journal_up": int(journal is None),
                "outbox_waiting": self.relay.stats.waiting,
                "outbox_oldest_seconds": 0 if oldest is None else max(0, now_ms - oldest) / 1000,
                "projection_lag_seconds": self.projector.stats.lag_ms / 1000,
                "damaged_rows": len(self.store.damage),
                "projection_faults": self.projector.stats.faults,
                "commands_accepted": commands.accepted,
                "commands_refused": sum(commands.refused.values()),
                "reconnects": sum(max(0, session.connections - 1) for session in self.sessions),
                "started_at_seconds": self.started_at_ms / 1000,
            },
        }

    async def _quarantine(self) -> dict[str, Any]:
        try:
            return asdict(await self.quarantine())
        except (StoreError, OSError) as error:
            return {"error": str(error)}

    async def _scenario(self, name: str) -> dict[str, Any]:
        subscriber, watchdog = self.subscribers[name], self.watchdogs[name]
        live: dict[str, Any] = {
            "consumer_up": int(subscriber.consuming),
            "consumer": watchdog.reason,
            "consumer_restarts": subscriber.restarts,
            "deliveries": asdict(subscriber.stats),
            "queue_depth": watchdog.queue_depth,
            "redelivered": subscriber.stats.redelivered,
            "held_because": self.intake.reasons(name),
            "trigger": self.triggers[name],
        }
        try:
            return live | await self._stored(name)
        except StoreError as error:
            # The rest of the status is worth most when the store is in trouble.
            return live | {"store_error": str(error)}

    async def _stored(self, name: str) -> dict[str, Any]:
        facts = await self.store.facts(name)
        states = [await self.store.trigger_state(trigger_key(name, kind)) for kind in self.runs.kinds]
        state = states[0]
        aliases = await self.store.aliases(name)
        newest = await self.store.models(name, kind="offline", limit=1)
        current = self.runs.current(name)
        adapters = "lora" in self.runs.kinds
        adapter_state = await self.store.trigger_state(trigger_key(name, "lora")) if adapters else None
        adapter = await served_adapter(self.store, name, aliases) if adapters else None
        if adapter is not None:
            unserved = self.applier.why_unserved(name, "lora")
            adapter |= {"served": int(unserved is None), "not_served_because": unserved}
        return {
            # The original's DaemonStats.
            "records_received": facts.records,
            "episodes_created": facts.episodes,
            "trainings_completed": facts.trainings_completed,
            "models_applied": facts.models_applied,
            "last_train_at_ms": last_success(states),
            "started_at_ms": self.started_at_ms,
            # Ours.
            "batches": facts.batches,
            "duplicate_batches": facts.duplicate_batches,
            "duplicate_records": facts.duplicate_records,
            "unknown_fields": facts.unknown_fields,
            "quarantined": facts.quarantined,
            "sessions": facts.sessions,
            "open_tasks": facts.open_tasks,
            "last_record_at_ms": facts.last_record_at_ms,
            "aliases": aliases,
            # Of the newest model: who brought more than SWARM_PRODUCER_SHARE, and the weight (0-1) it was learnt with.
            "capped_producers": newest[0].lineage["counts"].get("capped", {}) if newest else {},
            "training_running": int(current is not None),
            "training": training_of(current),
            "training_failures": state.failures,
            "last_failures": await last_failures(self.store, name, self.runs.kinds),
            "adapter": adapter,
            "adapter_training_failures": None if adapter_state is None else adapter_state.failures,
            "last_adapter_train_at_ms": None if adapter_state is None else adapter_state.last_success_at_ms,
            "trigger_errors": sum(each.trigger_errors for each in states),
            "last_trigger_error": next((each.last_trigger_error for each in states if each.last_trigger_error), None),
            "training_paused": state.paused,
            "doing": self._doing(name) if current is None else _trains(current),
            "waiting_for": await self.scheduler.waiting_for(name),
        }

    def _doing(self, name: str) -> str:
        held = self.intake.reasons(name)
        return f"taking in no records: {'; '.join(held)}" if held else "taking in records"


def _unserved(scenario: str, told: Mapping[str, Any]) -> str | None:
    """That nobody can ask the live adapter, and why; None where nothing is known against it."""
    adapter = told.get("adapter")
    if adapter is None or adapter["served"]:
        return None
    return f"{scenario}: adapter version {adapter['version']} is live but not served: {adapter['not_served_because']}"


def last_success(states: Iterable[TriggerState]) -> int | None:
    """When the last training of any kind succeeded, Unix ms; None where none did."""
    return max((state.last_success_at_ms for state in states if state.last_success_at_ms is not None), default=None)


async def last_failures(store: Store, scenario: str, kinds: Sequence[ModelKind]) -> list[dict[str, Any]]:
    """Of each kind whose last training failed, that run; nothing of a kind that has succeeded since."""
    failing = [kind for kind in kinds if (await store.trigger_state(trigger_key(scenario, kind))).failures]
    newest = await store.runs(scenario, states=("failed",)) if failing else []
    runs = (next((run for run in newest if run.kind == kind), None) for kind in failing)
    return [
        {"kind": run.kind, "run_id": run.run_id, "reason": run.reason, "ended_at_ms": run.ended_at_ms}
        for run in runs if run is not None
    ]  # fmt: skip


def training_of(current: Current | None) -> dict[str, Any] | None:
    """A training that runs now; its steps, its loss and its time to come only where it has them."""
    if current is None:
        return None
    steps = {} if current.step is None else msgspec.structs.asdict(current.step)
    return {
        "run_id": current.run.run_id, "kind": current.run.kind, "progress": current.progress, "text": current.text,
        **steps,
    }  # fmt: skip


def _trains(current: Current) -> str:
    what = "an adapter, " if current.run.kind == "lora" else ""
    return f"training {what}{current.run.run_id}: {current.progress:.0%} {current.text}"


async def served_adapter(store: ModelRegistry, scenario: str, aliases: Mapping[str, str]) -> dict[str, Any] | None:
    """The live adapter, by whom it is served, and what was seen of that when it was applied; None where none is."""
    live = aliases.get(alias_of("champion", "lora"))
    model = None if live is None else await store.model(live)
    if model is None:
        return None
    rows = await store.deployments(scenario, kind="lora", limit=_DEPLOYMENTS_READ)
    row = next((row for row in rows if row.state == "verified" and row.model_id == live), None)
    served = {} if row is None else {
        "applicator": row.applicator, "target": row.target, "detail": row.detail, "applied_at_ms": row.at_ms,
    }  # fmt: skip
    return {"model_id": model.model_id, "version": model.version, **served}
