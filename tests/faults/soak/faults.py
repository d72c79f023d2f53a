"""What may happen to a worker in a soak: each fault is drawn from the seed alone, done, and proven to have happened."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from aio_pika.exceptions import AMQPError

from tests.faults.invariants import settled
from tests.faults.oracle import Oracle
from tests.integration.foreign_node import node_at
from tests.integration.proxy import Proxy
from tests.integration.worker_process import WorkerProcess, until
from worker import crash

#: Longest trouble in s: below the worker's own 600 s for a store that is away, and above a heartbeat.
_LONGEST = 8.0
#: How long a crash point is waited for in s; not all are reached under every load.
_REACHED_WITHIN = 20.0


class Load(Protocol):
    """Whoever publishes, and may be told to wait."""

    async def pause(self) -> None: ...

    def resume(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that a fault may touch. `control` is `rabbitmqctl`, where the broker is ours; `kill_broker` likewise."""

    worker: WorkerProcess
    proxy: Proxy
    oracle: Oracle
    url: str
    load: Load
    control: Callable[..., Awaitable[None]] | None = None
    kill_broker: Callable[[], Awaitable[None]] | None = None


#: Does the fault and returns what it did, in a few words.
Fault: TypeAlias = Callable[[Scene, random.Random], Awaitable[str]]


async def crash_point(scene: Scene, chance: random.Random) -> str:
    """Die at a named point of the code, at a hit by chance."""
    point = chance.choice([name for name in crash.POINTS if name != "control_persisted"])
    hits = 1 + chance.randrange(20 if point in ("receive", "decode") else 3)
    worker = scene.worker
    await worker.kill()
    worker.environment["SWARM_CRASH_AT"] = f"{point}:{hits}"
    await worker.start(ready=False)
    del worker.environment["SWARM_CRASH_AT"]
    try:
        code = await worker.wait(within=_REACHED_WITHIN)
    except AssertionError:
        await worker.kill()
        reached = "not reached, killed"
    else:
        assert code == -signal.SIGKILL, worker.log_tail()
        reached = "reached"
    await worker.start()
    return f"{point}:{hits} {reached}"


async def kill(scene: Scene, chance: random.Random) -> str:
    """kill -9 at any moment, also while it starts."""
    await scene.worker.kill()
    if early := chance.random() < 0.3:
        await scene.worker.start(ready=False)
        await asyncio.sleep(chance.uniform(0.0, 1.5))
        await scene.worker.kill()
    await scene.worker.start()
    return "twice, while it started" if early else ""


async def terminate(scene: Scene, _: random.Random) -> str:
    """SIGTERM and a new start."""
    code = await scene.worker.stop(within=25)
    assert code == 0, f"a shutdown ended with {code}: {scene.worker.log_tail()}"
    await scene.worker.start()
    return ""


async def stop_the_process(scene: Scene, chance: random.Random) -> str:
    """SIGSTOP, and SIGCONT later."""
    seconds = chance.uniform(1, _LONGEST)
    scene.worker.send(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    scene.worker.send(signal.SIGCONT)
    return f"{seconds:.1f} s"


async def cut(scene: Scene, _: random.Random) -> str:
    """Every connection is reset."""
    number = scene.proxy.cut()
    assert number, "no connection was there to be cut"
    return f"{number} connections"


async def cut_in_acknowledgement(scene: Scene, chance: random.Random) -> str:
    """The wire ends within the frame that acknowledges."""
    trap = scene.proxy.cut_in_ack(1 + chance.randrange(5))
    await asyncio.wait_for(trap.fired.wait(), 30)
    return ""


async def freeze(scene: Scene, chance: random.Random) -> str:
    """Half-open: connections stay and nothing passes."""
    seconds = chance.uniform(1, _LONGEST)
    scene.proxy.freeze()
    await asyncio.sleep(seconds)
    scene.proxy.thaw()
    return f"{seconds:.1f} s"


async def slice_frames(scene: Scene, chance: random.Random) -> str:
    """Frames arrive in small pieces."""
    scene.proxy.slice = chance.choice((1, 7, 100))
    size = scene.proxy.slice
    await asyncio.sleep(2)
    scene.proxy.slice = 0
    return f"{size} bytes"


async def lock_the_store(scene: Scene, chance: random.Random) -> str:
    """Another process holds the store's write lock."""
    seconds = chance.uniform(1, _LONGEST)
    with closing(sqlite3.connect(scene.worker.data_dir / "swarm.db", isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(seconds)
        other.execute("ROLLBACK")
    return f"{seconds:.1f} s"


async def delete_a_queue(scene: Scene, chance: random.Random) -> str:
    """A records queue is deleted under its consumer, empty: what was in it would be lost by whoever deleted it."""
    name = chance.choice(scene.worker.scenarios)
    await scene.load.pause()
    try:
        async with node_at(scene.url) as node:
            await scene.oracle.resend(node)
            await settled(scene.worker, scene.oracle, node)
            await node.channel.queue_delete(f"swarm.records.{name}")
    finally:
        scene.load.resume()
    return name


async def close_connections(scene: Scene, _: random.Random) -> str:
    """The broker closes all connections, everybody's."""
    assert scene.control is not None
    await scene.control("close_all_connections", "soak")
    return ""


async def kill_the_broker(scene: Scene, _: random.Random) -> str:
    """kill -9 of the broker, and a new start of it."""
    assert scene.kill_broker is not None
    await scene.kill_broker()

    async def answers() -> bool:
        try:
            async with node_at(scene.url):
                return True
        except (AMQPError, OSError, TimeoutError):
            return False

    await until(answers, within=60, every=0.5)
    return ""


def possible(scene: Scene) -> list[Fault]:
    """What can be done here, in an order that depends on nothing else."""
    faults: list[Fault] = [
        crash_point,
        crash_point,  # the sharpest one, so twice as often
        kill,
        terminate,
        stop_the_process,
        cut,
        cut_in_acknowledgement,
        freeze,
        slice_frames,
        lock_the_store,
        delete_a_queue,
    ]
    if scene.control is not None:
        faults.append(close_connections)
    if scene.kill_broker is not None:
        faults.append(kill_the_broker)
    return faults
