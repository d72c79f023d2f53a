"""Troubles for a worker's store, each for as long as its block: locked, moved, no room, no descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil

from tests.integration.worker_process import WorkerProcess

_MB = 1 << 20


def can_mount() -> bool:
    """Whether we may mount: root in most containers' eyes, but not in all."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0


@contextmanager
def disk_of(megabytes: int, place: Path) -> Iterator[None]:
    """`place` is a disk of its own of this size."""
    place.mkdir(parents=True)
    options = f"size={megabytes}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)


@asynccontextmanager
async def no_room(worker: WorkerProcess, *, own_disk: bool) -> AsyncIterator[None]:
    """The disk is full; without a disk of the worker's own, no file of its process may grow beyond what is there."""
    if own_disk:
        filler = worker.data_dir / "filler"
        await asyncio.to_thread(_fill, filler)
        try:
            yield
        finally:
            filler.unlink()
        return
    process = psutil.Process(worker.pid)
    before = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):  # a test may kill it meanwhile
            process.rlimit(resource.RLIMIT_FSIZE, before)


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        for size in (_MB, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


@contextmanager
def no_descriptors(worker: WorkerProcess) -> Iterator[None]:
    """The worker can open nothing more."""
    process = psutil.Process(worker.pid)
    before = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def moved_away(file: Path) -> Iterator[None]:
    """The file is not where it was."""
    aside = file.with_name(f"{file.name}.aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_by_another(worker: WorkerProcess) -> Iterator[None]:
    """Another process holds the store's write lock."""
    command = [sys.executable, "-c", _LOCKER, str(worker.data_dir / "swarm.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        assert locker.stdin is not None
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            locker.stdin.close()
        assert locker.wait(timeout=10) == 0
