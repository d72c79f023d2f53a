"""Faults put into the product on purpose: a simulation that does not find them proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from worker.models.registry import Registry
from worker.sink.batcher import Item
from worker.sink.sink import Sink
from worker.store.memory import MemoryStore
from worker.store.port import (
    Deployment,
    Model,
    ModelKind,
    OutboxEvent,
    Projection,
    Run,
    StoredCommand,
    TriggerState,
    trigger_key,
)
from worker.training.execution import Execution
from worker.training.handover import HandOver


class AckBeforeCommit(Sink):
    """Acknowledges what it has, then stores it."""

    async def _store(self, group: list[Item], free: asyncio.Event) -> None:
        await self._settle([item.delivery for item in group])
        await super()._store(group, free)


class EventsOutsideTheTransaction(MemoryStore):
    """The end of a run is committed, its event in a transaction of its own, which a crash may prevent."""

    async def finish_run(
        self,
        run: Run,
        *,
        lease: str,
        model: Model | None,
        trigger_state: TriggerState | None,
        events: Sequence[OutboxEvent],
    ) -> None:
        await super().finish_run(run, lease=lease, model=model, trigger_state=trigger_state, events=())
        self.later = list(events)

    async def release_lease(self, name: str, owner: str, epoch: int) -> None:
        await self.add_events(self.later)
        await super().release_lease(name, owner, epoch)

    later: Sequence[OutboxEvent] = ()


class NoFence(MemoryStore):
    """Whoever ends a run ends it, whatever became of his lease."""

    async def finish_run(self, run: Run, *, lease: str, **rest: Any) -> None:
        stored = self._runs[run.run_id]
        stored.state, stored.epoch = "running", run.epoch
        held = self._leases[lease]
        epoch, held.epoch = held.epoch, run.epoch
        try:
            await super().finish_run(run, lease=lease, **rest)
        finally:
            held.epoch = epoch


class BatchesWithoutIdentity(MemoryStore):
    """Every delivery is news: deduplication is left to the records, and their counters are not."""

    async def ingest(self, group: Any) -> Any:
        for incoming in group:
            log = self._state.log(incoming.scenario)
            log.by_key = {}
            log.batches = {}
        return await super().ingest(group)


class ProjectsTwice(MemoryStore):
    """Takes what another projector has projected already."""

    async def project(self, projections: Sequence[Projection]) -> None:
        for projection in projections:
            task = getattr(projection.of, "task", None)
            if task is not None:
                known = self._state.log(task.scenario).tasks[task.task_id]
                known.projected_upto = getattr(projection.of, "projected_upto", None) or 0
                known.projected_idle = getattr(projection.of, "projected_idle", False)
        await super().project(projections)


class CountsAndNeverTakesBack(MemoryStore):
    """Counts a revised task anew without taking back what was counted before."""

    async def project(self, projections: Sequence[Projection]) -> None:
        again = [
            replace(projection, counts={bucket: +counts for bucket, counts in projection.counts.items()})
            for projection in projections
        ]
        await super().project(again)


class SentBeforeItIs(MemoryStore):
    """Marks an event as sent when it is read."""

    async def unsent_events(self, limit: int) -> list[OutboxEvent]:
        found = await super().unsent_events(limit)
        await self.mark_sent([event.event_id for event in found], self._state.clock.now_ms())
        return found


class ForgetsCommands(MemoryStore):
    """The second copy of a command is taken for a new one."""

    async def accept_command(self, command: StoredCommand) -> StoredCommand | None:
        self._commands.pop(command.command_id, None)
        return await super().accept_command(command)


class DeploysQuietly(MemoryStore):
    """A model goes live and the event is forgotten."""

    async def deploy(self, deployment: Deployment, *, events: Any, **rest: Any) -> None:
        await super().deploy(deployment, events=() if deployment.state == "verified" else events, **rest)


class KeepsRunsForItself(MemoryStore):
    """A lease that nobody released is nobody's for ever: the run of a worker that died waits in vain."""

    async def acquire_lease(self, name: str, owner: str, *, now_ms: int, ttl_ms: int) -> int | None:
        held = self._leases.get(name)
        if held is not None and held.owner != owner and held.expires_at_ms >= 0:
            return None
        return await super().acquire_lease(name, owner, now_ms=now_ms, ttl_ms=ttl_ms)


class RemembersForBothKinds(MemoryStore):
    """What the trigger remembers of adapters is overwritten by the end of a run of the other kind."""

    async def finish_run(self, run: Run, *, trigger_state: TriggerState | None, **rest: Any) -> None:
        await super().finish_run(run, trigger_state=trigger_state, **rest)
        if trigger_state is not None and run.kind == "offline":
            key = trigger_key(run.scenario, "lora")
            self._trigger_states[key] = replace(trigger_state, scenario=key)


class GoesBackUnderTheOtherName(MemoryStore):
    """A rollback of an adapter moves the aliases of the other kind."""

    async def deploy(self, deployment: Deployment, *, aliases: Mapping[str, str | None], **rest: Any) -> None:
        if deployment.action == "rollback":
            aliases = {alias.removeprefix("lora-"): model_id for alias, model_id in aliases.items()}
        await super().deploy(deployment, aliases=aliases, **rest)


class GivesUpTheKilled(Execution):
    """A run whose process was killed is failed, though it could go on from its checkpoint."""

    def _may_go_on(self, run: Run, reason: str) -> bool:
        return False


class ForgetsToHandOver(HandOver):
    """A start looks for no adapter that was registered and not handed over."""

    async def recover(self, scenario: str, kind: ModelKind) -> None:
        if kind != "lora":
            await super().recover(scenario, kind)


class RetiresWhatWasLive(Registry):
    """Keeps the files of the live adapter, and not those of the one before."""

    async def retire(self, scenario: str, kind: ModelKind, **kept: Any) -> None:
        live = await self.champion(scenario, kind)
        if kind == "lora" and live is not None:
            known = await self._store.models(scenario, kind=kind)
            self._files.remove(scenario, [model.version for model in known if model.version < live.version])
        await super().retire(scenario, kind, **kept)
