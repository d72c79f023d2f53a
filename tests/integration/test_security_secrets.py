"""Security checklist S13 and S15: canaries in every secret; nothing the worker writes, says or starts has one in it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import psutil
import pytest
from aiohttp import web

from tests.conftest import Broker
from tests.integration.foreign_node import body, ears_at, episode, node_at
from tests.integration.worker_process import CommandLine, Ended, NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

#: Each with a character that must be written otherwise in a URL, so that no two spellings of it hide.
_PASSWORD, _CONTROL, _OLD_CONTROL = "canary-amqp/1", "canary-control-2", "canary-control-old-3"
_WEBHOOK, _WEBHOOK_KEY, _HEADER, _DSN = "canary-webhook-4", "canary-hmac-5", "canary-header-6", "canary-dsn-7"
_WORD = b"canary"
_FAULTY = Path(__file__).parents[1] / "faults" / "programs" / "worker_with_faulty_trainer.py"


def clean(what: str, *texts: bytes | str) -> None:
    """No canary in any of these, in whatever spelling."""
    for text in texts:
        data = text.encode() if isinstance(text, str) else text
        at = data.lower().find(_WORD)
        assert at < 0, f"{what}: {data[max(0, at - 200) : at + 60]!r}"


def _proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


@asynccontextmanager
async def webhook() -> AsyncIterator[tuple[str, list[str]]]:
    """A receiver that keeps the signatures it gets, and serves what it was given."""
    signatures: list[str] = []
    served: dict[str, bytes] = {}

    async def take(request: web.Request) -> web.Response:
        signatures.append(request.headers.get("X-Swarm-Signature", ""))
        served["model"] = await request.read()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://hook:{_WEBHOOK}@127.0.0.1:{runner.addresses[0][1]}/{_WEBHOOK}?key={_WEBHOOK}", signatures
    finally:
        await runner.cleanup()


@pytest.fixture
def secret_url(broker: Broker, amqp_url: str) -> str:
    """The test's virtual host, through a user whose password is a canary."""
    user = "ada-" + amqp_url.rpartition("/")[2]
    broker.control("add_user", user, _PASSWORD)
    broker.control("set_permissions", "-p", amqp_url.rpartition("/")[2], user, ".*", ".*", ".*")
    place = amqp_url.rpartition("@")[2]
    return f"amqp://{user}:{quote(_PASSWORD, safe='')}@{place}"


async def test_s13_no_secret_is_written_said_or_handed_on(
    new_worker: NewWorker, amqp_url: str, secret_url: str, scenario: str
) -> None:
    """At debug, over a whole life: records and commands good and bad, a training, a fault, a model applied."""
    async with webhook() as (hook, signatures), node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
        worker = new_worker(
            scenario, amqp_url=secret_url, log_level="debug", control_key=f"new:{_CONTROL},old:{_OLD_CONTROL}",
            applicator="webhook", webhook_url=hook, webhook_key=_WEBHOOK_KEY, holdout=0.3, training_timeout="60s",
        )  # fmt: skip
        worker.program = (sys.executable, str(_FAULTY))
        await worker.start()
        told: list[Ended] = []

        async def cli(*arguments: str, code: int | None = 0) -> Ended:
            told.append(await worker.cli(*arguments, "--log-level", "debug", code=code))
            return told[-1]

        await node.publish(scenario, body([record for task in range(20) for record in episode(task, success=True)]))
        proofs = {
            "x-swarm-signature": _HEADER,
            "Authorization": f"Bearer {_HEADER}",
            "x-api-key": _HEADER,
            "plain": "x",
        }
        await node.publish(scenario, b"no batch", headers={**proofs, "plain": "shown"})
        await until(worker.scenario_status, lambda s: (s["open_tasks"], s["quarantined"]) == (0, 1))

        (worker.data_dir / "fault").write_text("hang")
        training = asyncio.create_task(cli("train-now", "--scenario", scenario, "--wait", code=None))
        await until(worker.scenario_status, lambda s: "fault hang" in (s["doing"] or ""))
        processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        assert len(processes) == 2
        for process in processes:
            clean("command line", _proc(process.pid, "cmdline"))
        clean("the trainer's environment", _proc(processes[1].pid, "environ"))
        (worker.data_dir / "fault").write_text("")
        processes[1].kill()
        assert (await training).code == 1

        await cli("train-now", "--scenario", scenario, "--wait", "--force")
        await cli("apply", "--scenario", scenario, "--wait", "--force", code=None)
        assert signatures
        stranger = new_worker(
            scenario, directory=worker.directory, amqp_url=secret_url, control_key="new:canary-guessed-8"
        )
        told.append(await stranger.cli("pause", "--timeout", "1", "--wait", code=75))
        for command in (
            ("check",), ("describe", "--json"), ("status", "--json"), ("quarantine", "show", "1"),
            ("models", "history", "--scenario", scenario), ("export", "records", "--scenario", scenario),
        ):  # fmt: skip
            await cli(*command)
        assert any(b"shown" in ended.out for ended in told), "other headers are kept"
        for path in ("/status", "/metrics", "/ready", "/health"):
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://127.0.0.1:{worker.port}{path}") as answer,
            ):
                clean(path, await answer.read())
        refused = (await worker.status())["commands"]["refused"]
        assert refused == {"bad_signature": 1}
        assert await worker.stop() == 0

    for ended in told:
        clean("a command's output", ended.out, ended.err)
    clean("the worker's log", (worker.directory / "worker.log").read_bytes())
    clean("events", *(json.dumps(event) for _, event in ears.deliveries))
    assert {event["type"] for _, event in ears.deliveries} >= {"learning.failed", "learning.trained"}
    files = [file for file in worker.data_dir.rglob("*") if file.is_file()]
    assert {"swarm.db", "model.json"} <= {file.name for file in files}
    for file in files:
        clean(str(file), file.read_bytes())


