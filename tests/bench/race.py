"""One run of one contestant over a queue that was filled beforehand, watched from outside in the same way for all.

The number of stored messages is read from the contestant's own store, read-only, 50 times a second: what is counted is
on disk. The clock starts with the first look that finds something and stops with the first that finds all; what was
there at the first look does not count. So start-up is not measured, and the figure is exact to a fiftieth of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench.broker import Queues, until_quiet
from tests.bench.contestants import ROOT, Contestant

_LOOK_SECONDS = 0.02
_LIMIT_SECONDS = 600.0
_MEGABYTE = 1_048_576


@dataclass(slots=True)
class Figures:
    """What was seen."""

    messages: int
    per_message: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    counted: int = 0  # messages between first and last look
    #: Records stored and resident memory in MB, at each look.
    memory: list[tuple[int, float]] = field(default_factory=list)

    @property
    def records_per_second(self) -> float:
        """Stored durably."""
        return self.counted * self.per_message / self.seconds

    @property
    def messages_per_second(self) -> float:
        """Stored durably."""
        return self.counted / self.seconds

    @property
    def cpu_us_per_record(self) -> float:
        """Processor time of the process, all threads, in microseconds."""
        return self.cpu_seconds / (self.counted * self.per_message) * 1e6


class Watch:
    """Counts what a contestant has stored."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._path = folder / "swarm.db"
        self._log = folder / "log"
        self._process = process
        self._connection: sqlite3.Connection | None = None

    def stored(self) -> int:
        """Messages on disk now."""
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended with {self._process.returncode}: {self._log.read_text()[-2000:]}")
        if self._connection is None:
            if not self._path.exists():
                return 0
            self._connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)
        try:
            row = self._connection.execute("SELECT max(batch_no) FROM batch").fetchone()
        except sqlite3.OperationalError:
            return 0  # the table is not there yet
        return int(row[0] or 0)

    async def until(self, messages: int) -> int:
        """Wait for at least so many; how many there were then."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while (found := self.stored()) < messages:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{found} of {messages} messages after {_LIMIT_SECONDS} s: {self._log.read_text()[-2000:]}"
                )
            await asyncio.sleep(_LOOK_SECONDS)
        return found

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()


async def measure(watch: Watch, process: subprocess.Popen[bytes], figures: Figures, before: int = 0) -> None:
    """Fill in the figures, from the first message above `before` until all are stored."""
    seen = psutil.Process(process.pid)
    first = await watch.until(before + 1)
    began, cpu_began = time.perf_counter(), _cpu(seen)
    stored = first
    while stored < before + figures.messages:
        await asyncio.sleep(_LOOK_SECONDS)
        stored = watch.stored()
        figures.memory.append(((stored - before) * figures.per_message, seen.memory_info().rss / _MEGABYTE))
    figures.seconds = time.perf_counter() - began
    figures.cpu_seconds = _cpu(seen) - cpu_began
    figures.counted = stored - first


async def run(
    contestant: Contestant, queues: Queues, bodies: Iterable[bytes], messages: int, per_message: int
) -> Figures:
    """A whole run: fill, start, watch, stop, clean up."""
    scenario = await queues.fresh()
    figures = Figures(messages, per_message)
    with scratch() as folder:
        await queues.fill(scenario, bodies)
        until_quiet()
        process = contestant.start(scenario, folder)
        watch = Watch(folder, process)
        try:
            await measure(watch, process, figures)
            # The last acknowledgement may still be on its way.
            for _ in range(100):
                if not await queues.depth(scenario):
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            watch.close()
            stop(process)
        left = await queues.depth(scenario)
        if left:
            raise RuntimeError(f"{contestant.name} left {left} stored messages unacknowledged")
    await queues.drop(scenario)
    return figures


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it in good order."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder on a disk, never in memory: `fsync` must cost what it costs. SWARM_BENCH_DIR says where."""
    parent = Path(os.environ.get("SWARM_BENCH_DIR", ROOT / ".swarm" / "bench"))
    parent.mkdir(parents=True, exist_ok=True)
    kind = max(
        (part for part in psutil.disk_partitions(all=True) if parent.resolve().is_relative_to(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
    ).fstype
    if kind in {"tmpfs", "ramfs"}:
        raise SystemExit(f"{parent} is in memory ({kind}); set SWARM_BENCH_DIR to a folder on a disk")
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
