"""Adapters through real llama-servers that the worker starts: two that take turns, or one that is restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest

from tests.held_port import held_port
from tests.integration.worker_process import until
from tests.lora.asking_swarm import Swarm
from tests.lora.made_adapters import AdapterMaker, Made
from tests.lora.tiny import TinyBase
from worker.client.adapters import AdapterPointer, CurrentAdapter
from worker.errors import ApplyFailed
from worker.models.applicators.blue_green import BlueGreenApplicator
from worker.models.applicators.chosen import lora_applicator
from worker.models.applicators.llama_server import LlamaServerApplicator
from worker.models.applicators.probe import answers_as
from worker.models.applicators.server_process import Running, ServerProcess
from worker.models.applicators.server_state import Pair, ServerState
from worker.settings import load_settings

pytestmark = [pytest.mark.lora, pytest.mark.timeout(120)]

_SWAPS = 10
_KEY = "server-key"
#: Steps of a swap that a worker is killed at, in their order.
_STEPS = ("adapter_loaded", "adapter_probed", "pointer_moved", "adapter_unloaded")


@dataclass
class World:
    """What a worker is told; every applicator made of it is that of another life of the worker."""

    data_dir: Path
    settings: dict[str, str]

    def blue_green(self) -> BlueGreenApplicator:
        """Two servers."""
        made = lora_applicator(load_settings(**{**self.settings, "lora_applicator": "blue_green"}))
        assert isinstance(made, BlueGreenApplicator)
        made._quiet_seconds = 0.4  # nodes of these tests are at most 0.1 s behind
        return made

    def llama_server(self) -> LlamaServerApplicator:
        """One server."""
        made = lora_applicator(load_settings(**{**self.settings, "lora_applicator": "llama_server"}))
        assert isinstance(made, LlamaServerApplicator)
        return made

    def processes(self) -> dict[str, ServerProcess]:
        """All that may run."""
        folder = self.data_dir / "llama"
        names = ("server", "server-blue", "server-green")
        return {name: ServerProcess(pid_file=folder / f"{name}.pid", log_file=folder / f"{name}.log") for name in names}

    async def running(self) -> dict[str, Running]:
        """Those that run."""
        found = {name: await process.running() for name, process in self.processes().items()}
        return {name: each for name, each in found.items() if each is not None}

    def current(self) -> CurrentAdapter:
        """Whom nodes ask."""
        current = AdapterPointer(self.data_dir, "S").current()
        assert current is not None
        return current


@pytest.fixture
async def world(
    base: TinyBase, llama_server_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """Nothing runs yet; all that was started is ended."""
    # More threads than idle cores wait for each other by spinning: a drain took 10 s instead of 1 (measured, load 9).
    monkeypatch.setenv("LLAMA_ARG_THREADS", "1")
    with held_port() as port, held_port() as standby:
        made = World(
            data_dir=tmp_path,
            settings={
                "scenarios": "S",
                "data_dir": str(tmp_path),
                "processor_mode": "lora",
                "lora_base_model": str(base.directory),
                "lora_serving_base": str(base.gguf),
                "lora_drain_timeout": "20s",
                "llama_server_path": str(llama_server_program),
                "llama_port": str(port),
                "llama_standby_port": str(standby),
                "llama_ctx_size": "2048",
                "llama_parallel": "4",
                "llama_api_key": _KEY,
            },
        )
        yield made
        for process in made.processes().values():
            await process.stop(grace=0)


async def said(current: CurrentAdapter, made: Made) -> str:
    """What a node gets where it is told to ask."""
    assert current.endpoint is not None
    probe = made.probes[0]
    body = {"model": current.endpoint.model, "prompt": probe.prompt, "max_tokens": probe.max_tokens, "temperature": 0}
    url, headers = f"{current.endpoint.url}/v1/completions", {"Authorization": f"Bearer {_KEY}"}
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as answer:
        return str((await answer.json())["choices"][0]["text"])


def is_of(made: Made, answer: str) -> bool:
    """Whether an answer to its first probe is that of the adapter."""
    return answers_as(made.probes[0].expected, made.probes[0].base, answer)


async def test_ten_swaps_under_a_swarm_that_asks_all_the_while_lose_no_request(
    world: World, maker: AdapterMaker
) -> None:
    """Every answer is that of the version which was asked for, and long ones are not cut short."""
    made = {f"S@{version}": maker.registered(world.data_dir, version) for version in range(1, _SWAPS + 2)}
    first, *others = made.values()
    applicator = world.blue_green()
    await applicator.apply(first.model, first.content)
    swarm = Swarm(world.data_dir, _KEY, made)
    async with asyncio.TaskGroup() as group:
        group.create_task(swarm.ask(tokens=16))
        group.create_task(swarm.ask(tokens=400))
        group.create_task(swarm.ask(tokens=16, late_by=0.1))
        for each in others:
            await applicator.apply(each.model, each.content)
            assert await applicator.served("S") == each.model.sha256
        swarm.stopping = True
    await applicator.close()
    assert swarm.wrong == []
    assert set(swarm.answered) == set(made)
    assert list(await world.running()) == ["server-blue"]  # an even number of swaps


async def test_a_rollback_restores_what_was_answered_before(world: World, maker: AdapterMaker) -> None:
    one, two = maker.registered(world.data_dir, 1), maker.registered(world.data_dir, 2)
    for applicator in (world.blue_green(), world.llama_server()):
        for each, other in ((one, two), (two, one), (one, two)):
            detail = await applicator.apply(each.model, each.content)
            assert "probes answered as with the adapter, 0 as without" in detail
            assert await applicator.served("S") == each.model.sha256
            answer = await said(world.current(), each)
            assert is_of(each, answer)
            assert not is_of(other, answer)
        await applicator.withdraw("S")
        assert await applicator.served("S") is None
        assert await world.running() == {}
        await applicator.close()


async def test_servers_outlive_the_worker_and_are_those_of_the_next(world: World, maker: AdapterMaker) -> None:
    """The next worker asks them, and starts none beside them."""
    one = maker.registered(world.data_dir, 1)
    for make in (world.blue_green, world.llama_server):
        before = make()
        await before.apply(one.model, one.content)
        await before.close()
        running = await world.running()
        after = make()
        assert await after.served("S") == one.model.sha256
        await after.apply(one.model, one.content)
        assert await world.running() == running
        await after.withdraw("S")
        await after.close()


async def test_a_server_that_was_killed_is_seen_and_started_again(world: World, maker: AdapterMaker) -> None:
    """As a worker's start does, which brings the live adapter where another is served, or none."""
    one = maker.registered(world.data_dir, 1)
    for applicator in (world.blue_green(), world.llama_server()):
        await applicator.apply(one.model, one.content)
        for each in (await world.running()).values():
            os.kill(each.pid, signal.SIGKILL)
        await until(world.running, lambda running: not running)
        assert await applicator.served("S") is None
        await applicator.apply(one.model, one.content)
        assert await applicator.served("S") == one.model.sha256
        assert is_of(one, await said(world.current(), one))
        await applicator.withdraw("S")
        await applicator.close()