FAILING_STARTS: dict[str, tuple[dict[str, str], int]] = {
    "wrong-password": ({"amqp_url": f"amqp://guest:{quote(_PASSWORD, safe='')}@{{place}}"}, 78),
    "nobody-there": (
        {"amqp_url": f"amqp://u:{quote(_PASSWORD, safe='')}@127.0.0.1:9/", "start_timeout": "500ms"},
        75,
    ),
    "not-quoted": ({"amqp_url": f"amqp://guest:{_PASSWORD}@{{place}}"}, 78),
    "bad-port": ({"amqp_url": f"amqp://u:{_PASSWORD}@localhost:port/"}, 78),
    "bad-brackets": ({"amqp_url": "amqp://u:canary[@localhost/"}, 78),
    "bad-query": ({"amqp_url": f"amqp://u:{_PASSWORD}@localhost/?password={_PASSWORD}"}, 78),
    "no-amqp": ({"amqp_url": f"http://u:{_PASSWORD}@localhost/"}, 78),
    "plaintext-beyond": ({"amqp_url": f"amqp://u:{_PASSWORD}@broker.example/"}, 78),
    "bad-control-key": ({"control_key": f"no slug!:{_CONTROL}"}, 78),
    "key-without-id": ({"control_key": _CONTROL}, 78),
    "two-keys-of-one-id": ({"control_key": f"a:{_CONTROL},a:{_OLD_CONTROL}"}, 78),
    "bad-webhook": ({"webhook_url": f"ftp://u:{_WEBHOOK}@h/{_WEBHOOK}"}, 78),
    "plaintext-webhook": ({"webhook_url": f"http://u:{_WEBHOOK}@webhook.example/{_WEBHOOK}"}, 78),
    "unknown-store": ({"store_url": f"oracle://u:{_DSN}@db/swarm?password={_DSN}"}, 78),
    "another-mistake": ({"prefetch": "many", "amqp_url": f"amqp://u:{_PASSWORD}@h/", "control_key": _CONTROL}, 78),
}


@pytest.mark.parametrize("mistake", FAILING_STARTS)
async def test_s13_a_start_that_fails_tells_no_secret(
    command_line: CommandLine, tmp_path: Path, amqp_url: str, scenario: str, mistake: str
) -> None:
    """The message names the setting and the cure; the value of a secret one is not shown."""
    settings, code = FAILING_STARTS[mistake]
    filled: dict[str, Any] = {"amqp_url": amqp_url, "log_level": "debug", **settings}
    if "{" in filled["amqp_url"]:
        filled["amqp_url"] = filled["amqp_url"].format(place=amqp_url.rpartition("@")[2])
    worker = WorkerProcess(tmp_path / "w", scenario, command_line=command_line, **filled)
    for command, expected in (("run", code), ("describe", None)):
        ended = await worker.cli(command, code=expected)
        clean(command, ended.out, ended.err)
        assert "Traceback" not in ended.err
        assert ended.err or command == "describe"


async def test_s15_a_live_trainer_is_alone_and_limited(new_worker: NewWorker, amqp_url: str, scenario: str) -> None:
    """What /proc says of it: a short list of variables, limits, its own group, private files, nothing inherited."""
    worker = new_worker(scenario, holdout=0.3, training_timeout="60s", training_memory_mb=640)
    worker.program = (sys.executable, str(_FAULTY))
    await worker.start()
    async with node_at(amqp_url) as node:
        await node.publish(scenario, body([record for task in range(20) for record in episode(task, success=True)]))
        await until(worker.scenario_status, lambda s: s["episodes_created"] == 40)
        (worker.data_dir / "fault").write_text("hang")
        asked = asyncio.create_task(worker.cli("train-now", "--scenario", scenario, code=None))
        await until(worker.scenario_status, lambda s: "fault hang" in (s["doing"] or ""))
        await asked
        (trainer,) = psutil.Process(worker.pid).children(recursive=True)
        proc = Path(f"/proc/{trainer.pid}")
        environment = dict(
            text.partition("=")[::2] for text in (proc / "environ").read_text().rstrip("\0").split("\0") if text
        )
        assert set(environment) <= {
            "PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED",
            "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        }  # fmt: skip
        run_dir = Path(environment["TMPDIR"])
        assert (environment["HOME"], str((proc / "cwd").readlink())) == (str(run_dir), str(run_dir))
        assert run_dir.parent == worker.data_dir / "runs"

        limits = {row[:25].strip(): row[25:].split()[:2] for row in (proc / "limits").read_text().splitlines()}
        assert limits["Max address space"] == [str(640 * 1_048_576)] * 2
        assert limits["Max core file size"] == ["0", "0"]
        assert limits["Max file size"] == [str(512 * 1_048_576)] * 2
        assert limits["Max open files"] == ["4096", "4096"]
        status = dict(row.split(":\t", 1) for row in (proc / "status").read_text().splitlines() if ":\t" in row)
        assert status["Umask"] == "0077"
        assert os.getpgid(trainer.pid) == trainer.pid
        # Three pipes to its parent and what Python itself keeps open: no store, no socket, no lock.
        targets = {str(each.readlink()) for each in (proc / "fd").iterdir()}
        assert not [target for target in targets if "swarm.db" in target or target.startswith("socket:")], targets
        assert trainer.net_connections() == []

        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [worker.data_dir, *worker.data_dir.rglob("*")]}
        for path, mode in modes.items():
            if path.name != "fault":
                assert mode & 0o077 == 0, f"{path} is {mode:o}"
        assert {"swarm.db", "swarm.db-wal", "swarm.db.lock", "input.json"} <= {path.name for path in modes}
        trainer.kill()
