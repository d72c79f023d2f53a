"""The parent's side of a training process: start it, listen, end it. However it ends, the end is a value.

No ProcessPoolExecutor (after one segfault every later call fails, measured) and no fork of a process that has threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
import structlog
from msgspec import Struct

import worker
from worker import crash
from worker.durable import make_private_directory, read_file
from worker.learning.offline_model import MODEL_FILE
from worker.models.before import BEFORE_FILE
from worker.models.files import MODEL_LIMIT
from worker.redaction import redact
from worker.training.last_words import ended_with
from worker.training.limits import EXIT_DISK_FULL, EXIT_FILE_TOO_LARGE, EXIT_NOT_CONVERTED, EXIT_OUT_OF_MEMORY
from worker.training.results import RESULT_FILE, TrainingResult, decode_result

log = structlog.get_logger(__name__)

OnProgress: TypeAlias = Callable[[float, str], None]
Environment: TypeAlias = Callable[[Path], dict[str, str]]

#: Longest line of progress that is read; longer ones are skipped.
_LINE_LIMIT = 8_192
#: Most bytes a child may say in all before it is ended, and how many more each second: progress goes on for days.
_OUTPUT_LIMIT, _OUTPUT_A_SECOND = 16_000_000, 1_000
#: Bytes of standard error that are kept: the last ones.
_TAIL_LIMIT = 8_192
_RESULT_LIMIT = 4_000_000
#: Last words of C and C++ libraries, such as torch's, that find no memory where no Python can catch it.
_OUT_OF_MEMORY = ("std::bad_alloc", "cannot allocate memory")
#: How long the pipes may stay open after the end of the child, held by a process that it started.
_PIPE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The child ended well; `model` holds the bytes of model.json, checked against the result's hash."""

    result: TrainingResult
    model: bytes | None


@dataclass(frozen=True, slots=True)
class Died:
    """The child did not finish.

    `reason`: `signal:11`, `oom`, `file_too_large`, `disk_full`, `not_converted`, `timeout`, `exit:7` or
    `bad_output: ...`.
    """

    reason: str
    detail: str = ""  # the tail of its standard error


ChildEnd: TypeAlias = Finished | Died


class TrainingStep(Struct, frozen=True):
    """Where a training in steps stands; an offline one has none."""

    step: int  # optimiser steps that are done
    steps: int  # of all epochs
    loss: float  # mean over the examples of the last step
    seconds_left: float  # of the steps, at their mean pace in this process


OnStep: TypeAlias = Callable[[TrainingStep], None]


class _ProgressLine(Struct):
    progress: float
    text: str = ""
    step: TrainingStep | None = None


