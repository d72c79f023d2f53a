"""What a GGUF file says of its architecture, read without the `gguf` package: that comes with the trainer's extra."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"GGUF"
_ARCHITECTURE = b"general.architecture"
#: The specification wants the key, and every writer puts it first or nearly so.
_MOST_ENTRIES = 64
_MOST_TEXT = 65_536
_STRING, _ARRAY = 8, 9
#: Bytes of a value, by its type in the file.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def is_gguf(path: Path) -> bool:
    """Whether the file begins as one does. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def architecture_of(path: Path) -> str:
    """`llama`, `qwen2`, ...; ValueError where the file is no GGUF file or does not say, OSError."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path} is no GGUF file")
        _version, _tensors, entries = _read(file, "<IQQ")
        for _ in range(min(entries, _MOST_ENTRIES)):
            key = _text(file)
            (kind,) = _read(file, "<I")
            if key == _ARCHITECTURE and kind == _STRING:
                return _text(file).decode("utf-8", "replace")
            _skip(file, kind)
    raise ValueError(f"{path} does not say which architecture it is of")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _text(file)
    elif kind == _ARRAY:
        element, length = _read(file, "<IQ")
        if element not in _SIZES:
            raise ValueError("a list of texts stands before general.architecture")
        file.seek(_SIZES[element] * length, 1)
    elif kind in _SIZES:
        file.seek(_SIZES[kind], 1)
    else:
        raise ValueError(f"a value of the unknown type {kind} stands before general.architecture")


def _text(file: BinaryIO) -> bytes:
    (length,) = _read(file, "<Q")
    if length > _MOST_TEXT:
        raise ValueError("a text of its header is longer than any would be; the file is damaged")
    data = file.read(length)
    if len(data) < length:
        raise ValueError("the file ends within its header")
    return data


def _read(file: BinaryIO, form: str) -> tuple[int, ...]:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise ValueError("the file ends within its header")
    return struct.unpack(form, data)
