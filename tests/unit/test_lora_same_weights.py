"""The GGUF file of an adapter is held against the weights that were trained, and judged by the gate."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from worker.models.tensor_files import Tensor
from worker.training.lora.same_weights import check_same_weights

Matrix = list[list[float]]  # rows
Weights = dict[str, tuple[Matrix, Matrix]]

_RANK, _SIZE = 32, 64
_PARTS = {"self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down"}


def _matrix(chance: random.Random, rows: int, columns: int, strength: float) -> Matrix:
    return [[chance.uniform(-strength, strength) for _ in range(columns)] for _ in range(rows)]


def adapter(seed: int = 1) -> Weights:
    """A and B of two modules in two layers, B as small as a short training leaves it."""
    chance = random.Random(seed)
    return {
        f"model.layers.{layer}.{part}": (_matrix(chance, _RANK, _SIZE, 0.1), _matrix(chance, _SIZE, _RANK, 1e-4))
        for layer in range(2)
        for part in _PARTS
    }


def named(weights: Weights) -> Weights:
    """By llama.cpp's names."""
    return {
        f"blk.{layer}.{_PARTS[part]}.weight": pair
        for (layer, part), pair in ((name.split(".", 3)[2:], pair) for name, pair in weights.items())
    }


def _float32(numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def _bfloat16(numbers: Sequence[float]) -> bytes:
    wide = _float32(numbers)
    return b"".join(wide[at + 2 : at + 4] for at in range(0, len(wide), 4))


def _q8_0(numbers: Sequence[float]) -> bytes:
    blocks = []
    for at in range(0, len(numbers), 32):
        block = numbers[at : at + 32]
        factor = max(map(abs, block)) / 127 or 1.0
        blocks.append(struct.pack("<e32b", factor, *(max(-127, min(127, round(each / factor))) for each in block)))
    return b"".join(blocks)


_PACK: dict[str, Callable[[Sequence[float]], bytes]] = {
    "F64": lambda numbers: struct.pack(f"<{len(numbers)}d", *numbers),
    "F32": _float32,
    "F16": lambda numbers: struct.pack(f"<{len(numbers)}e", *numbers),
    "BF16": _bfloat16,
    "Q8_0": _q8_0,
}


def written(
    path: Path, weights: Weights, *, packed: str = "F32", columns_first: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """The numbers alone in a file: no header is read here."""
    pairs, data = {}, b""
    for name, pair in weights.items():
        tensors = []
        for matrix in pair:
            shape = (len(matrix), len(matrix[0]))
            tensors.append(Tensor(packed, shape[::-1] if columns_first else shape, len(data)))
            data += _PACK[packed]([each for row in matrix for each in row])
        pairs[name] = (tensors[0], tensors[1])
    path.write_bytes(data)
    return pairs


def check(place: Path, served: Weights, *, trained: Weights | None = None, packed: str = "F32") -> None:
    """Hold them against each other, `served` as llama.cpp names it."""
    peft, gguf = place / "adapter_model.safetensors", place / "adapter.gguf"
    ours = written(peft, adapter() if trained is None else trained, columns_first=False)
    check_same_weights(peft, ours, gguf, written(gguf, served, packed=packed, columns_first=True))


@pytest.mark.parametrize("packed", _PACK)
def test_what_was_trained_is_taken_in_each_type_that_adapters_are_written_in(tmp_path: Path, packed: str) -> None:
    check(tmp_path, named(adapter()), packed=packed)


def test_the_rows_of_b_may_be_in_another_order(tmp_path: Path) -> None:
    """Those of q and k are, where an architecture lays its rotary halves otherwise."""
    served = named(adapter())
    a, b = served["blk.1.attn_q.weight"]
    check(tmp_path, {**served, "blk.1.attn_q.weight": (a, b[::2] + b[1::2])})


def _negated(weights: Weights) -> Weights:
    return {name: (a, [[-each for each in row] for row in b]) for name, (a, b) in weights.items()}


def _zeros(weights: Weights) -> Weights:
    return {name: (a, [[0.0] * _RANK for _ in b]) for name, (a, b) in weights.items()}


def _exchanged(weights: Weights) -> Weights:
    return {name.translate(str.maketrans("01", "10")): pair for name, pair in weights.items()}


def _first_layer(weights: Weights) -> Weights:
    return {name: pair for name, pair in weights.items() if name.startswith("blk.0.")}


def _half_the_rows(weights: Weights) -> Weights:
    return {name: (a, b[: _SIZE // 2] + [[0.0] * _RANK] * (_SIZE // 2)) for name, (a, b) in weights.items()}


@pytest.mark.parametrize("packed", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (_negated, "has another blk.0.attn_q.weight than adapter_model.safetensors"),
        (_exchanged, "has another blk.0"),
        (_first_layer, "has nothing where blk.1.attn_q.weight and 1 more was trained"),
        (_half_the_rows, "has another blk.0"),
        (lambda _: named(adapter(2)), "has another blk.0"),
    ],
    ids=["negated", "layers exchanged", "a layer left out", "rows left out", "an earlier adapter"],
)  # fmt: skip
def test_what_was_not_trained_is_refused(
    tmp_path: Path, changed: Callable[[Weights], Weights], why: str, packed: str
) -> None:
    """Of the right rank, alpha and shapes, it went live with the verdict upon what was trained."""
    with pytest.raises(ValueError, match=rf"^adapter\.gguf {why}.*SWARM_LORA_CONVERTER"):
        check(tmp_path, changed(named(adapter())), packed=packed)


def test_a_b_of_zeros_is_refused_unless_none_other_was_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SWARM_LORA_CONVERTER"):
        check(tmp_path, _zeros(named(adapter())))
    check(tmp_path, _zeros(named(adapter())), trained=_zeros(adapter()))


def _renamed(weights: Weights, names: Mapping[str, str]) -> Weights:
    renamed = {}
    for name, pair in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901
        renamed[name] = pair
    return renamed


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"layers": "h", "self_attn": "attn", "mlp.down_proj": "attn.out_proj"}, {"ffn_down": "attn_output"}),
        ({}, {"attn_q": "time_mix_receptance", "ffn_down": "channel_mix_value"}),
    ],
    ids=["modules", "weights"],
)
def test_names_of_another_architecture_are_compared_by_their_number(
    tmp_path: Path, ours: dict[str, str], theirs: dict[str, str]
) -> None:
    trained, served = _renamed(adapter(), ours), _renamed(named(adapter()), theirs)
    check(tmp_path, served, trained=trained)
    served.popitem()
    with pytest.raises(ValueError, match=r"was trained; .*SWARM_LORA_CONVERTER"):
        check(tmp_path, served, trained=trained)


def test_of_two_parts_of_a_model_with_layers_of_the_same_names_one_is_served(tmp_path: Path) -> None:
    vision = _renamed(adapter(3), {"model.": "vision_tower."})
    check(tmp_path, named(adapter()), trained={**vision, **adapter()})
    with pytest.raises(ValueError, match="has another"):
        check(tmp_path, named(adapter(4)), trained={**vision, **adapter()})
