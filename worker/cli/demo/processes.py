"""The demo's processes: the worker and the swarm nodes, each the real program with a log file of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from worker.errors import WorkerError

#: How much of a log is told when its process has failed, in lines.
_TOLD_LINES = 12
#: Bytes of one line that a process says on its standard output.
_LONGEST_LINE = 1_000_000
#: Seconds between asking a process to end and ending it.
_PATIENCE = 5.0


class DemoFailed(WorkerError):
    """The demo did not come to its end; the message says why."""

    exit_code = 1


class Child:
    """One process. As a context manager it is gone afterwards, whatever happened."""

    def __init__(
        self, name: str, command: Sequence[str], *, directory: Path, environment: Mapping[str, str], talks: bool
    ) -> None:
        """`talks`: what it says on its standard output is for us to read; else it goes to the log."""
        self.name = name
        self.log = directory / "logs" / f"{name}.log"
        self._command = command
        self._directory = directory
        self._environment = environment
        self._talks = talks
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """Of a child that was started."""
        if self._process is None:
            raise DemoFailed(f"{self.name} was not started")
        return self._process

    @property
    def output(self) -> asyncio.StreamReader:
        """What it says."""
        if self.process.stdout is None:
            raise DemoFailed(f"{self.name} says nothing")
        return self.process.stdout

    async def __aenter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C is for the demo, which ends its children in order.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker.cli.demo.tied", str(os.getpid()), *self._command),
                cwd=self._directory,
                env=dict(self._environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if self._talks else log,
                stderr=log,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is not None:
            return
        self.stop()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def stop(self) -> None:
        """Ask it to end."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def failure(self, what: str) -> DemoFailed:
        """An error that tells what the process said last."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TOLD_LINES:]
        return DemoFailed(
            f"{self.name} {what}; its log ({self.log}) ends:\n" + "\n".join(f"  {line}" for line in lines)
        )


def worker_process(directory: Path, values: Mapping[str, object]) -> Child:
    """`swarm-worker run` with these settings, all others at their defaults."""
    program = Path(sys.executable).with_name("swarm-worker")
    return Child("worker", [str(program), "run"], directory=directory, environment=_environment(values), talks=False)


def node_process(directory: Path, values: Mapping[str, object], *, name: str, options: Sequence[str]) -> Child:
    """One swarm node; the settings say where the broker is and where the models are."""
    command = [sys.executable, "-m", "worker.cli.demo.node", "--name", name, *options]
    return Child(name, command, directory=directory, environment=_environment(values), talks=True)


def _environment(values: Mapping[str, object]) -> dict[str, str]:
    """These settings as variables, in place of all that the surroundings set: the demo touches nobody's store.

    The directory it runs in has no .env, and there are no secrets for it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
    given = {f"SWARM_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    return kept | {"SWARM_SECRETS_DIR": os.devnull} | given
