"""The processes that train together, where a launcher such as torchrun started several; else one that is alone.

They share the forward passes of a step and add up what they found; every one of them makes the same step then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True, slots=True)
class World:
    """This process among them."""

    rank: int = 0
    size: int = 1

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes into each."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)


def leads() -> bool:
    """Whether this process is the one that reports and writes, before it has met the others."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Meet the others, by the environment that launchers set (RANK, WORLD_SIZE, MASTER_ADDR, ...)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=distributed.get_rank(), size=size)
    finally:
        distributed.destroy_process_group()
