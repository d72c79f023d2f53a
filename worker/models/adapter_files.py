"""The files of an adapter, on their way into the registry and each time they are handed out: whole, or refused.

Only what `model.json` names is taken, and nothing that could run code when it is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from worker import crash
from worker.durable import make_private_directory, refuse_links, sync_directory
from worker.models.adapter import PEFT_DIR, AdapterFile, AdapterModel

#: Weights as safetensors or GGUF, and text; a pickle (.bin, .pt) runs what it holds.
_ALLOWED = frozenset({".safetensors", ".gguf", ".json", ".txt", ".jinja", ".md"})
_WEIGHTS = f"{PEFT_DIR}/adapter_model.safetensors"
_CHUNK = 1 << 20
#: An inference server may run as another user: of the worker's group, where somebody opened `models` itself to that.
DIRECTORY_MODE, FILE_MODE = 0o750, 0o640
#: Not blocking: opening a named pipe would wait for somebody who writes to it, for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_adapter(adapter: AdapterModel, source: Path, target: Path) -> None:
    """Copy the files of `adapter` from below `source` to below `target` (made here), durably and checked on the way.

    Raises ValueError where a file is not what the document says, or must not be in an adapter; OSError.
    """
    names = {file.path for file in adapter.files}
    require_files(names, _WEIGHTS)
    if len(names) != len(adapter.files):
        raise ValueError("model.json names a file of the adapter twice")
    for file in adapter.files:
        if PurePosixPath(file.path).suffix not in _ALLOWED:
            raise ValueError(f"{file.path} must not be in an adapter; only {', '.join(sorted(_ALLOWED))} are taken")
    make_private_directory(target, mode=DIRECTORY_MODE)
    for file in adapter.files:
        place = target / file.path
        place.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        _copy(file, source, place)
        crash.point("adapter_copied")
    for folder in {parent for file in adapter.files for parent in (target / file.path).parents}:
        if folder == target or target in folder.parents:
            sync_directory(folder)


def require_files(names: Collection[str], *needed: str) -> None:
    """ValueError where an adapter of files of these names lacks one that is needed."""
    for name in needed:
        if name not in names:
            raise ValueError(f"the adapter has no {name}, which every server's form is made of")


def copy_data_manifest(adapter: AdapterModel, source: Path, target: Path) -> None:
    """Copy the manifest of the training data, durably. ValueError where it is not the one that the document names."""
    _, sha256 = _read(source, os.open(target, _CREATE, FILE_MODE))
    if sha256 != adapter.data_sha256:
        raise ValueError(f"{source} is not the manifest of the data that model.json names: its SHA-256 differs")


def check_adapter(adapter: AdapterModel, directory: Path) -> None:
    """ValueError or OSError where a file below `directory` is missing, no file, or not what the document says."""
    for file in adapter.files:
        refuse_links((directory / file.path).parent, below=directory.parent)
        _check(file, directory / file.path, *_read(directory / file.path))


def marks_of(adapter: AdapterModel, directory: Path) -> list[tuple[int, ...]]:
    """What differs once a file below `directory` was written or replaced, without reading it. OSError."""
    found = [(directory / file.path).lstat() for file in adapter.files]
    return [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]


def _copy(file: AdapterFile, source: Path, target: Path) -> None:
    refuse_links((source / file.path).parent, below=source)
    descriptor = os.open(target, _CREATE, FILE_MODE)
    size, digest = _read(source / file.path, descriptor)
    _check(file, source / file.path, size, digest)


def _read(path: Path, copy: int | None = None) -> tuple[int, str]:
    """Size and SHA-256 of a regular file; where `copy` is a descriptor, its bytes go there, to the disk itself."""
    sha256, size = hashlib.sha256(), 0
    try:
        with open(path, "rb", opener=_open_regular) as reader:
            while chunk := reader.read(_CHUNK):
                sha256.update(chunk)
                size += len(chunk)
                if copy is not None:
                    _write_all(copy, chunk)
        if copy is not None:
            os.fsync(copy)
    finally:
        if copy is not None:
            os.close(copy)
    return size, sha256.hexdigest()


def _open_regular(path: str, _: int) -> int:
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is no regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return descriptor


def _write_all(descriptor: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def _check(file: AdapterFile, path: Path, size: int, sha256: str) -> None:
    if (size, sha256) != (file.size, file.sha256):
        raise ValueError(f"{path} is not the file that model.json names: its size or its SHA-256 differs")
