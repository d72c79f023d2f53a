"""SWARM_LORA_BASE_MODEL was changed: on a base of the same shapes adapters of the one before load, and babble."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.unit.test_models_adapters import BOTH, register
from tests.unit.training_world import World, opened, worker_over
from worker.errors import ApplyFailed
from worker.models.adapter import OtherBase
from worker.models.applicators.noop import NoopApplicator
from worker.store.port import Model, Store
from worker.training.lora.base_identity import ConfiguredBase, sha256_of_base

#: What the registered adapters of these tests name.
TRAINED_ON = "0" * 64
OTHER = "abc" + "1" * 61


class Server(NoopApplicator):
    """Remembers what was asked of it. What it `refuses` it never serves; what is `broken` it serves all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = self.broken = 0  # versions
        self.calls: list[str] = []

    async def apply(self, model: Model, content: bytes) -> None:
        self.calls.append(f"apply {model.version}")
        if model.version == self.refuses:
            raise ApplyFailed("it does not load")
        await super().apply(model, content)
        if model.version == self.broken:
            raise ApplyFailed("it falls over")

    async def withdraw(self, scenario: str) -> None:
        self.calls.append("withdraw")
        await super().withdraw(scenario)


class Base:
    """The one of today."""

    sha256: str | None = TRAINED_ON


def worker(store: Store, data_dir: Path, server: Server, base: Base) -> World:
    return worker_over(store, data_dir, kinds=BOTH, adapters=server, base_sha256=lambda: base.sha256)


async def test_an_adapter_of_another_base_is_not_brought_and_what_is_live_stays(tmp_path: Path) -> None:
    async with opened(tmp_path, "memory") as store:
        server, base = Server(), Base()
        world = worker(store, tmp_path, server, base)
        one, two = await register(world, 1), await register(world, 2)
        await world.applier.apply_now(one, by="anna")
        base.sha256 = OTHER
        with pytest.raises(ApplyFailed) as refused:
            await world.applier.apply_now(two, by="anna")
        assert str(refused.value) == (
            "version 2 of S was trained on tiny (sha256 000000000000), and SWARM_LORA_BASE_MODEL is another base now "
            "(sha256 abc111111111), on which it would answer anything; train one for it with: swarm-worker train-now "
            "--scenario S --kind lora --force; or set SWARM_LORA_BASE_MODEL back"
        )
        assert server.calls == ["apply 1"]
        assert await server.served("S") == one.sha256
        (row, *_) = await store.deployments("S")
        assert (row.state, row.model_id) == ("failed", two.model_id)


async def test_no_rollback_goes_back_beyond_a_change_of_the_base(tmp_path: Path) -> None:
    async with opened(tmp_path, "memory") as store:
        server, base = Server(), Base()
        world = worker(store, tmp_path, server, base)
        one, two = await register(world, 1), await register(world, 2)
        await world.applier.apply_now(one, by="anna")
        await world.applier.apply_now(two, by="anna")
        base.sha256 = OTHER
        with pytest.raises(OtherBase, match="version 1 of S was trained on tiny"):
            await world.applier.rollback("S", by="anna", kind="lora")
        assert server.calls == ["apply 1", "apply 2"]


async def test_where_the_base_is_on_another_machine_nothing_is_compared(tmp_path: Path) -> None:
    async with opened(tmp_path, "memory") as store:
        server, base = Server(), Base()
        base.sha256 = None
        world = worker(store, tmp_path, server, base)
        one = await register(world, 1)
        await world.applier.apply_now(one, by="anna")
        assert await server.served("S") == one.sha256


async def test_a_live_adapter_of_another_base_is_not_brought_again_and_status_says_why(tmp_path: Path) -> None:
    """Nothing is withdrawn either: a server that still has the base before it answers as it did."""
    async with opened(tmp_path, "memory") as store:
        server, base = Server(), Base()
        world = worker(store, tmp_path, server, base)
        one = await register(world, 1)
        await world.applier.apply_now(one, by="anna")
        base.sha256 = OTHER
        assert await world.applier.reconcile("S", "lora")
        await NoopApplicator.withdraw(server, "S")  # its server was started again
        for _ in range(2):
            assert not await world.applier.reconcile("S", "lora")
        assert "is another base now" in str(world.applier.why_unserved("S", "lora"))
        assert server.calls == ["apply 1"]
        base.sha256 = TRAINED_ON
        assert await world.applier.reconcile("S", "lora")
        assert world.applier.why_unserved("S", "lora") is None
        assert server.calls == ["apply 1", "apply 1"]


