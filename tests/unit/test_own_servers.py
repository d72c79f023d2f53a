"""Servers that the worker starts: how it tells what they serve, when it stops them, and what it leaves behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import ClientSession
from pydantic import SecretStr

from tests.contract.adapter_building import Registered, register
from tests.contract.fake_llama_server import FakeLlamaServer, FakeServerProcess
from tests.held_port import held_port
from worker.client.adapters import AdapterPointer
from worker.errors import ApplyFailed
from worker.models.adapter import decode
from worker.models.applicators import inference_client
from worker.models.applicators.blue_green import BlueGreenApplicator
from worker.models.applicators.chosen import lora_applicator
from worker.models.applicators.files import FilesApplicator
from worker.models.applicators.llama_server import LlamaServerApplicator
from worker.models.applicators.own_server import OwnServer
from worker.models.applicators.probe import Probes
from worker.models.applicators.server_command import ServerOptions, environment
from worker.models.applicators.server_state import Pair, ServerState
from worker.settings import load_settings

KEY = "canary-key"
ANY = "0.0.0.0"  # noqa: S104 - nothing is bound


@dataclass
class World:
    """Two ports, the servers played there, and applicators over them."""

    data_dir: Path
    blue: FakeLlamaServer
    green: FakeLlamaServer
    own: dict[str, OwnServer]
    restarting: LlamaServerApplicator  # over blue
    switching: BlueGreenApplicator

    def asked(self) -> str | None:
        """Where nodes ask, and for what."""
        current = AdapterPointer(self.data_dir, "S").current()
        return None if current is None or current.endpoint is None else current.endpoint.model

    def url(self) -> str | None:
        current = AdapterPointer(self.data_dir, "S").current()
        return None if current is None or current.endpoint is None else current.endpoint.url


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Nothing runs yet."""
    (tmp_path / "base.gguf").touch()
    options = ServerOptions(
        program=Path(sys.executable), base=tmp_path / "base.gguf", host="127.0.0.1", gpu_layers=3, context_size=512,
        parallel=2, api_key=SecretStr(KEY),
    )  # fmt: skip
    servers = FakeLlamaServer(), FakeLlamaServer()
    with held_port() as one, held_port() as other:
        blue, green = (
            OwnServer(options, port=port, process=FakeServerProcess(server))
            for port, server in zip((one, other), servers, strict=True)
        )
        made = World(
            data_dir=tmp_path,
            blue=servers[0],
            green=servers[1],
            own={"blue": blue, "green": green},
            restarting=LlamaServerApplicator(blue, data_dir=tmp_path, drain_seconds=0.2),
            switching=BlueGreenApplicator(
                {"blue": blue, "green": green}, data_dir=tmp_path, drain_seconds=5, quiet_seconds=0.05
            ),
        )
        yield made
        await made.switching.close()
        for server in servers:
            await server.stop()


async def apply(applicator: LlamaServerApplicator | BlueGreenApplicator, adapter: Registered) -> str:
    """As the applier calls it."""
    return await applicator.apply(adapter.model, adapter.content)


async def test_a_server_is_started_with_the_settings_and_its_key_where_nobody_sees_it(world: World) -> None:
    """The command line is everybody's; the environment is this user's."""
    one = register(world.data_dir, 1)
    await apply(world.restarting, one)
    assert world.blue.command is not None
    assert KEY not in " ".join(world.blue.command)
    assert world.blue.environment["LLAMA_API_KEY"] == KEY
    given = {name: world.blue.option(name) for name in ("--ctx-size", "--parallel", "--n-gpu-layers", "--alias")}
    assert given == {"--ctx-size": "512", "--parallel": "2", "--n-gpu-layers": "3", "--alias": "S@1"}
    assert world.blue.option("--lora") == str(world.data_dir / "models/S/1/adapter/adapter.gguf")