async def test_a_bad_adapter_never_gets_a_request_and_the_one_before_goes_on(world: World, maker: AdapterMaker) -> None:
    """Half a copy, and a file that loads and is not what was trained."""
    one, half, other = (maker.registered(world.data_dir, version) for version in (1, 2, 3))
    files = [world.data_dir / f"models/S/{version}/adapter/adapter.gguf" for version in (1, 2, 3)]
    files[1].write_bytes(files[1].read_bytes()[:2_000])
    files[2].write_bytes(files[0].read_bytes())
    for applicator in (world.blue_green(), world.llama_server()):
        await applicator.apply(one.model, one.content)
        with pytest.raises(ApplyFailed, match=r"ended at its start: .*failed to load lora adapter.*tiny\.gguf"):
            await applicator.apply(half.model, half.content)
        with pytest.raises(ApplyFailed, match="does not answer as the adapter does: 0 of"):
            await applicator.apply(other.model, other.content)
        assert await applicator.served("S") == one.model.sha256
        assert is_of(one, await said(world.current(), one))
        assert len(await world.running()) == 1
        await applicator.withdraw("S")
        await applicator.close()


async def test_a_port_that_another_server_has_is_said_so(world: World, maker: AdapterMaker) -> None:
    """Which may well answer as healthy."""
    one = maker.registered(world.data_dir, 1)
    theirs = World(world.data_dir / "other", {**world.settings, "data_dir": str(world.data_dir / "other")})
    their = maker.registered(theirs.data_dir, 1)
    first, second = theirs.llama_server(), world.llama_server()
    try:
        await first.apply(their.model, their.content)
        with pytest.raises(ApplyFailed, match=f"port {world.settings['llama_port']} answers at .* already.*ss -ltnp"):
            await second.apply(one.model, one.content)
        assert await second.served("S") is None
        assert await first.served("S") == their.model.sha256
    finally:
        await first.withdraw("S")
        await first.close()
        await second.close()


