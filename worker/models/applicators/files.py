"""Serves the current model as a file, `<data_dir>/current/<scenario>.json`, which swarm nodes read.

An adapter's file, `<scenario>.lora.json`, says where its files lie; whoever runs the inference server takes them there.
Either is replaced at once, so a reader sees one whole document (`ServedModel`), the old or the new one.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Literal

from msgspec import UNSET

from worker.models.adapter import ADAPTER_DIR, decode
from worker.models.adapter_files import check_adapter, marks_of
from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.models.files import ModelFiles
from worker.store.port import Model
from worker.wire.served import ServedModel


class FilesApplicator:
    """One file per scenario, for nodes on this machine or on a shared file system."""

    name = "files"

    def __init__(self, data_dir: Path, kind: Literal["offline", "lora"] = "offline") -> None:
        self._current = CurrentDocuments(data_dir, kind)
        self._files = ModelFiles(data_dir)
        #: By scenario, of adapters found whole: their document and their files' marks. They may be gigabytes, and are
        #: looked at each minute.
        self._whole: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {}

    def path(self, scenario: str) -> Path:
        """The file of a scenario; ValueError for a scenario that is no slug."""
        return self._current.path(scenario)

    def target(self, scenario: str) -> str:
        return self.path(scenario).as_uri()

    async def apply(self, model: Model, content: bytes) -> None:
        await asyncio.to_thread(self._current.write, model, content)

    async def served(self, scenario: str) -> str | None:
        return await asyncio.to_thread(self._look, scenario)

    def _look(self, scenario: str) -> str | None:
        try:
            document = self._current.read(scenario)
        except DocumentDamaged:
            return "unreadable"  # something is there, and it is no model of ours: no hash equals it
        if document is None:
            return None
        if document.endpoint != UNSET:
            return "an adapter at a server that another SWARM_LORA_APPLICATOR looked after"
        if document.kind == "lora" and (damage := self._damage(document)) is not None:
            return f"an adapter that is damaged: {damage}"
        return hashlib.sha256(bytes(document.model)).hexdigest()

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._current.remove, scenario)

    async def close(self) -> None:
        """Nothing is open."""

    def _damage(self, document: ServedModel) -> str | None:
        """What is wrong with the files of an adapter that the document leads to."""
        directory = self._files.directory(document.scenario, document.model_version)
        if document.uri != directory.as_uri():
            return f"its files lie in {directory}, and the document leads elsewhere"
        content = bytes(document.model)
        try:
            adapter = decode(content)
            found = (content, marks_of(adapter, directory / ADAPTER_DIR))  # before they are read, so of then
            if self._whole.get(document.scenario) != found:
                check_adapter(adapter, directory / ADAPTER_DIR)
        except (OSError, ValueError) as error:
            return str(error)
        self._whole[document.scenario] = found
        return None
