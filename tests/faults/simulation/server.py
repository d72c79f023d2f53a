"""An inference server that outlives the workers: it takes its time, refuses now and then, and forgets its adapters."""

from __future__ import annotations

import asyncio

from tests.faults.simulation.faults import Faults
from worker.errors import ApplyFailed
from worker.models.applicators.noop import NoopApplicator
from worker.store.port import Model


class UnsteadyServer(NoopApplicator):
    """One for all workers; steady once the faults stop."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    async def apply(self, model: Model, content: bytes) -> None:
        """Serve it after a while, or refuse."""
        await asyncio.sleep(self._faults.random.uniform(0.0, 3.0))
        self._trouble()
        await super().apply(model, content)

    async def served(self, scenario: str) -> str | None:
        """What it has not forgotten."""
        self._trouble()
        return await super().served(scenario)

    def _trouble(self) -> None:
        if not self._faults.server_unsteady:
            return
        drawn = self._faults.random.random()
        if drawn < 0.05:
            self._faults.note("adapters forgotten")
            self._served.clear()
        elif drawn < 0.15:
            self._faults.note("adapter refused")
            raise ApplyFailed("connection refused")