async def test_a_worker_killed_at_any_step_of_a_switch_costs_no_request_and_the_next_ends_it(
    world: World, maker: AdapterMaker
) -> None:
    """Between the two, nodes are answered by the one that the pointer names; afterwards a single server runs."""
    world.settings["lora_applicator"] = "blue_green"
    made = {f"S@{version}": maker.registered(world.data_dir, version) for version in range(1, len(_STEPS) + 2)}
    first, *others = made.values()
    applicator = world.blue_green()
    await applicator.apply(first.model, first.content)
    await applicator.close()
    swarm = Swarm(world.data_dir, _KEY, made)
    before = first
    async with asyncio.TaskGroup() as group:
        group.create_task(swarm.ask(tokens=16))
        group.create_task(swarm.ask(tokens=16, late_by=0.1))
        for step, each in zip(_STEPS, others, strict=True):
            assert await killed_at(world, step, each) == -signal.SIGKILL
            after = world.blue_green()
            switched = _STEPS.index(step) >= _STEPS.index("pointer_moved")
            assert await after.served("S") == (each if switched else before).model.sha256, step
            assert (await after.state("S")).state == ServerState.ACTIVE
            await after.apply(each.model, each.content)
            assert await after.served("S") == each.model.sha256
            assert len(await world.running()) == 1
            await after.close()
            before = each
        swarm.stopping = True
    assert swarm.wrong == []
    assert set(swarm.answered) == set(made)


async def test_a_worker_killed_while_it_restarts_a_server_is_followed_by_one_that_ends_it(
    world: World, maker: AdapterMaker
) -> None:
    """What the next one is told before it does is never an adapter that does not answer."""
    world.settings["lora_applicator"] = "llama_server"
    one, two = maker.registered(world.data_dir, 1), maker.registered(world.data_dir, 2)
    applicator = world.llama_server()
    for step in ("adapter_unloaded", "adapter_loaded", "adapter_probed", "pointer_moved"):
        await applicator.apply(one.model, one.content)
        assert await killed_at(world, step, two) == -signal.SIGKILL
        told = await applicator.served("S")
        assert (told == two.model.sha256) == (step == "pointer_moved"), step
        assert told != one.model.sha256
        await applicator.apply(two.model, two.content)
        assert await applicator.served("S") == two.model.sha256
        assert is_of(two, await said(world.current(), two))
    await applicator.close()


async def killed_at(world: World, step: str, made: Made) -> int:
    """How an apply in a process of its own ends, which is armed to die there."""
    files = [world.data_dir / name for name in ("row", "content")]
    for file, content in zip(files, (msgspec.json.encode(made.model), made.content), strict=True):
        file.write_bytes(content)
    environment = {name: os.environ[name] for name in ("PATH", "LLAMA_ARG_THREADS")}
    environment |= {f"SWARM_{name.upper()}": value for name, value in world.settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lora.applying", *map(str, files), step),
        env=environment, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait()


async def test_a_server_with_requests_that_never_end_is_stopped_all_the_same(world: World, maker: AdapterMaker) -> None:
    """llama-server does not end on SIGTERM while it has one: after the drain's time it is killed."""
    world.settings["lora_drain_timeout"] = "500ms"
    one, two = maker.registered(world.data_dir, 1), maker.registered(world.data_dir, 2)
    applicator = world.blue_green()
    await applicator.apply(one.model, one.content)
    endpoint = world.current().endpoint
    assert endpoint is not None
    body = {"prompt": one.probes[0].prompt, "max_tokens": 1_000_000, "ignore_eos": True, "model": endpoint.model}

    async def ask_without_end() -> None:
        headers = {"Authorization": f"Bearer {_KEY}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            while True:
                async with http.post(f"{endpoint.url}/v1/completions", json=body) as answer:
                    await answer.read()

    asking = asyncio.create_task(ask_without_end())
    await asyncio.sleep(0)
    await applicator.apply(two.model, two.content)
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert await applicator.served("S") == two.model.sha256
    assert await applicator.state("S") == Pair(ServerState.ACTIVE, "green")
    assert list(await world.running()) == ["server-green"]
    await applicator.close()
