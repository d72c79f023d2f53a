"""A router's preset, and a server's pid file, have one worker: a second one on them is refused at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import ConfigurationError
from worker.life import Worker
from worker.settings import load_settings

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
