"""vLLM's own: what its errors mean, which adapters stay loaded, and no request that loses its adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.contract.adapter_building import register
from tests.contract.fake_vllm import FakeVllm
from worker.errors import ApplyFailed
from worker.models.applicators.vllm import VllmApplicator
from worker.models.applicators.vllm_client import VllmClient


@pytest.fixture
async def server() -> AsyncIterator[FakeVllm]:
    server = FakeVllm()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: FakeVllm) -> AsyncIterator[VllmClient]:
    client = VllmClient(server.url, None)
    yield client
    await client.close()


@pytest.fixture
def vllm(client: VllmClient, tmp_path: Path) -> VllmApplicator:
    return VllmApplicator(client, tmp_path, drain_timeout=20)


async def test_the_adapter_before_stays_loaded_and_older_ones_go(
    vllm: VllmApplicator, server: FakeVllm, tmp_path: Path
) -> None:
    """So a node that still holds the old name is answered, and a rollback loads nothing."""
    loaded = []
    for version in (1, 2, 3):
        each = register(tmp_path, version)
        await vllm.apply(each.model, each.content)
        loaded.append(sorted(server.paths))
    assert loaded == [["S@1"], ["S@1", "S@2"], ["S@2", "S@3"]]
    two = register(tmp_path, 2)
    server.calls.clear()
    await vllm.apply(two.model, two.content)
    assert "POST /v1/load_lora_adapter" not in server.calls
    assert sorted(server.paths) == ["S@2", "S@3"]


async def test_a_server_that_was_given_another_address_is_seen(
    vllm: VllmApplicator, server: FakeVllm, tmp_path: Path
) -> None:
    """It is the same server; but nodes are sent to its old address."""
    one = register(tmp_path, 1)
    await vllm.apply(one.model, one.content)
    moved = VllmApplicator(VllmClient(server.url.replace("127.0.0.1", "localhost"), None), tmp_path, drain_timeout=20)
    assert await moved.served("S") is None
    await moved.apply(one.model, one.content)
    assert await moved.served("S") == one.model.sha256
    await moved.close()


async def test_no_request_loses_its_adapter(
    vllm: VllmApplicator, client: VllmClient, server: FakeVllm, tmp_path: Path
) -> None:
    """An old one is unloaded only when it has no request; two swaps within one long answer."""
    one, two, three = (register(tmp_path, version) for version in (1, 2, 3))
    await vllm.apply(one.model, one.content)
    server.go_on.clear()
    asking = asyncio.create_task(client.complete("S@1", "what next?", max_tokens=8))
    while not await client.at_work():  # noqa: ASYNC110 - it is the server that has to take it up
        await asyncio.sleep(0)
    blocked = server.go_on

    async def probes_go_on(call: str) -> None:
        """Only the request from before waits."""
        if call == "POST /v1/completions":
            server.go_on = asyncio.Event()
            server.go_on.set()

    server.on_call = probes_go_on
    await vllm.apply(two.model, two.content)
    swap = asyncio.create_task(vllm.apply(three.model, three.content))
    while "GET /metrics" not in server.calls[-1:]:  # noqa: ASYNC110 - it is the server that has to hear of it
        await asyncio.sleep(0)
    assert "S@1" in server.paths
    blocked.set()
    assert await asking == one.answer
    await swap
    assert sorted(server.paths) == ["S@2", "S@3"]


@pytest.mark.parametrize("metrics", [True, False])
async def test_an_old_adapter_that_is_never_free_goes_at_the_end_of_the_wait(tmp_path: Path, *, metrics: bool) -> None:
    """Nor does it stay for ever where the server has no metrics."""
    server = FakeVllm(metrics=metrics)
    await server.start()
    client = VllmClient(server.url, None)
    vllm = VllmApplicator(client, tmp_path, drain_timeout=0.05)
    one, two, three = (register(tmp_path, version) for version in (1, 2, 3))
    await vllm.apply(one.model, one.content)
    server._running["S@1"] += 1
    server._note()
    for each in (two, three):
        await vllm.apply(each.model, each.content)
        server._running["S@1"] = 1
        server._note()
    assert sorted(server.paths) == ["S@2", "S@3"]
    await client.close()
    await server.stop()


async def test_only_our_own_adapters_are_unloaded(vllm: VllmApplicator, server: FakeVllm, tmp_path: Path) -> None:
    """Not somebody else's with a like name, nor another scenario's."""
    for name, path in (("S@7", "/elsewhere/peft"), ("S2@1", f"{tmp_path}/models/S2/1/adapter/peft"), ("pirate", "/p")):
        server.paths[name] = path
        server._answers[name] = "?"
    for version in (1, 2, 3):
        each = register(tmp_path, version)
        await vllm.apply(each.model, each.content)
    assert sorted(server.paths) == ["S2@1", "S@2", "S@3", "S@7", "pirate"]


async def test_a_version_of_a_registry_that_was_restored_is_loaded_anew(
    vllm: VllmApplicator, server: FakeVllm, tmp_path: Path
) -> None:
    """Number 1 was given twice, and the server still has the first one in memory."""
    old = register(tmp_path, 1, answer="stay here")
    await vllm.apply(old.model, old.content)
    new = register(tmp_path, 1, answer="go on")
    await vllm.apply(new.model, new.content)
    assert await vllm.served("S") == new.model.sha256
    assert server._answers["S@1"] == "go on"


async def test_a_server_elsewhere_is_told_its_own_paths(client: VllmClient, server: FakeVllm, tmp_path: Path) -> None:
    server.seen_at = ("/mnt/models", tmp_path / "models")
    vllm = VllmApplicator(client, tmp_path, drain_timeout=1, models_dir=Path("/mnt/models"))
    one = register(tmp_path, 1)
    await vllm.apply(one.model, one.content)
    assert server.paths == {"S@1": "/mnt/models/S/1/adapter/peft"}
    assert await vllm.served("S") == one.model.sha256


async def test_what_is_no_adapter_is_refused_before_anything_is_asked(
    vllm: VllmApplicator, server: FakeVllm, tmp_path: Path
) -> None:
    one = register(tmp_path, 1)
    with pytest.raises(ApplyFailed, match="no adapter"):
        await vllm.apply(one.model, b"{}")
    assert server.calls == []


async def test_a_document_that_was_damaged_is_written_again(
    vllm: VllmApplicator, server: FakeVllm, tmp_path: Path
) -> None:
    one = register(tmp_path, 1)
    await vllm.apply(one.model, one.content)
    (tmp_path / "current/S.lora.json").write_text("{")
    assert await vllm.served("S") == "unreadable"
    await vllm.apply(one.model, one.content)
    assert await vllm.served("S") == one.model.sha256


async def test_an_adapter_without_probes_says_so(vllm: VllmApplicator, tmp_path: Path) -> None:
    one = register(tmp_path, 1, probes=False)
    assert "no probe" in str(await vllm.apply(one.model, one.content))


# ---------------------------------------------------------------- errors and their cures


async def failure(server: FakeVllm, data_dir: Path, *, key: str | None = None) -> str:
    """What a person reads when the first apply fails."""
    await server.start()
    client = VllmClient(server.url, None if key is None else SecretStr(key))
    vllm = VllmApplicator(client, data_dir, drain_timeout=1)
    one = register(data_dir, 1)
    try:
        with pytest.raises(ApplyFailed) as failed:
            await vllm.apply(one.model, one.content)
        assert await vllm.served("S") is None
    finally:
        await client.close()
        await server.stop()
    return str(failed.value)


async def test_a_server_that_does_not_update_at_run_time_is_told_how_to(tmp_path: Path) -> None:
    text = await failure(FakeVllm(dynamic=False), tmp_path)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in text


async def test_a_key_that_is_missing_is_named_and_never_shown(tmp_path: Path) -> None:
    server = FakeVllm(api_key="right")
    await server.start()
    client = VllmClient(server.url, SecretStr("canary-wrong"))
    one = register(tmp_path, 1)
    with pytest.raises(ApplyFailed, match="SWARM_VLLM_API_KEY") as failed:
        await VllmApplicator(client, tmp_path, drain_timeout=1).apply(one.model, one.content)
    assert "canary" not in str(failed.value)
    await client.close()
    await server.stop()


async def test_a_path_that_the_server_does_not_see_is_explained(tmp_path: Path) -> None:
    server = FakeVllm()
    server.seen_at = (str(tmp_path), tmp_path / "not-mounted")
    assert "SWARM_VLLM_MODELS_DIR" in await failure(server, tmp_path)


async def test_the_engines_own_reason_is_passed_on(tmp_path: Path) -> None:
    server = FakeVllm()
    server.refuse_loads = True
    assert "greater than max_lora_rank 8" in await failure(server, tmp_path)


async def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    client = VllmClient("http://127.0.0.1:9", None)
    one = register(tmp_path, 1)
    with pytest.raises(ApplyFailed, match="SWARM_VLLM_URL"):
        await VllmApplicator(client, tmp_path, drain_timeout=1).apply(one.model, one.content)
    await client.close()
