"""What a worker takes and sees over all its lives: memory, descriptors, threads, its WAL, redeliveries (I8, I9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import psutil

from tests.integration.worker_process import WorkerProcess


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the worker's process may take (I9)."""

    rss_mb: float = 400.0
    descriptors: int = 100
    threads: int = 40
    wal_mb: float = 64.0


@dataclass(slots=True)
class Watch:
    """What a worker took and saw over all its lives, looked at a few times a second while the faults went on."""

    redelivered: int = 0
    rss_mb: float = 0.0
    descriptors: int = 0
    threads: int = 0
    wal_mb: float = 0.0
    #: Of each life by its pid, what it said last.
    _lives: dict[int, int] = field(default_factory=dict)

    async def look(self, worker: WorkerProcess) -> None:
        """Take the present figures; nothing where it is dead at the moment."""
        if not worker.running:
            return
        pid = worker.pid
        with suppress(psutil.Error), psutil.Process(pid).oneshot():
            process = psutil.Process(pid)
            self.rss_mb = max(self.rss_mb, process.memory_info().rss / 1e6)
            self.descriptors = max(self.descriptors, process.num_fds())
            self.threads = max(self.threads, process.num_threads())
        with suppress(FileNotFoundError):
            self.wal_mb = max(self.wal_mb, (worker.data_dir / "swarm.db-wal").stat().st_size / 1e6)
        # It may die at any moment: that is what it is watched for.
        with suppress(AssertionError, OSError, TimeoutError):
            status = await asyncio.wait_for(worker.status(), 2)
            self._lives[pid] = sum(one["redelivered"] for one in status["scenarios"].values())
            self.redelivered = sum(self._lives.values())


@asynccontextmanager
async def watching(worker: WorkerProcess, *, every: float = 0.2) -> AsyncIterator[Watch]:
    """Look at a worker until left, through all its lives."""
    watch = Watch()

    async def run() -> None:
        while True:
            await watch.look(worker)
            await asyncio.sleep(every)

    looking = asyncio.create_task(run())
    try:
        yield watch
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


def keeps_within(watch: Watch, bounds: Bounds) -> None:
    """Nothing grew beyond its bound."""
    taken = (watch.rss_mb, watch.descriptors, watch.threads, watch.wal_mb)
    allowed = (bounds.rss_mb, bounds.descriptors, bounds.threads, bounds.wal_mb)
    over = [f"{have:g} > {may:g}" for have, may in zip(taken, allowed, strict=True) if have > may]
    assert not over, f"I9: RSS MB, descriptors, threads, WAL MB: {over}"
