"""A LoRA adapter as a model: `model.json` names its base, its files and how it behaves; the files lie beside it.

Everything in the document follows from data, configuration and seed, so that the same training gives the same hash.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from worker.errors import ApplyFailed
from worker.store.port import Model

#: Beside model.json, in a run's directory and in a registered version's.
ADAPTER_DIR = "adapter"
#: What PEFT writes, and vLLM loads: a directory.
PEFT_DIR = "peft"
#: What llama.cpp loads; missing where the base's architecture needs a converter and none is configured.
GGUF_FILE = "adapter.gguf"


class AdapterUnreadable(ValueError):
    """The bytes are no adapter document of a format that we know."""


class OtherBase(ApplyFailed):
    """The adapter was trained on another base than the one of today; of the same shapes, it would load there."""


class AdapterFile(Struct, frozen=True, kw_only=True):
    """One file below `adapter/`."""

    path: str  # relative, with /: peft/adapter_model.safetensors
    sha256: str
    size: int


class BaseModel(Struct, frozen=True, kw_only=True):
    """What the adapter changes."""

    name: str  # as configured: a hub id, or the last part of a path
    architecture: str  # llama, qwen2, ...
    sha256: str  # of the GGUF file, or of the directory's weights, shape, tokenizer and chat template together


class Probe(Struct, frozen=True, kw_only=True):
    """A prompt that shows whether the adapter is in force: greedy decoding answers it in another way than the base."""

    prompt: str  # by the chat template, the answer open, without the opening mark that servers add by themselves
    expected: str  # with the adapter
    base: str  # without it
    max_tokens: int


class AdapterModel(Struct, frozen=True, kw_only=True):
    """`model.json` of a model of kind `lora`."""

    format: Literal[1] = 1
    kind: Literal["lora"] = "lora"
    scenario: str
    objective: Literal["sft", "dpo"]
    base: BaseModel
    rank: int
    alpha: float
    target_modules: list[str]
    examples: int  # it was trained on
    data_sha256: str  # of the manifest of its training data
    files: list[AdapterFile]  # sorted by path
    probes: list[Probe] = []  # empty where no answer changed


def encode(adapter: AdapterModel) -> bytes:
    """Canonical JSON."""
    return msgspec.json.encode(adapter, order="sorted")


def decode(content: bytes) -> AdapterModel:
    """From JSON; `AdapterUnreadable` where it is none of ours, or names a file outside of its directory."""
    try:
        adapter = msgspec.json.decode(content, type=AdapterModel)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AdapterUnreadable(f"model.json is no adapter: {error}") from error
    for file in adapter.files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise AdapterUnreadable(f"model.json names {file.path!r}, which is outside of {ADAPTER_DIR}/")
    return adapter


def require_base(model: Model, adapter: AdapterModel, sha256: str | None) -> None:
    """Raise `OtherBase` where the base of today has another SHA-256 (hex); None where that is not known."""
    if sha256 not in (None, adapter.base.sha256):
        raise OtherBase(
            f"version {model.version} of {model.scenario} was trained on {adapter.base.name} (sha256 "
            f"{adapter.base.sha256[:12]}), and SWARM_LORA_BASE_MODEL is another base now (sha256 {sha256[:12]}), on "
            "which it would answer anything; train one for it with: swarm-worker train-now --scenario "
            f"{model.scenario} --kind lora --force; or set SWARM_LORA_BASE_MODEL back"
        )


def adapter_directory(model: Model) -> Path:
    """Where the files of a registered adapter lie, on this machine."""
    return Path(unquote(urlsplit(model.uri).path)) / ADAPTER_DIR
