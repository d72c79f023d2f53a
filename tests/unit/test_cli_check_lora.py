"""What `check` says of LoRA: what is trained with what, and whether the server of adapters is there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.contract.fake_vllm import FakeVllm
from tests.unit.adapter_building import base_directory
from tests.unit.test_models_adapters import register
from tests.unit.training_world import opened, worker_over
from worker.cli.check_lora import lora_findings
from worker.cli.findings import Finding
from worker.models.applicators.files import FilesApplicator
from worker.models.applicators.server_process import ServerProcess
from worker.settings import load_settings


async def findings(**flags: Any) -> list[Finding]:
    return [finding async for finding in lora_findings(load_settings(scenarios="a,b", **flags))]


def is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


async def test_settings_without_effect_are_told_of() -> None:
    """Whoever sets a base model and forgets the mode wonders why nothing is trained."""
    assert await findings() == []
    (found,) = await findings(lora_base_model="gpt2", vllm_url="http://gpu:8000")
    assert found.good
    assert "without effect: SWARM_LORA_BASE_MODEL, SWARM_VLLM_URL" in found.detail


async def test_what_is_trained_with_what_is_told(tmp_path: Path) -> None:
    training, serving = await findings(
        processor_mode="lora", lora_base_model="gpt2", lora_launcher="accelerate launch {command}", data_dir=tmp_path
    )
    assert training.detail == "sft on gpt2, by accelerate launch {command}"
    assert serving.what == "lora served by files"
    assert f"{tmp_path}/current/a.lora.json" in serving.detail
    assert is_empty(tmp_path)
    script, _ = await findings(processor_mode="full", lora_train_script="train.py", lora_objective="dpo")
    assert script.detail.startswith("dpo on ")
    assert script.detail.endswith("by train.py")


async def test_a_server_that_is_away_is_a_fault() -> None:
    for applicator, setting in (("llama_router", "llama_url"), ("vllm", "vllm_url")):
        _, serving = await findings(
            processor_mode="lora", lora_applicator=applicator, **{setting: "http://127.0.0.1:9"}
        )
        assert not serving.good
        assert f"SWARM_{setting.upper()}" in serving.detail


async def test_a_router_must_have_room_for_a_swap() -> None:
    """Two scenarios, and one more while a swap goes on."""
    most = {"limit": 2}

    async def props(_: web.Request) -> web.Response:
        return web.json_response({"role": "router", "max_instances": most["limit"]})

    application = web.Application()
    application.router.add_get("/props", props)
    server = TestServer(application)
    await server.start_server()
    try:
        flags = {"processor_mode": "lora", "lora_applicator": "llama_router", "llama_url": str(server.make_url(""))}
        _, serving = await findings(**flags)
        assert not serving.good
        assert "--models-max 3" in serving.detail
        for limit in (3, 0):
            most["limit"] = limit
            _, serving = await findings(**flags)
            assert serving.good
    finally:
        await server.close()


async def test_a_vllm_must_take_adapters_while_it_runs() -> None:
    """Else the first apply would be the first to tell, hours later; and nothing is changed by looking."""
    for dynamic in (True, False):
        vllm = FakeVllm(dynamic=dynamic)
        await vllm.start()
        try:
            _, serving = await findings(processor_mode="lora", lora_applicator="vllm", vllm_url=vllm.url)
        finally:
            await vllm.stop()
        assert serving.good is dynamic
        assert ("takes others" if dynamic else "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True") in serving.detail
        assert vllm.paths == {}


async def test_who_may_read_the_adapters_is_told(tmp_path: Path) -> None:
    """A server of another user would be refused its first adapter, after hours of training."""
    models = tmp_path / "models"
    vllm = FakeVllm()
    await vllm.start()
    try:
        flags = {"processor_mode": "lora", "lora_applicator": "vllm", "vllm_url": vllm.url, "data_dir": tmp_path}
        for made in (False, True):
            if made:
                await asyncio.to_thread(models.mkdir, mode=0o700)
            _, serving = await findings(**flags)
            assert serving.good
            assert f"it must run as the worker's user, since {models if made else tmp_path} is closed" in serving.detail
        for opened in (models, tmp_path):
            await asyncio.to_thread(opened.chmod, 0o710)
        _, serving = await findings(**flags)
        assert f"{tmp_path} is closed" not in serving.detail
        assert f"{models} is closed" not in serving.detail
    finally:
        await vllm.stop()


async def faults(tmp_path: Path, **flags: Any) -> list[str]:
    return [
        finding.detail
        for finding in await findings(processor_mode="lora", data_dir=tmp_path / "data", **flags)
        if not finding.good
    ]


async def test_a_gpu_that_is_not_there_is_found_by_the_python_that_trains(tmp_path: Path) -> None:
    python = tmp_path / "python"
    flags = {"lora_base_model": "gpt2", "lora_device": "cuda", "lora_python_path": python}
    for answer, expected in (("True", 0), ("False", 1)):
        python.write_text(f"#!/bin/sh\necho {answer}\n")
        python.chmod(0o755)
        found = await faults(tmp_path, **flags)
        assert len(found) == expected
    assert "finds no GPU; set cpu or auto" in found[0]
    assert await faults(tmp_path, **flags, lora_launcher="srun {command}") == []


async def test_a_live_adapter_that_is_not_served_is_a_fault(tmp_path: Path) -> None:
    """The worker and its log knew, and whoever asked `check` was told that everything is fine."""
    async with opened(tmp_path, "sqlite") as store:
        world = worker_over(
            store, tmp_path, kinds=("offline", "lora"), mode="auto", adapters=FilesApplicator(tmp_path, "lora")
        )
        await world.applier.apply(await register(world, 1), by="trigger")
    flags = {"processor_mode": "lora", "data_dir": tmp_path, "scenarios": "S", "lora_base_model": "gpt2"}
    *_, live = [finding async for finding in lora_findings(load_settings(**flags))]
    assert (live.what, live.good) == ("adapter version 1 of S", True)
    (tmp_path / "current/S.lora.json").unlink()
    *_, live = [finding async for finding in lora_findings(load_settings(**flags))]
    assert not live.good
    assert "it is live but not served: file://" in live.detail
    vllm = {"lora_applicator": "vllm", "vllm_url": "http://127.0.0.1:9"}
    *_, live = [finding async for finding in lora_findings(load_settings(**flags, **vllm))]
    assert "it is live but not served" in live.detail


async def test_a_live_adapter_of_another_base_is_a_fault_before_its_server_is_started_anew(tmp_path: Path) -> None:
    async with opened(tmp_path, "sqlite") as store:
        world = worker_over(
            store, tmp_path, kinds=("offline", "lora"), mode="auto", adapters=FilesApplicator(tmp_path, "lora")
        )
        await world.applier.apply(await register(world, 1), by="trigger")
    base = base_directory(tmp_path / "base", {}, config={})
    flags = {"processor_mode": "lora", "data_dir": tmp_path, "scenarios": "S", "lora_base_model": str(base)}
    *_, live = [finding async for finding in lora_findings(load_settings(**flags))]
    assert not live.good
    assert live.detail.startswith("it is live, but not to be brought anew: version 1 of S was trained on tiny")


async def test_a_live_adapter_is_looked_for_at_its_receiver(tmp_path: Path) -> None:
    """One that is away, or serves something else, is a fault; some tell the worker alone."""
    hook: dict[str, Any] = {"status": 200, "sha256": "another"}

    async def ask(_: web.Request) -> web.Response:
        return web.json_response({"sha256": hook["sha256"]}, status=hook["status"])

    application = web.Application()
    application.router.add_get("/hook", ask)
    server = TestServer(application)
    await server.start_server()
    try:
        async with opened(tmp_path, "sqlite") as store:
            world = worker_over(
                store, tmp_path, kinds=("offline", "lora"), mode="auto", adapters=FilesApplicator(tmp_path, "lora")
            )
            model = await register(world, 1)
            await world.applier.apply(model, by="trigger")
        flags: dict[str, Any] = {
            "processor_mode": "lora", "data_dir": tmp_path, "scenarios": "S", "lora_base_model": "gpt2",
            "lora_applicator": "webhook", "webhook_url": str(server.make_url("/hook")),
        }  # fmt: skip
        for status, sha256, good, said in (
            (200, "another", False, "it is live but not served"),
            (200, model.sha256, True, "it is live, and served"),
            (405, "", True, "`swarm-worker status` may know"),
            (401, "", False, "refused with HTTP 401"),
        ):
            hook.update(status=status, sha256=sha256)
            *_, live = [finding async for finding in lora_findings(load_settings(**flags))]
            assert (live.good, said in live.detail) == (good, True), live
    finally:
        await server.close()


async def test_a_server_that_an_earlier_setting_started_is_told_of(tmp_path: Path) -> None:
    """It outlives the worker so that nodes go on being served, and another applicator leaves it alone."""
    process = ServerProcess(pid_file=tmp_path / "llama/server-blue.pid", log_file=tmp_path / "llama/log")
    await process.start(["/bin/sleep", "60"], {})
    try:
        flags = {"processor_mode": "lora", "lora_base_model": "gpt2", "data_dir": tmp_path}
        running = await process.running()
        assert running is not None
        assert any(finding.detail.endswith(f"kill {running.pid}") for finding in await findings(**flags))
    finally:
        await process.stop(grace=0)
    assert not any("llama-server of an earlier" in finding.detail for finding in await findings(**flags))
