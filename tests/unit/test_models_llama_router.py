"""The router's applicator where the server is slow, full, stubborn or none: against one that plays b11434's traps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.contract.adapter_building import BASE_ANSWER, PROMPT, Registered, register
from tests.contract.fake_llama_router import FakeLlamaRouter
from worker.client.adapters import AdapterPointer
from worker.errors import ApplyFailed
from worker.models.applicators.inference_client import ServerRefused, ServerUnreachable
from worker.models.applicators.llama_client import LlamaClient
from worker.models.applicators.llama_router import LlamaRouterApplicator
from worker.models.applicators.router_preset import BASE, PresetFile

KEY = "canary-key"


class World:
    """A played router, and applicators and clients for it."""

    def __init__(self, data_dir: Path, server: FakeLlamaRouter) -> None:
        self.data_dir = data_dir
        self.server = server
        self.client = LlamaClient(server.url, SecretStr(KEY))
        self.applicator = self.another()

    def another(self, **changes: Any) -> LlamaRouterApplicator:
        """An applicator as a worker with other settings makes it."""
        with_all = {"preset": PresetFile(self.server.preset), "data_dir": self.data_dir, "drain_seconds": 20.0}
        more = {"serving_base": self.data_dir / "base.gguf", "quiet_seconds": 0.0}
        return LlamaRouterApplicator(self.client, **{**with_all, **more, **changes})

    async def apply(self, *adapters: Registered) -> None:
        """One after the other."""
        for each in adapters:
            await self.applicator.apply(each.model, each.content)

    async def ask(self, name: str) -> asyncio.Task[str]:
        """A request that the server works on, and answers once `server.go_on` is set."""
        self.server.go_on.clear()
        request = asyncio.create_task(self.client.complete(name, PROMPT, max_tokens=4))
        async with asyncio.timeout(10):
            while await self.client.busy(name) is not True:  # noqa: ASYNC110 - the server is asked, it tells nobody
                await asyncio.sleep(0.01)
        return request

    async def looked_at_slots(self) -> None:
        """Until somebody has done so a few times more."""
        seen = len(self.server.calls)
        async with asyncio.timeout(10):
            while sum(call.startswith("GET /slots") for call in self.server.calls[seen:]) < 3:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A router with a key."""
    preset = PresetFile(tmp_path / "preset.ini")
    preset.create(tmp_path / "base.gguf")
    server = FakeLlamaRouter(preset.path, api_key=KEY)
    await server.start()
    made = World(tmp_path, server)
    yield made
    await made.client.close()
    await server.stop()


async def test_the_old_adapter_is_unloaded_when_its_last_request_is_answered(world: World, tmp_path: Path) -> None:
    one, two = register(tmp_path, 1), register(tmp_path, 2, probes=False)  # a probe would wait as well
    await world.apply(one)
    request = await world.ask("S@1")

    swap = asyncio.create_task(world.apply(two))
    await world.looked_at_slots()
    assert _pointed(tmp_path) == "S@2"
    assert world.server.loaded() == ["S@1", "S@2"]
    world.server.go_on.set()
    await swap

    assert await request == one.answer
    assert world.server.loaded() == ["S@2"]


async def test_a_request_that_never_ends_does_not_hold_the_old_adapter_for_ever(world: World, tmp_path: Path) -> None:
    one, two = register(tmp_path, 1), register(tmp_path, 2)
    world.applicator = world.another(drain_seconds=0.3)
    await world.apply(one)
    request = await world.ask("S@1")
    no_probe = register(tmp_path, 3, probes=False)  # a probe would wait as well

    await world.apply(no_probe)

    assert world.server.loaded() == ["S@3"]
    with pytest.raises(ServerRefused, match="HTTP 500"):
        await request
    world.server.go_on.set()
    await world.apply(two)


async def test_a_server_that_hides_its_slots_is_given_the_whole_time(world: World, tmp_path: Path) -> None:
    """Nobody can tell whether the old adapter is in use."""
    world.server.slots = False
    world.applicator = world.another(drain_seconds=0.3)
    await world.apply(register(tmp_path, 1))
    start = asyncio.get_running_loop().time()
    await world.apply(register(tmp_path, 2))
    assert asyncio.get_running_loop().time() - start >= 0.3
    assert world.server.loaded() == ["S@2"]


