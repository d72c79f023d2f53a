"""Where a training stood: the adapter's weights and the optimiser's moments, in one safetensors file.

Nothing else is needed to go on with the very same result: the order of examples and the dropout follow from the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from worker.durable import make_private_directory, synced_at_the_end
from worker.training.lora.inputs import CHECKPOINT_DIR

_FILE = "latest.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class _Damaged(ValueError):
    """What lies there was not left by us like this."""


class Checkpoints:
    """Those of one run: the newest is kept."""

    def __init__(self, output_dir: Path, *, identity: str) -> None:
        """`identity`: of all that shapes the adapter; what another training left is not gone on from."""
        self._path = output_dir / CHECKPOINT_DIR / _FILE
        self._identity = identity
        self.damage: str | None = None  # of the one that was there, which is not gone on from

    def save(self, step: int, parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        """Keep where it stands after `step` steps; whole or not at all, after a power cut too."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in parameters.items():
            tensors[name] = parameter.detach().cpu().contiguous()
            for moment in _MOMENTS:
                tensors[f"{name}:{moment}"] = optimiser.state[parameter][moment].cpu().contiguous()
        make_private_directory(self._path.parent)
        unfinished = self._path.with_name(f".{_FILE}")
        metadata = {"step": str(step), "identity": self._identity}
        save_file(tensors, unfinished, metadata={**metadata, "sha256": _sha256(metadata, tensors)})
        with synced_at_the_end(self._path.parent):
            _sync(unfinished)
            unfinished.replace(self._path)

    def load(self, parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
        """Put everything back, and say how many steps were done; 0 where there is nothing of this very training.

        What is damaged is removed, and `damage` says so: an adapter of it would be another than the data's.
        """
        try:
            metadata, tensors = self._read()
        except FileNotFoundError:
            return 0
        except (_Damaged, SafetensorError) as error:
            self.damage = str(error)
            sys.stderr.write(f"the checkpoint is damaged, so it is trained from the start: {error}\n")
            # All of it: what is no file, or lies where the next one is written, could not be replaced.
            shutil.rmtree(self._path.parent, ignore_errors=True)
            return 0
        if metadata["identity"] != self._identity:
            return 0
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[name])
            moments = {moment: tensors[f"{name}:{moment}"].to(parameter) for moment in _MOMENTS}
            optimiser.state[parameter] = {"step": torch.tensor(float(metadata["step"])), **moments}
        return int(metadata["step"])

    def _read(self) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        # A check before the act: a named pipe would be waited for, for ever.
        if not stat.S_ISREG(self._path.lstat().st_mode):
            raise _Damaged(f"{self._path} is no regular file")
        with safe_open(self._path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if metadata.pop("sha256", None) != _sha256(metadata, tensors):
            raise _Damaged(f"{self._path} is not what was written: its SHA-256 differs")
        return metadata, tensors


def _sha256(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """Of what is said and of every number: a bit that turned would give another adapter, and nobody would know."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
