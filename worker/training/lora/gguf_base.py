"""What an adapter's GGUF file must fit: the base's architecture, heads and shapes, by llama.cpp's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import ConfigurationError
from worker.models.gguf_header import Gguf, read_gguf

#: The one architecture whose adapters we convert ourselves.
LLAMA = "llama"
#: `model_type` of what llama.cpp's own converter takes for a llama, and permutes as one (conversion/llama.py, b11434).
_LLAMA_TYPES = ("llama", "mistral")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufBase:
    """The base model as llama.cpp sees it."""

    name: str  # of its file or directory, for messages
    architecture: str  # general.architecture
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    #: Rows and columns of each weight of two dimensions; None where they are not known.
    shapes: Mapping[str, tuple[int, int]] | None = None


def gguf_base(base: Path, serving: Path | None) -> GgufBase:
    """Of the GGUF file that is served, else of the base: a GGUF file too, or a directory with config.json.

    Raises `ConfigurationError` where the file is none.
    """
    if serving is not None:
        return _of_file(serving, "SWARM_LORA_SERVING_BASE")
    if base.is_file():
        return _of_file(base, "SWARM_LORA_BASE_MODEL")
    try:
        return _of_config(base.name, json.loads((base / "config.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"SWARM_LORA_BASE_MODEL: {base / 'config.json'} is not what transformers writes: {error!r}"
        ) from error


def _of_file(path: Path, setting: str) -> GgufBase:
    try:
        said = read_gguf(path, whole=False)
        architecture = said.fields.get("general.architecture")
        shapes = {
            name: (tensor.shape[1], tensor.shape[0])
            for name, tensor in said.tensors.items()
            if len(tensor.shape) == 2  # noqa: PLR2004
        }
        if architecture != LLAMA:
            return GgufBase(name=path.name, architecture=str(architecture), shapes=shapes)
        heads = _count(said, "llama.attention.head_count")
        return GgufBase(
            name=path.name,
            architecture=LLAMA,
            layers=_count(said, "llama.block_count"),
            heads=heads,
            # A file without it has as many (llama.cpp's default).
            kv_heads=_count(said, "llama.attention.head_count_kv", heads),
            shapes=shapes,
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read as a GGUF file: {error}") from error


def _count(said: Gguf, key: str, default: int | None = None) -> int:
    value = said.fields.get(key, default)
    if type(value) is not int:
        raise ValueError(f"it says {key} = {value}")
    return value


def _of_config(name: str, config: dict[str, Any]) -> GgufBase:
    if config["model_type"] not in _LLAMA_TYPES:
        return GgufBase(name=name, architecture=config["model_type"])
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    of_layer = {
        "attn_q": (heads * head, hidden),
        "attn_k": (kv_heads * head, hidden),
        "attn_v": (kv_heads * head, hidden),
        "attn_output": (hidden, heads * head),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    layers = config["num_hidden_layers"]
    return GgufBase(
        name=name,
        architecture=LLAMA,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        shapes={f"blk.{layer}.{part}.weight": of_layer[part] for layer in range(layers) for part in of_layer},
    )
