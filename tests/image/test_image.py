"""The image and compose.yaml, built and run for real: `make image-test`, which needs a Docker engine.

PYTHON_IMAGE and RABBITMQ_IMAGE name other images than the official ones; BUILD_NETWORK=host builds without a bridge.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.image.stack import NoEngine, Stack, run
from tests.integration.foreign_node import body, ears_at, episode, line, node_at
from tests.integration.worker_process import until

pytestmark = pytest.mark.timeout(900)

_MOST_OWN_BYTES = 100_000_000
_GAMES = ("frozenlake", "blackjack", "taxi")


@pytest.fixture(scope="module")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Tells the person at the terminal a figure."""
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    assert capture is not None

    def tell(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", flush=True)  # noqa: T201 - that is the point

    return tell


@pytest.fixture(scope="module")
def stack(say: Callable[[str], None]) -> Iterator[Stack]:
    """Broker and worker, built, healthy, and gone afterwards."""
    try:
        made = Stack(
            "learning", "drained", "kept", *_GAMES,
            SWARM_TRIGGER="manual", SWARM_CHECK_INTERVAL="1s",
            SWARM_SCENARIO_OPTIONS=json.dumps({game: {"trigger": "count(50)"} for game in _GAMES}),
        )  # fmt: skip
    except NoEngine as error:
        pytest.fail(f"the image cannot be tested here: {error}")
    try:
        started = time.monotonic()
        made.compose("build", "worker", within=600)
        built = time.monotonic()
        made.compose("up", "-d", "worker", within=300)
        made.wait_healthy("worker", within=90)
        say(f"built in {built - started:.0f} s, healthy {time.monotonic() - built:.0f} s after `up`")
        yield made
    finally:
        made.remove()


def test_the_worker_runs_as_a_fixed_user_without_rights_on_a_read_only_system(stack: Stack) -> None:
    """Uid 10001, no capability, none to be gained, and nothing to write to but /data and /tmp."""
    assert stack.inspect("worker")["Config"]["User"] == "10001:10001"
    status = dict(row.split(":\t", 1) for row in stack.inside("cat", "/proc/1/status").splitlines() if ":\t" in row)
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    for place, code in (("/opt/swarm-worker/x", 1), ("/usr/x", 1), ("/data/x", 0), ("/tmp/x", 0)):  # noqa: S108 - in the container
        stack.inside("touch", place, code=code)
    stack.inside("rm", "/data/x")


def test_the_worker_is_process_one(stack: Stack) -> None:
    """No shell and no init stands between the engine's SIGTERM and the worker."""
    assert stack.inside("cat", "/proc/1/cmdline").split("\0")[1:3] == ["/opt/swarm-worker/bin/swarm-worker", "run"]


def test_nothing_of_the_build_is_left_in_the_image(stack: Stack, say: Callable[[str], None]) -> None:
    """No uv, no cache, no source tree; small beside what it stands on."""
    base = stack.images["PYTHON_IMAGE"]
    size, below = (
        int(run("docker", "image", "inspect", "--format", "{{.Size}}", name)) for name in (stack.image, base)
    )
    say(f"the image is {size / 1e6:.0f} MB, {below / 1e6:.0f} MB of it {base}")
    assert size - below < _MOST_OWN_BYTES
    assert stack.inside("ls", "/opt").split() == ["swarm-worker"]
    assert stack.inside("find", "/root", "/home", "/opt", "-name", "*.whl", "-o", "-name", ".cache", code=None) == ""
    stack.inside("ls", "/build", code=2)


def test_check_finds_no_fault(stack: Stack) -> None:
    """Settings, disk, store, broker and its objects, all as compose.yaml sets them."""
    assert json.loads(stack.inside("swarm-worker", "check", "--json"))["good"]


def test_the_broker_has_the_projects_own_settings(stack: Stack) -> None:
    """deploy/rabbitmq/rabbitmq.conf is read beside what the image brings."""
    said = run(
        "docker", "exec", stack.container("broker"), "rabbitmqctl", "eval",
        "[element(2, application:get_env(rabbit, Key)) || Key <- [max_message_size, consumer_timeout, heartbeat]].",
    )  # fmt: skip
    assert said.split() == ["[16777216,1800000,10]"]


def test_the_broker_has_the_users_of_the_definitions_and_nobody_else(stack: Stack) -> None:
    """No guest, and none of those who were given no password can come in."""
    broker = stack.container("broker")
    rows = run("docker", "exec", broker, "rabbitmqctl", "-q", "list_users").splitlines()[1:]
    users = ["admin", "node-checkout", "node-demo", "operator", "service-planner", "worker"]
    assert sorted(row.split("\t")[0] for row in rows) == users
    for user, password, code in (("worker", "w0rker", 0), ("worker", "", 65), ("node-checkout", "", 65)):
        run("docker", "exec", broker, "rabbitmqctl", "-q", "authenticate_user", user, password, code=code)


def test_metrics_and_health_are_reached_from_this_machine(stack: Stack) -> None:
    """The health check's own program, from outside the container, and Prometheus' text."""
    for path, expected in (("/health", '"alive"'), ("/ready", '"ready"'), ("/metrics", "swarm_records_total{")):
        said = run("docker", "run", "--rm", "--network=host", f"--env=SWARM_HTTP_PORT={stack.http_port}",
                   "--entrypoint=python3", stack.image, "-m", "worker.ops.probe", path)  # fmt: skip
        assert expected in said


async def test_records_are_stored_and_learning_events_come_out(stack: Stack) -> None:
    """A foreign node's records come back as they were sent, and what is learnt of them is told and applied."""
    sent = [record for task in range(60) for record in episode(task, success=task % 2 == 0)]
    async with node_at(stack.amqp_url) as node, ears_at(stack.amqp_url, "learning.#") as ears:
        for number in range(3):
            data = body(sent[number * 100 : (number + 1) * 100], producer_id="node", batch_seq=number)
            await node.publish("learning", data, times=2)
        await until(lambda: _exported(stack, "learning"), lambda found: found == sorted(map(line, sent)), within=60)
        command = ("swarm-worker", "train-now", "--scenario", "learning", "--wait", "--json")
        reply = json.loads(await asyncio.to_thread(stack.inside, *command))
        assert reply["status"] == "done", reply
        for event in ("learning.trained", "learning.applied"):
            await until(lambda name=event: _heard(ears.of(name, "learning")), within=30)  # type: ignore[misc]  # bound at once


async def test_sigterm_drains_with_exit_0_and_loses_nothing(stack: Stack) -> None:
    """`stop` in the middle of a flood ends it cleanly within its grace; the next life takes the rest, each once."""
    sent = [record for task in range(2000) for record in episode(task, success=True)]
    batches = [body(sent[at : at + 5], producer_id="flood", batch_seq=at // 5) for at in range(0, len(sent), 5)]
    async with node_at(stack.amqp_url) as node:
        flood = asyncio.gather(*(node.publish("drained", data) for data in batches))
        began = time.monotonic()
        await asyncio.to_thread(stack.compose, "stop", "worker")
        took = time.monotonic() - began
        await flood
    state = (await asyncio.to_thread(stack.inspect, "worker"))["State"]
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False), stack.logs("worker")
    assert took < 30
    await asyncio.to_thread(stack.compose, "start", "worker")
    await asyncio.to_thread(stack.wait_healthy, "worker", within=90)
    await until(lambda: _exported(stack, "drained"), lambda found: found == sorted(map(line, sent)), within=60)


async def test_a_worker_that_is_made_anew_finds_its_data(stack: Stack) -> None:
    """Everything that must last is in the volume."""
    sent = episode(1, success=True)
    async with node_at(stack.amqp_url) as node:
        await node.publish("kept", body(sent, producer_id="node", batch_seq=0))
    await until(lambda: _exported(stack, "kept"), lambda found: len(found) == len(sent), within=60)
    before = stack.container("worker")
    await asyncio.to_thread(stack.compose, "up", "-d", "--force-recreate", "--no-deps", "worker")
    await asyncio.to_thread(stack.wait_healthy, "worker", within=90)
    assert stack.container("worker") != before
    assert await _exported(stack, "kept") == sorted(map(line, sent))


async def test_the_demos_nodes_play_and_follow_the_model_that_is_applied(stack: Stack) -> None:
    """Every game's records arrive; once a model is live, the records say that nodes follow it; they stop cleanly."""
    await asyncio.to_thread(stack.compose, "build", "nodes", within=600)
    await asyncio.to_thread(stack.compose, "up", "-d", "--no-deps", "nodes")
    for game in _GAMES:
        await until(lambda game=game: _exported(stack, game), lambda found: len(found) > 1000, within=60)  # type: ignore[misc]  # bound at once

    async def following() -> bool:
        return any(json.loads(record).get("policy_version") for record in await _exported(stack, "taxi"))

    await until(following, within=120, every=1)
    containers = (await asyncio.to_thread(stack.compose, "ps", "-q", "nodes")).split()
    await asyncio.to_thread(stack.compose, "stop", "nodes")
    states = [run("docker", "inspect", "--format", "{{.State.ExitCode}}", name).strip() for name in containers]
    assert states == ["0", "0"], stack.logs("nodes")


async def _exported(stack: Stack, scenario: str) -> list[bytes]:
    """The stored records in the wire's form, sorted."""
    said = await asyncio.to_thread(stack.inside, "swarm-worker", "export", "records", "--scenario", scenario)
    return sorted(said.encode().splitlines())


async def _heard(events: list[dict[str, object]]) -> bool:
    return bool(events)
