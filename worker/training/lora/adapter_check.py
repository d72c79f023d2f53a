"""Holds the adapter that a training left against what it says of itself and against its base, before it is registered.

Whoever trained it: our own process, or a script of the operator's that may leave anything. Headers and numbers are read
in the worker, without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from worker.durable import read_file
from worker.models.adapter import GGUF_FILE, PEFT_DIR, AdapterModel, decode
from worker.models.adapter_files import require_files
from worker.models.gguf_header import read_gguf
from worker.models.safetensors_header import read_safetensors
from worker.models.tensor_files import Tensor, refuse_infinite, size_of
from worker.training.lora.base_shapes import BaseShapes, in_a_layer
from worker.training.lora.gguf_base import GgufBase, gguf_base
from worker.training.lora.same_weights import MAKERS_CURE, Pairs, check_same_weights

CONFIG_FILE: Final = f"{PEFT_DIR}/adapter_config.json"
WEIGHTS_FILE: Final = f"{PEFT_DIR}/adapter_model.safetensors"
_WEIGHTS = frozenset({WEIGHTS_FILE, GGUF_FILE})
_CONFIG_LIMIT = 1_000_000
#: Options of PEFT that change what an adapter computes and have no place in a GGUF file: it has one alpha, and
#: llama.cpp divides it by the rank. Some of them change the base itself.
_NOT_TO_BE_SERVED: Final = (
    "use_dora", "use_rslora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern", "modules_to_save",
    "lora_bias", "fan_in_fan_out", "trainable_token_indices", "target_parameters", "layer_replication",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
#: Ways to begin that move a part of the base into the adapter, so that it fits no other copy of the base.
_BEGINNINGS_THAT_CHANGE_THE_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class AdapterCheck:
    """What adapters of one run are held against: their base, as far as it lies on this machine."""

    base: Path | None  # a directory or a GGUF file; None where it was trained elsewhere
    serving: Path | None  # the GGUF file that llama.cpp serves

    def __call__(self, content: bytes, adapter: Path) -> None:
        """Look at the files below `adapter` that the document `content` names.

        Raises ValueError where they must not be registered, `ConfigurationError` where the base can't be read; OSError.
        """
        document = decode(content)
        names = {file.path for file in document.files}
        for name in sorted(names):
            if Path(name).suffix in (".safetensors", ".gguf") and name not in _WEIGHTS:
                raise ValueError(f"{name} is no file of an adapter; its weights are {' and '.join(sorted(_WEIGHTS))}")
        require_files(names, CONFIG_FILE, WEIGHTS_FILE)
        _check_config(read_file(adapter / CONFIG_FILE, limit=_CONFIG_LIMIT), document)
        shapes = BaseShapes.of(self.base) if self.base is not None else BaseShapes.of(self.serving)
        trained = check_peft(adapter / WEIGHTS_FILE, document, shapes)
        if GGUF_FILE in names:
            there = self.base or self.serving
            base = None if there is None else gguf_base(there, self.serving)
            served = check_gguf(adapter / GGUF_FILE, base, alpha=document.alpha, rank=document.rank)
            check_same_weights(adapter / WEIGHTS_FILE, trained, adapter / GGUF_FILE, served)


def _check_config(data: bytes, document: AdapterModel) -> None:
    try:
        config = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{CONFIG_FILE} is not what PEFT writes: {error}") from error
    refuse_what_cannot_be_served(config)
    for key, value in (("r", document.rank), ("lora_alpha", document.alpha)):
        if config.get(key) != value:
            raise ValueError(f"{CONFIG_FILE} says {key} = {config.get(key)}, model.json {value}")


def refuse_what_cannot_be_served(config: Mapping[str, Any]) -> None:
    """ValueError where `adapter_config.json` says what a GGUF file cannot."""
    found = [name for name in _NOT_TO_BE_SERVED if config.get(name)]
    beginning = str(config.get("init_lora_weights") or "")
    found += [beginning for name in _BEGINNINGS_THAT_CHANGE_THE_BASE if beginning.startswith(name)]
    if config.get("bias", "none") != "none":
        found.append("bias")
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {config.get('peft_type')}")
    if found:
        raise ValueError(
            f"SWARM_LORA_TRAIN_SCRIPT: the adapter uses {', '.join(found)}, which no GGUF file can say; train without"
        )


def check_peft(path: Path, document: AdapterModel, base: BaseShapes) -> Pairs:
    """The pairs by the modules that they change.

    ValueError where the weights are not pairs of the rank that the document names, on layers of the base.
    """
    tensors = read_safetensors(path)
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        _check_type(key, tensor)
        found = _KEY.fullmatch(key)
        if found is None or not in_a_layer(found["module"]):
            raise ValueError(
                f"{path.name} changes {key}: that is no linear layer of attention or MLP, so no server can"
            )
        sides.setdefault(found["module"], {})[found["side"]] = tensor
    named, changed = sorted(document.target_modules), sorted({module.rpartition(".")[2] for module in sides})
    if named != changed:
        raise ValueError(f"{path.name} changes {', '.join(changed) or 'nothing'}; model.json says {', '.join(named)}")
    pairs = {module: _pair(module, both.get("A"), both.get("B")) for module, both in sides.items()}
    for module, (a, b) in pairs.items():
        # PyTorch names rows first: A is rank x columns, B rows x rank.
        (rank, columns), (rows, rank_of_b) = a.shape, b.shape
        _check_rank(module, rank, rank_of_b, document.rank)
        base.check(module, rows, columns)
    refuse_infinite(path, tensors.items())
    return pairs


def check_gguf(path: Path, base: GgufBase | None, *, alpha: float, rank: int) -> Pairs:
    """The pairs by the weights that they change.

    ValueError where a server would not take the file, or would compute something else with it.
    What llama.cpp checks when it loads one (src/llama-adapter.cpp), and what it does not: alpha, rank, finite values.
    """
    try:
        said = read_gguf(path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}; {MAKERS_CURE}") from error
    expected = {"general.type": "adapter", "adapter.type": "lora"}
    if base is not None and base.shapes is not None:  # else its name is that of transformers, which may be another
        expected["general.architecture"] = base.architecture
    for key, value in expected.items():
        if said.fields.get(key) != value:
            raise ValueError(
                f"{path.name} says {key} = {said.fields.get(key)}, {'a server' if base is None else base.name} needs "
                f"{value}; SWARM_LORA_BASE_MODEL and SWARM_LORA_SERVING_BASE must be one model"
            )
    found = said.fields.get("adapter.lora.alpha")
    if not isinstance(found, float) or not abs(found - alpha) <= 1e-3 * alpha:
        raise ValueError(f"{path.name}: its alpha is {found}, not {alpha}")
    weights = sorted({name.rsplit(".lora_", 1)[0] for name in said.tensors})
    if not weights:
        raise ValueError(f"{path.name} changes nothing")
    for name, tensor in said.tensors.items():
        _check_type(name, tensor)
    pairs = {weight: _pair(weight, *(said.tensors.get(f"{weight}.lora_{side}") for side in "ab")) for weight in weights}
    for weight, (a, b) in pairs.items():
        # GGUF names columns first.
        (columns, rank_of_a), (rank_of_b, rows) = a.shape, b.shape
        _check_rank(weight, rank_of_a, rank_of_b, rank)
        if base is not None and base.shapes is not None:
            _check_shape(weight, rows, columns, base)
    refuse_infinite(path, said.tensors.items())
    return pairs


def _check_type(name: str, tensor: Tensor) -> None:
    try:
        size_of(tensor)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _pair(weight: str, first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor]:
    if first is None or second is None:
        raise ValueError(f"{weight} has one of its two matrices only")
    if not len(first.shape) == len(second.shape) == 2:  # noqa: PLR2004
        raise ValueError(f"{weight} has no two matrices of two dimensions")
    return first, second


def _check_rank(weight: str, first: int, second: int, rank: int) -> None:
    if not first == second == rank >= 1:
        raise ValueError(f"{weight} has rank {first} and {second}, not {rank}")


def _check_shape(weight: str, rows: int, columns: int, base: GgufBase) -> None:
    fits = None if base.shapes is None else base.shapes.get(weight)
    if fits != (rows, columns):
        has = "has none" if fits is None else f"has {fits[0]} x {fits[1]}"
        raise ValueError(
            f"the adapter changes a {weight} of {rows} x {columns}, {base.name} {has}; "
            "SWARM_LORA_BASE_MODEL and SWARM_LORA_SERVING_BASE must be one model"
        )
