"""The whole loop with a real language model, SmolLM2-135M quantised to four bits: `make test-lora-full`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.foreign_node import node_at
from tests.integration.worker_process import NewWorker, until
from tests.lora import learning_worker, swarm
from tests.lora.asking import asked
from tests.lora.llama_server import running_server
from tests.lora.smollm import smollm
from tests.lora.tiny import TinyBase, question, rendered
from worker.episodes.worker_task import ARROW

pytestmark = [pytest.mark.lora_full, pytest.mark.rabbitmq, pytest.mark.timeout(1_500)]

_ORDER = ARROW.join(swarm.FIRST_ORDER)
#: None of which it was trained on.
_TARGETS = ("mail-3", "cache-8", "billing")
_TASKS = 120
#: 15 steps of 1.5 to 5 s on idle cores.
_RECIPE = {"lora_epochs": 1, "lora_batch_size": 4, "lora_learning_rate": 1e-3, "lora_max_seq_length": 512}


async def test_a_real_model_learns_what_a_swarm_lived_and_a_server_answers_with_it(
    new_worker: NewWorker, amqp_url: str, scenario: str, tmp_path: Path
) -> None:
    """It answers none of them so by itself, and all of them so afterwards."""
    file = smollm()
    with running_server(["--model", str(file), "--ctx-size", "2048"], directory=tmp_path) as server:
        assert _ORDER not in [server.complete(rendered(question(target))).strip() for target in _TARGETS]

    base = TinyBase(directory=file, gguf=file)
    with learning_worker.router_in(tmp_path / "router") as router:
        worker = new_worker(scenario, **learning_worker.settings(base, router, apply_mode="auto", **_RECIPE))
        async with node_at(amqp_url) as node:
            await worker.start()
            await node.publish(scenario, swarm.body(swarm.lived(range(_TASKS), swarm.FIRST_ORDER), batch=0))
            await until(worker.scenario_status, lambda s: s["episodes_created"] == _TASKS)

            done = (await worker.tell("train-now", "--scenario", scenario, "--kind", "lora", within=1_200.0))["result"]
            assert done["gate"]["verdict"] == "blessed", done
            assert done["applied"] == {"applied": True, "previous_model_id": None}, done
            assert [await asked(worker.data_dir, scenario, target) for target in _TARGETS] == [_ORDER] * len(_TARGETS)
        assert await worker.stop() == 0