class _Listener(asyncio.SubprocessProtocol):
    """Takes what the child says with bounded memory, and notes its end even while its pipes stay open.

    Not asyncio's own streams: their `wait()` (Python 3.11) returns only when every pipe is closed, so a grandchild that
    holds one would hang us.
    """

    def __init__(self, on_progress: OnProgress, on_step: OnStep | None) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.flooded: asyncio.Future[None] = loop.create_future()
        self._on_progress = on_progress
        self._on_step = on_step
        self._stage = ""
        self._line = bytearray()
        self._skipping = False
        self._seen = 0
        self._began = loop.time()
        self._tail = bytearray()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._seen += len(data)
        lasted = asyncio.get_running_loop().time() - self._began
        if self._seen > _OUTPUT_LIMIT + _OUTPUT_A_SECOND * lasted:
            _resolve(self.flooded)
        elif fd == 1:
            self._take_lines(data)
        else:
            self._tail += data
            del self._tail[:-_TAIL_LIMIT]

    def _take_lines(self, data: bytes) -> None:
        *ends, rest = data.split(b"\n")
        for end in ends:
            if not self._skipping and len(self._line) + len(end) <= _LINE_LIMIT:
                self._take_line(bytes(self._line) + end)
            self._line.clear()
            self._skipping = False
        if len(self._line) + len(rest) > _LINE_LIMIT:
            self._skipping = True
            self._line.clear()
        elif not self._skipping:
            self._line += rest

    def _take_line(self, line: bytes) -> None:
        try:
            said = msgspec.json.decode(line, type=_ProgressLine)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # a library that prints is no failure
        self._on_progress(min(1.0, max(0.0, said.progress)), said.text[:200])
        stage = said.text.partition(" ")[0]
        if stage != self._stage:
            self._stage = stage
            crash.point("trainer_stage")
        if said.step is not None and self._on_step is not None:
            self._on_step(said.step)

    def process_exited(self) -> None:
        _resolve(self.exited)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        _resolve(self.closed)

    @property
    def tail(self) -> str:
        """Its last words, without the password of a proxy that a library may name in them."""
        return str(redact(self._tail.decode("utf-8", "replace").strip()))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ChildLauncher:
    """Starts training processes, one per call of `run`."""

    def __init__(
        self,
        *,
        timeout: float,
        memory_mb: int,
        grace: float = 5.0,
        command: Sequence[str] = (sys.executable, "-P", "-s", "-m", "worker.training.trainer"),
        environment: Environment | None = None,
        timeout_setting: str = "SWARM_TRAINING_TIMEOUT",
        program: str | None = None,
    ) -> None:
        """`timeout` and `grace` in seconds; `memory_mb` 0: no limit. `environment` is all that the child sees of ours.

        `command` is called with the run's directory and the limits behind it; see `worker.training.commands`.
        `program`: the setting that the command is of, where it is the operator's own.
        """
        self.timeout = timeout
        self._timeout_setting = timeout_setting
        self._program = program
        self._memory_mb = memory_mb
        self._grace = grace
        self._command = tuple(command)
        self._environment = environment or child_environment

    async def run(
        self,
        run_dir: Path,
        on_progress: OnProgress,
        *,
        output_dir: Path | None = None,
        on_step: OnStep | None = None,
    ) -> ChildEnd:
        """Train in `run_dir` (made by the caller, 0700) and say how it ended. Cancelling it ends the child first.

        `output_dir` is where the input tells the child to leave model.json and result.json; default: in `run_dir`. It
        is made where it is missing, and keeps what else lies there, such as a checkpoint of an earlier attempt.
        """
        run_dir, output = await asyncio.to_thread(_cleared, run_dir, output_dir or run_dir)
        transport, listener = await asyncio.get_running_loop().subprocess_exec(
            lambda: _Listener(on_progress, on_step),
            *self._command, str(run_dir), "--parent-pid", str(os.getpid()), "--memory-mb", str(self._memory_mb),
            stdin=asyncio.subprocess.DEVNULL,
            # A process group, not a session: where the kernel shares processors out by session (autogroup, on by
            # default), a child that leads its own gets half of them whatever its priority.
            cwd=run_dir, env=self._environment(run_dir), process_group=0,
        )  # fmt: skip
        pid = transport.get_pid()
        log.info("trainer_started", pid=pid, run_dir=run_dir.name)
        crash.point("trainer_started")
        ended_by_us = ""
        try:
            done, _ = await asyncio.wait(
                (listener.exited, listener.flooded), timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if listener.exited not in done:
                ended_by_us = "bad_output: it said too much" if listener.flooded in done else "timeout"
        finally:
            # Also when we are cancelled (shutdown, lease lost): no child of ours outlives its run.
            await asyncio.shield(self._end(pid, listener, transport))
        code = transport.get_returncode()
        tail = listener.tail
        log.info("trainer_ended", pid=pid, returncode=code, ended_by_us=ended_by_us or None, said=tail or None)
        if ended_by_us == "timeout":
            said = f"it took longer than {self.timeout:g} s ({self._timeout_setting})"
            return Died(ended_by_us, f"{tail}\n{said}".strip())
        if ended_by_us:
            return Died(ended_by_us, tail)
        if code != 0:
            reason = _reason(code, tail)
            if self._program is None or not reason.startswith("exit:"):
                return Died(reason, tail)
            return Died(reason, ended_with(self._program, code, tail))
        return await asyncio.to_thread(_collect, output, tail, self._program)

    async def _end(self, pid: int, listener: _Listener, transport: asyncio.SubprocessTransport) -> None:
        """SIGTERM, a grace period, then SIGKILL for the whole process group; returns when nothing of it is left."""
        if not listener.exited.done():
            _signal_group(pid, signal.SIGTERM)
            await asyncio.wait((listener.exited,), timeout=self._grace)
        _signal_group(pid, signal.SIGKILL)
        await asyncio.wait((listener.exited,), timeout=self._grace)
        await asyncio.wait((listener.closed,), timeout=_PIPE_SECONDS)
        transport.close()


def child_environment(run_dir: Path) -> dict[str, str]:
    """All of the child's environment: an allow-list, so that no secret of ours is in it."""
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    return {
        **kept,
        "HOME": str(run_dir),
        "TMPDIR": str(run_dir),
        "PYTHONPATH": str(Path(worker.__file__).parent.parent),  # where this very code lies, installed or not
        "PYTHONHASHSEED": "0",  # the same input gives the same model
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }


def _cleared(run_dir: Path, output_dir: Path) -> tuple[Path, Path]:
    """Without an earlier attempt's results; absolute, since the child's working directory is another."""
    make_private_directory(output_dir)
    for name in (MODEL_FILE, RESULT_FILE, BEFORE_FILE):
        (output_dir / name).unlink(missing_ok=True)
    return run_dir.resolve(), output_dir.resolve()


def _signal_group(pid: int, number: signal.Signals) -> None:
    # The child leads its own group, so its pid names it; the group may be empty already.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _reason(code: int | None, tail: str) -> str:
    last = tail.rpartition("\n")[2]
    match code:
        case None:
            return "lost: it did not end on SIGKILL"
        case _ if code == EXIT_OUT_OF_MEMORY or any(words in last for words in _OUT_OF_MEMORY):
            return "oom"
        case _ if code == EXIT_FILE_TOO_LARGE:
            return "file_too_large"
        case _ if code == EXIT_DISK_FULL:
            return "disk_full"
        case _ if code == EXIT_NOT_CONVERTED:
            return "not_converted"
        case _ if code < 0:
            return f"signal:{-code}"
        case _:
            return f"exit:{code}"


def _collect(output_dir: Path, tail: str, program: str | None) -> ChildEnd:
    """Read and check what the child left; what is wrong with it is the last line of the detail."""

    def bad(what: str, cause: str = "") -> Died:
        said = cause
        if program is not None:
            said = f"{program}: {cause}{'; ' * bool(cause)}deploy/README.md says what it must leave"
        return Died(f"bad_output: {what}", f"{tail}\n{said}".strip())

    try:
        result = decode_result(read_file(output_dir / RESULT_FILE, limit=_RESULT_LIMIT))
        if result.outcome == "nothing":
            return Finished(result, None)
        model = read_file(output_dir / MODEL_FILE, limit=MODEL_LIMIT)
    except FileNotFoundError as error:
        return bad("FileNotFoundError", f"{Path(error.filename).name} is missing in {output_dir}")
    except msgspec.DecodeError as error:
        return bad(type(error).__name__, f"{RESULT_FILE}: {error}")
    except (OSError, ValueError) as error:
        return bad(type(error).__name__, str(error))
    if hashlib.sha256(model).hexdigest() != result.model_sha256:
        return bad("model.json is not what result.json says")
    if result.gate is None:
        return bad("a model without the gate's verdict")
    return Finished(result, model)
