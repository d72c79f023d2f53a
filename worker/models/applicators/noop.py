"""Remembers what it was told to apply and does nothing else: for tests, and for trying a worker out."""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

from worker.store.port import Model


class NoopApplicator:
    """The original's `NoOpApplicator`; what it serves is gone at a restart."""

    name = "noop"

    def __init__(self) -> None:
        self._served: dict[str, str] = {}

    def target(self, scenario: str) -> str:
        return f"noop:{scenario}"

    async def apply(self, model: Model, content: bytes) -> None:  # noqa: ARG002 - the port's signature
        self._served[model.scenario] = model.sha256

    async def served(self, scenario: str) -> str | None:
        return self._served.get(scenario)

    async def withdraw(self, scenario: str) -> None:
        self._served.pop(scenario, None)

    async def close(self) -> None:
        """Nothing is open."""