async def test_an_old_adapter_that_cannot_be_unloaded_is_left_to_the_next_swap(world: World, tmp_path: Path) -> None:
    """What was applied is served all the same."""
    one, two, three = (register(tmp_path, version) for version in (1, 2, 3))
    await world.apply(one)
    world.server.refuse_unloads = True
    await world.apply(two)
    assert await world.applicator.served("S") == two.model.sha256
    assert world.server.loaded() == ["S@1", "S@2"]
    world.server.refuse_unloads = False
    await world.apply(three)
    assert world.server.loaded() == ["S@3"]


async def test_a_changed_base_takes_the_place_of_the_old_one_when_nobody_asks(world: World, tmp_path: Path) -> None:
    """A reload of a section that runs would cut its answers short."""
    one = register(tmp_path, 1)
    await world.apply(one)
    world.applicator = world.another(serving_base=tmp_path / "better.gguf")
    assert await world.applicator.served("S") is None

    request = await world.ask("S@1")
    change = asyncio.create_task(world.apply(one))
    await world.looked_at_slots()
    world.server.go_on.set()
    await change

    assert await request == one.answer
    assert await world.applicator.served("S") == one.model.sha256
    assert world.server.models["S@1"].running["model"] == str(tmp_path / "better.gguf")


async def test_a_full_router_is_said_and_nobody_elses_model_is_stopped(world: World, tmp_path: Path) -> None:
    world.server.models_max = 2
    for scenario in ("S2", "S3"):
        await world.apply(register(tmp_path, 1, scenario=scenario))
    with pytest.raises(ApplyFailed, match=r"which is its --models-max; .* S@1 takes a place beside S2@1, S3@1"):
        await world.apply(register(tmp_path, 1))
    assert world.server.loaded() == ["S2@1", "S3@1"]


async def test_what_a_failed_swap_left_is_gone_after_the_way_back(world: World, tmp_path: Path) -> None:
    one, two = register(tmp_path, 1), register(tmp_path, 2, expected="something else")
    await world.apply(one)
    with pytest.raises(ApplyFailed, match="does not answer as the adapter does"):
        await world.apply(two)
    await world.apply(one)
    assert world.server.loaded() == ["S@1"]
    assert list(world.server.models) == [BASE, "S@1"]


async def test_scenarios_that_are_applied_at_once_all_come_into_the_preset(world: World, tmp_path: Path) -> None:
    adapters = [register(tmp_path, 1, scenario=scenario, answer=f"go {scenario}") for scenario in ("S1", "S2", "S3")]
    await asyncio.gather(*(world.applicator.apply(each.model, each.content) for each in adapters))
    for each in adapters:
        assert await world.applicator.served(each.model.scenario) == each.model.sha256


async def test_a_version_without_a_gguf_file_is_refused_with_the_cure(world: World, tmp_path: Path) -> None:
    one = register(tmp_path, 1)
    (tmp_path / "models" / "S" / "1" / "adapter" / "adapter.gguf").unlink()
    with pytest.raises(ApplyFailed, match=r"adapter\.gguf is missing.*SWARM_LORA_CONVERTER"):
        await world.apply(one)


async def test_a_document_that_is_no_adapter_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ApplyFailed, match=r"version 1 of S: model\.json is no adapter"):
        await world.applicator.apply(register(tmp_path, 1).model, b"{}")


async def test_a_router_that_reads_another_preset_is_found_out(world: World, tmp_path: Path) -> None:
    world.applicator = world.another(preset=PresetFile(tmp_path / "other.ini"))
    with pytest.raises(ApplyFailed, match=r"does not list S@1; is .*other\.ini \(SWARM_LLAMA_PRESET\) its"):
        await world.apply(register(tmp_path, 1))


async def test_a_base_that_never_gets_ready_is_not_waited_for_for_ever(world: World, tmp_path: Path) -> None:
    world.applicator = world.another(load_seconds=0.0)
    with pytest.raises(ApplyFailed, match=r"did not get S@1 ready .* in 0 s"):
        await world.apply(register(tmp_path, 1))


