"""The ledger in memory: leases, runs, trigger state, models, deployments, events and commands.

What SQLite does in a transaction happens here between two awaits: first all that can be refused, then the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from worker.store import ledger_rules as rules
from worker.store.ledger_rows import kept
from worker.store.memory.state import Role, State
from worker.store.port import (
    Deployment,
    Model,
    ModelKind,
    OutboxEvent,
    Run,
    RunState,
    StoredCommand,
    TriggerState,
    alias_of,
)

S = TypeVar("S", bound=Struct)


class _Lease(Struct):
    owner: str
    epoch: int
    granted_at_ms: int
    expires_at_ms: int

    def may_be_taken(self, now_ms: int) -> bool:
        """Expired, or granted so far in the future that the clock must have stepped back."""
        length = self.expires_at_ms - self.granted_at_ms
        return self.expires_at_ms < now_ms or self.granted_at_ms - now_ms > length


class Ledger(Role):
    """`RunLedger`, `ModelRegistry`, `Outbox`, `CommandLedger` of the port, and the trigger state of its `Facts`."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._leases: dict[str, _Lease] = {}
        self._runs: dict[str, Run] = {}
        self._lease_of_run: dict[str, str] = {}
        self._trigger_states: dict[str, TriggerState] = {}
        self._models: dict[str, Model] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._deployments: dict[str, Deployment] = {}
        self._events: dict[str, OutboxEvent] = {}
        self._commands: dict[str, StoredCommand] = {}

    # ------------------------------------------------------------ leases

    async def acquire_lease(self, name: str, owner: str, *, now_ms: int, ttl_ms: int) -> int | None:
        self._state.require_open()
        lease = self._leases.get(name)
        epoch = 1
        if lease is not None:
            if lease.owner != owner and not lease.may_be_taken(now_ms):
                return None
            epoch = lease.epoch if lease.owner == owner and lease.expires_at_ms >= now_ms else lease.epoch + 1
        self._leases[name] = _Lease(owner, epoch, now_ms, now_ms + ttl_ms)
        return epoch

    async def renew_lease(self, name: str, owner: str, epoch: int, *, now_ms: int, ttl_ms: int) -> bool:
        self._state.require_open()
        lease = self._leases.get(name)
        if lease is None or (lease.owner, lease.epoch) != (owner, epoch) or lease.expires_at_ms < now_ms:
            return False
        lease.granted_at_ms, lease.expires_at_ms = now_ms, now_ms + ttl_ms
        return True

    async def release_lease(self, name: str, owner: str, epoch: int) -> None:
        self._state.require_open()
        lease = self._leases.get(name)
        if lease is not None and (lease.owner, lease.epoch) == (owner, epoch):
            lease.granted_at_ms = lease.expires_at_ms = -1

    async def end_leases_of_the_dead(self, owner: str) -> int:
        """Nobody else can have it: the store in memory is gone with its process."""
        self._state.require_open()
        dead = [lease for lease in self._leases.values() if lease.owner != owner and lease.expires_at_ms >= 0]
        for lease in dead:
            lease.granted_at_ms = lease.expires_at_ms = -1
        return len(dead)

    def _epoch(self, lease: str) -> int | None:
        held = self._leases.get(lease)
        return None if held is None else held.epoch

    # ------------------------------------------------------------ runs

    async def create_run(self, run: Run) -> Run:
        self._state.require_open()
        rules.check_new_run(run)
        window = (run.scenario, run.kind, run.window_hi, run.nonce)
        stored = self._runs.get(run.run_id) or next(
            (
                other
                for other in self._runs.values()
                if (other.scenario, other.kind, other.window_hi, other.nonce) == window
            ),
            None,
        )
        if stored is None:
            stored = self._runs[run.run_id] = kept(run)
        return kept(stored)

    async def start_run(self, run_id: str, *, owner: str, lease: str, epoch: int, now_ms: int) -> Run:
        self._state.require_open()
        held = lease in self._leases and (self._leases[lease].owner, self._leases[lease].epoch) == (owner, epoch)
        rules.check_lease(lease, held=held, epoch=epoch)
        run = rules.check_startable(run_id, self._runs.get(run_id))
        if run.state == "running" and run.epoch == epoch:
            return kept(run)
        others = (
            other
            for other in self._runs.values()
            if other.scenario == run.scenario and other.state == "running" and other.run_id != run_id
        )
        rules.check_alone(run_id, next(others, None))
        run.state, run.owner, run.epoch, run.attempts = "running", owner, epoch, run.attempts + 1
        run.started_at_ms = max(now_ms, run.requested_at_ms)
        run.progress, run.progress_text, run.reason = 0.0, "", None
        self._lease_of_run[run_id] = lease
        return kept(run)

    async def progress_run(self, run_id: str, epoch: int, progress: float, text: str) -> None:
        run = self._owned(run_id, epoch)
        run.progress, run.progress_text = progress, text

    async def finish_run(
        self,
        run: Run,
        *,
        lease: str,
        model: Model | None,
        trigger_state: TriggerState | None,
        events: Sequence[OutboxEvent],
    ) -> None:
        self._state.require_open()
        ended_at_ms = rules.check_end(run)
        stored = rules.check_owned(
            run.run_id, self._runs.get(run.run_id), epoch=run.epoch, lease_epoch=self._epoch(lease)
        )
        rules.check_belongs(stored, model, trigger_state)
        if model is not None:
            rules.check_new_model(
                model, known=self._models.get(model.model_id), newest_version=self._newest_version(model.scenario)
            )
            self._models[model.model_id] = kept(model)
            self._aliases.setdefault(model.scenario, {})[alias_of("candidate", model.kind)] = model.model_id
        stored.state, stored.ended_at_ms = run.state, max(ended_at_ms, stored.started_at_ms or 0)
        stored.progress, stored.progress_text = run.progress, run.progress_text
        stored.reason, stored.model_id = run.reason, run.model_id
        if trigger_state is not None:
            self._trigger_states[trigger_state.scenario] = kept(trigger_state)
        if run.state == "trained":
            self._state.facts(stored.scenario).trainings_completed += 1
        self._queue(events)

    async def requeue_run(self, run_id: str, *, epoch: int, reason: str) -> None:
        run = self._owned(run_id, epoch)
        run.state, run.owner, run.started_at_ms = "queued", None, None
        run.progress, run.progress_text, run.reason = 0.0, "", reason

    def _owned(self, run_id: str, epoch: int) -> Run:
        self._state.require_open()
        lease_epoch = self._epoch(self._lease_of_run.get(run_id, ""))
        return rules.check_owned(run_id, self._runs.get(run_id), epoch=epoch, lease_epoch=lease_epoch)

    async def forget_fruitless_runs(self, before_ms: int, limit: int) -> int:
        self._state.require_open()
        fruitful = {model.run_id for model in self._models.values()}
        old = [
            run.run_id
            for run in self._runs.values()
            if run.state in ("failed", "skipped")
            and (run.ended_at_ms or before_ms) < before_ms
            and run.run_id not in fruitful
        ][:limit]
        for run_id in old:
            del self._runs[run_id]
            self._lease_of_run.pop(run_id, None)
        return len(old)

    async def run(self, run_id: str) -> Run | None:
        return self._copy(self._runs.get(run_id))

    async def runs(
        self, scenario: str | None = None, *, states: Sequence[RunState] = (), limit: int = 100
    ) -> list[Run]:
        return self._newest(
            (
                run
                for run in self._runs.values()
                if (scenario is None or run.scenario == scenario) and (not states or run.state in states)
            ),
            limit,
        )

    async def trigger_state(self, scenario: str) -> TriggerState:
        return self._copy(self._trigger_states.get(scenario)) or TriggerState(scenario=scenario)

    async def save_trigger_state(self, state: TriggerState) -> None:
        self._state.require_open()
        self._trigger_states[state.scenario] = kept(state)

    # ------------------------------------------------------------ models

    async def models(self, scenario: str, *, kind: ModelKind | None = None, limit: int = 100) -> list[Model]:
        return self._newest(
            (model for model in self._models.values() if model.scenario == scenario and kind in (None, model.kind)),
            limit,
        )

    async def model(self, model_id: str) -> Model | None:
        return self._copy(self._models.get(model_id))

    async def aliases(self, scenario: str) -> dict[str, str]:
        self._state.require_open()
        return dict(sorted(self._aliases.get(scenario, {}).items()))

    async def deploy(
        self,
        deployment: Deployment,
        *,
        after: str | None = None,
        aliases: Mapping[str, str | None],
        events: Sequence[OutboxEvent],
    ) -> None:
        self._state.require_open()
        scenario = deployment.scenario
        stored = self._deployments.get(deployment.deployment_id)
        if stored is not None and not rules.changes_state(stored, deployment):
            return
        if stored is None:
            model = rules.check_model_of(scenario, deployment.model_id, self._models.get(deployment.model_id))
            newest = await self.deployments(scenario, kind=model.kind, limit=1)
            rules.check_after(deployment, after, newest[0].deployment_id if newest else None)
        for model_id in aliases.values():
            if model_id is not None:
                rules.check_model_of(scenario, model_id, self._models.get(model_id))
        if stored is None:
            self._deployments[deployment.deployment_id] = kept(deployment)
        else:
            stored.state, stored.target, stored.detail = deployment.state, deployment.target, deployment.detail
            stored.given_up_by, stored.stranded = deployment.given_up_by, deployment.stranded
            stored.at_ms = max(deployment.at_ms, stored.at_ms)
        moved = {**self._aliases.get(scenario, {}), **aliases}
        self._aliases[scenario] = {alias: model_id for alias, model_id in moved.items() if model_id is not None}
        if rules.counts_as_applied(deployment):
            self._state.facts(scenario).models_applied += 1
        self._queue(events)

    async def deployments(self, scenario: str, *, kind: ModelKind | None = None, limit: int = 100) -> list[Deployment]:
        return self._newest(
            (
                row
                for row in self._deployments.values()
                if row.scenario == scenario and kind in (None, self._models[row.model_id].kind)
            ),
            limit,
        )

    def _newest_version(self, scenario: str) -> int:
        return max((model.version for model in self._models.values() if model.scenario == scenario), default=0)

    # ------------------------------------------------------------ events

    async def add_events(self, events: Sequence[OutboxEvent]) -> None:
        self._state.require_open()
        self._queue(events)

    async def unsent_events(self, limit: int) -> list[OutboxEvent]:
        self._state.require_open()
        return [kept(event) for event in self._events.values() if event.sent_at_ms is None][:limit]

    async def mark_sent(self, event_ids: Sequence[str], now_ms: int) -> None:
        self._state.require_open()
        for event_id in event_ids:
            event = self._events.get(event_id)
            if event is not None and event.sent_at_ms is None:
                event.sent_at_ms = max(now_ms, event.created_at_ms)

    async def mark_attempt(self, event_id: str) -> None:
        self._state.require_open()
        if event_id in self._events:
            self._events[event_id].attempts += 1

    async def forget_sent_events(self, before_ms: int, limit: int) -> int:
        self._state.require_open()
        old = [event.event_id for event in self._events.values() if (event.sent_at_ms or before_ms) < before_ms][:limit]
        for event_id in old:
            del self._events[event_id]
        return len(old)

    async def events(self, scenario: str | None = None, *, limit: int = 100) -> list[OutboxEvent]:
        return self._newest(
            (event for event in self._events.values() if scenario is None or event.scenario == scenario), limit
        )

    def _queue(self, events: Iterable[OutboxEvent]) -> None:
        for event in events:
            self._events.setdefault(event.event_id, kept(event))

    # ------------------------------------------------------------ commands

    async def accept_command(self, command: StoredCommand) -> StoredCommand | None:
        self._state.require_open()
        if command.command_id in self._commands:
            return kept(self._commands[command.command_id])
        self._commands[command.command_id] = kept(command)
        before_ms = command.received_at_ms - rules.COMMANDS_KEPT_MS
        for old in list(self._commands.values())[: -rules.COMMANDS_KEPT]:
            if old.status != "accepted" and old.received_at_ms < before_ms:
                del self._commands[old.command_id]
        return None

    async def finish_command(
        self,
        command_id: str,
        *,
        status: Literal["done", "refused", "failed"],
        result: Mapping[str, Any],
        error: str | None,
        now_ms: int,
    ) -> StoredCommand:
        self._state.require_open()
        stored = rules.check_command(command_id, self._commands.get(command_id))
        ended_at_ms = max(now_ms, stored.received_at_ms)
        ended = kept(replace(stored, status=status, result=dict(result), error=error, ended_at_ms=ended_at_ms))
        if stored.status == "accepted":
            self._commands[command_id] = ended
        return kept(self._commands[command_id])

    async def unfinished_commands(self) -> list[StoredCommand]:
        self._state.require_open()
        return [kept(command) for command in self._commands.values() if command.status == "accepted"]

    # ------------------------------------------------------------ what reading shares

    def _copy(self, struct: S | None) -> S | None:
        self._state.require_open()
        return None if struct is None else kept(struct)

    def _newest(self, structs: Iterable[S], limit: int) -> list[S]:
        self._state.require_open()
        return [kept(struct) for struct in list(structs)[::-1][:limit]]
