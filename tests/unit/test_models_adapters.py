"""Adapters in the registry and at the applier: their files, their aliases and history, and servers that lose them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, Self

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from tests.unit.scripted_adapter import NAMES, make_adapter
from tests.unit.test_models_applier import Stubborn
from tests.unit.test_models_applier import register as register_offline
from tests.unit.training_world import World, eventually, opened, worker_over
from worker.durable import make_private_directory
from worker.errors import ApplyFailed, NotFound, StoreUnavailable
from worker.learning.validation import Verdict
from worker.models.adapter import AdapterFile, adapter_directory, decode, encode
from worker.models.adapter_files import check_adapter
from worker.models.applicators.noop import NoopApplicator
from worker.models.applier import ApplySkipped
from worker.models.deployer import Applied, NoPrevious
from worker.models.keeper import AdapterKeeper
from worker.store.port import Deployment, Model, Run
from worker.wire.served import Endpoint

DATA = b'{"examples": 3}'
BOTH: tuple[Literal["offline"], Literal["lora"]] = ("offline", "lora")


async def prepared(world: World, n: int, content: bytes, output: Path, *, manifest: Path | None = None) -> Model:
    """What a run of kind lora puts on disk, its row not written."""
    run = Run(
        run_id=f"l{n}", scenario="S", kind="lora", state="queued", trigger={"kind": "count"}, window_lo=1,
        window_hi=n, requested_at_ms=world.tools.clock.now_ms(),
    )  # fmt: skip
    await world.store.create_run(run)
    return await world.registry.prepare(
        run, content, lineage={}, metrics={}, verdict=Verdict(verdict="blessed", reasons=["figures"]),
        now_ms=world.tools.clock.now_ms(), adapter=output / "adapter", data_manifest=manifest,
    )  # fmt: skip


async def register(world: World, n: int) -> Model:
    """A trained adapter, as a run registers it."""
    output = world.data_dir / f"output{n}"
    manifest = world.data_dir / "data.json"
    manifest.write_bytes(DATA)
    content = make_adapter(output, scenario="S", data_sha256=hashlib.sha256(DATA).hexdigest(), text=f"v{n}")
    model = await prepared(world, n, content, output, manifest=manifest)
    store, now_ms = world.store, world.tools.clock.now_ms()
    epoch = await store.acquire_lease("training.S", "w", now_ms=now_ms, ttl_ms=60_000)
    assert epoch is not None
    run = await store.start_run(f"l{n}", owner="w", lease="training.S", epoch=epoch, now_ms=now_ms)
    ended = replace(run, state="trained", ended_at_ms=now_ms, model_id=model.model_id)
    await store.finish_run(ended, lease="training.S", model=model, trigger_state=None, events=[])
    return model


async def test_an_adapter_is_registered_with_all_its_files_and_what_it_was_trained_on(tmp_path: Path) -> None:
    """Copied, since the run's directory goes; nothing but what the document names."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        (tmp_path / "output1/adapter/peft").mkdir(parents=True)
        (tmp_path / "output1/adapter/peft/README.md").write_text("not named")
        model = await register(world, 1)
        directory = tmp_path / "models/S/1"
        assert adapter_directory(model) == directory / "adapter"
        found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
        assert found == {"model.json", "manifest.json", "training_data.json", *(f"adapter/{name}" for name in NAMES)}
        assert (directory / "training_data.json").read_bytes() == DATA
        content = await world.registry.read(model)
        assert hashlib.sha256(content).hexdigest() == model.sha256
        assert not list((tmp_path / "tmp").iterdir())


async def test_others_read_the_files_of_an_adapter_only_where_the_folder_above_lets_them_in(tmp_path: Path) -> None:
    """An inference server of the worker's group needs one chmod then, and not one after each training."""
    data_dir = tmp_path / "data"
    make_private_directory(data_dir)
    async with opened(data_dir) as store:
        await register(worker_over(store, data_dir, kinds=BOTH), 1)
    models = data_dir / "models"
    assert models.stat().st_mode & 0o777 == 0o700
    found = {(path.is_dir(), path.stat().st_mode & 0o777) for path in models.rglob("*")}
    assert found == {(True, 0o750), (False, 0o640)}
    assert (data_dir / "swarm.db").stat().st_mode & 0o077 == 0


