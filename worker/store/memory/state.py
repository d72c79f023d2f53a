"""What the roles of the in-memory store share."""

from __future__ import annotations

from worker.clock import Clock
from worker.errors import StoreUnavailable
from worker.store.port import ScenarioFacts


class State:
    """The scenarios with their counters; each role keeps what else it needs in attributes of its own."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.scenarios: dict[str, ScenarioFacts] = {}
        self.is_open = False

    def facts(self, scenario: str) -> ScenarioFacts:
        """The scenario's counters, made now where it is new."""
        return self.scenarios.setdefault(scenario, ScenarioFacts(scenario=scenario))

    def require_open(self) -> None:
        """Raise `StoreUnavailable` unless the store is open, as every store does."""
        if not self.is_open:
            raise StoreUnavailable("the store in memory is not open")


class Role:
    """One part of the store's port, over the shared state. Cooperative: each role calls `super().__init__(state)`."""

    def __init__(self, state: State) -> None:
        self._state = state
