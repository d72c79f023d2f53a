"""Workers that are started again and again: forked from a process that has imported the worker already."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

_ROOT = Path(__file__).parents[2]
#: How often the end of a worker is looked for, in s.
_LOOK = 0.005


class Forked:
    """One worker; see `worker_process.Process`."""

    def __init__(self, pid: int, end: Path) -> None:
        self.pid = pid
        self._end = end

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it lives."""
        return int(self._end.read_text()) if self._end.exists() else None

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(9)

    def send_signal(self, number: int, /) -> None:
        """A signal, unless it has ended: its number may be another's by then."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        while (code := self.returncode) is None:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(_LOOK)
        return code


class Nursery:
    """`launch` starts a worker for `WorkerProcess`; see `nursery_server.py`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.nursery_server"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=_ROOT,
        )  # fmt: skip

    async def launch(self, environment: dict[str, str], directory: Path, log: Path) -> Forked:
        """A worker's `run`, with this environment, in this directory."""
        log.touch()  # noqa: ASYNC240 - it is looked into as soon as this returns
        files = self._directory / str(next(self._numbers))
        request = {"environment": environment, "directory": str(directory), "log": str(log), "files": str(files)}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        began = files.with_suffix(".pid")
        async with asyncio.timeout(30):
            while not began.exists():
                assert self._server.poll() is None, "the nursery died"
                await asyncio.sleep(_LOOK)
        return Forked(int(began.read_text()), files.with_suffix(".end"))

    def close(self) -> None:
        """End the server."""
        self._server.communicate(timeout=10)
