"""Models and deployments: immutable versions, aliases that point at them, the log of what was live when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from worker.store.port.outbox import OutboxEvent

#: What is learnt: statistics and exploration, or an adapter for the language model.
ModelKind: TypeAlias = Literal["offline", "lora"]


def alias_of(name: Literal["champion", "candidate", "previous"], kind: ModelKind) -> str:
    """The alias by which a scenario knows a model of this kind: `champion`, or of an adapter `lora-champion`."""
    return name if kind == "offline" else f"{kind}-{name}"


class Model(Struct, kw_only=True):
    """One immutable version of what was learnt."""

    model_id: str  # content hash, 32 hex digits
    scenario: str
    version: int  # 1, 2, ... per scenario
    kind: ModelKind
    run_id: str
    created_at_ms: int
    uri: str  # file:///.../models/<scenario>/<version>; of a stored row as it was then, `ModelFiles.located` says now
    sha256: str  # of the model file
    lineage: dict[str, Any]  # window, counts, hashes, config, seed, versions, parent
    metrics: dict[str, Any]
    gate_verdict: Literal["blessed", "rejected", "not_evaluable"]
    gate_reasons: list[str]


class Deployment(Struct, kw_only=True):
    """What was live when: one row of the append-only log."""

    deployment_id: str
    scenario: str
    model_id: str
    previous_model_id: str | None
    action: Literal["apply", "rollback"]
    applicator: str
    target: str
    state: Literal["started", "verified", "failed"]
    by: str
    forced: bool
    at_ms: int  # of its state; of one that was given up: when that was asked for
    detail: str = ""
    given_up_by: str = ""  # who gave it up in its health window by a rollback; `started` still, it is on its way back
    stranded: bool = False  # of a failed one: what was live before it could not be brought again


class ModelRegistry(Protocol):
    """Immutable versions, aliases that point at them, and the log of what was live when."""

    async def models(self, scenario: str, *, kind: ModelKind | None = None, limit: int = 100) -> list[Model]:
        """Newest first; of one kind, or of all."""
        ...

    async def model(self, model_id: str) -> Model | None:
        """One model."""
        ...

    async def aliases(self, scenario: str) -> dict[str, str]:
        """Alias (`champion`, `candidate`, `previous`, and each as `alias_of` names it for adapters) to model id."""
        ...

    async def deploy(
        self,
        deployment: Deployment,
        *,
        after: str | None = None,
        aliases: Mapping[str, str | None],
        events: Sequence[OutboxEvent],
    ) -> None:
        """Append to the deployment log, move aliases, queue events: one transaction.

        A known `deployment_id` moves on to its new state; a `started` one may be given up, once. An alias of None is
        removed. A `verified` `apply` counts in `models_applied` once.

        Several workers may have the store: a new row comes `after` the one by which it was decided, the newest of its
        kind in its scenario (None: there is none). `Overtaken`, without any effect, where another is the newest by now,
        and where the deployment has ended otherwise.
        """
        ...

    async def deployments(self, scenario: str, *, kind: ModelKind | None = None, limit: int = 100) -> list[Deployment]:
        """Newest first; of models of one kind, or of all."""
        ...
