"""The files of an adapter: PEFT's form, which vLLM and PEFT load, always the same bytes for the same weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from worker.errors import ConfigurationError
from worker.models.adapter import AdapterFile
from worker.training.lora.champion import CANDIDATE


def write_peft(model: PeftModel, directory: Path, *, base: str) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`, as `save_pretrained` names and fills them.

    Not by it: it asks the hub for the base's configuration, adds a README, and writes sets in any order.
    `ConfigurationError` where a weight is no number: no server would say so.
    """
    directory.mkdir(mode=0o700, parents=True)
    weights = get_peft_model_state_dict(model, adapter_name=CANDIDATE, save_embedding_layers=False)
    tensors = {name: weights[name].detach().to("cpu", torch.float32).contiguous() for name in sorted(weights)}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ConfigurationError(f"SWARM_LORA_LEARNING_RATE: it is too high: {name} is no number any more")
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {**model.peft_config[CANDIDATE].to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n"
    (directory / "adapter_config.json").write_text(text)


def files_below(directory: Path) -> list[AdapterFile]:
    """All files there, with their hashes, sorted by path."""
    found = []
    for path in sorted(each for each in directory.rglob("*") if each.is_file()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(AdapterFile(path=path.relative_to(directory).as_posix(), sha256=sha256, size=path.stat().st_size))
    return sorted(found, key=lambda file: file.path)


def _plain(value: Any) -> Any:
    """PEFT keeps modules in a set."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
