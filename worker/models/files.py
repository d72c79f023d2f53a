"""Model files: `<data_dir>/models/<scenario>/<version>/{model.json,manifest.json}`, of an adapter also `adapter/`.

They are written once, and read with their hashes. A version is written to `<data_dir>/tmp/<run_id>.<epoch>/`, made
durable, checked by loading it, and renamed into place. The row in the store, not the directory, says that a model
exists; directories without a row are collected at start.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from worker import crash
from worker.durable import make_private_directory, read_file, refuse_links, sync_directory, write_new
from worker.errors import ApplyFailed
from worker.learning import offline_model
from worker.learning.offline_model import MODEL_FILE, OfflineModel
from worker.models import adapter as adapters
from worker.models.adapter import ADAPTER_DIR, AdapterModel
from worker.models.adapter_files import DIRECTORY_MODE, FILE_MODE, check_adapter, copy_adapter, copy_data_manifest
from worker.models.before import BEFORE_FILE, encode_before, read_before
from worker.store.port import Model
from worker.wire.names import is_slug

log = structlog.get_logger(__name__)

MANIFEST_FILE = "manifest.json"
#: Beside an adapter: which episodes it was trained on, and what was left out and why.
DATA_FILE = "training_data.json"
#: An offline model is some kilobytes; a file beyond this is not one of ours.
MODEL_LIMIT = 64_000_000


class Manifest(Struct, frozen=True, kw_only=True):
    """What lies beside a model file, for whoever finds the directory without the store."""

    model_id: str
    scenario: str
    version: int
    kind: str
    run_id: str
    sha256: str
    size: int
    created_at_ms: int


class ModelFiles:
    """The files of all scenarios. Blocking: call it in a thread."""

    def __init__(self, data_dir: Path) -> None:
        self._data = data_dir.resolve()
        self._root = self._data / "models"
        self._tmp = self._data / "tmp"

    def directory(self, scenario: str, version: int) -> Path:
        """Where a version lies; ValueError for a scenario that is no slug."""
        if not is_slug(scenario):
            raise ValueError(f"{scenario!r} is no scenario name")
        return self._root / scenario / str(version)

    def uri(self, scenario: str, version: int) -> str:
        """The file URI of a version's model file's directory."""
        return self.directory(scenario, version).as_uri()

    def located(self, model: Model) -> Model:
        """The model with the URI of where it lies now: the row has that of the day it was made.

        The data directory may have been restored from a backup, or mounted, elsewhere since.
        """
        return replace(model, uri=self.uri(model.scenario, model.version))

    def publish(
        self,
        manifest: Manifest,
        content: bytes,
        *,
        epoch: int,
        adapter: Path | None = None,
        data_manifest: Path | None = None,
    ) -> None:
        """Write one version durably. The caller holds the scenario's lease and registers the version next.

        `adapter`: of a model of kind `lora`, the directory whose files model.json names; they are copied, a
        `before.json` beside it, and `data_manifest`, the file whose hash model.json names as that of its training data.

        A directory that is there already was left by a run that never registered it (killed between rename and commit),
        so it makes way. Raises ValueError where a hash is another or an adapter's document does not load,
        `ModelUnreadable` where an offline model does not, OSError.
        """
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            raise ValueError(f"the model of run {manifest.run_id} is not what its manifest says")
        made = _decode(manifest.kind, content)
        work = self._tmp / f"{manifest.run_id}.{epoch}"
        target = self.directory(manifest.scenario, manifest.version)
        for place in (work.parent, target.parent):
            refuse_links(place, below=self._data)
        shutil.rmtree(work, ignore_errors=True)
        try:
            self._write(work, manifest, content, made, adapter=adapter, data_manifest=data_manifest)
        except BaseException:
            # On a full disk the next try would find less room each time.
            shutil.rmtree(work, ignore_errors=True)
            raise
        make_private_directory(target.parent, mode=DIRECTORY_MODE)
        if target.exists() or target.is_symlink():
            log.warning("model_directory_without_row_replaced", scenario=manifest.scenario, version=manifest.version)
            _remove(target)
        work.rename(target)
        crash.point("model_renamed")
        for changed in (target.parent, self._root, self._tmp):
            sync_directory(changed)

    def _write(
        self,
        work: Path,
        manifest: Manifest,
        content: bytes,
        made: AdapterModel | OfflineModel,
        *,
        adapter: Path | None,
        data_manifest: Path | None,
    ) -> None:
        """Everything of a version, durably, into a directory that is made here."""
        make_private_directory(work, mode=DIRECTORY_MODE)
        write_new(work / MODEL_FILE, content, mode=FILE_MODE)
        if isinstance(made, AdapterModel):
            if made.scenario != manifest.scenario:
                raise ValueError(f"model.json of run {manifest.run_id} is of scenario {made.scenario!r}")
            if adapter is None:
                raise ValueError(f"the adapter of run {manifest.run_id} has no files")
            copy_adapter(made, adapter, work / ADAPTER_DIR)
            before = read_before(adapter.parent)
            if before is not None:
                write_new(work / BEFORE_FILE, encode_before(before), mode=FILE_MODE)
            if data_manifest is not None:
                copy_data_manifest(made, data_manifest, work / DATA_FILE)
        text = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"))
        write_new(work / MANIFEST_FILE, text, mode=FILE_MODE)
        sync_directory(work)

    def read(self, model: Model) -> bytes:
        """The model file of a registered model, once its other files were found whole too.

        `ApplyFailed` where one is missing, changed or a symlink.
        """
        path = self.directory(model.scenario, model.version) / MODEL_FILE
        try:
            refuse_links(path.parent, below=self._data)
            content = read_file(path, limit=MODEL_LIMIT)
        except (OSError, ValueError) as error:
            raise ApplyFailed(
                f"model {model.model_id} (version {model.version} of {model.scenario}) cannot be read: {error}; "
                "restore its directory from a backup or apply another version"
            ) from error
        if hashlib.sha256(content).hexdigest() != model.sha256:
            raise ApplyFailed(
                f"{path} was changed since model {model.model_id} was registered (its SHA-256 differs); "
                "restore it from a backup or apply another version"
            )
        if model.kind == "lora":
            try:
                check_adapter(adapters.decode(content), path.parent / ADAPTER_DIR)
            except (OSError, ValueError) as error:
                raise ApplyFailed(
                    f"the adapter of model {model.model_id} (version {model.version} of {model.scenario}) is not what "
                    f"was registered: {error}; restore its directory from a backup or apply another version"
                ) from error
        return content

    def remove(self, scenario: str, versions: Iterable[int]) -> None:
        """Remove the directories of these versions, where they are; their rows stay."""
        folder = self.directory(scenario, 0).parent
        removed = sorted(set(versions).intersection(self.present(scenario)))
        for version in removed:
            _remove(folder / str(version))
        if removed:
            sync_directory(folder)
            log.info("model_directories_removed", scenario=scenario, versions=removed)

    def present(self, scenario: str) -> list[int]:
        """Versions that have a directory, whether or not a row knows of them."""
        folder = self.directory(scenario, 0).parent
        if not folder.is_dir():
            return []
        try:
            refuse_links(folder, below=self._data)
        except OSError as error:
            # What lies behind it is somebody else's: nothing of ours is there to be removed.
            log.warning("models_behind_a_link", scenario=scenario, error=str(error))
            return []
        return sorted(int(each.name) for each in folder.iterdir() if re.fullmatch(r"[1-9]\d{0,17}", each.name))

    def clear_temporary(self) -> None:
        """Drop what interrupted writes left. Only at start, before any run."""
        shutil.rmtree(self._tmp, ignore_errors=True)


def read_adapter(model: Model) -> AdapterModel:
    """What model.json says of a registered adapter, unchecked. Raises OSError, ValueError."""
    return adapters.decode(read_file(adapters.adapter_directory(model).parent / MODEL_FILE, limit=MODEL_LIMIT))


def _decode(kind: str, content: bytes) -> OfflineModel | AdapterModel:
    return adapters.decode(content) if kind == "lora" else offline_model.decode(content)


def _remove(directory: Path) -> None:
    """A version's directory; of a link in its place only the link, not what it leads to."""
    if directory.is_symlink():
        directory.unlink()
    else:
        shutil.rmtree(directory)
