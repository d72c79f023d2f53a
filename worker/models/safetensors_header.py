"""What a safetensors file holds, by its header: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from worker.models.tensor_files import FORMS, Tensor, open_file, size_of

#: Longest header, in bytes; one of 100,000 tensors has 10 MB.
_MOST_HEADER = 16_000_000
_METADATA = "__metadata__"
_LENGTH = 8  # bytes of the header's own length


class _Entry(Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Its tensors by name; ValueError where the file is none, or is not of what its header says; OSError."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH), "little")
        if size < _LENGTH or not 0 < length <= min(size - _LENGTH, _MOST_HEADER):
            raise ValueError(f"{path.name} is no safetensors file, or it was cut off")
        header = file.read(length)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop(_METADATA, None)
        named = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no safetensors file: {error}") from error
    begins, end = _LENGTH + length, 0
    tensors = {}
    for name, entry in sorted(named.items(), key=lambda one: one[1].data_offsets):
        tensor = Tensor(entry.dtype, tuple(entry.shape), begins + end)
        first, last = entry.data_offsets
        if first != end or last < first or min(entry.shape, default=0) < 0:
            raise ValueError(f"{path.name} is damaged: {name} is not where the tensor before it ends")
        if entry.dtype in FORMS and size_of(tensor) != last - first:
            raise ValueError(f"{path.name} is damaged: {name} is not as long as its shape says")
        tensors[name] = tensor
        end = last
    if begins + end != size:
        raise ValueError(f"{path.name} is damaged: it has {size} bytes, and its header says {begins + end}")
    return tensors
