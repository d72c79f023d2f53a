"""The seeded simulation (T2): regression seeds first, then fresh flights, and the proof that one seed is one run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.faults.simulation.pilot import a_flight

# What a killed process had open nobody closes here; in the world the kernel does.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

STEPS = 60
#: Fresh flights; a nightly run sets some thousands.
FLIGHTS = int(os.environ.get("SWARM_SIMULATION_EXAMPLES", "250"))
_REPOSITORY = Path(__file__).parents[3]


def _regression_seeds() -> list[tuple[int, str]]:
    """`seed  why` a line; what follows a # is for the reader."""
    lines = Path(__file__).with_name("seeds.txt").read_text().splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    return [(int(seed), why) for seed, why in pairs]


def fly(seed: int) -> tuple[str, Counter[str]]:
    """One flight: its digest, and the faults that fired. What it fails with names the seed and shows the end of it."""
    with a_flight(seed) as flight:
        try:
            flight.fly(STEPS)
        except AssertionError as error:
            tail = "\n".join(flight.world.trace[-60:])
            raise AssertionError(
                f"{error}\n\nseed {seed}; see it whole with: python -m tests.faults.simulation {seed}\n{tail}"
            ) from error
        return flight.world.digest(), Counter(flight.world.faults.fired)


@pytest.mark.timeout(300)
def test_every_regression_seed_lands() -> None:
    """Each found a fault of the product once."""
    for seed, _ in _regression_seeds():
        fly(seed)


@pytest.mark.timeout(0)
def test_fresh_flights_land_and_every_kind_of_fault_fired() -> None:
    """Whatever fails in whatever order, all invariants hold, and everything drains. I8: it did fail."""
    fired: Counter[str] = Counter()
    first = int(os.environ.get("SWARM_SIMULATION_FIRST_SEED", "1000"))
    for seed in range(first, first + FLIGHTS):
        fired += fly(seed)[1]
    missing = {
        "killed", "frozen", "store down", "store slow", "ack lost", "publish lost_confirm", "publish nacked",
        "publish returned", "training signal", "training oom", "training never", "training garbage",
        "training nothing", "training rejected", "adapter refused", "adapters forgotten", "died before_commit",
        "died after_commit", "died half_acked", "died after_run",
    } - fired.keys()  # fmt: skip
    assert not missing or FLIGHTS < 100, f"nothing of this happened in {FLIGHTS} flights: {missing}"


def test_one_seed_is_one_run_whatever_the_hashes_are() -> None:
    """The same digest here twice, and in a process whose strings hash otherwise."""
    here = [fly(seed)[0] for seed in (1, 2, 3)]
    program = (
        "from tests.faults.simulation.test_simulation_flights import fly\nprint(*(fly(seed)[0] for seed in (1, 2, 3)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(_REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1].split() == here
    assert [fly(seed)[0] for seed in (1, 2, 3)] == here
    assert len(set(here)) == 3


def test_the_core_asks_nobody_but_its_parameters_for_time_chance_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clocks, its entropy and its threads are out of reach of the product's code during a flight."""
    asked: list[str] = []

    def watched(module: ModuleType | type, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def watching(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            for _ in range(2):  # its caller, or the caller of `uuid4` and `secrets.token_hex`
                where = str(frame.f_globals.get("__name__"))
                # A temporary file's name, which nobody reads; two writers of one folder must not meet.
                if where.startswith("worker.") and where != "worker.durable":
                    asked.append(f"{where} asked for {name}")
                if frame.f_back is None:
                    break
                frame = frame.f_back
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, watching)

    for module, name in (
        (time, "time"), (time, "time_ns"), (time, "monotonic"), (time, "sleep"), (os, "urandom"), (uuid, "uuid4"),
        (threading.Thread, "start"),
    ):  # fmt: skip
        watched(module, name)
    for seed in range(5):
        fly(seed)
    assert not asked, Counter(asked)
