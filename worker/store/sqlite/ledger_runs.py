"""Runs as rows, owned under a lease whose epoch fences zombies; and what each scenario's trigger remembers."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import orjson

from worker.store import ledger_rules as rules
from worker.store.ledger_rows import to_row
from worker.store.port import Model, OutboxEvent, Run, RunState, TriggerState
from worker.store.sqlite.ledger_models import register_model
from worker.store.sqlite.ledger_query import add_events, change, select, select_one, value
from worker.store.sqlite.role import Role, scenario_number


class RunLedger(Role):
    """`worker.store.port.RunLedger` on SQLite. `:now_ms` is the host's clock: there is one host."""

    async def acquire_lease(self, name: str, owner: str, *, now_ms: int, ttl_ms: int) -> int | None:
        """Take the lease, or prolong it where `owner` holds it. `owner` names one life of one process."""
        return await self._database.write(
            lambda connection: value(connection, "acquire_lease", name=name, owner=owner, now_ms=now_ms, ttl_ms=ttl_ms)
        )

    async def renew_lease(self, name: str, owner: str, epoch: int, *, now_ms: int, ttl_ms: int) -> bool:
        return await self._database.write(
            lambda connection: (
                change(connection, "renew_lease", name=name, owner=owner, epoch=epoch, now_ms=now_ms, ttl_ms=ttl_ms)
                == 1
            )
        )

    async def release_lease(self, name: str, owner: str, epoch: int) -> None:
        await self._database.write(
            lambda connection: change(connection, "release_lease", name=name, owner=owner, epoch=epoch)
        )

    async def end_leases_of_the_dead(self, owner: str) -> int:
        """The lock on the file, which the kernel drops with its holder, proves that nobody else has the store."""
        return await self._database.write(lambda connection: change(connection, "end_leases_of_the_dead", owner=owner))

    async def create_run(self, run: Run) -> Run:
        rules.check_new_run(run)
        row = to_row(run)

        def create(connection: sqlite3.Connection) -> Run:
            change(connection, "insert_run", **row)
            return _run(connection, run.run_id) or select(connection, Run, "run_by_window", **row)[0]

        return await self._database.write(create)

    async def start_run(self, run_id: str, *, owner: str, lease: str, epoch: int, now_ms: int) -> Run:
        def start(connection: sqlite3.Connection) -> Run:
            held = value(connection, "holds_lease", lease=lease, owner=owner, epoch=epoch) == 1
            rules.check_lease(lease, held=held, epoch=epoch)
            stored = rules.check_startable(run_id, _run(connection, run_id))
            if stored.state == "running" and stored.epoch == epoch:
                return stored
            other = select_one(connection, Run, "other_running_run", scenario=stored.scenario, run_id=run_id)
            rules.check_alone(run_id, other)
            change(connection, "start_run", run_id=run_id, owner=owner, lease=lease, epoch=epoch, now_ms=now_ms)
            return rules.check_startable(run_id, _run(connection, run_id))

        return await self._database.write(start)

    async def progress_run(self, run_id: str, epoch: int, progress: float, text: str) -> None:
        def note(connection: sqlite3.Connection) -> None:
            lease_epoch = value(connection, "lease_epoch_of_run", run_id=run_id)
            rules.check_owned(run_id, _run(connection, run_id), epoch=epoch, lease_epoch=lease_epoch)
            change(connection, "progress_run", run_id=run_id, progress=progress, progress_text=text)

        await self._database.write(note)

    async def finish_run(
        self,
        run: Run,
        *,
        lease: str,
        model: Model | None,
        trigger_state: TriggerState | None,
        events: Sequence[OutboxEvent],
    ) -> None:
        ended_at_ms = rules.check_end(run)

        def finish(connection: sqlite3.Connection) -> None:
            lease_epoch = value(connection, "lease_epoch", name=lease)
            stored = rules.check_owned(
                run.run_id, _run(connection, run.run_id), epoch=run.epoch, lease_epoch=lease_epoch
            )
            rules.check_belongs(stored, model, trigger_state)
            change(
                connection,
                "finish_run",
                run_id=run.run_id,
                state=run.state,
                ended_at_ms=ended_at_ms,
                progress=run.progress,
                progress_text=run.progress_text,
                reason=run.reason,
                model_id=run.model_id,
            )
            if model is not None:
                register_model(connection, model)
            if trigger_state is not None:
                change(connection, "save_trigger_state", **to_row(trigger_state))
            if run.state == "trained":
                change(connection, "count_training", scenario_no=scenario_number(connection, stored.scenario))
            add_events(connection, events)

        await self._database.write(finish)

    async def requeue_run(self, run_id: str, *, epoch: int, reason: str) -> None:
        def requeue(connection: sqlite3.Connection) -> None:
            lease_epoch = value(connection, "lease_epoch_of_run", run_id=run_id)
            rules.check_owned(run_id, _run(connection, run_id), epoch=epoch, lease_epoch=lease_epoch)
            change(connection, "requeue_run", run_id=run_id, reason=reason)

        await self._database.write(requeue)

    async def forget_fruitless_runs(self, before_ms: int, limit: int) -> int:
        return await self._database.write(
            lambda connection: change(connection, "forget_fruitless_runs", before_ms=before_ms, limit=limit)
        )

    async def run(self, run_id: str) -> Run | None:
        return await self._database.read(lambda connection: _run(connection, run_id))

    async def runs(
        self, scenario: str | None = None, *, states: Sequence[RunState] = (), limit: int = 100
    ) -> list[Run]:
        if not states:
            return await self._database.read(
                lambda connection: select(connection, Run, "runs", scenario=scenario, limit=limit)
            )
        wanted = orjson.dumps(list(states)).decode()
        return await self._database.read(
            lambda connection: select(connection, Run, "runs_in_states", scenario=scenario, states=wanted, limit=limit)
        )


class TriggerStates(Role):
    """The part of `worker.store.port.Facts` that a trigger remembers by."""

    async def trigger_state(self, scenario: str) -> TriggerState:
        stored = await self._database.read(
            lambda connection: select_one(connection, TriggerState, "trigger_state", scenario=scenario)
        )
        return stored or TriggerState(scenario=scenario)

    async def save_trigger_state(self, state: TriggerState) -> None:
        row = to_row(state)
        await self._database.write(lambda connection: change(connection, "save_trigger_state", **row))


def _run(connection: sqlite3.Connection, run_id: str) -> Run | None:
    return select_one(connection, Run, "run_by_id", run_id=run_id)
