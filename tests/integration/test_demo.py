"""The demo for real: the command, its worker and its nodes, against a broker of this test alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Broker

#: It lasts twenty seconds where the machine is idle.
pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(150)]

_PROGRAM = Path(sys.executable).with_name("swarm-worker")


class Demo:
    """`swarm-worker demo` as a process, and what it leaves."""

    def __init__(self, directory: Path, amqp_url: str) -> None:
        self._directory = directory
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
        # A store of its own, whatever the surroundings say.
        self._environment = {**kept, "SWARM_AMQP_URL": amqp_url, "SWARM_STORE_URL": "sqlite:////nonexistent/swarm.db"}
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [str(_PROGRAM), "demo", *options], cwd=self._directory, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return self.process

    @property
    def left(self) -> list[Path]:
        """Directories of runs that were not removed."""
        return list((self._directory / ".swarm/demo").iterdir())

    def children(self, *, at_least: int) -> dict[str, psutil.Process]:
        """Its worker and nodes by name, once there are so many."""
        assert self.process is not None
        deadline = time.monotonic() + 60
        while True:
            found = {_name(child): child for child in psutil.Process(self.process.pid).children()}
            found.pop("", None)
            if len(found) >= at_least:
                return found
            assert time.monotonic() < deadline, f"only {found}"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.1)


def _name(child: psutil.Process) -> str:
    """`worker` or the node's name; nothing of a process that is not what it will be yet."""
    try:
        line = child.cmdline()
    except psutil.Error:
        return ""
    if "worker.cli.demo.tied" in line:
        return ""
    return line[line.index("--name") + 1] if "--name" in line else "worker" if line[-1:] == ["run"] else ""


@pytest.fixture
def demo(tmp_path: Path, amqp_url: str) -> Iterator[Demo]:
    demo = Demo(tmp_path, amqp_url)
    yield demo
    if demo.process is not None and demo.process.poll() is None:
        demo.process.kill()
        demo.process.communicate()


def test_agents_play_a_model_is_applied_and_everything_published_is_stored(
    demo: Demo, broker: Broker, amqp_url: str
) -> None:
    """From start to summary, with nothing left behind: no files, no queues, no processes."""
    process = demo.start("--seconds", "15", "--seed", "1", "--json")
    children = demo.children(at_least=4)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    summary = json.loads(out)
    assert summary["published"] == summary["stored"] > 10_000
    assert (summary["complaints"], summary["unconfirmed"], summary["nodes"]) == ([], 0, 3)
    assert {one["game"] for one in summary["scenarios"]} == {"frozenlake", "blackjack", "taxi"}
    for one in summary["scenarios"]:
        assert one["records"] == one["records_published"] > 1_000
        assert one["episodes"] == one["games_played"]
        assert one["sessions"] == one["sessions_ended"]
        # The gate may bless none of the few models of so short a game.
        assert one["runs"] >= one["events"]["learning.trained"] >= one["models_applied"]
        assert one["models_applied"] == one["events"].get("learning.applied", 0)
        games = sum(one[part]["games"] for part in ("before", "after", "alone_before", "alone_after"))
        assert games == one["games_played"]
        assert min(one["before"]["games"], one["alone_before"]["games"]) > 0
        assert one["after"]["games"] == 0 or one["first_model_after"] is not None
        assert sum(rate["games"] for rate in one["by_version"].values()) == one["after"]["games"]
        for part in ("before", "after"):
            assert 0 <= one[part]["low"] <= (one[part]["share"] or 0) <= one[part]["high"] <= 1
    assert any(one["after"]["games"] > 0 for one in summary["scenarios"])
    assert demo.left == []
    assert not any(child.is_running() for child in children.values())
    queues = broker.control("-q", "list_queues", "-p", amqp_url.rsplit("/", 1)[1], "name").split()
    assert not [name for name in queues for one in summary["scenarios"] if one["scenario"] in name]


def test_a_worker_that_dies_is_told_with_its_log(demo: Demo) -> None:
    """Without a terminal: plain lines on the one side, the failure and where the log lies on the other."""
    process = demo.start("--seconds", "60")
    children = demo.children(at_least=4)
    children["worker"].kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "worker ended with exit code -9" in err
    (run,) = demo.left
    assert str(run / "logs" / "worker.log") in err
    assert "\x1b" not in out + err
    assert not any(child.is_running() for child in children.values())


def test_an_interrupted_demo_takes_everything_along(demo: Demo) -> None:
    """Ctrl-C, and what it started ends with it."""
    process = demo.start("--seconds", "60")
    children = demo.children(at_least=4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert demo.left == []
    assert not any(child.is_running() for child in children.values())
