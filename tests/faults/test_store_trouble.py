"""The store in trouble (T6, T7): no acknowledgement, the reason told, consumption paused; and it resumes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from tests.faults.invariants import check
from tests.faults.oracle import Oracle
from tests.faults.store_trouble import (
    can_mount,
    disk_of,
    locked_by_another,
    moved_away,
    no_descriptors,
    no_room,
)
from tests.faults.watch import watching
from tests.integration.foreign_node import Node, depth, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

#: More than the worker takes in hand, so that some of it must wait at the broker.
_BATCHES = 60


@asynccontextmanager
async def red(
    worker: WorkerProcess, node: Node, oracle: Oracle, said: str, *, batches: int = _BATCHES
) -> AsyncIterator[None]:
    """To be entered within a trouble: publishes, and leaves when nothing of it was acknowledged and all is told.

    The block runs while the store is in trouble.
    """
    scenario = worker.scenarios[0]
    await oracle.publish_many(node, [scenario], batches)

    async def problems() -> list[str]:
        return [one for one in await worker.problems() or () if one.startswith("store: ")]

    await until(problems, lambda found: any(said in one for one in found), within=15)
    held = await until(worker.scenario_status, lambda s: s["held_because"] and not s["consumer_up"], within=15)
    assert await depth(node, f"swarm.records.{scenario}") > 0
    yield
    assert (await worker.scenario_status())["deliveries"]["acked"] == held["deliveries"]["acked"]


async def green(worker: WorkerProcess, oracle: Oracle) -> None:
    """Until all that was issued is stored, by itself."""
    everything = 5 * oracle.issued[worker.scenarios[0]]
    await until(worker.scenario_status, lambda s: s.get("records_received") == everything, within=25)
    await worker.wait_ready()


async def test_a_store_in_trouble_costs_nothing_and_resumes_by_itself(
    new_worker: NewWorker, amqp_url: str, scenario: str, oracle: Oracle
) -> None:
    """One worker lives through all of it: locked, moved away and put back, no room and room again, killed meanwhile."""
    worker = new_worker(scenario, prefetch=32, shutdown_grace="8s")
    own_disk = can_mount()
    with ExitStack() as stack:
        if own_disk:
            stack.enter_context(disk_of(64, worker.data_dir))
        async with node_at(amqp_url) as node, watching(worker) as watch:
            await worker.start()
            await oracle.publish_many(node, [scenario], 20)
            await green(worker, oracle)

            # Shorter than SQLite waits for a lock by itself; test_worker_store_down.py holds it for longer.
            with locked_by_another(worker):
                await oracle.publish_many(node, [scenario], _BATCHES)
                await asyncio.sleep(3)  # the trouble lasts
            await green(worker, oracle)
            assert not [line for line in worker.log() if line["event"] == "store_down"]

            with moved_away(worker.data_dir / "swarm.db"):
                async with red(worker, node, oracle, "moved, replaced or removed"):
                    pass
            await green(worker, oracle)

            async with no_room(worker, own_disk=own_disk):
                async with red(worker, node, oracle, "SQLITE_FULL" if own_disk else "store"):
                    if own_disk:
                        # The reserve is freed: what the operator says is stored, and obeyed.
                        for command in ("pause", "resume"):
                            told = ("--scenario", scenario, "--what", "training")
                            assert (await worker.tell(command, *told, within=10))["status"] == "done"
                await worker.kill()
            await worker.start()
            await green(worker, oracle)

            # Nothing can be put back: what is in the log that has no name is saved when the store is closed.
            (worker.data_dir / "swarm.db-wal").unlink()
            async with red(worker, node, oracle, "swarm.db-wal was moved"):
                pass
            assert await worker.stop(within=25) == 0
            await worker.start()
            await green(worker, oracle)

            await out_of_descriptors(worker, node, oracle)
            await check(worker, oracle, node, watch=watch)


async def out_of_descriptors(worker: WorkerProcess, node: Node, oracle: Oracle) -> None:
    """What is open goes on, what must be opened waits or fails with a reason, and the worker lives."""
    scenario = worker.scenarios[0]
    ready = await worker.stored("facts")
    with no_descriptors(worker):
        await oracle.publish_many(node, [scenario], 40)
        command = ("train-now", "--scenario", scenario, "--force", "--wait", "--json")
        training = asyncio.create_task(worker.cli(*command, code=None, within=40))

        async def stored() -> int:
            return int((await worker.stored("facts"))["facts"]["records"])

        await until(stored, lambda records: records > ready["facts"]["records"], within=15)
        await asyncio.sleep(2)  # for everything that looks once a second: accepts, checks, readers
    assert worker.running
    answer = (await training).json
    # Whichever could not be opened: the store or a file of the run.
    told = ("SQLITE_CANTOPEN", "Too many open files")
    assert answer["status"] == "done" or any(reason in answer["error"] for reason in told), answer
    await green(worker, oracle)
