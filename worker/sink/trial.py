"""Suspects are handled in a process of their own first, so that a body that kills whoever handles it kills only that.

A message that was given back three times may have ended the worker each time, and everything that was prefetched beside
it was given back as often: at the fiftieth return the broker would take all of them for dead. What survives its trial
is handled like any other, in a transaction of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

import worker
from worker.errors import WorkerError
from worker.sink.trial_child import LENGTH_BYTES, READY, SURVIVED

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-P", "-s", "-m", "worker.sink.trial_child")
#: A body is tried again in a fresh process before it is called deadly: the first may have died of something else.
_TRIES = 2
#: Seconds a process may take to start; half of one on an idle machine.
_START = 30.0
#: Seconds between the end of a process's output and that of the process.
_LAST_MOMENTS = 1.0


class NoTrial(WorkerError):
    """No process for trials can be started."""


class Trial:
    """Tries out one body at a time; the process is kept until `close`, since suspects come in dozens."""

    def __init__(self, *, command: Sequence[str] = COMMAND, patience: float = 20.0) -> None:
        """`patience`: seconds for one body."""
        self._command = tuple(command)
        self._patience = patience
        self._child: _Child | None = None

    async def verdict(
        self, scenario: str, body: bytes, *, content_type: str | None, content_encoding: str | None
    ) -> str | None:
        """How the process ended on this body, such as `signal:11` or `timeout`; None where it did not.

        Raises `NoTrial` where no process can be started.
        """
        end = None
        frame = msgspec.msgpack.encode((scenario, content_type, content_encoding, body))
        for _ in range(_TRIES):
            self._child = child = self._child or await self._start()
            sent = len(frame).to_bytes(LENGTH_BYTES, "big") + frame
            if await child.answers(SURVIVED, to=sent, within=self._patience):
                return None
            self._child = None
            end = await child.end()
            log.warning("suspect_ended_its_trial", scenario=scenario, size=len(body), end=end)
        return end

    async def close(self) -> None:
        """End the process, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            await child.end()

    async def _start(self) -> _Child:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=_environment(),
                process_group=0,  # a Ctrl-C at the worker's terminal is no fault of the body
            )
        except OSError as error:
            raise NoTrial(f"no process for trials can be started: {error}") from error
        child = _Child(process)
        if await child.answers(READY, within=_START):
            return child
        raise NoTrial(f"the process for trials ended at its start: {await child.end()}")


class _Child:
    """One process; see `trial_child`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("a process for trials needs both pipes")
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._late = False

    async def answers(self, what: bytes, *, to: bytes = b"", within: float) -> bool:
        """Whether it says this in time."""
        try:
            async with asyncio.timeout(within):
                self._stdin.write(to)
                await self._stdin.drain()
                return await self._stdout.read(1) == what
        except TimeoutError:
            self._late = True
            return False
        except OSError:  # it ended before it had read everything
            return False

    async def end(self) -> str:
        """End it however it stands; how it had ended by itself."""
        self._stdin.close()
        try:
            async with asyncio.timeout(0 if self._late else _LAST_MOMENTS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        code = self._process.returncode
        if self._late or code is None:
            return "timeout"
        return f"signal:{-code}" if code < 0 else f"exit:{code}"


def _environment() -> dict[str, str]:
    """An allow-list, so that no secret of ours is in it."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    return {**kept, "PYTHONPATH": str(Path(worker.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
