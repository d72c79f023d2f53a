"""Adapters through a real llama-server in router mode: swaps that no client notices, and what comes of a bad one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.lora.asking_swarm import Swarm
from tests.lora.llama_server import RunningServer, running_server
from tests.lora.made_adapters import AdapterMaker
from tests.lora.tiny import TinyBase
from worker.client.adapters import AdapterPointer
from worker.errors import ApplyFailed
from worker.models.adapter import GGUF_FILE, adapter_directory
from worker.models.applicators.llama_client import LlamaClient
from worker.models.applicators.llama_router import LlamaRouterApplicator
from worker.models.applicators.probe import answers_as
from worker.models.applicators.router_preset import PresetFile

pytestmark = [pytest.mark.lora, pytest.mark.usefixtures("llama_server_program")]

_SWAPS = 10
_KEY = "router-key"


@dataclass
class World:
    """A router, and the worker's applicator for it."""

    data_dir: Path
    server: RunningServer
    preset: PresetFile
    applicator: LlamaRouterApplicator
    client: LlamaClient

    async def running(self) -> list[str]:
        """Sections that have a process."""
        return [each.id for each in await self.client.models() if each.running]


@pytest.fixture
async def start(
    base: TinyBase, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Callable[..., World]]:
    """Starts a router, with further options, and an applicator for it."""
    preset = PresetFile(tmp_path / "preset.ini")
    preset.write("version = 1\n\n[*]\nctx-size = 2048 ; for all\nparallel = 2\nthreads = 1\n\n")

    async with AsyncExitStack() as stack:

        def make(*options: str, port: int | None = None) -> World:
            server = stack.enter_context(
                running_server(
                    ["--models-preset", str(preset.path), "--api-key", _KEY, *options],
                    directory=tmp_path_factory.mktemp("router"),
                    port=port,
                )
            )
            applicator = LlamaRouterApplicator(
                LlamaClient(server.url, SecretStr(_KEY)), preset=preset, data_dir=tmp_path, serving_base=base.gguf,
                drain_seconds=20, quiet_seconds=0.3,
            )  # fmt: skip
            client = LlamaClient(server.url, SecretStr(_KEY))
            stack.push_async_callback(applicator.close)
            stack.push_async_callback(client.close)
            return World(tmp_path, server, preset, applicator, client)

        yield make


async def restarted(start: Callable[..., World], world: World, *options: str) -> World:
    """The router ended, and started again with these options where it was."""
    world.server.process.terminate()
    await asyncio.to_thread(world.server.process.wait)
    return start(*options, port=int(world.server.url.rpartition(":")[2]))


