"""The real worker as a process of its own, and the real command line: started, watched, killed, asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import aiohttp
import msgspec

from worker.clock import SystemClock
from worker.store import open_store

T = TypeVar("T")
NewWorker: TypeAlias = Callable[..., "WorkerProcess"]
#: Environment, directory and log of a worker that is to be started.
Launch: TypeAlias = Callable[[dict[str, str], Path, Path], Awaitable["Process"]]

_PROGRAM = Path(sys.executable).with_name("swarm-worker")
_SERVER = Path(__file__).with_name("command_server.py")


async def until(
    look: Callable[[], Awaitable[T]], holds: Callable[[T], bool] = bool, *, within: float = 20.0, every: float = 0.05
) -> T:
    """Look again and again until what is seen `holds`; fails with what was seen last."""
    deadline = time.monotonic() + within
    while True:
        seen = await look()
        if holds(seen):
            return seen
        assert time.monotonic() < deadline, f"still after {within:g} s: {seen!r}"
        await asyncio.sleep(every)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command or a worker ended, and what it said."""

    code: int
    out: bytes = b""
    err: str = ""

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document it must be."""
        return json.loads(self.out)


class CommandLine:
    """`swarm-worker COMMAND ...`, each a process; see `command_server.py`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count()
        self._server = subprocess.Popen(
            [sys.executable, str(_SERVER)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=directory
        )

    async def __call__(
        self, environment: dict[str, str], *arguments: str, code: int | None = 0, within: float = 30.0
    ) -> Ended:
        """Run a command to its end and, unless `code` is None, insist on this exit status."""
        files = self._directory / f"command-{next(self._numbers)}"
        request = {
            "arguments": arguments,
            "environment": environment,
            "directory": str(self._directory),
            "files": str(files),
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        status = files.with_suffix(".status")

        async def ended() -> bool:
            assert self._server.poll() is None, "the server of commands died"
            return status.exists()

        await until(ended, within=within, every=0.02)
        result = Ended(
            int(status.read_text()), files.with_suffix(".out").read_bytes(), files.with_suffix(".err").read_text()
        )
        assert code in (None, result.code), (arguments, result)
        return result

    def close(self) -> None:
        """End the server; commands under way go on to their end."""
        self._server.communicate(timeout=10)


class Process(Protocol):
    """What `asyncio.subprocess.Process` and a forked worker have in common."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def kill(self) -> None: ...

    def send_signal(self, number: int, /) -> None: ...

    async def wait(self) -> int: ...


class WorkerProcess:
    """One worker: a data directory and settings that stay, and a process that may be started again and again."""

    def __init__(
        self,
        directory: Path,
        *scenarios: str,
        command_line: CommandLine,
        launch: Launch | None = None,
        **settings: object,
    ) -> None:
        """`settings` by name, such as `trigger="manual"`; `launch` starts the process in another way."""
        self.directory = directory
        self.data_dir = directory / "data"
        self.scenarios = scenarios
        self.port = 0
        self.starts = 0
        #: What is started with `run`; a test may put a program of its own here that ends in the same `main`.
        self.program: tuple[str, ...] = (str(_PROGRAM),)
        directory.mkdir(parents=True, exist_ok=True)
        values = {
            "data_dir": self.data_dir,
            "scenarios": ",".join(scenarios),
            "worker_id": f"w-{scenarios[0]}" if scenarios else "w",
            "http_port": 0,
            "trigger": "manual",
            "check_interval": "0.2s",
            "secrets_dir": directory / "no-secrets",
            **settings,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
        self.environment = kept | {f"SWARM_{name.upper()}": str(value) for name, value in values.items()}
        self._command_line = command_line
        self._launch = launch
        self._log = directory / "worker.log"
        self._life = 0  # where the present life begins in the log
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Of the present process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, *, ready: bool = True) -> None:
        """Start it and, unless told otherwise, wait until /ready says so."""
        assert not self.running
        self._life = self._log.stat().st_size if self._log.exists() else 0
        self.port = 0
        launch = self._launch or self._exec
        self._process = await launch(self.environment, self.directory, self._log)
        self.starts += 1
        if ready:
            await self.wait_ready()

    async def _exec(self, environment: dict[str, str], directory: Path, log: Path) -> Process:
        """As a person or systemd starts it."""
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *self.program, "run", env=environment, cwd=directory, stdout=output, stderr=output
            )

    async def wait_ready(self, *, within: float = 30.0) -> None:
        """Until nothing keeps it from working."""
        await until(self.problems, lambda problems: problems == [], within=within)

    async def problems(self) -> list[str] | None:
        """What /ready complains of; None while nobody answers."""
        answer = await self._get("/ready")
        return None if answer is None else list(answer["problems"])

    async def status(self) -> Any:
        """The worker's own document; fails where nobody answers."""
        document = await self._get("/status")
        assert document is not None, self.log_tail()
        return document

    async def scenario_status(self, scenario: str | None = None) -> Any:
        """The part of one scenario."""
        return (await self.status())["scenarios"][scenario or self.scenarios[0]]

    async def _get(self, path: str) -> Any:
        assert self.running, f"the worker has ended: {self.log_tail()}"
        if not self.port:
            ports = [line["port"] for line in self.log() if line["event"] == "http_listening"]
            if not ports:
                return None
            self.port = ports[0]
        async with aiohttp.ClientSession() as http:
            try:
                async with http.get(f"http://127.0.0.1:{self.port}{path}") as answer:
                    return await answer.json()
            except aiohttp.ClientConnectionError:
                return None

    def log(self) -> list[Any]:
        """The log of the present life, line by line."""
        lines = self._log.read_bytes()[self._life :].split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    async def logged(self, event: str) -> bool:
        """Whether the present life has logged this; fails where it ended without."""
        ended = not self.running
        found = any(entry["event"] == event for entry in self.log())
        assert found or not ended, f"the worker has ended: {self.log_tail()}"
        return found

    def log_tail(self) -> str:
        """The end of the log, for a failure's message."""
        return self._log.read_text(errors="replace")[-3000:]

    async def kill(self) -> None:
        """kill -9, no matter what it is doing."""
        assert self._process is not None
        self._process.kill()
        assert await self.wait(within=10) == -signal.SIGKILL

    def send(self, number: signal.Signals) -> None:
        """A signal, without waiting for what comes of it."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, *, within: float = 20.0) -> int:
        """SIGTERM; its exit status."""
        self.send(signal.SIGTERM)
        return await self.wait(within=within)

    async def wait(self, *, within: float = 20.0) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        try:
            return await asyncio.wait_for(self._process.wait(), within)
        except TimeoutError:
            raise AssertionError(f"not ended after {within:g} s: {self.log_tail()}") from None

    async def cli(self, *arguments: str, code: int | None = 0, within: float = 30.0) -> Ended:
        """A command of a person with the same settings."""
        return await self._command_line(self.environment, *arguments, code=code, within=within)

    async def tell(self, *arguments: str, code: int = 0, within: float = 30.0) -> Any:
        """A command that a worker carries out, to its end: the reply."""
        return (await self.cli(*arguments, "--wait", "--json", code=code, within=within)).json

    async def exported(self, scenario: str | None = None) -> list[bytes]:
        """`export records`, line by line."""
        ended = await self.cli("export", "records", "--scenario", scenario or self.scenarios[0])
        return ended.out.splitlines()

    async def stored(self, *names: str, scenario: str | None = None) -> dict[str, Any]:
        """Of one scenario, what the store itself remembers, as JSON values: any of facts, trigger_state, runs, ..."""
        store = open_store(f"sqlite://{self.data_dir / 'swarm.db'}", SystemClock(), read_only=True)
        await store.open()
        try:
            return {
                name: msgspec.to_builtins(await getattr(store, name)(scenario or self.scenarios[0])) for name in names
            }
        finally:
            await store.close()

    async def discard(self) -> None:
        """End it however it stands."""
        if self.running:
            await self.kill()
