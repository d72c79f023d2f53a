"""A server's process that outlives ours: started detached, found again by its pid file, stopped. One at a time.

Who holds the lock on the pid file is the server (see `server_launch`): nothing is ever concluded from a pid alone, and
none is sent a signal whose process is not seen to hold that very lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from worker.durable import make_private_directory
from worker.errors import ApplyFailed
from worker.models.applicators import server_launch

log = structlog.get_logger(__name__)

#: Seconds until the launcher has to have started the program.
_LAUNCH_SECONDS = 30.0
#: Seconds between two looks whether the process has ended.
_LOOK_SECONDS = 0.05
#: Seconds after SIGKILL; a process that waits for a broken disk ends later than that.
_KILL_SECONDS = 10.0
#: Seconds in which a process that ends, and so has no descriptors any more, drops its lock.
_DROP_SECONDS = 0.5
#: A pid file holds one command line.
_PID_FILE_LIMIT = 100_000
#: A log of this size is set aside at the next start, one generation.
_LOG_LIMIT = 10_000_000
_TAIL = 4_096


class Running(Struct, frozen=True):
    """What the pid file says of the server that runs."""

    pid: int
    command: list[str]


class ServerProcess:
    """At most one process, whoever started it: this worker or one before it."""

    def __init__(self, *, pid_file: Path, log_file: Path) -> None:
        self.pid_file = pid_file.absolute()
        self.log_file = log_file.absolute()
        self._log_start = 0
        self._started: int | None = None

    async def running(self) -> Running | None:
        """The process that runs now. Raises `ApplyFailed` where that cannot be told."""
        return await asyncio.to_thread(self._look)

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run `command` with this environment and no other; whether it stays alive is seen by `running`.

        `command[0]` is an absolute path or found on PATH. Raises `ApplyFailed` where it cannot be run, or one runs.
        """
        await asyncio.to_thread(self._prepare)
        launcher = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", server_launch.__file__, str(self.pid_file), str(self.log_file), *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
        )  # fmt: skip
        try:
            async with asyncio.timeout(_LAUNCH_SECONDS):
                _, reason = await launcher.communicate()
        except TimeoutError:
            raise ApplyFailed(f"{command[0]} did not start within {_LAUNCH_SECONDS:g} s") from None
        finally:
            if launcher.returncode is None:  # late, or we are cancelled; what it may have forked is found by its lock
                launcher.kill()
                await launcher.wait()
        if launcher.returncode != 0:
            await self._ended(_DROP_SECONDS)  # it says why before it ends, and who looked then saw a server
            raise ApplyFailed(f"{command[0]} cannot be started: {reason.decode(errors='replace').strip()}")
        self._started = await asyncio.to_thread(self._written)
        log.info("server_started", program=command[0], pid_file=str(self.pid_file), log_file=str(self.log_file))

    async def stop(self, *, grace: float) -> None:
        """End it, if there is one: SIGTERM, `grace` seconds, SIGKILL. Raises `ApplyFailed` where it does not end."""
        found = await self.running()
        if found is None:
            return
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_SECONDS)):
            await self._signal(found, number)
            if await self._ended(seconds):
                log.info("server_stopped", pid=found.pid, by=number.name)
                return
        raise ApplyFailed(
            f"the server of {self.pid_file} (pid {found.pid}) does not end on SIGKILL; look what it waits for with: "
            f"cat /proc/{found.pid}/wchan"
        )

    def said(self) -> str:
        """What it logged as errors since its start, or else its last line: for people. Blocking."""
        try:
            with self.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(self._log_start if self._log_start <= size else 0)
                lines = file.read(_TAIL).decode(errors="replace").splitlines()
        except OSError as error:
            return f"{self.log_file} cannot be read: {error}"
        # 0.00.008.759 E llama_adapter_lora_init: failed to open ...
        errors = [line.split(" E ", 1)[1].strip() for line in lines if " E " in line]
        return "; ".join(errors[:3] or lines[-1:]) or "it logged nothing"

    async def _ended(self, seconds: float) -> bool:
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while await self.running() is not None:
            if clock() >= end:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    async def _signal(self, found: Running, number: signal.Signals) -> None:
        """To the process that holds the lock, and to no other: the file may have been restored, copied or edited."""
        process, reason = None, "that process is not the one"
        try:
            process = os.pidfd_open(found.pid)  # first: what is seen of the pid below is of this process, or it ended
            if self._holds_lock(found.pid):
                signal.pidfd_send_signal(process, number)
                return
        except (OSError, ValueError, OverflowError) as error:  # ended, another user's, no pid at all
            reason = str(error)
        finally:
            if process is not None:
                os.close(process)
        if not await self._ended(_DROP_SECONDS) and self._look() == found:
            raise ApplyFailed(
                f"{self.pid_file} names pid {found.pid}, which cannot be seen to hold its lock ({reason}), so no "
                "process is ended: who holds it may run in another container, or as another user; find it with: "
                f"fuser -v {self.pid_file}, and stop it there"
            )

    def _holds_lock(self, pid: int) -> bool:
        """Whether one of the process's descriptors is the pid file, with a lock."""
        mine = self.pid_file.stat()
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if not os.path.samestat(entry.stat(), mine):
                    continue
                if "FLOCK" in Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text():
                    return True
            except FileNotFoundError:  # closed since, or a pipe's
                continue
        return False

    def _prepare(self) -> None:
        """Directories, no stale content in the pid file, and a log that is not without end."""
        try:
            for place in {self.pid_file.parent, self.log_file.parent}:
                make_private_directory(place)
            found = self._look(clear=True)
            self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
            if self._log_start > _LOG_LIMIT:
                self.log_file.replace(self.log_file.with_name(f"{self.log_file.name}.1"))
                self._log_start = 0
        except OSError as error:
            raise ApplyFailed(
                f"{self.pid_file} and {self.log_file} must be writable for this worker (SWARM_LLAMA_PID_FILE, "
                f"SWARM_LLAMA_LOG_FILE): {error}"
            ) from error
        if found is not None:
            raise ApplyFailed(f"a server runs already (pid {found.pid}, {self.pid_file}); stop it first")

    def _look(self, *, clear: bool = False) -> Running | None:
        """`clear` empties the file of one that runs no more, so that nobody reads of it while the next one starts."""
        try:
            descriptor = os.open(self.pid_file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ApplyFailed(f"{self.pid_file} (SWARM_LLAMA_PID_FILE) cannot be opened: {error}") from error
        try:
            # Shared, so that two who look at once do not take each other for the server.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._read(descriptor)
        else:
            if clear:
                os.ftruncate(descriptor, 0)
            self._bury()
            return None
        finally:
            os.close(descriptor)

    def _bury(self) -> None:
        """As a container's first process we inherit what others leave behind, and hold its place until we look."""
        if self._started is None or os.getpid() != 1:
            return
        try:
            buried, _ = os.waitpid(self._started, os.WNOHANG)
        except ChildProcessError:
            self._started = None
        else:
            self._started = None if buried else self._started  # it drops its lock before it has ended

    def _written(self) -> int | None:
        """The pid in the file, of a process that may have ended already."""
        descriptor = os.open(self.pid_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return self._read(descriptor).pid
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> Running:
        try:
            return msgspec.json.decode(os.pread(descriptor, _PID_FILE_LIMIT, 0), type=Running)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApplyFailed(
                f"{self.pid_file} is locked by a server and does not say which; was it written by somebody else? Stop "
                "that server by hand"
            ) from error
