"""What a GGUF file holds, by its header (ggml's docs/gguf.md).

Read without the `gguf` package: that comes with the trainer's extra, and says of a broken file what it happens to say.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from worker.models.tensor_files import FORMS, Tensor, open_file, size_of

Value: TypeAlias = str | int | float | bool

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ARCHITECTURE = "general.architecture"
_ALIGNMENT = 32  # where the file does not say
_MOST_ALIGNMENT = 65_536
#: More of either, or longer ones, are not read: no file has them, but a damaged one may say so.
_MOST_ENTRIES, _MOST_TENSORS, _MOST_ELEMENTS = 65_536, 65_536, 4_000_000
_MOST_TEXT, _MOST_SKIPPED = 65_536, 1 << 40
_MOST_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
#: How a value is packed, by its type in the file.
_PACKED = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
#: Types of tensors that adapters are written in, by their numbers in the file.
_TYPES = {0: "F32", 1: "F16", 8: "Q8_0", 28: "F64", 30: "BF16"}
#: Bytes of 256 numbers of IQ1_S, the tightest of its types.
_TIGHTEST = 50


@dataclass(frozen=True, slots=True)
class Gguf:
    """Of a list only that it is there is known; so of a long text."""

    fields: dict[str, Value | None]
    tensors: dict[str, Tensor]


def is_gguf(path: Path) -> bool:
    """Whether the file begins as one does. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def architecture_of(path: Path) -> str:
    """`llama`, `qwen2`, ...; ValueError where the file is no GGUF file or does not say, OSError."""
    with open_file(path) as file:
        _, entries = _beginning(file, path)
        for key, value in _entries(file, entries):
            if key == _ARCHITECTURE and isinstance(value, str):
                return value
    raise ValueError(f"{path} does not say which architecture it is of")


def read_gguf(path: Path, *, whole: bool = True) -> Gguf:
    """Its fields and tensors; ValueError where it is no GGUF file, or is not of what it says; OSError.

    `whole`: each tensor must lie where llama.cpp looks for it; of a base, whose types are more than we know, only that
    the file is long enough is looked at.
    """
    with open_file(path) as file:
        number, entries = _beginning(file, path)
        fields: dict[str, Value | None] = {}
        for key, value in _entries(file, entries):
            if key in fields:
                raise ValueError(f"{path.name} says {key} twice")
            fields[key] = value
        offsets = _tensors(file, number)
        header, size = file.tell(), os.fstat(file.fileno()).st_size
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT:
        raise ValueError(f"{path.name} is damaged: its alignment is {alignment}")
    begins, end, tensors = _padded(header, alignment), 0, {}
    if not whole:
        least = begins + max((offset + _least(tensor) for tensor, offset in offsets.values()), default=0)
        if size < least:
            raise ValueError(f"{path.name} was cut off: it has {size} bytes, and by its header {least} or more")
        return Gguf(fields, {name: tensor for name, (tensor, _) in offsets.items()})
    for name, (tensor, offset) in offsets.items():
        if offset != end:
            raise ValueError(f"{path.name} is damaged: {name} is not where the tensor before it ends")
        tensors[name] = Tensor(tensor.type, tensor.shape, begins + offset)
        last = end + size_of(tensor)
        if begins + last > size:
            raise ValueError(f"{path.name} was cut off: it ends within {name}")
        end = _padded(last, alignment)
    return Gguf(fields, tensors)


def _beginning(file: BinaryIO, path: Path) -> tuple[int, int]:
    """How many tensors there are, and how many fields."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError(f"{path} is no GGUF file")
    version, tensors, entries = struct.unpack("<IQQ", _read(file, 20))
    if version not in _VERSIONS:
        raise ValueError(f"{path} is of GGUF's version {version}; {' and '.join(map(str, _VERSIONS))} are read")
    return tensors, entries


def _entries(file: BinaryIO, number: int) -> Iterator[tuple[str, Value | None]]:
    if number > _MOST_ENTRIES:
        raise ValueError(f"its header says that it has {number} fields; the file is damaged")
    for _ in range(number):
        key = _text(file)
        if key is None:
            raise ValueError("a name of its header is longer than any would be; the file is damaged")
        yield key, _value(file, _number(file, "<I"))


def _value(file: BinaryIO, kind: int) -> Value | None:
    if kind == _STRING:
        return _text(file)
    if kind in _PACKED:
        packed = _PACKED[kind]
        value: Value = struct.unpack(packed, _read(file, struct.calcsize(packed)))[0]
        return value
    if kind != _ARRAY:
        raise ValueError(f"its header has a value of the unknown type {kind}; the file is damaged")
    element, length = _number(file, "<I"), _number(file, "<Q")
    if length > _MOST_ELEMENTS or (element != _STRING and element not in _PACKED):
        raise ValueError(f"its header has a list of {length} values of type {element}; the file is damaged")
    if element == _STRING:
        for _ in range(length):
            _skip(file, _number(file, "<Q"))
    else:
        _skip(file, struct.calcsize(_PACKED[element]) * length)
    return None


def _tensors(file: BinaryIO, number: int) -> dict[str, tuple[Tensor, int]]:
    """By their names, with the offset of their numbers, which is not looked at."""
    if number > _MOST_TENSORS:
        raise ValueError(f"its header says that it holds {number} tensors; the file is damaged")
    found: dict[str, tuple[Tensor, int]] = {}
    for _ in range(number):
        name, dimensions = _text(file), _number(file, "<I")
        if name is None or name in found or not 0 < dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"{name} comes twice or has {dimensions} dimensions; the file is damaged")
        shape = struct.unpack(f"<{dimensions}Q", _read(file, 8 * dimensions))
        kind = _number(file, "<I")
        found[name] = (Tensor(_TYPES.get(kind, f"number {kind}"), shape, 0), _number(file, "<Q"))
    return found


def _least(tensor: Tensor) -> int:
    """Bytes that it has at least; of a type that we do not know, those of the tightest there is."""
    return size_of(tensor) if tensor.type in FORMS else math.prod(tensor.shape) * _TIGHTEST // 256


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _text(file: BinaryIO) -> str | None:
    """None of a long one."""
    length = _number(file, "<Q")
    if length > _MOST_TEXT:
        _skip(file, length)
        return None
    return _read(file, length).decode("utf-8", "replace")


def _skip(file: BinaryIO, length: int) -> None:
    if length > _MOST_SKIPPED:
        raise ValueError("a part of its header is longer than any file; it is damaged")
    file.seek(length, os.SEEK_CUR)  # where that is beyond the end, the next read finds nothing


def _number(file: BinaryIO, packed: str) -> int:
    return int(struct.unpack(packed, _read(file, struct.calcsize(packed)))[0])


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ValueError("the file ends within its header")
    return data
