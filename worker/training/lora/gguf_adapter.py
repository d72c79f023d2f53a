"""An adapter as llama.cpp loads it: PEFT's files made into one GGUF file.

The recipe is llama.cpp's own (convert_lora_to_gguf.py, b11434), for its architecture `llama` alone; others do not all
permute what llama does, so they need their converter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from safetensors.torch import load_file

from worker.errors import ConfigurationError
from worker.models.adapter import GGUF_FILE, PEFT_DIR
from worker.training.lora.converter import convert
from worker.training.lora.gguf_base import LLAMA, GgufBase, gguf_base

_PREFIX = "base_model.model."
_TAILS: Final = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}


def write_gguf(
    adapter: Path,
    *,
    base: Path,
    serving: Path | None,
    converter: str | None,
    run: Callable[[str, Mapping[str, Path]], None] = convert,
) -> None:
    """Make `adapter.gguf` in the directory `adapter` out of its `peft/`.

    `base` is what was trained on, `serving` the GGUF file that llama.cpp serves. There is none where the base is no
    llama and no converter is configured: then the adapter can be served by others alone. Raises `ConfigurationError`.
    """
    of = gguf_base(base, serving)
    made = adapter / GGUF_FILE
    if of.architecture == LLAMA:
        _convert_llama(adapter / PEFT_DIR, made, of)
    elif converter is not None:
        run(converter, {"base": base, "adapter": adapter / PEFT_DIR, "output": made})


def _convert_llama(peft: Path, made: Path, base: GgufBase) -> None:
    config = json.loads((peft / "adapter_config.json").read_bytes())
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, base.layers)
    writer = GGUFWriter(made, LLAMA)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
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