async def test_a_servers_environment_has_its_own_options_and_none_of_our_secrets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SWARM_CONTROL_KEY", "AWS_SECRET_ACCESS_KEY", "LLAMA_ARG_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    await apply(world.restarting, register(world.data_dir, 1))
    assert {"LLAMA_ARG_THREADS", "CUDA_VISIBLE_DEVICES", "PATH"} <= world.blue.environment.keys()
    assert not {"SWARM_CONTROL_KEY", "AWS_SECRET_ACCESS_KEY"} & world.blue.environment.keys()


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_an_adapter_that_somebody_scaled_away_is_seen_and_brought_back(world: World, which: str) -> None:
    """POST /lora-adapters with an id that is not there says success, and takes all adapters out of force."""
    applicator = getattr(world, which)
    one = register(world.data_dir, 1, probes=False)
    await apply(applicator, one)
    body, headers = [{"id": 7, "scale": 1.0}], {"Authorization": f"Bearer {KEY}"}
    url = world.own["blue"].url + "/lora-adapters"
    async with ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
        assert await answer.json() == {"success": True}
    assert await applicator.served("S") is None
    await apply(applicator, one)
    assert await applicator.served("S") == one.model.sha256


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_a_server_that_hangs_is_replaced_by_the_next_apply(
    world: World, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is alive and lists its adapter; no answer comes."""
    monkeypatch.setattr(inference_client, "_COMPLETION_SECONDS", 0.2)
    applicator = getattr(world, which)
    applicator._drain_seconds = 0.1
    one = register(world.data_dir, 1)
    await apply(applicator, one)
    world.blue.go_on.clear()
    with pytest.raises(ApplyFailed, match="did not answer"):
        await applicator.served("S")
    swap = asyncio.create_task(apply(applicator, one))
    await until(lambda: world.blue.starts + world.green.starts == 2)
    world.blue.go_on.set()
    await swap
    assert await applicator.served("S") == one.model.sha256


async def test_a_restart_waits_for_requests_and_not_for_ever(world: World) -> None:
    """Those that are still there after the drain's time are lost; the server would wait for them without end."""
    await apply(world.restarting, register(world.data_dir, 1))
    world.blue.go_on.clear()
    slow = asyncio.create_task(world.own["blue"].client.complete(None, "what next?", max_tokens=8))
    await until_processing(world, "blue")
    swap = asyncio.create_task(apply(world.restarting, register(world.data_dir, 2)))
    await asyncio.sleep(0)
    world.blue.go_on.set()
    assert await slow == "go 1"
    await swap
    assert world.asked() == "S@2"

    world.blue.go_on.clear()
    lost = asyncio.create_task(world.own["blue"].client.complete(None, "what next?", max_tokens=8))
    await until_processing(world, "blue")
    third = asyncio.create_task(apply(world.restarting, register(world.data_dir, 3, probes=False)))
    with pytest.raises(ApplyFailed):
        await lost
    await third
    assert world.asked() == "S@3"


async def test_the_server_before_is_started_again_where_the_new_adapter_is_no_good(world: World) -> None:
    one = register(world.data_dir, 1)
    await apply(world.restarting, one)
    before = world.blue.command
    world.blue.refuse_new = True
    with pytest.raises(ApplyFailed, match=r"ended at its start: failed to load lora adapter.*base\.gguf"):
        await apply(world.restarting, register(world.data_dir, 2))
    assert world.blue.command == before
    assert await world.restarting.served("S") == one.model.sha256


async def test_the_server_before_is_started_again_where_nothing_is_left_to_start_the_new_one_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors for a moment, the worker had stopped the old one, and nobody was served."""
    one = register(world.data_dir, 1)
    await apply(world.restarting, one)
    before, process = world.blue.command, world.own["blue"]._process
    start = process.start

    async def once(command: Sequence[str], environment: Mapping[str, str]) -> None:
        monkeypatch.setattr(process, "start", start)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(process, "start", once)
    with pytest.raises(ApplyFailed, match=r"cannot be started: .*Too many open files; .*limits of open files"):
        await apply(world.restarting, register(world.data_dir, 2))
    assert world.blue.command == before
    assert await world.restarting.served("S") == one.model.sha256


async def test_whatever_step_a_restart_dies_in_no_worker_is_told_of_what_is_not_served(world: World) -> None:
    """There is a moment without service; then the same apply again ends it."""
    one, two = register(world.data_dir, 1), register(world.data_dir, 2)
    answers = {one.model.sha256: one.answer, two.model.sha256: two.answer}
    died, step = True, 0
    while died:
        step += 1
        await apply(world.restarting, one)
        died = await die_at(world, step, two)
        told = await world.restarting.served("S")
        if told in answers:
            assert await world.own["blue"].client.complete(None, "what next?", max_tokens=8) == answers[told]
        await apply(world.restarting, two)
        assert await world.restarting.served("S") == two.model.sha256
    assert step > 5


async def die_at(world: World, step: int, adapter: Registered) -> bool:
    """Break an apply off when the server sees its `step`th call; False where it has fewer."""
    arrived, calls = asyncio.Event(), 0

    async def hook(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            arrived.set()

    world.blue.on_call = hook
    work = asyncio.create_task(apply(world.restarting, adapter))
    stop = asyncio.create_task(arrived.wait())
    await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
    world.blue.on_call = None
    stop.cancel()
    died = not work.done()
    work.cancel()
    await asyncio.wait((work,))
    return died


async def test_nodes_ask_the_old_server_until_the_new_one_was_probed(world: World) -> None:
    """And the states are the original's: Starting with the old endpoint, Releasing with the new one."""
    assert await world.switching.state("S") == Pair(ServerState.DOWN, "green")
    await apply(world.switching, register(world.data_dir, 1))
    assert await world.switching.state("S") == Pair(ServerState.ACTIVE, "blue")
    seen: list[tuple[ServerState, str, str | None]] = []

    async def look(_: str) -> None:
        pair = await world.switching.state("S")
        row = (pair.state, pair.active, world.asked())
        if seen[-1:] != [row]:
            seen.append(row)

    world.blue.on_call = world.green.on_call = look
    await apply(world.switching, register(world.data_dir, 2))
    world.blue.on_call = world.green.on_call = None
    assert seen == [(ServerState.STARTING, "blue", "S@1"), (ServerState.RELEASING, "green", "S@2")]
    assert await world.switching.state("S") == Pair(ServerState.ACTIVE, "green")
    assert world.url() == world.own["green"].url
    await world.green.stop()
    assert await world.switching.state("S") == Pair(ServerState.DOWN, "green")


async def test_the_old_server_stays_for_requests_that_were_sent_before_a_node_knew(world: World) -> None:
    """Also for short ones, which come and go between two looks."""
    world.switching._quiet_seconds = 2.0  # longer than a busy machine's pause between two questions below
    await apply(world.switching, register(world.data_dir, 1))
    old = world.own["blue"].client
    world.blue.go_on.clear()
    slow = asyncio.create_task(old.complete(None, "what next?", max_tokens=8))
    await until_processing(world, "blue")
    swap = asyncio.create_task(apply(world.switching, register(world.data_dir, 2)))
    await until(lambda: world.asked() == "S@2")
    world.blue.go_on.set()
    assert await slow == "go 1"
    for _ in range(20):
        assert await old.complete(None, "what next?", max_tokens=8) == "go 1"
        await asyncio.sleep(0.02)
    assert not swap.done()
    await swap
    assert world.blue.command is None


@pytest.mark.parametrize("leftover", ["the same", "another"])
async def test_what_a_dead_worker_left_on_the_standby_server_is_ended(world: World, leftover: str) -> None:
    """Of the same name too: nobody saw of which weights it was started."""
    one, two = register(world.data_dir, 1), register(world.data_dir, 2)
    await apply(world.switching, one)
    left = two if leftover == "the same" else register(world.data_dir, 3)
    file = world.data_dir / f"models/S/{left.model.version}/adapter/adapter.gguf"
    green = world.own["green"]
    await green.bring(green.command(f"S@{left.model.version}", file), Probes(decode(left.content).probes))
    await apply(world.switching, two)
    assert await world.switching.served("S") == two.model.sha256
    assert world.green.starts == 2
    assert world.blue.command is None


@pytest.mark.parametrize("swaps", [1, 2])
async def test_a_pointer_that_was_lost_is_written_again_and_no_server_is_started_anew(world: World, swaps: int) -> None:
    """Somebody removed it, or restored the data directory without it; the adapter may be on either server."""
    adapters = [register(world.data_dir, version) for version in range(1, swaps + 1)]
    for adapter in adapters:
        await apply(world.switching, adapter)
    (world.data_dir / "current" / "S.lora.json").unlink()
    await apply(world.switching, adapters[-1])
    assert world.asked() == f"S@{swaps}"
    assert world.blue.starts + world.green.starts == swaps


async def test_a_changed_setting_comes_into_force_with_the_next_apply(world: World) -> None:
    """The command is compared, not the adapter alone."""
    one = register(world.data_dir, 1)
    await apply(world.switching, one)
    for server in world.own.values():
        server._options = replace(server._options, parallel=8)
    assert await world.switching.served("S") == one.model.sha256
    await apply(world.switching, one)
    assert world.green.option("--parallel") == "8"
    assert await world.switching.served("S") == one.model.sha256


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_servers_that_nodes_shall_reach_elsewhere_are_started_anew(world: World, which: str) -> None:
    """Else nodes were sent to the old address for as long as no other adapter is applied."""
    applicator = getattr(world, which)
    one = register(world.data_dir, 1)
    await apply(applicator, one)
    for server in world.own.values():
        server.url = server.url.replace("127.0.0.1", "localhost")
        server._options = replace(server._options, host="localhost")
    assert await applicator.served("S") is None
    await apply(applicator, one)
    assert await applicator.served("S") == one.model.sha256
    assert world.url() in {server.url for server in world.own.values()}


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_a_server_that_was_started_without_the_key_is_started_anew_with_it(world: World, which: str) -> None:
    """It lets everybody in, us too, so that nothing else would tell; by its command it is the one."""
    applicator = getattr(world, which)
    one = register(world.data_dir, 1)
    await apply(applicator, one)
    world.blue.api_key = None
    assert await applicator.served("S") is None
    await apply(applicator, one)
    assert await applicator.served("S") == one.model.sha256
    (running,) = (server for server in (world.blue, world.green) if server.command is not None)
    assert running.environment["LLAMA_API_KEY"] == KEY


async def test_every_setting_of_our_own_servers_reaches_them(tmp_path: Path) -> None:
    """And the two of blue_green share neither port nor file."""
    settings = load_settings(
        scenarios="S", data_dir=tmp_path, lora_applicator="blue_green", lora_serving_base=tmp_path / "base.gguf",
        llama_server_path=sys.executable, llama_host="127.0.0.2", llama_port=81, llama_standby_port=82,
        llama_gpu_layers=7, llama_ctx_size=640, llama_parallel=5, llama_pid_file=tmp_path / "my.pid",
        llama_log_file=tmp_path / "my.log", llama_api_key=KEY, lora_drain_timeout="9s",
    )  # fmt: skip
    (adapter := tmp_path / "adapter.gguf").touch()
    switching = lora_applicator(settings)
    assert isinstance(switching, BlueGreenApplicator)
    assert switching._drain_seconds == 9
    for (colour, server), port in zip(switching._servers.items(), ("81", "82"), strict=True):
        command = server.command("S@1", adapter)
        assert command[0] == sys.executable
        given = dict(pairwise(command))
        expected = {"--model": str(tmp_path / "base.gguf"), "--host": "127.0.0.2", "--port": port, "--parallel": "5"}
        expected |= {"--ctx-size": "640", "--n-gpu-layers": "7"}
        assert {name: given[name] for name in expected} == expected
        assert environment(server._options)["LLAMA_API_KEY"] == KEY
        assert server._process.pid_file == tmp_path / f"my-{colour}.pid"
        assert server._process.log_file == tmp_path / f"my-{colour}.log"
    without = ("llama_pid_file", "llama_log_file", "llama_api_key")
    restarting = lora_applicator(
        settings.model_copy(update=dict.fromkeys(without) | {"lora_applicator": "llama_server"})
    )
    assert isinstance(restarting, LlamaServerApplicator)
    assert restarting._server._process.pid_file == tmp_path / "llama/server.pid"
    assert restarting._server._process.log_file == tmp_path / "llama/server.log"
    assert "LLAMA_API_KEY" not in environment(restarting._server._options)


async def test_a_wildcard_host_is_asked_at_loopback_and_named_by_the_machine(tmp_path: Path) -> None:
    """Nodes elsewhere cannot reach 0.0.0.0."""
    options = ServerOptions(
        program=Path(sys.executable), base=tmp_path, host=ANY, gpu_layers=0, context_size=64, parallel=1, api_key=None
    )
    server = OwnServer(options, port=8080, process=FakeServerProcess(FakeLlamaServer()))
    assert server.client.url == "http://127.0.0.1:8080"
    assert ANY not in server.url
    v6 = OwnServer(replace(options, host="::1"), port=8080, process=FakeServerProcess(FakeLlamaServer()))
    assert v6.url == v6.client.url == "http://[::1]:8080"


async def test_what_cannot_be_started_is_refused_before_anything_is_stopped(world: World) -> None:
    one, two = register(world.data_dir, 1), register(world.data_dir, 2)
    await apply(world.restarting, one)
    (world.data_dir / "models/S/2/adapter/adapter.gguf").unlink()
    with pytest.raises(ApplyFailed, match="SWARM_LORA_CONVERTER"):
        await apply(world.restarting, two)
    world.own["blue"]._options = replace(world.own["blue"]._options, program=Path("no-llama-server"))
    with pytest.raises(ApplyFailed, match="SWARM_LLAMA_SERVER_PATH"):
        await apply(world.restarting, one)
    comma = register(world.data_dir / "a,b", 3)
    with pytest.raises(ApplyFailed, match="commas"):
        await apply(world.restarting, comma)
    assert world.blue.starts == 1
    assert await world.restarting.served("S") == one.model.sha256


async def test_another_program_on_the_port_is_not_taken_for_ours(world: World) -> None:
    """It may answer as healthy; the adapter that it lists is not the one, and our own process ends."""
    stranger = FakeLlamaServer()
    three = register(world.data_dir, 3)
    port = world.own["blue"]._port
    await stranger.run(["x", "--host", "127.0.0.1", "--port", str(port), "--lora", "/elsewhere.gguf"], {})
    try:
        assert await world.restarting.served("S") is None
        with pytest.raises((ApplyFailed, OSError)):
            await apply(world.restarting, three)
        assert world.asked() is None
    finally:
        await stranger.stop()


async def until(condition: object) -> None:
    """Wait for what another task does."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - files and played processes tell nobody
            await asyncio.sleep(0.005)


async def until_processing(world: World, colour: str) -> None:
    """Wait for a request to be in a slot."""
    async with asyncio.timeout(10):
        while not any(slot.is_processing for slot in await world.own[colour].client.slots()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("which", ["restarting", "switching"])
async def test_a_server_that_was_killed_is_seen_and_started_again(world: World, which: str) -> None:
    """Nodes are told of a port then at which nobody answers."""
    applicator, one = getattr(world, which), register(world.data_dir, 1)
    await apply(applicator, one)
    await world.blue.stop()
    assert await applicator.served("S") is None
    await apply(applicator, one)
    assert await applicator.served("S") == one.model.sha256


async def test_files_take_over_from_a_server_that_is_looked_after_no_more(world: World) -> None:
    """Nodes were still told to ask it, whether it lived or not."""
    one = register(world.data_dir, 1)
    await apply(world.switching, one)
    files = FilesApplicator(world.data_dir, "lora")
    assert await files.served("S") != one.model.sha256
    await files.apply(one.model, one.content)
    assert await files.served("S") == one.model.sha256
    assert world.asked() is None
