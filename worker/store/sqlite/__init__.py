"""The store on SQLite: one file, one machine, no server."""

from __future__ import annotations

from worker.store.sqlite.learnable import Learnable
from worker.store.sqlite.learnt import Learnt
from worker.store.sqlite.ledger_commands import CommandLedger
from worker.store.sqlite.ledger_models import ModelRegistry
from worker.store.sqlite.ledger_outbox import Outbox
from worker.store.sqlite.ledger_runs import RunLedger, TriggerStates
from worker.store.sqlite.log import RecordLog
from worker.store.sqlite.maintenance import Maintenance
from worker.store.sqlite.projections import Projections
from worker.store.sqlite.quarantine import Quarantine


class SqliteStore(
    RecordLog,
    Quarantine,
    Projections,
    Learnt,
    Learnable,
    RunLedger,
    TriggerStates,
    ModelRegistry,
    Outbox,
    CommandLedger,
    Maintenance,
):
    """`worker.store.port.Store`, role by role."""
