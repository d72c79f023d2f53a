"""The documents `<data_dir>/current/<scenario>.json` and `<scenario>.lora.json`, which say what is served now.

The second is the original's `EndpointResolver` as a file: whoever asks the LLM reads `endpoint` in it (a server's
address, and the adapter's name there), and reads it again once the file was replaced. It is replaced at once, and only
after the server was seen to answer as the adapter does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec import UnsetType

from worker.durable import make_private_directory, read_file, replace_file, sync_directory
from worker.errors import ApplyFailed
from worker.models.adapter import ADAPTER_DIR, GGUF_FILE, adapter_directory
from worker.models.applicators.port import served_document
from worker.models.applicators.probe import Probes
from worker.models.applicators.versions import decoded, served_name
from worker.models.before import read_before
from worker.models.files import MODEL_LIMIT, ModelFiles
from worker.store.port import Model
from worker.wire.names import is_slug
from worker.wire.served import Endpoint, ServedModel

log = structlog.get_logger(__name__)

#: The model file's own limit and the few fields around it.
_DOCUMENT_LIMIT = MODEL_LIMIT + 100_000
#: Nodes may run as another user; the folder's own mode decides who comes that far.
_MODE = 0o644


class DocumentDamaged(ApplyFailed):
    """Something is there, and it is no document of ours."""


class CurrentDocuments:
    """The documents of all scenarios, for one kind of model. Blocking; for `asyncio.to_thread`."""

    def __init__(self, data_dir: Path, kind: Literal["offline", "lora"]) -> None:
        self._folder = data_dir.resolve() / "current"
        self._files = ModelFiles(data_dir)
        self._ending = ".json" if kind == "offline" else ".lora.json"
        self._written: dict[tuple[str, int], str] = {}  # SHA-256 of the content that a version had, in our own life

    def path(self, scenario: str) -> Path:
        """The file of a scenario; ValueError for a scenario that is no slug."""
        if not is_slug(scenario):
            raise ValueError(f"{scenario!r} is no scenario name")
        return self._folder / f"{scenario}{self._ending}"

    def write(self, model: Model, content: bytes, endpoint: Endpoint | None = None) -> None:
        """Name `model` the served one, at `endpoint`; `content` is its model.json. Raises `ApplyFailed`."""
        path = self.path(model.scenario)
        try:
            make_private_directory(self._folder)
            replace_file(path, served_document(model, content, endpoint), mode=_MODE)
        except IsADirectoryError as error:
            raise ApplyFailed(f"{path} is a directory, in the place of a file of ours; move it away") from error
        except OSError as error:
            raise ApplyFailed(
                f"{path} cannot be written: {error}; free space or fix the rights of SWARM_DATA_DIR"
            ) from error
        self._written[model.scenario, model.version] = model.sha256

    def read(self, scenario: str) -> ServedModel | None:
        """What was written last; None where nothing was. Raises `DocumentDamaged`: the next `write` replaces it."""
        path = self.path(scenario)
        try:
            return msgspec.json.decode(read_file(path, limit=_DOCUMENT_LIMIT), type=ServedModel)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:  # a link, no file, none of our documents
            log.warning("document_unreadable", path=str(path), error=str(error))
            raise DocumentDamaged(f"{path} is no document of ours: {error}; apply a version again") from error

    def adapter_file(self, document: ServedModel) -> Path:
        """Where the adapter that it names lies now, as llama.cpp loads it: not where `uri` says, if that was moved."""
        return self._files.directory(document.scenario, document.model_version) / ADAPTER_DIR / GGUF_FILE

    def named(self, scenario: str) -> str | None:
        """What the version is called that nodes are sent to, also by an earlier spelling of the server's address."""
        document = self._whole(scenario)
        return None if document is None else served_name(scenario, document.model_version)

    def knows(self, model: Model) -> bool:
        """Whether what a server serves under the version's name was seen to be this very content.

        Else the version's number was given before, to other weights: the store was restored, and the server lived on.
        """
        document = self._whole(model.scenario)
        if document is not None and document.model_version == model.version:
            return hashlib.sha256(document.model).hexdigest() == model.sha256
        return self._written.get((model.scenario, model.version)) == model.sha256

    def probes(self, model: Model, content: bytes) -> Probes:
        """What `model`, whose model.json is `content`, is asked. Raises `ApplyFailed` where that is no adapter's.

        Where it was live when the adapter was trained that is live now, what that one recorded serves the way back.
        """
        own, live = decoded(model, content).probes, self._whole(model.scenario)
        if live is not None and live.sha256 != model.sha256:
            of_live = read_before(self._files.directory(live.scenario, live.model_version))
            if of_live is not None and of_live.sha256 == model.sha256:
                return Probes(own, of_live.turned_round(live.sha256))
        return Probes(own, read_before(adapter_directory(model).parent))

    def endpoint_of(self, model: Model) -> Endpoint | None:
        """Whom nodes are to ask for `model`; None where the document names another model, or no server."""
        document = self._whole(model.scenario)
        if document is None or document.model_id != model.model_id or isinstance(document.endpoint, UnsetType):
            return None
        return document.endpoint

    def remove(self, scenario: str) -> None:
        """Name no model. Raises `ApplyFailed`."""
        path = self.path(scenario)
        try:
            path.unlink(missing_ok=True)
            if self._folder.is_dir():
                sync_directory(self._folder)
        except OSError as error:
            raise ApplyFailed(f"{path} cannot be removed: {error}") from error

    def _whole(self, scenario: str) -> ServedModel | None:
        """What was written last, where that can be read."""
        try:
            return self.read(scenario)
        except DocumentDamaged:
            return None