@pytest.mark.parametrize("fault", ["refuses", "broken"])
async def test_an_adapter_that_failed_goes_also_where_the_one_before_it_cannot_come_back(
    tmp_path: Path, fault: str
) -> None:
    """Nodes ask the base alone then; but what a server still serves of the base before is left where it is."""
    async with opened(tmp_path, "memory") as store:
        server, base = Server(), Base()
        world = worker(store, tmp_path, server, base)
        one, two = await register(world, 1), await register(world, 2)
        await world.applier.apply_now(one, by="anna")
        setattr(server, fault, two.version)
        bases = iter([TRAINED_ON, OTHER])  # the second adapter is of the base of today, and the first is not
        changed = worker_over(store, tmp_path, kinds=BOTH, adapters=server, base_sha256=lambda: next(bases))
        with pytest.raises(ApplyFailed):
            await changed.applier.apply_now(two, by="anna")
        assert await server.served("S") == (one.sha256 if fault == "refuses" else None)
        (row, *_) = await store.deployments("S")
        assert row.stranded == (fault == "broken")
        assert ("and the way back failed: version 1 of S was trained on tiny" in row.detail) == row.stranded


def directory(place: Path) -> Path:
    """A base, as far as its identity goes."""
    place.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (place / name).write_text(name)
    return place


def test_a_base_is_known_by_what_makes_it_answer_as_it_does(tmp_path: Path) -> None:
    base = directory(tmp_path / "base")
    before = sha256_of_base(base)
    lines = "".join(
        f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    )
    assert before == hashlib.sha256(lines.encode()).hexdigest()
    (base / "NOTES.txt").write_text("copied on Monday")
    assert sha256_of_base(base) == before
    (base / "chat_template.jinja").write_text("{{ messages }}")
    assert sha256_of_base(base) != before
    file = tmp_path / "base.gguf"
    file.write_bytes(b"GGUF")
    assert sha256_of_base(file) == hashlib.sha256(b"GGUF").hexdigest()


def test_the_base_is_read_once_and_again_where_a_file_of_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has gigabytes, and each apply asks."""
    path = directory(tmp_path / "base")
    base = ConfiguredBase(str(path))
    before = base.sha256()
    digest, read = hashlib.file_digest, []

    def counted(file: object, name: str) -> object:
        read.append(getattr(file, "name", ""))
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert base.sha256() == before
    assert read == []
    weights, times = path / "model.safetensors", (path / "model.safetensors").stat()
    (path / "new").write_text("model.safetensorz")
    os.utime(path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` leaves a file of the same size
    (path / "new").replace(weights)
    assert base.sha256() == sha256_of_base(path) != before
    assert len(read) == 2 * len(("config.json", "model.safetensors", "tokenizer.json"))


def test_of_a_base_that_was_never_here_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert ConfiguredBase("some/base").sha256() is None


def test_a_base_that_was_here_and_is_gone_is_told_and_not_taken_for_one_on_another_machine(tmp_path: Path) -> None:
    """Nothing was compared then: an adapter of another base was brought and called verified."""
    path = directory(tmp_path / "base")
    base, known = ConfiguredBase(str(path)), ConfiguredBase(str(path))
    sha256 = known.sha256()
    path.rename(tmp_path / "away")
    for each in (base, known):
        with pytest.raises(ApplyFailed, match=r"SWARM_LORA_BASE_MODEL: .*base cannot be read: .*is gone"):
            each.sha256()
    (tmp_path / "away").rename(path)
    assert base.sha256() == known.sha256() == sha256


def test_a_base_that_cannot_be_read_names_its_setting(tmp_path: Path) -> None:
    path = directory(tmp_path / "base")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()
    with pytest.raises(ApplyFailed, match=r"SWARM_LORA_BASE_MODEL: .* cannot be read"):
        ConfiguredBase(str(path)).sha256()
