"""A router's preset, and a server's pid file, have one worker: a second one on them is refused at its start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.clock import SystemClock
from worker.errors import ConfigurationError
from worker.life import Parts, Worker
from worker.models.applicators.chosen import lora_applicator
from worker.settings import load_settings
from worker.store.memory import MemoryStore

SHARED = {"llama_router": "llama_preset", "llama_server": "llama_pid_file", "blue_green": "llama_pid_file"}


def worker(tmp_path: Path, name: str, applicator: str, shared: Path) -> Worker:
    """One with a data directory of its own."""
    settings = load_settings(
        scenarios=name, data_dir=tmp_path / name, processor_mode="lora", lora_applicator=applicator,
        **{SHARED[applicator]: shared},
    )  # fmt: skip
    return Worker(settings, lambda _: pytest.fail("not assembled"))


@pytest.mark.parametrize("applicator", sorted(SHARED))
def test_a_second_worker_on_a_file_is_refused_and_one_with_its_own_is_not(tmp_path: Path, applicator: str) -> None:
    """Of two with one pid file each ended the other's server, about once a minute."""
    shared = tmp_path / "shared.file"
    setting = f"SWARM_{SHARED[applicator].upper()}"
    with worker(tmp_path, "a", applicator, shared).alone():
        with pytest.raises(ConfigurationError, match=rf"shared.*\.file is in use by pid .*{setting} of its own"):
            worker(tmp_path, "b", applicator, shared).alone().__enter__()
        with worker(tmp_path, "c", applicator, tmp_path / "other.file").alone():
            pass
    assert not shared.exists()  # the lock on a pid file itself is the server's, which goes on without us
    with worker(tmp_path, "b", applicator, shared).alone():
        pass


class AllBroughtUp(Exception):
    """As far as these tests go."""


def assembled(worker: Worker) -> Parts:
    """What a start looks at first."""

    async def clean_up(_: Any) -> None:
        raise AllBroughtUp

    parts = SimpleNamespace(
        store=MemoryStore(SystemClock()), applicators={"lora": lora_applicator(worker.settings)},
        registry=SimpleNamespace(clean_up=clean_up),
    )  # fmt: skip
    return cast("Parts", parts)


async def test_the_preset_is_written_by_the_worker_that_has_it_and_not_by_one_that_is_refused(tmp_path: Path) -> None:
    """That one put its own base into the file before it was told that another worker runs; `check` did so as well."""
    preset = tmp_path / "preset.ini"
    first, second = (
        load_settings(
            scenarios=name, data_dir=tmp_path / name, processor_mode="lora", lora_applicator="llama_router",
            llama_preset=preset, lora_serving_base=tmp_path / f"{name}.gguf",
        )
        for name in "ab"
    )  # fmt: skip
    with pytest.raises(AllBroughtUp):
        await Worker(first, assembled).run()
    written = preset.read_text()
    assert f"[base]\nmodel = {tmp_path}/a.gguf\n" in written
    with Worker(first, assembled).alone(), pytest.raises(ConfigurationError, match="SWARM_LLAMA_PRESET"):
        await Worker(second, assembled).run()
    assert preset.read_text() == written
