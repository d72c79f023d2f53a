"""`export training-data --into`: the files that a LoRA training would see, for whoever wants to train elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tests.unit.told_building import BAD, RULES, project, task, tell
from worker.cli import cli
from worker.clock import SystemClock
from worker.errors import ConfigurationError
from worker.store import open_store
from worker.training.lora.inputs import HELD_OUT_FILE, MANIFEST_FILE, TRAIN_FILE, read_examples
from worker.training.lora.manifest import LoraManifest


async def fill(data_dir: Path) -> None:
    store = open_store(f"sqlite://{data_dir}/swarm.db", SystemClock())
    await store.open()
    try:
        for n in range(30):
            await tell(store, task(f"t{n}", group_id=f"g{n // 2}"), seq=2 * n)
            await tell(store, task(f"bad{n}", BAD, group_id=f"g{n // 2}"), seq=2 * n + 1)
        await project(store)
    finally:
        await store.close()


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_the_files_of_a_training_are_written_with_their_manifest(tmp_path: Path, objective: str) -> None:
    asyncio.run(fill(tmp_path))
    into = tmp_path / "out" / "data"
    arguments = ["export", "training-data", "--scenario", "S", "--into", str(into), "--data-dir", str(tmp_path)]
    arguments += ["--lora-objective", objective, "--holdout", str(RULES.holdout)]
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == 0, ended.output
    manifest = msgspec.json.decode((into / MANIFEST_FILE).read_bytes(), type=LoraManifest)
    assert manifest.objective == objective
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        assert manifest.files[name].sha256 == hashlib.sha256((into / name).read_bytes()).hexdigest()
        assert manifest.files[name].examples == len(read_examples(into / name)) > 0
        assert f"{into / name}: {manifest.files[name].examples} examples" in ended.stderr
    assert sum(len(file.episodes) for file in manifest.files.values()) == 60
    assert hashlib.sha256((into / MANIFEST_FILE).read_bytes()).hexdigest() in ended.stderr
    if objective == "sft":
        assert "30 episodes left out: worker_task: no success" in ended.stderr
    again = CliRunner().invoke(cli, arguments)
    assert again.stderr == ended.stderr


def test_filters_have_no_place_in_what_a_training_sees(tmp_path: Path) -> None:
    ended = CliRunner().invoke(
        cli, ["export", "training-data", "--scenario", "S", "--into", str(tmp_path / "out"), "--min-score", "0.5"]
    )
    assert isinstance(ended.exception, ConfigurationError)
    assert not (tmp_path / "out").exists()
