"""A router's preset has one writer: a second worker on it is refused at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import ConfigurationError
from worker.life import Worker
from worker.settings import load_settings


def worker(tmp_path: Path, name: str, preset: Path) -> Worker:
    """One with a data directory of its own."""
    settings = load_settings(
        scenarios=name, data_dir=tmp_path / name, processor_mode="lora", lora_applicator="llama_router",
        llama_preset=preset,
    )  # fmt: skip
    return Worker(settings, lambda _: pytest.fail("not assembled"))


def test_a_second_worker_on_a_preset_is_refused_and_one_with_its_own_is_not(tmp_path: Path) -> None:
    preset = tmp_path / "preset.ini"
    with worker(tmp_path, "a", preset).alone():
        with pytest.raises(ConfigurationError, match=r"preset\.ini is in use by pid .*SWARM_LLAMA_PRESET of its own"):
            worker(tmp_path, "b", preset).alone().__enter__()
        with worker(tmp_path, "c", tmp_path / "other.ini").alone():
            pass
    with worker(tmp_path, "b", preset).alone():
        pass
