"""kill -9 at each step of an adapter: train, convert, register, apply, verify. What is left agrees, and is whole."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.faults.store_state import leftovers, opened
from tests.integration.foreign_node import Node, Operator, node_at, operator_at
from tests.integration.nursery import Nursery
from tests.integration.worker_process import NewWorker, WorkerProcess, until
from tests.lora import learning_worker, swarm
from tests.lora.asking import asked, pointer
from tests.lora.made_adapters import AdapterMaker, write_peft
from tests.lora.tiny import TARGETS, TinyBase, question, rendered
from worker import crash
from worker.episodes.worker_task import ARROW
from worker.learning.validation import Verdict
from worker.models import adapter
from worker.training.results import TrainingResult, encode_result

pytestmark = [pytest.mark.lora, pytest.mark.rabbitmq, pytest.mark.timeout(300)]

_FINISHED_TRAINER = Path(__file__).parent / "programs" / "finished_trainer.py"
_FIRST = ARROW.join(swarm.FIRST_ORDER)
_TRAINED_SECONDS = 90.0
#: All of one run, which is given up after ten starts. The first death is in judging, or behind it, with all steps made.
#: Then the sixth thing that the trainer does is to write and to convert.
_TRAINING = ("trainer_stage:5", "trainer_stage:6", "adapter_copied")
_REGISTERING = ("adapter_copied:3", "model_renamed", "run_committed")
_WAY_TO_THE_SERVER = crash.ADAPTER_POINTS[crash.ADAPTER_POINTS.index("apply_started") :]


async def test_kills_on_the_way_to_an_adapter_leave_nothing_half_made_and_the_very_same_adapter(
    new_worker: NewWorker, nursery: Nursery, amqp_url: str, scenario: str, base: TinyBase, tmp_path: Path
) -> None:
    """A SIGTERM among them. The last death is before the adapter was handed over: the next life applies it."""
    with learning_worker.router_in(tmp_path / "router") as router:
        settings = learning_worker.settings(base, router, apply_mode="auto")
        worker = new_worker(scenario, launch=nursery.launch, **settings)
        async with node_at(amqp_url) as node, operator_at(amqp_url) as operator:
            await worker.start()
            await live(worker, node, range(160), swarm.FIRST_ORDER, batch=0)
            await worker.kill()
            await train_until(worker, operator, "trainer_started")
            undisturbed = await asyncio.to_thread(trained_alone, worker, tmp_path / "alone")
            await worker.start()
            await until(worker.scenario_status, learns, within=_TRAINED_SECONDS)
            assert await worker.stop() == 0
            assert models(worker) == {}
            for point in _TRAINING:
                await die_at(worker, point)
                assert models(worker) == {}, point
                assert pointer(worker.data_dir, scenario) is None
            (output,) = (worker.data_dir / "lora" / "adapters").iterdir()
            assert hashlib.sha256((output / "model.json").read_bytes()).hexdigest() == undisturbed
            assert json.loads((output / "result.json").read_bytes())["metrics"]["resumed_at_step"] > 0
            hand_out(worker, tmp_path / "alone")
            for point in _REGISTERING:
                assert models(worker) == {}, point
                await die_at(worker, point)
            assert models(worker) == {1: undisturbed}
            await worker.start()
            await until_live(worker, 1)
            assert await asked(worker.data_dir, scenario, "service-3") == _FIRST
            assert await worker.stop() == 0
    assert models(worker) == {1: undisturbed}
    assert leftovers(worker) == []


async def test_kills_on_the_way_to_the_server_end_with_what_was_asked_for_served(
    new_worker: NewWorker, nursery: Nursery, amqp_url: str, scenario: str, base: TinyBase, maker: AdapterMaker,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Between two adapters, to and fro: registry, pointer and the server's own answers say the same of each."""
    expected = {version: made(maker, tmp_path / str(version), scenario, version) for version in (1, 2)}
    with learning_worker.router_in(tmp_path / "router") as router:
        worker = new_worker(scenario, launch=nursery.launch, **learning_worker.settings(base, router))
        async with node_at(amqp_url) as node, operator_at(amqp_url) as operator:
            for version in expected:
                hand_out(worker, tmp_path / str(version))
                await worker.start()
                await live(worker, node, range(100 * version, 100 * version + 50), swarm.FIRST_ORDER, batch=version)
                await worker.tell("train-now", "--scenario", scenario, "--kind", "lora", "--apply")
                await worker.kill()
            await worker.start()
            wanted = 2
            for point in _WAY_TO_THE_SERVER:
                assert (await asked(worker.data_dir, scenario, TARGETS[0])).startswith(expected[wanted]), point
                wanted = 3 - wanted
                await worker.kill()
                worker.environment["SWARM_CRASH_AT"] = point
                await worker.start()
                args = {"version": wanted, "force": True}
                await operator.send(f"job.{scenario}", "apply", command_id=point, args=args, scenario=scenario)
                await dead(worker)
                # Nodes go on all the while: whom they are told to ask answers as it should.
                left = pointer(worker.data_dir, scenario)
                assert left is not None
                said = await asked(worker.data_dir, scenario, TARGETS[0])
                assert said.startswith(expected[left["model_version"]]), point
                await worker.start()
                await until_live(worker, wanted)
            assert (await asked(worker.data_dir, scenario, TARGETS[0])).startswith(expected[wanted])
            assert await worker.stop() == 0
    assert sorted(models(worker)) == [1, 2]
    assert leftovers(worker) == []


