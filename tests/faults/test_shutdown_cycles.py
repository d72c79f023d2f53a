"""T1b: SIGTERM under full load, once or twice, and a new start at once, again and again: in time, nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial
from typing import Any

import pytest

from tests.faults.invariants import check
from tests.faults.oracle import Oracle
from tests.faults.watch import watching
from tests.integration.foreign_node import ears_at, node_at
from tests.integration.nursery import Nursery
from tests.integration.worker_process import NewWorker, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(150)]

#: Seconds that a shutdown may take under load, and one that is told twice.
_GRACE, _AT_ONCE = 25.0, 2.0
#: How often a worker is told, in each life.
_TIMES = (1, 2, 1, 2, 1, 2)


def _has(records: int, status: dict[str, Any]) -> bool:
    return bool(status["records_received"] >= records)


async def test_shutdowns_under_full_load_end_in_time_and_lose_nothing(
    new_worker: NewWorker, nursery: Nursery, amqp_url: str, scenario: str, oracle: Oracle
) -> None:
    """It trains meanwhile, and its queue never empties: what is left in hand comes again in the next life."""
    worker = new_worker(
        scenario, trigger="count(20)", check_interval="0.1s", apply_mode="auto", holdout=0.3, launch=nursery.launch
    )
    codes = []
    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
        await worker.start()
        stopping = asyncio.Event()
        async with watching(worker) as watch:
            loads = [
                asyncio.create_task(oracle.load(node, worker.scenarios, stopping, pace=0.0, at_once=20))
                for _ in range(2)
            ]
            for times in _TIMES:
                enough = (await worker.scenario_status())["records_received"] + 500
                await until(worker.scenario_status, partial(_has, enough))
                began = time.monotonic()
                worker.send(signal.SIGTERM)
                if times == 2:
                    await until(lambda: worker.logged("stopping"), every=0.002)
                    worker.send(signal.SIGTERM)
                codes.append(await worker.wait(within=_GRACE))
                took = time.monotonic() - began
                assert took < (_GRACE if times == 1 else _AT_ONCE), f"{took:.1f} s after {times} SIGTERM"
                await worker.start()  # at once: nobody waits for what the old life held
            stopping.set()
            await asyncio.gather(*loads)
        # The second signal may find it at its end already.
        assert set(codes[::2]) == {0}
        assert set(codes[1::2]) <= {0, 128 + signal.SIGTERM}
        assert 128 + signal.SIGTERM in codes
        await check(worker, oracle, node, ears=ears, watch=watch)
