"""How far the training of an adapter is, as people and their monitoring see it: status, metrics, log, progress bar."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.integration.foreign_node import node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until
from tests.lora import learning_worker, swarm
from tests.lora.learning_worker import Router
from tests.lora.tiny import TinyBase
from worker.client.adapters import AdapterPointer

pytestmark = [pytest.mark.lora, pytest.mark.rabbitmq, pytest.mark.timeout(180)]


async def _at_a_terminal(worker: WorkerProcess, text: bytearray, *arguments: str) -> None:
    """Into `text` goes everything that a command shows to a person, the bar and its colours included."""
    ours, theirs = pty.openpty()
    program = Path(sys.executable).with_name("swarm-worker")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, env={**worker.environment, "TERM": "xterm", "COLUMNS": "120"}, cwd=worker.directory,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        while chunk := await asyncio.to_thread(os.read, ours, 65_536):
            text += chunk
    except OSError:  # the other end was closed
        pass
    finally:
        os.close(ours)
    assert await process.wait() == 0, text.decode()


async def _metrics(worker: WorkerProcess) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{worker.port}/metrics") as answer:
        return await answer.text()


async def _read(shown: bytearray) -> str:
    return shown.decode(errors="ignore")


def _trainer(worker: WorkerProcess) -> psutil.Process:
    [pid] = [entry["pid"] for entry in worker.log() if entry["event"] == "trainer_started"]
    return psutil.Process(pid)


async def test_step_loss_and_what_is_left_are_seen_while_an_adapter_is_trained(
    new_worker: NewWorker, amqp_url: str, scenario: str, base: TinyBase, tmp_path: Path
) -> None:
    """And afterwards which adapter is live; nodes find its files."""
    settings = learning_worker.settings(
        base, Router("http://127.0.0.1:9", tmp_path / "none"), lora_applicator="files", apply_mode="auto", lora_epochs=8
    )
    worker = new_worker(scenario, **settings)
    async with node_at(amqp_url) as node:
        await worker.start()
        await node.publish(scenario, swarm.body(swarm.lived(range(160), swarm.FIRST_ORDER), batch=0))
        await until(worker.scenario_status, lambda s: s["episodes_created"] == 160)
        shown = bytearray()
        waiting = asyncio.create_task(
            _at_a_terminal(worker, shown, "train-now", "--scenario", scenario, "--kind", "lora", "--wait")
        )
        seen = await until(
            worker.scenario_status, lambda s: (s["training"] or {}).get("step", 0) > 0, within=150, every=0.1
        )
        # Held where it is until it was looked at: its steps may all fall between two looks of the bar.
        trainer = _trainer(worker)
        trainer.suspend()
        try:
            metrics = await _metrics(worker)
            await until(lambda: _read(shown), lambda text: "loss" in text, within=30, every=0.1)
        finally:
            trainer.resume()
        await waiting
        training = seen["training"]
        assert training["kind"] == "lora"
        assert 0 < training["step"] <= training["steps"]
        assert training["loss"] > 0
        assert training["seconds_left"] >= 0
        assert "training an adapter" in seen["doing"]
        assert f'swarm_training_steps{{scenario="{scenario}"}} {training["steps"]:.1f}' in metrics
        assert f'swarm_training_loss{{scenario="{scenario}"}}' in metrics
        assert "adapter: " in shown.decode()
        done = await worker.scenario_status()
        assert done["training"] is None
        current = AdapterPointer(worker.data_dir, scenario).current()
        assert current is not None
        assert done["adapter"]["version"] == current.version
        assert current.directory is not None
        assert (current.directory / "adapter.gguf").is_file()
        logged = [line for line in worker.log() if line["event"] == "training_step"]
        assert logged[-1]["step"] == logged[-1]["steps"] == training["steps"]
        assert await worker.stop() == 0
