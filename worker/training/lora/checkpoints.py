"""Where a training stood: the adapter's weights and the optimiser's moments, in one safetensors file.

Nothing else is needed to go on with the very same result: the order of examples and the dropout follow from the step.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from worker.durable import make_private_directory, synced_at_the_end

CHECKPOINT_DIR = "checkpoint"
_FILE = "latest.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoints:
    """Those of one run: the newest is kept."""

    def __init__(self, output_dir: Path, *, identity: str) -> None:
        """`identity`: of all that shapes the adapter; what another training left is not gone on from."""
        self._path = output_dir / CHECKPOINT_DIR / _FILE
        self._identity = identity

    def save(self, step: int, parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        """Keep where it stands after `step` steps; whole or not at all, after a power cut too."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in parameters.items():
            tensors[name] = parameter.detach().cpu().contiguous()
            for moment in _MOMENTS:
                tensors[f"{name}:{moment}"] = optimiser.state[parameter][moment].cpu().contiguous()
        make_private_directory(self._path.parent)
        unfinished = self._path.with_name(f".{_FILE}")
        save_file(tensors, unfinished, metadata={"step": str(step), "identity": self._identity})
        with synced_at_the_end(self._path.parent):
            _sync(unfinished)
            unfinished.replace(self._path)

    def load(self, parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
        """Put everything back, and say how many steps were done; 0 where there is nothing of this very training."""
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (FileNotFoundError, SafetensorError):
            return 0
        if metadata.get("identity") != self._identity:
            return 0
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[name])
            moments = {moment: tensors[f"{name}:{moment}"].to(parameter) for moment in _MOMENTS}
            optimiser.state[parameter] = {"step": torch.tensor(float(metadata["step"])), **moments}
        return int(metadata["step"])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
