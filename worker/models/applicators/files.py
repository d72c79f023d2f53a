"""Serves the current model as a file, `<data_dir>/current/<scenario>.json`, which swarm nodes read.

The file is replaced at once, so a reader sees one whole document (`ServedModel`), the old or the new one.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec

from worker.durable import make_private_directory, read_file, replace_file, sync_directory
from worker.errors import ApplyFailed
from worker.models.applicators.port import served_document
from worker.models.files import MODEL_LIMIT
from worker.store.port import Model
from worker.wire.names import is_slug
from worker.wire.served import ServedModel

#: The model file's own limit and the few fields around it.
_DOCUMENT_LIMIT = MODEL_LIMIT + 100_000
#: Nodes may run as another user; the folder's own mode decides who comes that far.
_MODE = 0o644


class FilesApplicator:
    """One file per scenario, for nodes on this machine or on a shared file system."""

    name = "files"

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.resolve() / "current"

    def path(self, scenario: str) -> Path:
        """The file of a scenario; ValueError for a scenario that is no slug."""
        if not is_slug(scenario):
            raise ValueError(f"{scenario!r} is no scenario name")
        return self._folder / f"{scenario}.json"

    def target(self, scenario: str) -> str:
        return self.path(scenario).as_uri()

    async def apply(self, model: Model, content: bytes) -> None:
        await asyncio.to_thread(self._write, self.path(model.scenario), served_document(model, content))

    def _write(self, path: Path, document: bytes) -> None:
        try:
            make_private_directory(self._folder)
            replace_file(path, document, mode=_MODE)
        except OSError as error:
            raise ApplyFailed(
                f"{path} cannot be written: {error}; free space or fix the rights of SWARM_DATA_DIR"
            ) from error

    async def served(self, scenario: str) -> str | None:
        return await asyncio.to_thread(self._read, self.path(scenario))

    def _read(self, path: Path) -> str | None:
        try:
            document = msgspec.json.decode(read_file(path, limit=_DOCUMENT_LIMIT), type=ServedModel)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "unreadable"  # something is there, and it is no model of ours: no hash equals it
        except (OSError, ValueError) as error:
            raise ApplyFailed(f"{path} cannot be read: {error}") from error
        return hashlib.sha256(bytes(document.model)).hexdigest()

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._remove, self.path(scenario))

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
            if self._folder.is_dir():
                sync_directory(self._folder)
        except OSError as error:
            raise ApplyFailed(f"{path} cannot be removed: {error}") from error

    async def close(self) -> None:
        """Nothing is open."""