async def test_what_another_server_was_given_is_not_served_by_this_one(world: World, tmp_path: Path) -> None:
    one = register(tmp_path, 1)
    await world.apply(one)
    pointer = tmp_path / "current" / "S.lora.json"
    pointer.write_text(pointer.read_text().replace(world.server.url, "http://127.0.0.1:1"))
    assert await world.applicator.served("S") is None
    await world.apply(one)
    assert await world.applicator.served("S") == one.model.sha256


async def test_a_router_under_another_spelling_of_its_address_loses_nobody(world: World, tmp_path: Path) -> None:
    """Nodes go by the old pointer until the swap: the version before has to be there till then."""
    one, two = register(tmp_path, 1), register(tmp_path, 2)
    await world.apply(one)
    pointer = tmp_path / "current" / "S.lora.json"
    pointer.write_text(pointer.read_text().replace("127.0.0.1", "localhost"))
    await world.apply(two)
    assert await world.client.complete("S@1", PROMPT, max_tokens=4) == one.answer


@pytest.mark.parametrize("text", ["", "{", '{"model": 1}'])
async def test_a_damaged_pointer_is_no_adapter_and_is_written_again(world: World, tmp_path: Path, text: str) -> None:
    one = register(tmp_path, 1)
    await world.apply(one)
    (tmp_path / "current" / "S.lora.json").write_text(text)
    assert await world.applicator.served("S") == "unreadable"
    await world.apply(one)
    assert await world.applicator.served("S") == one.model.sha256


async def test_a_server_that_cannot_be_asked_is_an_error_and_no_answer(world: World, tmp_path: Path) -> None:
    """Else the live adapter would be taken for lost."""
    await world.apply(register(tmp_path, 1))
    world.server.api_key = "another"
    with pytest.raises(ServerRefused, match=r"HTTP 401: Invalid API Key") as refused:
        await world.applicator.served("S")
    await world.server.stop()
    await world.client.close()
    with pytest.raises(ServerUnreachable, match=r"is the server running, and is SWARM_LLAMA_URL its address\?"):
        await world.applicator.served("S")
    assert KEY not in str(refused.value)


def _pointed(data_dir: Path) -> str:
    current = AdapterPointer(data_dir, "S").current()
    assert current is not None
    assert current.endpoint is not None
    return current.endpoint.model


async def test_the_base_makes_room_for_adapters_and_comes_back_when_it_is_asked(world: World, tmp_path: Path) -> None:
    """It takes a process once somebody asks for it; a router of one place more than scenarios swaps all the same."""
    world.server.models_max = 2
    one, two = register(tmp_path, 1), register(tmp_path, 2)
    assert world.server.loaded() == []
    await world.client.complete(BASE, PROMPT, max_tokens=4)
    await world.apply(one)
    assert world.server.loaded() == ["S@1", BASE]
    await world.apply(two)
    assert world.server.loaded() == ["S@2"]
    assert await world.client.complete(BASE, PROMPT, max_tokens=4) == BASE_ANSWER
    assert world.server.loaded() == ["S@2", BASE]


async def test_a_base_that_is_its_owners_is_not_unloaded(world: World, tmp_path: Path) -> None:
    world.server.models_max = 2
    world.server.preset.write_text("[base]\nmodel = /models/mine.gguf\nctx-size = 64\n")
    await world.client.models(reload=True)
    await world.client.complete(BASE, PROMPT, max_tokens=4)
    await world.apply(register(tmp_path, 1))
    with pytest.raises(ApplyFailed, match="its --models-max"):
        await world.apply(register(tmp_path, 2))
    assert BASE in world.server.loaded()


async def test_the_base_comes_back_into_a_preset_that_was_emptied_by_hand(world: World, tmp_path: Path) -> None:
    """The next swap wrote its own section alone, and nodes of scenarios without an adapter had nobody to ask."""
    world.server.preset.write_text("")
    await world.apply(register(tmp_path, 1))
    assert await world.client.complete(BASE, PROMPT, max_tokens=4) == BASE_ANSWER
