"""Serves the current model as a file, `<data_dir>/current/<scenario>.json`, which swarm nodes read.

The file is replaced at once, so a reader sees one whole document (`ServedModel`), the old or the new one.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.store.port import Model


class FilesApplicator:
    """One file per scenario, for nodes on this machine or on a shared file system."""

    name = "files"

    def __init__(self, data_dir: Path) -> None:
        self._documents = CurrentDocuments(data_dir, "offline")

    def path(self, scenario: str) -> Path:
        """The file of a scenario; ValueError for a scenario that is no slug."""
        return self._documents.path(scenario)

    def target(self, scenario: str) -> str:
        return self.path(scenario).as_uri()

    async def apply(self, model: Model, content: bytes) -> None:
        await asyncio.to_thread(self._documents.write, model, content)

    async def served(self, scenario: str) -> str | None:
        return await asyncio.to_thread(self._read, scenario)

    def _read(self, scenario: str) -> str | None:
        try:
            document = self._documents.read(scenario)
        except DocumentDamaged:
            return "unreadable"  # no hash equals it
        return None if document is None else hashlib.sha256(bytes(document.model)).hexdigest()

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._documents.remove, scenario)

    async def close(self) -> None:
        """Nothing is open."""
