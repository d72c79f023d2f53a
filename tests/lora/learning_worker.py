"""A worker that learns adapters of the tiny model and serves them through a real router; how tests set it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lora.llama_server import running_server
from tests.lora.tiny import TinyBase

#: Learnt in a few seconds.
_RECIPE = {
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_epochs": 4,
    "lora_batch_size": 8,
    "lora_gradient_accumulation": 1,
    "lora_learning_rate": 0.004,  # at 0.01 some splits of the same tasks were learnt by half, or not at all
    "lora_max_seq_length": 256,
    "lora_checkpoint_steps": 5,
    "holdout": 0.5,  # of 120 tasks and more the gate's 30 are held out, whatever the scenario's name
}


@dataclass(frozen=True, slots=True)
class Router:
    """A llama-server in router mode, with nothing to serve yet."""

    url: str
    preset: Path


@contextmanager
def router_in(directory: Path) -> Iterator[Router]:
    """Started as its owner would; ended with all that it serves."""
    directory.mkdir()
    preset = directory / "preset.ini"
    preset.write_text("version = 1\n\n[*]\nc = 1024\nparallel = 2\n\n")
    with running_server(["--models-preset", str(preset)], directory=directory) as server:
        yield Router(server.url, preset)


def settings(base: TinyBase, router: Router, **more: object) -> dict[str, Any]:
    """Of a worker that trains on `base` and serves by `router`."""
    return {
        "processor_mode": "lora",
        "learn_models": "worker_decision_sequence",
        "lora_base_model": base.directory,
        "lora_serving_base": base.gguf,
        "lora_applicator": "llama_router",
        "llama_url": router.url,
        "llama_preset": router.preset,
        "lora_drain_timeout": "5s",
        **_RECIPE,
        **more,
    }
