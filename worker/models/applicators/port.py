"""What every applicator does: bring one model to those who use it, and say what they really get."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import UNSET, Raw

from worker.errors import ApplyFailed
from worker.store.port import Model
from worker.wire.served import Endpoint, ServedModel


def served_document(model: Model, content: bytes, endpoint: Endpoint | None = None) -> bytes:
    """The document of a registered model; `content` is its model.json, `endpoint` the server of an adapter."""
    document = ServedModel(
        scenario=model.scenario, model_id=model.model_id, model_version=model.version, kind=model.kind,
        run_id=model.run_id, created_at_ms=model.created_at_ms, sha256=model.sha256, model=Raw(content),
        endpoint=UNSET if endpoint is None else endpoint, uri=model.uri if model.kind == "lora" else UNSET,
    )  # fmt: skip
    return msgspec.json.encode(document)


class OwnServerSilent(ApplyFailed):
    """The process of a server that we started runs and gives no answer: paused for a moment, or hanging for good."""


class Applicator(Protocol):
    """Brings models to where they are used. One scenario's calls never overlap."""

    @property
    def name(self) -> str:
        """As in SWARM_APPLICATOR."""
        ...

    def target(self, scenario: str) -> str:
        """Where the model goes, for people; holds no secret."""
        ...

    async def apply(self, model: Model, content: bytes) -> str | None:
        """Make `model` the served one; `content` is its model.json. Raises `ApplyFailed`.

        Of an adapter, that is the `AdapterModel` document, and its files lie in `adapter_directory(model)`. What a
        person should know of how it went (no probe, say) is returned, and kept as the deployment's detail.
        """
        ...

    async def served(self, scenario: str) -> str | None:
        """SHA-256 (hex) of the model.json that is served now, found by looking; None where none is.

        Raises `ApplyFailed` where it cannot be told, `OwnServerSilent` where to bring the model again would help.
        """
        ...

    async def withdraw(self, scenario: str) -> None:
        """Serve no model: the way back from a failed first apply. Raises `ApplyFailed`."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
