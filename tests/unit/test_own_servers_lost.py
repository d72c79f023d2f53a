"""Servers that the worker started and lost: to another program on the port, to another data directory, to a pause."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from tests.contract.adapter_building import register
from tests.contract.fake_llama_server import FakeLlamaServer
from tests.unit.test_own_servers import KEY, World, apply
from tests.unit.test_own_servers import world as world  # noqa: PLC0414 - a fixture
from worker.clock import ManualClock
from worker.errors import ApplyFailed
from worker.models.health_window import HealthWindow
from worker.models.serving import Serving


@asynccontextmanager
async def stranger_on(world: World, colour: str, lora: str = "/elsewhere.gguf") -> AsyncIterator[None]:
    """Another worker's server takes the port."""
    server = FakeLlamaServer()
    await server.run(
        ["x", "--host", "127.0.0.1", "--port", str(world.own[colour]._port), "--lora", lora], {"LLAMA_API_KEY": KEY}
    )
    await server._loading
    try:
        yield
    finally:
        await server.stop()


async def test_nodes_are_not_sent_to_another_program_that_took_the_port_of_our_dead_server(world: World) -> None:
    one = register(world.data_dir, 1)
    await apply(world.restarting, one)
    await world.blue.stop()
    async with stranger_on(world, "blue"):
        assert await world.restarting.served("S") is None
        with pytest.raises(ApplyFailed, match=r"port \d+ answers at http.* already.*ss -ltnp"):
            await apply(world.restarting, one)
        assert world.asked() is None
        assert world.blue.starts == 1
    await apply(world.restarting, one)
    assert world.asked() == "S@1"


async def test_of_two_servers_the_other_takes_over_where_a_strangers_is_on_the_port(world: World) -> None:
    one = register(world.data_dir, 1)
    await apply(world.switching, one)
    await world.blue.stop()
    async with stranger_on(world, "green"), stranger_on(world, "blue"):
        with pytest.raises(ApplyFailed, match="answers at"):
            await apply(world.switching, one)
        assert world.asked() is None
    await apply(world.switching, one)
    assert await world.switching.served("S") == one.model.sha256


async def test_a_server_of_ours_whose_pid_file_was_removed_goes_on_being_asked_and_is_not_doubled(world: World) -> None:
    one = register(world.data_dir, 1)
    await apply(world.restarting, one)
    lora = world.blue.option("--lora")
    await world.blue.stop()
    async with stranger_on(world, "blue", lora):
        with pytest.raises(ApplyFailed, match="that file was removed while our server ran"):
            await apply(world.restarting, one)
        assert world.asked() == "S@1"


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_a_copy_of_the_data_directory_is_not_served_from_the_place_that_it_was_copied_from(
    world: World, which: str
) -> None:
    """The adapter there may be another by now: what is hashed is what is served."""
    applicator = getattr(world, which)
    one = register(world.data_dir, 1)
    await apply(applicator, one)
    copy = world.data_dir / "copy"
    shutil.copytree(world.data_dir / "current", copy / "current")
    applicator._documents = type(applicator._documents)(copy, "lora")
    assert await applicator.served("S") == f"something else ({world.data_dir}/models/S/1/adapter/adapter.gguf)"


@asynccontextmanager
async def paused(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The process of the server that is asked runs, as after SIGSTOP or on a machine that swaps, and says nothing."""
    over = asyncio.Event()

    async def wait(_: str) -> None:
        await over.wait()

    monkeypatch.setattr(world.own["blue"].client, "_seconds", 0.05)
    world.blue.on_call = wait
    try:
        yield
    finally:
        world.blue.on_call = None
        over.set()


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_a_pause_of_a_server_in_the_health_window_is_forgiven_and_its_end_is_not(
    world: World, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look without an answer had the new adapter rolled back, though two are forgiven."""
    applicator, one, clock, looks = getattr(world, which), register(world.data_dir, 1), ManualClock(), 0
    await apply(applicator, one)
    served = applicator.served

    async def look(scenario: str) -> str | None:
        nonlocal looks
        looks += 1
        clock.advance(0.002)
        if looks not in (3, 4):
            return cast("str | None", await served(scenario))
        async with paused(world, monkeypatch):
            return cast("str | None", await served(scenario))

    monkeypatch.setattr(applicator, "served", look)
    await HealthWindow(0.02, clock).watch(applicator, one.model)
    assert looks == 10
    await world.blue.stop()
    with pytest.raises(ApplyFailed, match="served no model instead"):
        await HealthWindow(0.02, clock).watch(applicator, one.model)
    assert looks == 11


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_a_silent_server_is_started_anew_at_the_second_look_in_a_row_and_a_dead_one_at_once(
    world: World, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was paused for a moment was killed, and its requests with it."""
    applicator, one = getattr(world, which), register(world.data_dir, 1)
    await apply(applicator, one)
    registry: Any = None  # nothing is brought
    serving = Serving(registry, {"lora": applicator}, HealthWindow(0, ManualClock()), lambda _: None, lambda: None)
    for _ in range(2):
        async with paused(world, monkeypatch):
            with pytest.raises(ApplyFailed, match="did not answer GET /health"):
                await serving.served("S", "lora")
        assert await serving.served("S", "lora") == one.model.sha256
    async with paused(world, monkeypatch):
        with pytest.raises(ApplyFailed):
            await serving.served("S", "lora")
        assert await serving.served("S", "lora") is None
    await world.blue.stop()
    assert await serving.served("S", "lora") is None
