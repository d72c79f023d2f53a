"""Model versions, the aliases that point at them, and the log of what was live when."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from worker.store import ledger_rules as rules
from worker.store.ledger_rows import to_row
from worker.store.port import Deployment, Model, ModelKind, OutboxEvent, alias_of
from worker.store.sqlite.ledger_query import SQL, add_events, change, select, select_one, value
from worker.store.sqlite.role import Role, scenario_number


class ModelRegistry(Role):
    """`worker.store.port.ModelRegistry` on SQLite."""

    async def models(self, scenario: str, *, kind: ModelKind | None = None, limit: int = 100) -> list[Model]:
        return await self._database.read(
            lambda connection: select(connection, Model, "models", scenario=scenario, kind=kind, limit=limit)
        )

    async def model(self, model_id: str) -> Model | None:
        return await self._database.read(lambda connection: _model(connection, model_id))

    async def aliases(self, scenario: str) -> dict[str, str]:
        return await self._database.read(
            lambda connection: dict(connection.execute(SQL["aliases"], {"scenario": scenario}).fetchall())
        )

    async def deploy(
        self,
        deployment: Deployment,
        *,
        after: str | None = None,
        aliases: Mapping[str, str | None],
        events: Sequence[OutboxEvent],
    ) -> None:
        row = to_row(deployment)

        def write(connection: sqlite3.Connection) -> None:
            stored = select_one(connection, Deployment, "deployment_by_id", deployment_id=deployment.deployment_id)
            if stored is None:
                model = _check_model(connection, deployment.scenario, deployment.model_id)
                newest = select_one(
                    connection, Deployment, "deployments", scenario=deployment.scenario, kind=model.kind, limit=1
                )
                rules.check_after(deployment, after, None if newest is None else newest.deployment_id)
                change(connection, "insert_deployment", **row)
            elif rules.changes_state(stored, deployment):
                change(connection, "change_deployment", **row)
            else:
                return
            _move_aliases(connection, deployment.scenario, aliases)
            if rules.counts_as_applied(deployment):
                change(connection, "count_applied", scenario_no=scenario_number(connection, deployment.scenario))
            add_events(connection, events)

        await self._database.write(write)

    async def deployments(self, scenario: str, *, kind: ModelKind | None = None, limit: int = 100) -> list[Deployment]:
        return await self._database.read(
            lambda connection: select(connection, Deployment, "deployments", scenario=scenario, kind=kind, limit=limit)
        )


def register_model(connection: sqlite3.Connection, model: Model) -> None:
    """Add a version and make it the candidate, in the transaction of the run that learnt it."""
    newest = int(value(connection, "newest_version", scenario=model.scenario))
    rules.check_new_model(model, known=_model(connection, model.model_id), newest_version=newest)
    change(connection, "insert_model", **to_row(model))
    change(
        connection, "set_alias", scenario=model.scenario, alias=alias_of("candidate", model.kind),
        model_id=model.model_id,
    )  # fmt: skip


def _model(connection: sqlite3.Connection, model_id: str) -> Model | None:
    return select_one(connection, Model, "model_by_id", model_id=model_id)


def _check_model(connection: sqlite3.Connection, scenario: str, model_id: str) -> Model:
    return rules.check_model_of(scenario, model_id, _model(connection, model_id))


def _move_aliases(connection: sqlite3.Connection, scenario: str, moves: Mapping[str, str | None]) -> None:
    for alias, model_id in moves.items():
        if model_id is None:
            change(connection, "remove_alias", scenario=scenario, alias=alias)
        else:
            _check_model(connection, scenario, model_id)
            change(connection, "set_alias", scenario=scenario, alias=alias, model_id=model_id)
