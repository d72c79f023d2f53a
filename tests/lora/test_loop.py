"""The whole loop: records, episodes, an adapter, GGUF, a real llama-server that answers in another way, and back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.foreign_node import ears_at, node_at
from tests.integration.worker_process import NewWorker, until
from tests.lora import learning_worker, swarm
from tests.lora.asking import answer, asked, pointer
from tests.lora.tiny import TinyBase
from worker.episodes.worker_task import ARROW
from worker.models.before import read_before

pytestmark = [pytest.mark.lora, pytest.mark.rabbitmq, pytest.mark.timeout(300)]

_TRAINED_SECONDS = 90.0
_FIRST, _SECOND = ARROW.join(swarm.FIRST_ORDER), ARROW.join(swarm.SECOND_ORDER)
#: Those that the second adapter is about.
_DATABASES = tuple(f"db-{number}" for number in range(1, 9))


async def test_what_a_swarm_lived_becomes_an_adapter_that_a_server_answers_with_and_can_be_taken_back(
    new_worker: NewWorker, amqp_url: str, scenario: str, base: TinyBase, tmp_path: Path
) -> None:
    """The second changes what the first says, its rollback changes it back, and neither is applied on another base."""
    of = ("--scenario", scenario)
    with learning_worker.router_in(tmp_path / "router") as router:
        worker = new_worker(scenario, **learning_worker.settings(base, router, apply_mode="auto"))
        async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
            await worker.start()
            assert pointer(worker.data_dir, scenario) is None
            await node.publish(scenario, swarm.body(swarm.lived(range(160), swarm.FIRST_ORDER), batch=0))
            await until(worker.scenario_status, lambda s: s["episodes_created"] == 160)

            first = (await worker.tell("train-now", *of, "--kind", "lora", within=_TRAINED_SECONDS))["result"]
            assert first["gate"]["verdict"] == "blessed", first
            assert first["applied"] == {"applied": True, "previous_model_id": None}, first
            document = pointer(worker.data_dir, scenario)
            assert document is not None
            assert document["endpoint"] == {"url": router.url, "model": f"{scenario}@1"}
            assert [await asked(worker.data_dir, scenario, target) for target in ("service-3", "db-2")] == [_FIRST] * 2

            again = swarm.lived(range(160, 480), swarm.SECOND_ORDER, targets=_DATABASES)
            await node.publish(scenario, swarm.body(again, batch=1))
            await until(worker.scenario_status, lambda s: s["episodes_created"] == 480)
            second = (await worker.tell("train-now", *of, "--kind", "lora", within=_TRAINED_SECONDS))["result"]
            assert second["gate"]["verdict"] == "blessed", second
            assert await asked(worker.data_dir, scenario, "db-2") == _SECOND
            before = read_before(worker.data_dir / "models" / scenario / "2")
            assert before is not None
            assert before.sha256 == document["sha256"]
            assert [(probe.expected, probe.base) for probe in before.probes] == [(_SECOND, _FIRST)] * 3

            back = (await worker.tell("rollback", *of, "--kind", "lora"))["result"]
            assert (back["model_id"], back["previous_model_id"]) == (first["model_id"], second["model_id"])
            assert await asked(worker.data_dir, scenario, "db-2") == _FIRST
            # The one that was taken back can still be asked for by its name.
            assert await answer(router.url, f"{scenario}@2", "db-2") == _SECOND

            trained = await ears.wait_for("learning.trained", scenario, 2)
            assert [event["data"]["kind"] for event in trained] == ["lora", "lora"]
            applied = await ears.wait_for("learning.applied", scenario, 2)
            assert [event["data"]["endpoint"]["model"] for event in applied] == [f"{scenario}@1", f"{scenario}@2"]
            (rolled_back,) = await ears.wait_for("learning.rolled_back", scenario, 1)
            assert rolled_back["data"]["details"]["live_model_id"] == first["model_id"]
            assert rolled_back["data"]["endpoint"] == document["endpoint"]
        assert await worker.stop() == 0

        other = tmp_path / "other-base"
        shutil.copytree(base.directory, other)
        (other / "tokenizer_config.json").write_text((other / "tokenizer_config.json").read_text() + "\n")
        heir = new_worker(
            scenario,
            directory=worker.directory,
            **learning_worker.settings(base, router, apply_mode="auto", lora_base_model=other),
        )
        await heir.start()
        refused = await heir.tell("apply", "--model", second["model_id"], code=1)
        assert "SWARM_LORA_BASE_MODEL is another base now" in refused["error"]
        assert await asked(worker.data_dir, scenario, "db-2") == _FIRST
        assert await heir.stop() == 0
