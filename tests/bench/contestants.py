"""Who runs the race: the worker, the bare pipeline, FastStream; each a process of its own with a store of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from worker.broker.topology import records_queue

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """How to start one; it stores in `<folder>/swarm.db`, a row of table `batch` for each message."""

    name: str
    command: Callable[[str, Path], list[str]]  # of scenario and folder
    settings: Mapping[str, str] = field(default_factory=dict)

    def start(self, scenario: str, folder: Path, **settings: str) -> subprocess.Popen[bytes]:
        """Start it for one scenario, with nothing of the caller's settings but the broker."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "SWARM_AMQP_URL": os.environ["SWARM_AMQP_URL"],
            "SWARM_SCENARIOS": scenario,
            "SWARM_DATA_DIR": str(folder),
            **self.settings,
            **settings,
        }
        with (folder / "log").open("wb") as log:
            # In its own folder, so that no .env of somebody's is read.
            return subprocess.Popen(self.command(scenario, folder), env=environment, cwd=folder, stdout=log, stderr=log)


def _module(name: str) -> Callable[[str, Path], list[str]]:
    return lambda scenario, folder: [
        sys.executable, "-m", name, "--queue", records_queue(scenario), "--database", str(folder / "swarm.db"),
    ]  # fmt: skip


WORKER = Contestant(
    name="worker",
    command=lambda _, __: [str(Path(sys.executable).with_name("swarm-worker")), "run"],
    # Trainings are a case of their own; here none may start by itself.
    settings={
        "SWARM_TRIGGER": "never",
        "SWARM_HTTP_PORT": "0",
        "SWARM_LOG_LEVEL": "warning",
        "SWARM_WORKER_ID": "bench",
    },
)
BARE = Contestant(name="bare", command=_module("tests.bench.bare"))
FASTSTREAM = Contestant(name="faststream", command=_module("tests.bench.faststream_worker"))
