"""Tensors as the headers of their files name them, read without numpy or torch: those come with the trainer's extra."""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: Not blocking: opening a named pipe would wait for somebody who writes to it, for ever.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
#: Numbers that are read at once.
_AT_ONCE = 32_768
#: What the highest byte of a number is where it is none, or is infinite. Of wide ones the exponent goes on in the byte
#: below: what is refused too begins at 1.7e38, and no weight is that.
_WIDE, _HALF = (0x7F, 0xFF), (*range(0x7C, 0x80), *range(0xFC, 0x100))


@dataclass(frozen=True, slots=True)
class Form:
    """How a type's numbers lie in a file: blocks of so many bytes for so many of them, and the byte that tells."""

    size: int  # of a block, in bytes
    numbers: int  # in a block
    highest: int  # place of its highest byte, of a block of several that of their common factor
    none: tuple[int, ...]  # values of that byte in what is not finite
    packed: str  # a block as `struct` names it; BF16's once they are 32 bits


#: Those that adapters are written in; by the names of safetensors, where it has one.
FORMS = {
    "F64": Form(8, 1, 7, _WIDE, "d"),
    "F32": Form(4, 1, 3, _WIDE, "f"),
    "BF16": Form(2, 1, 1, _WIDE, "f"),
    "F16": Form(2, 1, 1, _HALF, "e"),
    "Q8_0": Form(34, 32, 1, _HALF, "e32b"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One of a file's."""

    type: str
    shape: tuple[int, ...]  # as the file has it: GGUF names the columns first
    start: int  # of its numbers, in bytes from the beginning of the file


def open_file(path: Path) -> BinaryIO:
    """A regular file, to be read; ValueError where it is none, OSError."""
    file = os.fdopen(os.open(path, _READ), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is no regular file")
    return file


def size_of(tensor: Tensor) -> int:
    """Its bytes; ValueError where no adapter is written in its type."""
    form = FORMS.get(tensor.type)
    if form is None:
        raise ValueError(f"its numbers are of type {tensor.type}; adapters are of {', '.join(FORMS)}")
    numbers = math.prod(tensor.shape)
    if numbers % form.numbers:
        raise ValueError(f"its {numbers} numbers are no whole blocks of {tensor.type}")
    return numbers // form.numbers * form.size


def read_numbers(path: Path, tensor: Tensor) -> tuple[float, ...]:
    """All of a tensor's numbers, in the file's order; ValueError where the file ends before them, OSError."""
    form = FORMS[tensor.type]
    with open_file(path) as file:
        file.seek(tensor.start)
        data = file.read(size_of(tensor))
    if len(data) < size_of(tensor):
        raise ValueError(f"{path.name} ends within its numbers")
    if form.numbers > 1:  # a factor, and what it multiplies
        return tuple(factor * each for factor, *block in struct.iter_unpack(f"<{form.packed}", data) for each in block)
    packed = f"<{math.prod(tensor.shape)}{form.packed}"
    if tensor.type != "BF16":
        return struct.unpack(packed, data)
    wide = bytearray(2 * len(data))  # it is the upper half of a 32-bit number
    wide[2::4], wide[3::4] = data[::2], data[1::2]
    return struct.unpack(packed, wide)


def refuse_infinite(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """ValueError where a number of a tensor, by its name, is none or is infinite. About a second for a gigabyte."""
    with open_file(path) as file:
        for name, tensor in tensors:
            form = FORMS[tensor.type]
            left = size_of(tensor)
            file.seek(tensor.start)
            while left:
                chunk = file.read(min(left, form.size * _AT_ONCE))
                if not chunk:
                    raise ValueError(f"{path.name} ends within {name}")
                highest = chunk[form.highest :: form.size]
                if any(byte in highest for byte in form.none):
                    raise ValueError(
                        f"{name} of {path.name} is not finite: the training went astray; lower SWARM_LORA_LEARNING_RATE"
                    )
                left -= len(chunk)
