"""An adapter as llama.cpp loads it: PEFT's files made into one GGUF file, read back and held against the base.

The recipe is llama.cpp's own (convert_lora_to_gguf.py, b11434), for its architecture `llama` alone; others do not all
permute what llama does, so they need their converter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import MODEL_ARCH, GGUFReader, GGUFWriter, dequantize, get_tensor_name_map
from safetensors.torch import load_file

from worker.errors import ConfigurationError
from worker.models.adapter import GGUF_FILE, PEFT_DIR
from worker.training.lora.converter import convert
from worker.training.lora.gguf_base import LLAMA, GgufBase, gguf_base

#: Options of PEFT that change what an adapter computes and have no place in the file: it has one alpha, and llama.cpp
#: divides it by the rank. Some of them change the base itself.
_NOT_TO_BE_SERVED: Final = (
    "use_dora", "use_rslora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern", "modules_to_save",
    "lora_bias", "fan_in_fan_out", "trainable_token_indices", "target_parameters", "layer_replication",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
#: Ways to begin that move a part of the base into the adapter, so that it fits no other copy of the base.
_BEGINNINGS_THAT_CHANGE_THE_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PREFIX = "base_model.model."
_TAILS: Final = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}


def write_gguf(
    adapter: Path,
    *,
    base: Path,
    serving: Path | None,
    converter: str | None,
    run: Callable[[str, Mapping[str, Path]], None] = convert,
) -> bool:
    """Make `adapter.gguf` in the directory `adapter` out of its `peft/`; whether there is one now.

    `base` is what was trained on, `serving` the GGUF file that llama.cpp serves. False where the base is no llama and
    no converter is configured: then the adapter can be served by others alone. Raises `ConfigurationError`.
    """
    of = gguf_base(base, serving)
    config = json.loads((adapter / PEFT_DIR / "adapter_config.json").read_bytes())
    refuse_what_cannot_be_served(config)
    made = adapter / GGUF_FILE
    if of.architecture == LLAMA:
        _convert_llama(adapter / PEFT_DIR, made, of, alpha=config["lora_alpha"])
    elif converter is None:
        return False
    else:
        run(converter, {"base": base, "adapter": adapter / PEFT_DIR, "output": made})
    check_gguf(made, of, alpha=config["lora_alpha"], rank=config["r"])
    return True


def refuse_what_cannot_be_served(config: Mapping[str, Any]) -> None:
    """`ConfigurationError` where `adapter_config.json` says what a GGUF file cannot."""
    found = [name for name in _NOT_TO_BE_SERVED if config.get(name)]
    beginning = str(config.get("init_lora_weights") or "")
    found += [beginning for name in _BEGINNINGS_THAT_CHANGE_THE_BASE if beginning.startswith(name)]
    if config.get("bias", "none") != "none":
        found.append("bias")
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {config.get('peft_type')}")
    if found:
        raise ConfigurationError(
            f"SWARM_LORA_TRAIN_SCRIPT: the adapter uses {', '.join(found)}, which no GGUF file can say; train without"
        )


def _convert_llama(peft: Path, made: Path, base: GgufBase, *, alpha: float) -> None:
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, base.layers)
    writer = GGUFWriter(made, LLAMA)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(alpha))
    weights = load_file(peft / "adapter_model.safetensors")
    for key in sorted(weights):
        module, tail = _parts(key)
        name = names.get_name(module)
        if name is None:
            raise ConfigurationError(
                f"SWARM_LORA_TARGET_MODULES: {module} has no name in a GGUF file of {base.name}, so it cannot be served"
            )
        tensor = weights[key].float().numpy()
        if tail == ".lora_b":
            tensor = _in_the_order_of_llama(tensor, name, base)
        writer.add_tensor(f"{name}.weight{tail}", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _parts(key: str) -> tuple[str, str]:
    for tail, ours in _TAILS.items():
        if key.startswith(_PREFIX) and key.endswith(tail):
            return key[len(_PREFIX) : -len(tail)], ours
    raise ConfigurationError(f"SWARM_LORA_TARGET_MODULES: {key} is of no linear layer, so it cannot be served")


def _in_the_order_of_llama(tensor: np.ndarray[Any, Any], name: str, base: GgufBase) -> np.ndarray[Any, Any]:
    """The rows of q and k, whose rotary halves follow each other in PEFT's form and are interleaved in llama.cpp's."""
    heads = {"attn_q": base.heads, "attn_k": base.kv_heads}.get(name.rsplit(".", 1)[-1])
    if heads is None or tensor.shape[0] % (2 * heads):  # where the rows do not fit the heads, the check says so
        return tensor
    halves = tensor.reshape(heads, 2, -1, tensor.shape[1])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def check_gguf(path: Path, base: GgufBase, *, alpha: float, rank: int) -> None:
    """Read the file as a server would, before anybody relies on it; `ConfigurationError` where it does not fit.

    What llama.cpp checks when it loads one (src/llama-adapter.cpp), and what it does not: alpha, rank, finite values.
    """
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"SWARM_LORA_CONVERTER: it made no GGUF file: {error}") from error
    said = {key: field.contents() for key, field in reader.fields.items()}
    expected = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": base.architecture}
    for key, value in expected.items():
        if said.get(key) != value:
            raise ConfigurationError(
                f"the GGUF adapter says {key} = {said.get(key)}, {base.name} needs {value}; "
                "SWARM_LORA_BASE_MODEL and SWARM_LORA_SERVING_BASE must be one model"
            )
    if abs(said.get("adapter.lora.alpha", 0.0) - alpha) > 1e-3 * alpha:
        raise ConfigurationError(f"SWARM_LORA_CONVERTER: alpha is {said.get('adapter.lora.alpha')}, not {alpha}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    if not weights:
        raise ConfigurationError("SWARM_LORA_CONVERTER: the GGUF adapter changes nothing")
    for weight in weights:
        _check_pair(weight, tensors.get(f"{weight}.lora_a"), tensors.get(f"{weight}.lora_b"), base, rank=rank)
    for tensor in tensors.values():
        if not np.isfinite(dequantize(tensor.data, tensor.tensor_type)).all():
            raise ConfigurationError(
                f"{tensor.name} of the GGUF adapter is not finite: the training went astray; "
                "lower SWARM_LORA_LEARNING_RATE"
            )


def _check_pair(weight: str, first: Any, second: Any, base: GgufBase, *, rank: int) -> None:
    if first is None or second is None:
        raise ConfigurationError(f"SWARM_LORA_CONVERTER: {weight} has one of its two matrices only")
    (columns, rank_a), (rank_b, rows) = ([int(size) for size in tensor.shape] for tensor in (first, second))
    if (rank_a, rank_b) != (rank, rank):
        raise ConfigurationError(f"SWARM_LORA_CONVERTER: {weight} has rank {rank_a} and {rank_b}, not {rank}")
    if base.shapes is None:
        return
    fits = base.shapes.get(weight)
    if fits != (rows, columns):
        has = "has none" if fits is None else f"has {fits[0]} x {fits[1]}"
        raise ConfigurationError(
            f"the adapter changes a {weight} of {rows} x {columns}, {base.name} {has}; "
            "SWARM_LORA_BASE_MODEL and SWARM_LORA_SERVING_BASE must be one model"
        )
