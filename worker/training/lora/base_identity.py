"""Which base it is, by all that makes it answer as it does: an adapter is of use on that one alone. No torch."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from threading import Lock
from typing import Final, TypeAlias

from worker.errors import ApplyFailed
from worker.training.lora.base_shapes import base_on_this_machine

#: What makes it answer as it does, of which a note beside it is no part.
_SPEAKING: Final = (
    "config.json", "generation_config.json", "*.safetensors", "tokenizer*.json", "vocab.*", "merges.txt", "*.model",
    "added_tokens.json", "special_tokens_map.json", "chat_template.json", "*.jinja",
)  # fmt: skip

#: Path, size in bytes, times of the last change of content and of anything in ns, and inode of each file.
_Signature: TypeAlias = tuple[tuple[str, int, int, int, int], ...]


def sha256_of_base(base: Path) -> str:
    """SHA-256 (hex) of a GGUF file, or of a directory: with another tokenizer or chat template it is another base.

    Of a directory that of the lines that `sha256sum` writes of these files, by name. Raises OSError.
    """
    if base.is_file():
        return _digest(base)
    return hashlib.sha256("".join(f"{_digest(file)}  {file.name}\n" for file in _files(base)).encode()).hexdigest()


class ConfiguredBase:
    """The base that SWARM_LORA_BASE_MODEL names. It is read again only where a file of it has changed."""

    def __init__(self, name: str) -> None:
        """`name`: a path, or a hub id."""
        self._name = name
        self._turn = Lock()
        self._known: tuple[_Signature, str] | None = None
        self._was_here = base_on_this_machine(name) is not None

    def sha256(self) -> str | None:
        """As `sha256_of_base`; None where it never was on this machine, as where a launcher trains on another.

        Blocking: it reads gigabytes. Raises `ApplyFailed` where it cannot be read, or is gone: a disk that is not
        mounted must not let an adapter of another base through.
        """
        with self._turn:
            base = base_on_this_machine(self._name)
            if base is None and not self._was_here:
                return None
            try:
                if base is None:
                    raise FileNotFoundError(errno.ENOENT, "it was here, and is gone", self._name)
                self._was_here = True
                signature = _signature(base)
                if self._known is None or self._known[0] != signature:
                    self._known = signature, sha256_of_base(base)
            except OSError as error:
                raise ApplyFailed(
                    f"SWARM_LORA_BASE_MODEL: {base or self._name} cannot be read: {error}; so nothing "
                    "shows that an adapter is of this base"
                ) from error
            return self._known[1]


def _files(base: Path) -> list[Path]:
    return sorted({file for pattern in _SPEAKING for file in base.glob(pattern)})


def _signature(base: Path) -> _Signature:
    found = [(file, file.stat()) for file in ([base] if base.is_file() else _files(base))]
    return tuple((str(file), of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_ino) for file, of in found)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
