"""What `check` says of LoRA: what is trained with what, and whether the server of adapters is there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.contract.fake_vllm import FakeVllm
from worker.cli.check_lora import lora_findings
from worker.cli.findings import Finding
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