@pytest.mark.timeout(120)
async def test_ten_swaps_under_a_swarm_that_asks_all_the_while_lose_no_request(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    """Every answer is that of the version which was asked for, and long ones are not cut short."""
    world = start("--models-max", "2")
    made = {f"S@{version}": maker.registered(tmp_path, version) for version in range(1, _SWAPS + 2)}
    first, *others = made.values()
    await world.applicator.apply(first.model, first.content)
    swarm = Swarm(world.data_dir, _KEY, made)
    async with asyncio.TaskGroup() as group:
        group.create_task(swarm.ask(tokens=16))
        group.create_task(swarm.ask(tokens=400))
        group.create_task(swarm.ask(tokens=16, late_by=0.1))
        for each in others:
            await world.applicator.apply(each.model, each.content)
            assert await world.applicator.served("S") == each.model.sha256
        swarm.stopping = True

    assert swarm.wrong == []
    assert set(swarm.answered) == set(made)
    assert await world.running() == [f"S@{_SWAPS + 1}"]
    assert world.preset.read().count("[S@") == 2  # the one before can still be asked


async def test_an_apply_changes_what_is_answered_and_going_back_restores_it(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    world = start()
    one, two = maker.registered(tmp_path, 1), maker.registered(tmp_path, 2)
    for each in (one, two, one):
        detail = await world.applicator.apply(each.model, each.content)
        assert f"{len(each.probes)} of {len(each.probes)} probes answered as with the adapter, 0 as without" in detail
        assert await world.applicator.served("S") == each.model.sha256
    current = AdapterPointer(tmp_path, "S").current()
    assert current is not None
    assert current.endpoint is not None
    assert (current.endpoint.url, current.endpoint.model) == (world.server.url, "S@1")


async def test_a_server_that_goes_on_with_the_adapter_before_under_the_new_name_is_found_out(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    """By its answers: names and paths are as they should be."""
    world = start()
    one = maker.registered(tmp_path, 1)
    two = maker.registered(tmp_path, 2, before=one)
    await world.applicator.apply(one.model, one.content)
    files = [adapter_directory(each.model) / GGUF_FILE for each in (one, two)]
    files[1].write_bytes(files[0].read_bytes())
    number = len(two.probes)
    with pytest.raises(ApplyFailed, match=f"0 of {number} as with it, {number} as with another adapter"):
        await world.applicator.apply(two.model, two.content)
    assert await world.applicator.served("S") == one.model.sha256


async def test_who_read_the_pointer_long_before_a_swap_is_still_answered(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    """By the version that it asks for, which the router loads again; the next swap unloads it again."""
    world = start()
    one, two, three = (maker.registered(tmp_path, version) for version in (1, 2, 3))
    await world.applicator.apply(one.model, one.content)
    await world.applicator.apply(two.model, two.content)
    assert await world.running() == ["S@2"]

    probe = one.probes[0]
    said = await world.client.complete("S@1", probe.prompt, max_tokens=probe.max_tokens)
    assert answers_as(probe.expected, probe.base, said)

    await world.applicator.apply(three.model, three.content)
    assert await world.running() == ["S@3"]


async def test_an_adapter_of_another_base_is_refused_and_the_one_before_goes_on(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    world = start()
    one, two, three = (maker.registered(tmp_path, version) for version in (1, 2, 3))
    await world.applicator.apply(one.model, one.content)
    file = tmp_path / "models" / "S" / "2" / "adapter" / "adapter.gguf"
    file.write_bytes(file.read_bytes()[:2_000])  # half a copy

    with pytest.raises(ApplyFailed, match=r"could not load S@2 \(exit code 1\); its log says why"):
        await world.applicator.apply(two.model, two.content)

    assert await world.applicator.served("S") == one.model.sha256
    await world.applicator.apply(three.model, three.content)
    assert {each.id for each in await world.client.models()} == {"S@1", "S@3", "base"}


async def test_an_adapter_that_answers_as_the_base_is_not_pointed_at(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    """Its file is whole and loads, and is not what was trained."""
    world = start()
    one, two = maker.registered(tmp_path, 1), maker.registered(tmp_path, 2)
    files = [tmp_path / "models" / "S" / version / "adapter" / "adapter.gguf" for version in ("1", "2")]
    files[1].write_bytes(files[0].read_bytes())
    await world.applicator.apply(one.model, one.content)

    with pytest.raises(ApplyFailed, match="does not answer as the adapter does: 0 of"):
        await world.applicator.apply(two.model, two.content)

    assert await world.applicator.served("S") == one.model.sha256


async def test_a_router_that_was_started_again_serves_the_same_adapter(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    """It reads the preset, and loads what it is asked for."""
    world = start()
    one = maker.registered(tmp_path, 1)
    await world.applicator.apply(one.model, one.content)
    again = await restarted(start, world)

    assert await again.running() == []
    assert await again.applicator.served("S") == one.model.sha256
    assert await again.running() == ["S@1"]


async def test_a_router_that_loads_nothing_by_itself_is_seen_to_serve_nothing(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    """And serves again once the live adapter is applied, as a worker's start does."""
    world = start()
    one = maker.registered(tmp_path, 1)
    await world.applicator.apply(one.model, one.content)
    again = await restarted(start, world, "--no-models-autoload")

    assert await again.applicator.served("S") is None
    await again.applicator.apply(one.model, one.content)
    assert await again.applicator.served("S") == one.model.sha256


async def test_an_adapter_on_the_routers_own_command_line_is_found_out(
    start: Callable[..., World], maker: AdapterMaker, tmp_path: Path
) -> None:
    """It would take the place of every section's adapter."""
    maker.registered(tmp_path, 1)
    one = tmp_path / "models" / "S" / "1" / "adapter" / "adapter.gguf"
    world = start("--lora", str(one))
    two = maker.registered(tmp_path, 2)

    with pytest.raises(ApplyFailed, match=rf"runs S@2 with {one}, not with .*SWARM_LLAMA_PRESET"):
        await world.applicator.apply(two.model, two.content)


async def test_scenarios_live_beside_each_other_and_beside_what_is_not_ours(
    start: Callable[..., World], base: TinyBase, maker: AdapterMaker, tmp_path: Path
) -> None:
    preset = PresetFile(tmp_path / "preset.ini")
    world = start("--models-max", "3")
    theirs = f"{preset.read()}# a model of theirs\n[plain]\nmodel = {base.gguf}\n"
    preset.write(theirs)
    mine, yours, newer = (
        maker.registered(tmp_path, 1),
        maker.registered(tmp_path, 7, scenario="S2"),
        maker.registered(tmp_path, 2),
    )
    for each in (mine, yours, newer):
        await world.applicator.apply(each.model, each.content)
    assert await world.applicator.served("S") == newer.model.sha256
    assert await world.applicator.served("S2") == yours.model.sha256
    assert await world.client.complete("plain", mine.probes[0].prompt, max_tokens=4)

    third = maker.registered(tmp_path, 1, scenario="S3")
    with pytest.raises(ApplyFailed, match="runs 3 models, which is its --models-max; start it with a larger one"):
        await world.applicator.apply(third.model, third.content)

    for scenario in ("S", "S2", "S3"):
        await world.applicator.withdraw(scenario)
    assert preset.read() == f"{theirs}[base]\nmodel = {base.gguf}\n\n"
    assert await world.running() == ["plain"]