def _remove(path: Path) -> None:
    path.unlink()


def _change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # a read would wait for ever


def _link_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.symlink_to(path.parent.with_name("moved"))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILT = [_remove, _change, _lengthen, _link, _pipe, _folder, _link_folder]


@pytest.mark.parametrize("spoil", [_link, _pipe, _folder])
def test_what_is_no_file_is_called_so_and_leaves_nothing_open(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """The keeper looks again and again: a descriptor each time ends the worker."""
    document = decode(make_adapter(tmp_path, scenario="S", data_sha256="", text="x"))
    spoil(tmp_path / "adapter" / NAMES[1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ValueError, match="is no regular file"):
        check_adapter(document, tmp_path / "adapter")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_file_of_an_adapter_that_is_not_as_registered_is_never_handed_out(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """Not to a server, nor to the next training as its champion."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        model = await register(world, 1)
        spoil(adapter_directory(model) / NAMES[1])
        with pytest.raises(ApplyFailed, match="restore its directory from a backup or apply another version"):
            await world.applier.apply_now(model, by="anna")
        assert await store.aliases("S") == {"lora-candidate": model.model_id}


@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_file_of_an_adapter_that_is_not_what_its_document_says_is_not_registered(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """A training script of somebody's own may hand in anything."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        output = tmp_path / "output"
        content = make_adapter(output, scenario="S", data_sha256="", text="x")
        spoil(output / "adapter" / NAMES[1])
        with pytest.raises((ValueError, OSError)):
            await prepared(world, 1, content, output)
        assert not (tmp_path / "models").exists() or not list((tmp_path / "models/S").iterdir())


async def test_an_adapter_may_hold_nothing_that_runs_when_it_is_loaded(tmp_path: Path) -> None:
    """A pickle does; and without safetensors, without its data's own manifest or with a file twice there is none."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        output = tmp_path / "output"
        document = decode(make_adapter(output, scenario="S", data_sha256="", text="x"))
        (output / "adapter/peft/adapter_model.bin").write_bytes(b"")
        pickle = AdapterFile(path="peft/adapter_model.bin", sha256=hashlib.sha256(b"").hexdigest(), size=0)
        outside = AdapterFile(path="../../model.json", sha256="", size=0)
        for files, why in (
            ([*document.files, pickle], "peft/adapter_model.bin must not be in an adapter"),
            (document.files[:1], "has no peft/adapter_model.safetensors"),
            ([*document.files, document.files[0]], "twice"),
            ([*document.files, outside], "outside"),
        ):
            with pytest.raises(ValueError, match=why):
                await prepared(world, 1, encode(replace(document, files=files)), output)
        with pytest.raises(ValueError, match="is of scenario 'other'"):
            await prepared(world, 1, encode(replace(document, scenario="other")), output)
        (tmp_path / "data.json").write_bytes(DATA)
        with pytest.raises(ValueError, match="not the manifest of the data"):
            await prepared(world, 1, encode(document), output, manifest=tmp_path / "data.json")


async def test_kinds_have_their_own_champions_histories_and_ways_back(tmp_path: Path) -> None:
    """An older offline model is no reason against a newer adapter; a rollback touches the other kind's server never."""
    async with opened(tmp_path) as store:
        offline, lora = NoopApplicator(), NoopApplicator()
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto", applicator=offline, adapters=lora)
        first, second = await register(world, 1), await register_offline(world, 2)
        third, fourth = await register_offline(world, 3), await register(world, 4)
        for model in (second, first, third, fourth):
            assert isinstance(await world.applier.apply(model, by="trigger"), Applied)
        assert isinstance(await world.applier.apply(first, by="trigger"), ApplySkipped)
        assert await world.applier.history("S", "offline") == [third.model_id, second.model_id]
        assert await world.applier.history("S", "lora") == [fourth.model_id, first.model_id]
        back = await world.applier.rollback("S", by="anna")
        assert (back.kind, back.model_id, back.previous_model_id) == ("lora", first.model_id, fourth.model_id)
        assert (await lora.served("S"), await offline.served("S")) == (first.sha256, third.sha256)
        with pytest.raises(NoPrevious, match="no earlier adapter to go back to"):
            await world.applier.rollback("S", by="anna", kind="lora")
        assert (await world.applier.rollback("S", by="anna", kind="offline")).model_id == second.model_id
        with pytest.raises(NoPrevious, match="nodes asked the base; let them ask that by its name"):
            await world.applier.rollback("S", by="anna", kind="lora")
        assert await store.aliases("S") == {"champion": second.model_id, "lora-champion": first.model_id}
        for name, model in (("lora-champion", first), ("champion", second), ("4", fourth)):
            assert await world.registry.find("S", name) == model
        with pytest.raises(NotFound, match="waits to be applied"):
            await world.registry.candidate("S")


async def test_an_adapter_that_fails_at_its_server_brings_the_one_before_back_and_no_offline_model(
    tmp_path: Path,
) -> None:
    """The other kind is not touched."""
    async with opened(tmp_path) as store:
        lora = Stubborn()
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto", adapters=lora)
        lora.stuck = False
        await world.applier.apply(await register_offline(world, 1), by="trigger")
        live = await register(world, 2)
        await world.applier.apply(live, by="trigger")
        lora.stuck = True
        with pytest.raises(ApplyFailed):
            await world.applier.apply(await register(world, 3), by="trigger")
        assert (await world.applier.history("S", "lora"))[0] == live.model_id
        assert await lora.served("S") == live.sha256
        failed = (await world.events())[-2:]
        assert [event.type for event in failed] == ["learning.failed", "learning.rolled_back"]
        details = to_builtins(failed[-1].data)["details"]
        assert (details["kind"], details["live_model_id"]) == ("lora", live.model_id)


async def test_retention_keeps_what_each_kind_may_go_back_to(tmp_path: Path) -> None:
    """Many offline models push out no adapter."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto")
        for n in (1, 2):
            await world.applier.apply(await register(world, n), by="trigger")
        for n in range(3, 9):
            await world.applier.apply(await register_offline(world, n), by="trigger")
        assert sorted(path.name for path in (tmp_path / "models/S").iterdir()) == ["1", "2", "6", "7", "8"]
        await world.registry.clean_up(["S"])
        assert isinstance(await world.applier.rollback("S", by="anna", kind="lora"), Applied)


async def test_a_worker_that_serves_no_adapters_says_how_it_would(tmp_path: Path) -> None:
    """And writes nothing: the adapter goes on being served as it was."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto")
        for n in (1, 2):
            await world.applier.apply(await register(world, n), by="trigger")
        before = await store.deployments("S")
        offline = worker_over(store, tmp_path)
        with pytest.raises(ApplyFailed, match="SWARM_PROCESSOR_MODE to lora or full"):
            await offline.applier.rollback("S", by="anna")
        assert await store.deployments("S") == before


class Forgetful(NoopApplicator):
    """A server that is away now and then, and forgets its adapters when it was."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.calls = 0

    async def apply(self, model: Model, content: bytes) -> None:
        """Serve it, while it is there."""
        self.calls += 1
        if self.away:
            raise ApplyFailed("connection refused")
        await super().apply(model, content)

    async def served(self, scenario: str) -> str | None:
        """What it knows."""
        if self.away:
            raise ApplyFailed("connection refused")
        return await super().served(scenario)


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[World, Forgetful]]:
    """A worker whose server serves an adapter."""
    async with opened(tmp_path) as store:
        server = Forgetful()
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto", adapters=server)
        await world.applier.apply(await register(world, 1), by="trigger")
        yield world, server


class Keeping:
    """A keeper at work, whose waits are noted and last for one step of the loop each."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recovered: list[tuple[str, str]] = []
        self.waits: list[float] = []
        self.stopping = asyncio.Event()

        async def note(_: asyncio.Event, seconds: float) -> None:
            self.waits.append(seconds)
            await asyncio.sleep(0)

        async def recover(scenario: str, kind: str) -> None:
            self.recovered.append((scenario, kind))

        monkeypatch.setattr("worker.models.keeper.sleep_unless", note)
        self._work = AdapterKeeper(world.applier, scenarios=["S"], recover=recover).run(self.stopping)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping.set()
        await asyncio.wait_for(self._task, 5)

    async def looks(self, number: int) -> list[float]:
        """Let it look so often; its waits since."""
        before = len(self.waits)
        await eventually(lambda: len(self.waits) >= before + number)
        return self.waits[before:]


async def test_what_a_restarted_server_forgot_is_brought_back_without_anybodys_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that keeps its adapters in memory alone has none after its start (vLLM)."""
    async with serving(tmp_path) as (world, server):
        async with Keeping(world, monkeypatch) as keeping:
            await keeping.looks(1)
            server._served.clear()
            await eventually(lambda: bool(server._served))
        assert keeping.recovered == [("S", "lora")]
        assert len(await world.store.deployments("S")) == 1


async def test_a_server_that_is_away_is_not_asked_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wait doubles up to a minute; and so often it is looked at once it was there."""
    async with serving(tmp_path) as (world, server):
        server.away = True
        async with Keeping(world, monkeypatch) as keeping:
            assert (await keeping.looks(7))[:7] == [2, 4, 8, 16, 32, 60, 60]
            server.away = False
            assert (await keeping.looks(3))[-1] == 60
            server.away = True
            assert 2 in await keeping.looks(3)


async def test_a_live_adapter_that_nobody_can_ask_is_told_with_its_reason_until_it_is_served_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead inference server was in the log alone: whoever looked at the worker saw that all was well."""
    async with serving(tmp_path) as (world, server):
        assert world.applier.why_unserved("S", "lora") is None
        async with Keeping(world, monkeypatch) as keeping:
            server.away = True
            await keeping.looks(2)
            assert world.applier.why_unserved("S", "lora") == "connection refused"
            server.away = False
            server._served.clear()
            await keeping.looks(2)
            assert world.applier.why_unserved("S", "lora") is None


async def test_an_adapter_whose_successor_took_its_server_along_is_told_at_once(tmp_path: Path) -> None:
    """The way back from a failed apply fails too: not only the next look says that nothing is served."""
    async with serving(tmp_path) as (world, server):
        server.away = True
        with pytest.raises(ApplyFailed):
            await world.applier.apply(await register(world, 2), by="trigger")
        assert world.applier.why_unserved("S", "lora") == "connection refused"


async def test_a_deployment_says_whom_to_ask_and_by_which_name(tmp_path: Path) -> None:
    """Of two servers that take turns both were named, and of none how it calls the adapter."""
    async with opened(tmp_path) as store:
        world = worker_over(
            store, tmp_path, kinds=BOTH, mode="auto",
            endpoint_of=lambda model: Endpoint(url="http://gpu:8081", model=f"S@{model.version}"),
        )  # fmt: skip
        await world.applier.apply(await register(world, 1), by="trigger")
        (row,) = await store.deployments("S")
        assert row.target == "http://gpu:8081 as S@1"


async def test_a_server_that_is_away_at_the_start_delays_nothing_and_gets_its_adapter_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment that a crash left started fails then, and what was live is served once the server is there."""
    async with opened(tmp_path) as store:
        server = Forgetful()
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto", adapters=server)
        first, second = await register(world, 1), await register(world, 2)
        await world.applier.apply(first, by="trigger")
        started = Deployment(
            deployment_id="d2", scenario="S", model_id=second.model_id, previous_model_id=first.model_id,
            action="apply", applicator="noop", target="x", state="started", by="trigger", forced=False, at_ms=1,
        )  # fmt: skip
        (live,) = await store.deployments("S")
        await store.deploy(started, after=live.deployment_id, aliases={}, events=[])
        server.away = True
        server._served.clear()
        async with Keeping(world, monkeypatch) as keeping:
            await keeping.looks(1)
            assert [row.state for row in await store.deployments("S")] == ["failed", "verified"]
            server.away = False
            await eventually(lambda: server._served.get("S") == first.sha256)
        assert keeping.recovered == [("S", "lora")]


async def test_nothing_ends_the_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store that is away, no applicator's fault. What the last life left over is handed over once it can be."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        away: list[Exception] = [StoreUnavailable("locked"), KeyError("a fault"), StoreUnavailable("locked")]
        reconcile = world.applier.reconcile

        async def unsteady(scenario: str, kind: Literal["offline", "lora"]) -> bool:
            if away:
                raise away.pop()
            return await reconcile(scenario, kind)

        monkeypatch.setattr(world.applier, "reconcile", unsteady)
        async with Keeping(world, monkeypatch) as keeping:
            await eventually(lambda: bool(keeping.recovered))
        assert keeping.waits[:4] == [2, 4, 8, 60]
