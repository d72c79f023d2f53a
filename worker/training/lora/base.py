"""The model that an adapter is trained on: a local directory, a GGUF file or a hub id. No pickle, no code of others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from gguf import GGUFReader
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from worker.errors import ConfigurationError
from worker.models.adapter import BaseModel
from worker.training.lora.base_identity import sha256_of_base
from worker.training.lora.base_shapes import BaseShapes, in_a_layer, targets_fault
from worker.training.shortages import is_out_of_memory

#: What a download takes: no pickle, no code.
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class Base:
    """A model in memory, and what says which it is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    document: BaseModel
    path: Path  # the directory or the GGUF file that it came from
    adds_bos: bool  # whether a server puts the mark of the beginning before any prompt

    @property
    def longest(self) -> int | None:
        """Tokens that it can take; None where it does not say."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
        return int(longest) if longest else None


def device_of(setting: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Where to train; `ConfigurationError` where there is no GPU and one is asked for."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("SWARM_LORA_DEVICE: cuda, but torch finds no GPU; set cpu or auto")
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # a launcher may have started one per GPU


def load_base(name: str, device: torch.device) -> Base:
    """Read the model and its tokenizer; `ConfigurationError` where they are not there or of no use."""
    transformers_logging.disable_progress_bar()
    path = _located(name)
    _require_weights(path)
    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.is_file():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    # On a GPU bfloat16 halves the memory; a CPU is slow with it. The adapter itself is float32 in both cases.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    BaseShapes.of(path)  # of a file that was cut off, the libraries say what nobody understands
    try:
        # Said, since nothing said asks on standard input where a model has code of its own.
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        if tokenizer.chat_template:
            tokenizer.apply_chat_template([{"role": "user", "content": "Is it a template?"}], tokenize=False)
    except Exception as error:  # a file that is whole but wrong makes the libraries raise anything
        if is_out_of_memory(error):
            raise
        raise ConfigurationError(
            f"SWARM_LORA_BASE_MODEL: {name} cannot be loaded: {error}; is it whole, and of a kind that "
            "transformers knows? Copy or download it again, or set another"
        ) from error
    if not tokenizer.chat_template:
        raise ConfigurationError(
            f"SWARM_LORA_BASE_MODEL: {name} has no chat template, so it cannot tell a question from an answer; "
            "take the instruction-tuned model of its family"
        )
    cast("nn.Module", model).to(device).eval()
    document = BaseModel(name=_short(name), architecture=model.config.model_type, sha256=sha256_of_base(path))
    return Base(model=model, tokenizer=tokenizer, document=document, path=path, adds_bos=_adds_bos(path, tokenizer))


def require_servable(model: nn.Module, targets: Sequence[str]) -> None:
    """`ConfigurationError` where an adapter on these modules could not be made, or not be served.

    llama.cpp skips or refuses adapters of the head and the embeddings (its issues #11554, #9065), vLLM too.
    """
    servable: dict[str, bool] = {}
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        fits = isinstance(module, nn.Linear) and in_a_layer(name)
        servable[last] = servable.get(last, True) and fits
    if fault := targets_fault(targets, {name for name, fits in servable.items() if fits}, "this base model"):
        raise ConfigurationError(fault)


def _adds_bos(path: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """What the file says, since transformers does not take it over; else what the tokenizer does."""
    if path.is_file():
        said = GGUFReader(path).get_field("tokenizer.ggml.add_bos_token")
        if said is not None:
            return bool(said.contents())
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def _located(name: str) -> Path:
    """The local directory or file; a hub id is downloaded, or found where an earlier run left it."""
    path = Path(name)
    if path.exists():
        return path
    if path.is_absolute() or name.startswith(".") or name.endswith(".gguf"):
        raise ConfigurationError(f"SWARM_LORA_BASE_MODEL: {name} is not there")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (
        RepositoryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        ValueError,
    ) as error:
        raise ConfigurationError(
            f"SWARM_LORA_BASE_MODEL: {name} is no directory and cannot be had from the hub: "
            f"{str(error).strip().splitlines()[0]}; is it spelt so there, and is the hub within reach (HF_ENDPOINT, "
            "HTTPS_PROXY, HF_HUB_OFFLINE; HF_HOME has the token of a model that is not public)? Or set a directory"
        ) from error


def _require_weights(path: Path) -> None:
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ConfigurationError(
            f"SWARM_LORA_BASE_MODEL: {path} has no *.safetensors; pickled weights (*.bin) are not loaded: convert them"
        )


def _short(name: str) -> str:
    """A hub id as it is, of a path the last part."""
    return Path(name).name if Path(name).exists() else name
