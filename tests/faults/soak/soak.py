"""A worker under load, a fault by chance now and then, and all invariants at the end. One line a fault, as it goes."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.invariants import Report, check
from tests.faults.oracle import Oracle
from tests.faults.soak.faults import Scene, possible
from tests.faults.soak.swarm import Swarm
from tests.faults.store_state import opened
from tests.faults.watch import Bounds, Watch, watching
from tests.integration.foreign_node import journal_at, node_at
from tests.integration.proxy import proxied
from tests.integration.worker_process import CommandLine, Launch, WorkerProcess, until

#: Batches with which the worker's capacity is found out, per scenario.
_SAMPLE = 200
#: What the median of the last third may be above the first third's: RSS in MB, descriptors.
_RSS_GROWTH, _DESCRIPTOR_GROWTH = 30.0, 6.0
#: Faults in a third of the run from which on that can be said.
_LONG = 10
#: Page caches of the store's writer and its three readers in MB: they fill up as the store grows, and at each start.
_CACHES = 64 + 3 * 8
_BOUNDS = Bounds(wal_mb=64.0)
#: Faults after which some message must have come twice.
_SOME = 10

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures beside one fault."""

    seconds: float
    rss_mb: float
    #: Of it, what the store's page caches do not explain.
    own_mb: float
    descriptors: int
    wal_mb: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where it happens: a broker, a directory, and how commands and workers are started."""

    url: str
    directory: Path
    command_line: CommandLine
    launch: Launch | None = None
    #: `rabbitmqctl`, and kill -9 with a new start, where the broker is ours alone.
    control: Callable[..., Awaitable[None]] | None = None
    kill_broker: Callable[[], Awaitable[None]] | None = None


async def soak(
    place: Place, *, seconds: float, seed: int, say: Say, every: float = 10.0, rate: float | None = None
) -> tuple[Report, Watch, Counter[str]]:
    """Run it at `rate` batches a second and scenario, else at half of what the worker takes.

    Raises `AssertionError` where an invariant does not hold.
    """
    oracle, chance = Oracle(seed), random.Random(seed)
    async with proxied(place.url) as (proxy, through):
        worker = WorkerProcess(
            place.directory / "worker", *(f"soak-{seed}-{name}" for name in "abc"), command_line=place.command_line,
            launch=place.launch, amqp_url=through, trigger="count(100)", apply_mode="auto", holdout=0.3,
            check_interval="1s",
        )  # fmt: skip
        swarm = Swarm(oracle, place.url, worker.scenarios)
        scene = Scene(
            worker=worker, proxy=proxy, oracle=oracle, url=place.url, load=swarm, control=place.control,
            kill_broker=place.kill_broker,
        )  # fmt: skip
        try:
            async with watching(worker, every=0.5) as watch:
                await worker.start()
                swarm.rate = await capacity(scene) / 2 if rate is None else rate
                say(f"{swarm.rate:.0f} batches of 5 records a second in each of 3 scenarios; seed {seed}")
                faults = await suffer(scene, swarm, chance, watch, seconds=seconds, every=every, say=say)
            async with node_at(place.url) as node, journal_at(place.url) as ears:
                report = await check(
                    worker, oracle, node, ears=ears, watch=watch, bounds=_BOUNDS, backlog=120,
                    redeliveries=faults.total() >= _SOME,
                )  # fmt: skip
        finally:
            await worker.discard()
    return report, watch, faults


async def capacity(scene: Scene) -> float:
    """Batches that the worker and a node beside it get done in a second, of each scenario."""
    began = time.monotonic()
    names = scene.worker.scenarios
    async with node_at(scene.url) as node:
        await scene.oracle.publish_many(node, names, _SAMPLE)

    async def all_there() -> bool:
        return stored(scene) >= len(names) * _SAMPLE * 5

    await until(all_there, within=60)
    return _SAMPLE / (time.monotonic() - began)


async def suffer(
    scene: Scene, swarm: Swarm, chance: random.Random, watch: Watch, *, seconds: float, every: float, say: Say
) -> Counter[str]:
    """Fault after fault under load, until the time is over; how many of each kind."""
    began = time.monotonic()
    publishing = asyncio.create_task(swarm.run())
    swarm.resume()
    done: Counter[str] = Counter()
    samples: list[Sample] = []
    faults = possible(scene)
    try:
        while (at := time.monotonic() - began) < seconds:
            fault = chance.choice(faults)
            own = random.Random(chance.random())  # so that what one fault draws changes no other
            name = fault.__name__.replace("_", " ")
            what = await fault(scene, own)
            done[name] += 1
            await watch.look(scene.worker)
            samples.append(sample(scene, at))
            say(line(scene.oracle, stored(scene), samples[-1], f"{name} {what}".strip()))
            assert not publishing.done(), publishing.exception()
            await asyncio.sleep(min(max(0.0, at + every - (time.monotonic() - began)), seconds))
        await scene.worker.wait_ready(within=60)
        await swarm.pause()
    finally:
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing
    steady(samples)
    return done


def stored(scene: Scene) -> int:
    """Records of all scenarios, as the store counts them."""
    try:
        with opened(scene.worker) as store:
            return int(store.execute("SELECT coalesce(sum(records), 0) FROM scenario").fetchone()[0])
    except sqlite3.OperationalError:  # locked, by ourselves
        return -1


def sample(scene: Scene, seconds: float) -> Sample:
    """What the worker takes now."""
    wal = scene.worker.data_dir / "swarm.db-wal"
    process = psutil.Process(scene.worker.pid)
    rss = process.memory_info().rss / 1e6
    cached = min(_CACHES, (scene.worker.data_dir / "swarm.db").stat().st_size / 1e6)
    wal_mb = wal.stat().st_size / 1e6 if wal.exists() else 0.0
    return Sample(seconds, rss, rss - cached, process.num_fds(), wal_mb)


def line(oracle: Oracle, there: int, now: Sample, what: str) -> str:
    """A line of progress."""
    confirmed = 5 * sum(map(len, oracle.confirmed.values()))
    return (
        f"{now.seconds:6.0f} s  {what:44} confirmed {confirmed:8} stored {there:8}  "
        f"RSS {now.rss_mb:4.0f} MB  {now.descriptors:3} fds  WAL {now.wal_mb:4.1f} MB"
    )


def steady(samples: list[Sample]) -> None:
    """Memory and descriptors do not grow: the last third of a long run against the first."""
    third = len(samples) // 3
    if third < _LONG:
        return
    for what, bound in (("own_mb", _RSS_GROWTH), ("descriptors", _DESCRIPTOR_GROWTH)):
        first, last = (
            statistics.median(getattr(one, what) for one in part) for part in (samples[:third], samples[-third:])
        )
        assert last - first < bound, f"I9: {what} went from {first:.0f} to {last:.0f} between the thirds of the run"
