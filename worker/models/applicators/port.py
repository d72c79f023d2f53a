"""What every applicator does: bring one model to those who use it, and say what they really get."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Raw

from worker.store.port import Model
from worker.wire.served import ServedModel


def served_document(model: Model, content: bytes) -> bytes:
    """The document of a registered model; `content` is its model.json."""
    document = ServedModel(
        scenario=model.scenario, model_id=model.model_id, model_version=model.version, kind=model.kind,
        run_id=model.run_id, created_at_ms=model.created_at_ms, sha256=model.sha256, model=Raw(content),
    )  # fmt: skip
    return msgspec.json.encode(document)


class Applicator(Protocol):
    """Brings models to where they are used. One scenario's calls never overlap."""

    @property
    def name(self) -> str:
        """As in SWARM_APPLICATOR."""
        ...

    def target(self, scenario: str) -> str:
        """Where the model goes, for people; holds no secret."""
        ...

    async def apply(self, model: Model, content: bytes) -> None:
        """Make `model` the served one; `content` is its model.json. Raises `ApplyFailed`."""
        ...

    async def served(self, scenario: str) -> str | None:
        """SHA-256 (hex) of the model file that is served now, found by looking; None where none is.

        Raises `ApplyFailed` where it cannot be told.
        """
        ...

    async def withdraw(self, scenario: str) -> None:
        """Serve no model: the way back from a failed first apply. Raises `ApplyFailed`."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
