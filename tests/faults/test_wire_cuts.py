"""Fifty cuts of the wire under load (T5): in a frame, in an acknowledgement, half-open, in single bytes, and slow.

After each a fresh message is stored within 10 s, and /ready has not said yes while no delivery could arrive.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import pytest

from tests.faults.invariants import FRESH_STORED, check, fresh_is_stored
from tests.faults.oracle import Oracle
from tests.faults.watch import watching
from tests.integration.foreign_node import Node, ears_at, node_at
from tests.integration.proxy import Direction, Proxy, Trap, proxied
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(150)]

#: Beats of 1 s: the broker gives a silent client up after 2 to 3 s, the client a silent broker after 6 to 7 s.
_HEARTBEAT = 1
_HALF_OPEN_SEEN = 9.0
#: Seconds within which a worker knows of an end that the wire told it of.
_END_SEEN = 1.0
_BOTH: tuple[Direction, Direction] = ("up", "down")


Fault: TypeAlias = Callable[["Life"], Awaitable[None]]


class Life:
    """One worker behind a proxy of its own, and what is done to it."""

    def __init__(self, worker: WorkerProcess, proxy: Proxy, node: Node, oracle: Oracle, number: int) -> None:
        self.worker = worker
        self.proxy = proxy
        self.scenario = worker.scenarios[0]
        self.chance = random.Random(f"{oracle.seed}/{number}")
        #: Per cut, its kind and the seconds until a fresh message was stored.
        self.cuts: list[tuple[str, float]] = []
        self.mid_frame = 0
        self.red = 0
        self._node = node
        self._oracle = oracle
        #: How long /ready may be mistaken at present.
        self._excused = _END_SEEN

    async def under_load(self, faults: Sequence[Fault]) -> None:
        """All these faults, in an order of chance, while records come in."""
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._oracle.load(self._node, [self.scenario], stopping, pace=0.04))
            looking = group.create_task(self.look())
            for fault in self.chance.sample(faults, len(faults)):
                await self.suffer(fault)
            stopping.set()
            looking.cancel()

    async def suffer(self, fault: Fault) -> None:
        """One fault at a moment of its own, and the way back from it."""
        await asyncio.sleep(self.chance.uniform(0.0, 0.1))  # the moment is what differs
        before = self.proxy.faults.total()
        await fault(self)
        assert self.proxy.faults.total() > before, f"{fault.__name__} did nothing"
        began = time.monotonic()
        await fresh_is_stored(self.worker, self._oracle, self._node, self.scenario)
        self.cuts.append((fault.__name__, time.monotonic() - began))
        # Who is not heard stores what comes, and has yet to notice: until then /ready is excused.
        async with asyncio.timeout(FRESH_STORED):
            while not self.proxy.consuming:  # noqa: ASYNC110 - a connection is looked for
                await asyncio.sleep(0.02)
        await self.worker.wait_ready(within=FRESH_STORED)
        self._excused = _END_SEEN

    def excuse(self) -> None:
        """Nothing tells the worker of what comes now, but silence."""
        self._excused = _HALF_OPEN_SEEN

    async def sprung(self, trap: Trap) -> None:
        """Wait for a trap, with the load to spring it."""
        await asyncio.wait_for(trap.fired.wait(), 10)
        self.mid_frame += trap.mid_frame

    async def look(self) -> None:
        """Compare what /ready says with whether a delivery could arrive, until cancelled."""
        could = time.monotonic()
        while True:
            if self.proxy.consuming:
                could = time.monotonic()
            said = await self.worker.problems()
            if self.proxy.consuming:
                could = time.monotonic()
            silent = time.monotonic() - could
            assert said != [] or silent < self._excused, (
                f"/ready says yes, and nothing could arrive for {silent:.2f} s; {self.cuts[-1:]}"
            )
            self.red += said != []
            await asyncio.sleep(0.05)


# ---------------------------------------------------------------- the faults


async def reset(life: Life) -> None:
    """One of the three connections, or all; it may be on its way back from the last fault."""
    role = life.chance.choice(("consume", "consume", "publish", "control", None))
    async with asyncio.timeout(FRESH_STORED):
        while not life.proxy.cut(role):  # noqa: ASYNC110 - a connection is looked for
            await asyncio.sleep(0.02)


async def cut_in_frame(life: Life) -> None:
    """After so many bytes of the consuming connection, either way."""
    direction = life.chance.choice(_BOTH)
    await life.sprung(life.proxy.cut_after(life.chance.randrange(1, 2000), direction, "consume"))


async def cut_in_ack(life: Life) -> None:
    """The broker gets the beginning of an acknowledgement, or all of it, and then nothing more."""
    await life.sprung(life.proxy.cut_in_ack(life.chance.randrange(15)))


async def cut_in_handshake(life: Life) -> None:
    """The connection that follows ends too, before it is one."""
    trap = life.proxy.cut_after(life.chance.randrange(600), "down")
    life.proxy.cut("consume")
    await life.sprung(trap)


async def silent_then_reset(life: Life) -> None:
    """Half-open for a moment, in one direction or both."""
    life.proxy.half_open(*life.chance.choice((_BOTH, ("up",), ("down",))))
    await asyncio.sleep(life.chance.uniform(0.1, 0.4))
    life.proxy.cut()


async def cut_among_single_bytes(life: Life) -> None:
    """Frames come in pieces of one byte, and one of them is the last."""
    life.proxy.slice = 1
    await life.sprung(life.proxy.cut_after(life.chance.randrange(1, 3000), life.chance.choice(_BOTH), "consume"))
    life.proxy.slice = 0


async def cut_while_slow(life: Life) -> None:
    """Everything from the broker comes 300 ms late."""
    life.proxy.delay, life.proxy.delayed = 0.3, ("down",)
    await life.sprung(life.proxy.cut_after(life.chance.randrange(1, 2000), "down", "consume"))
    life.proxy.delay = 0.0


async def forgotten(life: Life) -> None:
    """A router has forgotten the connections: nothing passes any more, and nobody says so."""
    life.excuse()
    life.proxy.half_open()


async def deaf(life: Life) -> None:
    """The worker is heard and hears nothing, not even an end."""
    life.excuse()
    life.proxy.half_open("down")


async def mute(life: Life) -> None:
    """The worker hears and is not heard: what it acknowledges comes again."""
    life.excuse()
    life.proxy.half_open("up")


async def unreachable(life: Life) -> None:
    """Silence for new connections too: /ready must turn red, and stay so until it ends."""
    life.excuse()
    life.proxy.faults["freeze"] += 1
    life.proxy.freeze()
    problems = await until(life.worker.problems, within=_HALF_OPEN_SEEN)
    assert problems is not None
    assert any(life.scenario in problem for problem in problems)
    life.proxy.thaw()


_QUICK = (
    *(reset,) * 2, *(cut_in_frame,) * 3, *(cut_in_ack,) * 4, cut_in_handshake, *(silent_then_reset,) * 2,
    cut_among_single_bytes, cut_while_slow,
)  # fmt: skip
_LIVES: tuple[tuple[Fault, ...], ...] = (
    (*_QUICK, *_QUICK[:2], forgotten), (*_QUICK, *_QUICK[4:6], deaf), (*_QUICK, mute, unreachable),
)  # fmt: skip


async def test_fifty_cuts_lose_nothing_double_nothing_and_are_told(
    new_worker: NewWorker, amqp_url: str, scenario: str, oracle: Oracle
) -> None:
    """Three workers, each behind a wire of its own, suffer side by side."""
    seconds: list[float] = []

    async def live(number: int) -> Life:
        async with proxied(f"{amqp_url}?heartbeat={_HEARTBEAT}") as (proxy, url), node_at(amqp_url) as node:
            worker = new_worker(f"{scenario}-{number}", amqp_url=url, trigger="count(75)", apply_mode="auto")
            await worker.start()
            life = Life(worker, proxy, node, oracle, number)
            async with watching(worker) as watch:
                began = time.monotonic()
                await life.under_load(_LIVES[number])
                seconds.append(time.monotonic() - began)
                await check(worker, oracle, node, ears=ears, watch=watch)
        return life

    # A group: one that fails ends the others.
    async with ears_at(amqp_url, "learning.#") as ears, asyncio.TaskGroup() as group:
        tasks = [group.create_task(live(number)) for number in range(len(_LIVES))]
    lives = [task.result() for task in tasks]
    cuts = [cut for life in lives for cut in life.cuts]
    slowest = sorted(cuts, key=lambda cut: -cut[1])[:5]
    print(f"{len(cuts)} cuts in {max(seconds):.1f} s; slowest {slowest}")  # noqa: T201 - pytest shows it on failure
    assert len(cuts) == 50
    assert sum(life.mid_frame for life in lives) >= 10
    assert all(life.red > 0 for life in lives)
