"""The store in memory: the port's fake for tests and simulation, kept to the same contract."""

from __future__ import annotations

from worker.clock import Clock
from worker.store.memory.learnable import Learnable
from worker.store.memory.ledger import Ledger
from worker.store.memory.log import RecordLog
from worker.store.memory.maintenance import Maintenance
from worker.store.memory.projections import Projections
from worker.store.memory.state import State


class MemoryStore(RecordLog, Projections, Learnable, Ledger, Maintenance):
    """`worker.store.port.Store`, gone with the process."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(State(clock))
