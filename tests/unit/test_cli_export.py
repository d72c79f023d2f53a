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
    assert f"{into / TRAIN_FILE}: {len(read_examples(into / TRAIN_FILE))} examples" in ended.stderr
    taught = [len(manifest.files[name].episodes) for name in (TRAIN_FILE, HELD_OUT_FILE)]
    left_out = manifest.episodes - sum(taught)
    assert left_out == (60 if objective == "sft" else 0)
    said = f"{manifest.episodes} episodes: {taught[0]} trained on, {taught[1]} held out, {left_out} left out\n"
    assert said in ended.stderr
    before = {path: path.read_bytes() for path in into.iterdir()}
    again = CliRunner().invoke(cli, [*arguments, "--holdout", "0.5"])
    assert again.exit_code == 2
    assert f"{into} is not empty; name a directory that is new or empty" in again.stderr
    assert {path: path.read_bytes() for path in into.iterdir()} == before


def test_examples_that_say_the_same_and_a_task_alone_are_told_of(tmp_path: Path) -> None:
    async def lived() -> None:
        store = open_store(f"sqlite://{tmp_path}/swarm.db", SystemClock())
        await store.open()
        try:
            for n in range(5):
                await tell(store, task(f"t{n}", target="db", group_id="g"), seq=n)
            await project(store)
        finally:
            await store.close()

    asyncio.run(lived())
    into = tmp_path / "out"
    into.mkdir()
    arguments = ["export", "training-data", "--scenario", "S", "--into", str(into), "--data-dir", str(tmp_path)]
    ended = CliRunner().invoke(cli, [*arguments, "--holdout", "0.000001"])
    assert ended.stderr.splitlines()[:-1] == [
        f"{into / TRAIN_FILE}: 2 examples, 8 more say the same; 10 episodes of 1 tasks",
        f"{into / HELD_OUT_FILE}: 0 examples; 0 episodes of 0 tasks",
        "nothing is held out: all examples are of one task (group_id, else session), so no gate can judge by it",
        "10 episodes: 10 trained on, 0 held out, 0 left out",
    ]


def test_a_line_for_each_example_says_how_many_episodes_gave_none(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path))
    ended = CliRunner().invoke(cli, ["export", "training-data", "--scenario", "S", "--data-dir", str(tmp_path)])
    sft_and_pairs = 2 * 30 + 30
    assert len(ended.stdout.splitlines()) == sft_and_pairs
    assert f"{sft_and_pairs} examples; 60 episodes gave none" in ended.stderr


def test_filters_have_no_place_in_what_a_training_sees(tmp_path: Path) -> None:
    ended = CliRunner().invoke(
        cli, ["export", "training-data", "--scenario", "S", "--into", str(tmp_path / "out"), "--min-score", "0.5"]
    )
    assert isinstance(ended.exception, ConfigurationError)
    assert not (tmp_path / "out").exists()