async def live(worker: WorkerProcess, node: Node, tasks: range, order: Sequence[str], *, batch: int) -> None:
    """What the swarm lived, stored and cut."""
    before = (await worker.scenario_status())["episodes_created"]
    await node.publish(worker.scenarios[0], swarm.body(swarm.lived(tasks, order), batch=batch))
    await until(worker.scenario_status, lambda s: s["episodes_created"] == before + len(tasks))


def learns(scenario: Any) -> bool:
    """Whether the base is loaded and steps are made; on a fast machine they may be over by now."""
    return any(word in (scenario["doing"] or "") for word in ("training on", "step ", "judging"))


async def train_until(worker: WorkerProcess, operator: Operator, point: str) -> None:
    """Ask a worker for an adapter that dies at this point of the way."""
    worker.environment["SWARM_CRASH_AT"] = point
    await worker.start()
    scenario = worker.scenarios[0]
    await operator.send(f"job.{scenario}", "train-now", command_id="asked", args={"kind": "lora"}, scenario=scenario)
    await dead(worker)


async def die_at(worker: WorkerProcess, point: str) -> None:
    """A life that goes on with what was asked for and ends at this point."""
    worker.environment["SWARM_CRASH_AT"] = point
    await worker.start(ready=False)
    await dead(worker)


async def dead(worker: WorkerProcess) -> None:
    """Of the kill -9 that it was told to give itself."""
    assert await worker.wait(within=_TRAINED_SECONDS) == -signal.SIGKILL, worker.log_tail()
    del worker.environment["SWARM_CRASH_AT"]


async def until_live(worker: WorkerProcess, version: int) -> None:
    """Registry, deployments and pointer agree on this version."""
    scenario = worker.scenarios[0]

    async def look() -> tuple[int | None, int, Any]:
        with opened(worker) as store:
            champion = "SELECT version FROM model JOIN model_alias USING (model_id) WHERE alias = 'lora-champion'"
            row = store.execute(champion).fetchone()
            (unfinished,) = store.execute("SELECT count(*) FROM deployment WHERE state = 'started'").fetchone()
        document = pointer(worker.data_dir, scenario) or {}
        return (row and row[0], unfinished, (document.get("model_version"), document.get("endpoint", {}).get("model")))

    await until(look, lambda seen: seen == (version, 0, (version, f"{scenario}@{version}")), within=30)


def models(worker: WorkerProcess) -> dict[int, str]:
    """Registered versions and their hashes, once what each names was found whole under its own hash."""
    folder = worker.data_dir / "models" / worker.scenarios[0]
    with opened(worker) as store:
        rows = dict(store.execute("SELECT version, sha256 FROM model").fetchall())
    for version, sha256 in rows.items():
        content = (folder / str(version) / "model.json").read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        for file in adapter.decode(content).files:
            found = (folder / str(version) / adapter.ADAPTER_DIR / file.path).read_bytes()
            assert (len(found), hashlib.sha256(found).hexdigest()) == (file.size, file.sha256), file.path
    return rows


def hand_out(worker: WorkerProcess, place: Path) -> None:
    """Have trainings of its next life bring what lies in `<place>/out`: quickly, as nothing is learnt in them."""
    script = shutil.copy(_FINISHED_TRAINER, place)
    worker.environment["SWARM_LORA_TRAIN_SCRIPT"] = str(script)


def made(maker: AdapterMaker, place: Path, scenario: str, seed: int) -> str:
    """Make an adapter in `<place>/out` as a training would leave it, and say what it answers about the first target."""
    found = maker.registered(place / "made", 1, scenario=scenario, seed=seed)
    (place / "made" / "models" / scenario / "1").rename(place / "out")
    files = place / "out" / adapter.ADAPTER_DIR
    peft = write_peft(files / adapter.GGUF_FILE, files / adapter.PEFT_DIR)
    document = adapter.decode(found.content)
    (place / "out" / "model.json").write_bytes(adapter.encode(replace(document, files=[*document.files, *peft])))
    gate = Verdict(verdict="blessed", reasons=["made for a test"])
    (place / "out" / "result.json").write_bytes(encode_result(TrainingResult(run_id="", outcome="model", gate=gate)))
    answers = {probe.prompt: probe.expected for probe in document.probes}
    return answers[rendered(question(TARGETS[0]))]


def trained_alone(worker: WorkerProcess, place: Path) -> str:
    """The hash of the adapter that comes of the run's own input, in one go, by the training program alone."""
    (run_dir,) = (worker.data_dir / "lora" / "data").iterdir()
    shutil.copytree(run_dir, place / "run")
    head = place / "run" / "input.json"
    given = json.loads(head.read_bytes())
    given["surroundings"]["output_dir"] = str(place / "out")
    head.chmod(0o600)
    head.write_bytes(json.dumps(given).encode())
    (place / "out").mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1))}
    command = [sys.executable, "-m", "worker.training.trainer", str(place / "run")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=_TRAINED_SECONDS)
    return hashlib.sha256((place / "out" / "model.json").read_bytes()).hexdigest()
