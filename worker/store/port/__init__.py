"""The store's port: what every store does, and the values that cross it.

Each method is one transaction; when it returns, what it wrote is on disk. `StoreUnavailable` means nothing was written
and the same call may be made again; `DataRefused` means this data never will be. The contract tests in tests/contract
run against every implementation.

Positions: every stored batch gets the next `batch_no` of the store (1, 2, ...). A window of the log is a pair of them,
and "as of N" means the records of batches 1..N.
"""

from __future__ import annotations

from typing import Protocol

from worker.store.port.commands import CommandLedger, StoredCommand
from worker.store.port.damage import DamagedRow, DamageFound
from worker.store.port.facts import Facts, RollingOutcomes, ScenarioFacts, TriggerState, trigger_key
from worker.store.port.log import (
    Duplicate,
    Incoming,
    IncomingBatch,
    IncomingReject,
    Quarantined,
    QuarantineEntry,
    QuarantineRoom,
    RecordLog,
    Stored,
    StoredRecord,
    Verdict,
)
from worker.store.port.maintenance import Maintenance
from worker.store.port.models import Deployment, Model, ModelKind, ModelRegistry, alias_of
from worker.store.port.outbox import Outbox, OutboxEvent
from worker.store.port.projections import (
    EpisodeFilter,
    Pending,
    PendingGraph,
    PendingSession,
    PendingTask,
    Projection,
    Projections,
    Session,
)
from worker.store.port.runs import Run, RunLedger, RunState


class Store(
    RecordLog, Projections, Facts, RunLedger, ModelRegistry, Outbox, CommandLedger, Maintenance, DamageFound, Protocol
):
    """All of it."""


__all__ = [
    "CommandLedger",
    "DamageFound",
    "DamagedRow",
    "Deployment",
    "Duplicate",
    "EpisodeFilter",
    "Facts",
    "Incoming",
    "IncomingBatch",
    "IncomingReject",
    "Maintenance",
    "Model",
    "ModelKind",
    "ModelRegistry",
    "Outbox",
    "OutboxEvent",
    "Pending",
    "PendingGraph",
    "PendingSession",
    "PendingTask",
    "Projection",
    "Projections",
    "QuarantineEntry",
    "QuarantineRoom",
    "Quarantined",
    "RecordLog",
    "RollingOutcomes",
    "Run",
    "RunLedger",
    "RunState",
    "ScenarioFacts",
    "Session",
    "Store",
    "Stored",
    "StoredCommand",
    "StoredRecord",
    "TriggerState",
    "Verdict",
    "alias_of",
    "trigger_key",
]
