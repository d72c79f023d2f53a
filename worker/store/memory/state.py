"""What the roles of the in-memory store share."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from worker.clock import Clock
from worker.errors import StoreUnavailable
from worker.store.memory.scenario_log import ScenarioLog
from worker.store.port import DamagedRow, ScenarioFacts


class State:
    """The scenarios with their counters; each role keeps what else it needs in attributes of its own."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.scenarios: dict[str, ScenarioFacts] = {}
        self._logs: dict[str, ScenarioLog] = {}
        self.is_open = False

    def facts(self, scenario: str) -> ScenarioFacts:
        """The scenario's counters, made now where it is new."""
        return self.scenarios.setdefault(scenario, ScenarioFacts(scenario=scenario))

    def log(self, scenario: str) -> ScenarioLog:
        """The scenario's log, made now where it is new; the scenario itself becomes known by its facts."""
        return self._logs.setdefault(scenario, ScenarioLog())

    def copy_of_facts(self, scenario: str) -> ScenarioFacts:
        """The counters as they are now; a scenario nobody stored for has all of them 0 and stays unknown."""
        known = self.scenarios.get(scenario)
        if known is None:
            return ScenarioFacts(scenario=scenario)
        return replace(known, episodes_by_model=dict(known.episodes_by_model))

    def require_open(self) -> None:
        """Raise `StoreUnavailable` unless the store is open, as every store does."""
        if not self.is_open:
            raise StoreUnavailable("the store in memory is not open")


class Role:
    """One part of the store's port, over the shared state. Cooperative: each role calls `super().__init__(state)`."""

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def damage(self) -> Sequence[DamagedRow]:
        """Nothing rots in memory, so nothing is looked for."""
        return ()
