"""Whether an adapter's GGUF file has the weights that were trained: the gate judged PEFT's, and llama.cpp serves these.

Who makes it may leave a layer out, exchange two, or hand back an earlier adapter, all of the right rank and alpha.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import sub
from pathlib import Path
from typing import Final, TypeAlias

from worker.models.tensor_files import Tensor, read_numbers
from worker.training.lora.base_shapes import name_in_gguf, place_of_gguf

#: A and B of each weight, by its name. Their numbers lie alike in both forms.
Pairs: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]

#: Of the greatest number of a matrix: half the width rounds by 1/256 of each, Q8_0 by 1/254 of the greatest of 32.
_ROUNDED: Final = 0.01
#: What is lost of small numbers: F16 has steps of 2^-24 there, and of Q8_0 a factor of up to 127 numbers has.
_LOST: Final = {"Q8_0": 127 * 2.0**-24}
_LOST_ELSE: Final = 2.0**-24
#: Said of a GGUF file that is not the adapter of its training.
MAKERS_CURE: Final = (
    "look at what makes it: SWARM_LORA_CONVERTER, or a SWARM_LORA_TRAIN_SCRIPT that does; it must convert all of the "
    "adapter of this training"
)


def check_same_weights(peft: Path, trained: Pairs, gguf: Path, served: Pairs) -> None:
    """ValueError where the file `gguf` lacks a pair that was trained, has another, or has other numbers; OSError.

    Architectures whose names differ from llama's are compared by how many pairs they have.
    """
    by_name: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for module, pair in trained.items():
        # Two parts of a model may have layers of the same names; one of them is served.
        by_name.setdefault(name_in_gguf(module), []).append(pair)
    lacking, extra = sorted(by_name.keys() - served.keys()), sorted(served.keys() - by_name.keys())
    of_llama = [any(map(place_of_gguf, names)) for names in (lacking, extra)]
    if len(lacking) != len(extra) or all(of_llama):
        raise ValueError(f"{gguf.name} has {_some(extra)} where {_some(lacking)} was trained; {MAKERS_CURE}")
    for name in sorted(by_name.keys() & served.keys()):
        if not any(_alike(peft, pair, gguf, served[name]) for pair in by_name[name]):
            raise ValueError(f"{gguf.name} has another {name} than {peft.name}, which was trained; {MAKERS_CURE}")


def _alike(peft: Path, trained: tuple[Tensor, Tensor], gguf: Path, served: tuple[Tensor, Tensor]) -> bool:
    """Whether both have the same numbers in each rank, but for rounding; 0.2 us for each."""
    for side, (ours, theirs) in enumerate(zip(trained, served, strict=True)):
        if ours.shape != theirs.shape[::-1]:  # GGUF names the columns first
            return False
        wanted, found = read_numbers(peft, ours), read_numbers(gguf, theirs)
        within = _LOST.get(theirs.type, _LOST_ELSE) + _ROUNDED * max(map(abs, wanted), default=0.0)
        rank, each = ours.shape[side], ours.shape[1 - side]
        for index in range(rank):
            of_rank = slice(index, None, rank) if side else slice(index * each, (index + 1) * each)
            one, other = wanted[of_rank], found[of_rank]
            # The rows of q and k are in another order, by their rotary halves; in which depends on the architecture.
            if not _near(one, other, within) and not _near(sorted(one), sorted(other), within):
                return False
    return True


def _near(one: Iterable[float], other: Iterable[float], within: float) -> bool:
    return max(map(abs, map(sub, one, other)), default=0.0) <= within


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
