"""Adapters and bases as files, written byte by byte: no library of theirs is needed, and none corrects a mistake."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.unit.scripted_adapter import CONFIG, SHAPES, make_adapter, safetensors
from worker.models.adapter import ADAPTER_DIR, GGUF_FILE, AdapterFile, decode, encode
from worker.training.lora.adapter_check import CONFIG_FILE, WEIGHTS_FILE

#: Of a GGUF adapter that is the scripted one's: columns come first there.
GGUF_SHAPES = {"blk.0.attn_q.weight.lora_a": (4, 2), "blk.0.attn_q.weight.lora_b": (2, 6)}
GGUF_FIELDS: dict[str, str | float | int] = {
    "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0,
}  # fmt: skip
_ALIGNMENT = 32


def gguf(
    shapes: Mapping[str, Sequence[int]] = GGUF_SHAPES,
    fields: Mapping[str, str | float | int] = GGUF_FIELDS,
    *,
    tokens: Sequence[str] = (),
) -> bytes:
    """A GGUF file of 32-bit zeros; with `tokens` it has a list, as a base's vocabulary is one."""
    entries = [_text(key) + _value(value) for key, value in fields.items()]
    if tokens:
        entries.append(_text("tokens") + struct.pack("<IIQ", 9, 8, len(tokens)) + b"".join(map(_text, tokens)))
    infos, data = b"", b""
    for name, shape in shapes.items():
        infos += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += _padded(bytes(4 * shape[0] * (shape[1] if len(shape) > 1 else 1)))
    return _padded(b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(entries)) + b"".join(entries) + infos) + data


def base_directory(place: Path, shapes: Mapping[str, Sequence[int]], *, config: Mapping[str, Any]) -> Path:
    """A base as transformers has it, but for its tokenizer."""
    place.mkdir()
    (place / "model.safetensors").write_bytes(safetensors(shapes))
    (place / "config.json").write_text(json.dumps(config))
    return place


def adapter_with(
    output: Path,
    *,
    shapes: Mapping[str, Sequence[int]] = SHAPES,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    **document: Any,
) -> tuple[bytes, Path]:
    """The scripted adapter with other weights, other words in its configuration, other files; model.json and place."""
    made = decode(make_adapter(output, scenario="S", data_sha256="", text=""))
    contents = {
        WEIGHTS_FILE: safetensors(shapes), CONFIG_FILE: json.dumps({**CONFIG, **(config or {})}).encode(),
        **(files or {}),
    }  # fmt: skip
    for name, content in contents.items():
        (output / ADAPTER_DIR / name).write_bytes(content)
    named = [
        AdapterFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in sorted(contents.items())
    ]
    return encode(replace(made, **{"files": named, **document})), output / ADAPTER_DIR


def with_gguf(output: Path, content: bytes | None = None, **document: Any) -> tuple[bytes, Path]:
    """The scripted adapter with a GGUF file."""
    return adapter_with(output, files={GGUF_FILE: gguf() if content is None else content}, **document)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: str | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
