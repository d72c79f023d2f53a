"""A data directory that lies elsewhere than when its models were made: restored from a backup, or mounted anew."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from click.testing import CliRunner

from tests.unit.test_models_adapters import BOTH
from tests.unit.test_models_adapters import register as register_adapter
from tests.unit.test_models_applier import register as register_model
from tests.unit.training_world import World, opened, worker_over
from worker.cli import cli
from worker.client.adapters import AdapterPointer
from worker.models.applicators.files import FilesApplicator
from worker.models.deployer import Applied
from worker.wire.events import RolledBack


@asynccontextmanager
async def worker_at(data_dir: Path) -> AsyncIterator[World]:
    """A worker of both kinds, which serves by files."""
    async with opened(data_dir) as store:
        yield worker_over(
            store, data_dir, boot=data_dir.name, kinds=BOTH, mode="auto", applicator=FilesApplicator(data_dir),
            adapters=FilesApplicator(data_dir, "lora"),
        )  # fmt: skip


async def moved(tmp_path: Path) -> Path:
    """Where a worker's directory lies now: two models and two adapters were live in it, and one adapter waits."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    async with worker_at(old) as world:
        for model in [await register_model(world, 1), await register_model(world, 2)]:
            await world.applier.apply(model, by="trigger")
        for model in [await register_adapter(world, 3), await register_adapter(world, 4)]:
            await world.applier.apply(model, by="trigger")
        await register_adapter(world, 5)
    old.rename(new)
    return new


def pointed_at(data_dir: Path) -> Path:
    """Where the document that nodes read says that the adapter lies."""
    document = json.loads((data_dir / "current/S.lora.json").read_bytes())
    return Path(urlsplit(document["uri"]).path)


async def test_what_is_live_is_served_from_where_it_lies_now(tmp_path: Path) -> None:
    new = await moved(tmp_path)
    assert pointed_at(new) == tmp_path / "old/models/S/4"
    async with worker_at(new) as world:
        assert [await world.applier.reconcile("S", kind) for kind in BOTH] == [True, True]
    assert pointed_at(new) == new / "models/S/4"


async def test_a_copy_serves_its_own_files_while_the_original_is_still_there(tmp_path: Path) -> None:
    new = await moved(tmp_path)
    shutil.copytree(new, tmp_path / "old")
    async with worker_at(new) as world:
        await world.applier.reconcile("S", "lora")
    assert pointed_at(new) == new / "models/S/4"


async def test_adapters_are_applied_and_rolled_back_from_where_they_lie_now(tmp_path: Path) -> None:
    new = await moved(tmp_path)
    async with worker_at(new) as world:
        back = await world.applier.rollback("S", by="anna", kind="lora")
        assert pointed_at(new) == new / "models/S/3"
        event = (await world.events())[-1]
        assert isinstance(event.data, RolledBack)
        assert event.data.details["uri"] == (new / "models/S/3").as_uri()
        again = await world.applier.apply_now(await world.registry.find("S", "4"), by="anna")
        assert isinstance(again, Applied)
        assert again.previous_model_id == back.model_id
        assert pointed_at(new) == new / "models/S/4"


async def test_what_was_not_handed_over_yet_is_taken_from_where_it_lies_now(tmp_path: Path) -> None:
    new = await moved(tmp_path)
    async with worker_at(new) as world:
        await world.runs.recover("S", "lora")
    assert pointed_at(new) == new / "models/S/5"


async def test_a_person_is_shown_where_it_lies_now(tmp_path: Path) -> None:
    new = await moved(tmp_path)

    def shown(*words: str) -> Any:
        ended = CliRunner().invoke(cli, ["models", *words, "--json", "--data-dir", str(new)], catch_exceptions=False)
        return [json.loads(line) for line in ended.stdout.splitlines()]

    (adapter,) = await asyncio.to_thread(shown, "show", "lora-champion", "--scenario", "S")
    assert adapter["uri"] == (new / "models/S/4").as_uri()
    assert adapter["adapter"]["objective"] == "sft"
    listed = await asyncio.to_thread(shown)
    assert all(str(new) in str(one) for one in listed)


async def test_a_node_that_sees_the_directory_elsewhere_finds_the_files(tmp_path: Path) -> None:
    """A shared file system is mounted where each machine likes; what the document says is the worker's path."""
    new = await moved(tmp_path)
    current = AdapterPointer(new, "S").current()
    assert current is not None
    assert current.directory == new / "models/S/4/adapter"
