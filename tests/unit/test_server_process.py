"""A server's process that outlives the worker: real processes, told from others by the lock that they hold."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from worker.errors import ApplyFailed
from worker.models.applicators import server_launch
from worker.models.applicators.server_process import ServerProcess

WAITS = [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"]
DEAF = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()",
]


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """None runs yet; what a test leaves running is ended."""
    made = ServerProcess(pid_file=tmp_path / "run/server.pid", log_file=tmp_path / "run/server.log")
    yield made
    await made.stop(grace=0)


def again(process: ServerProcess) -> ServerProcess:
    """As the next worker sees it."""
    return ServerProcess(pid_file=process.pid_file, log_file=process.log_file)


async def logged(process: ServerProcess, line: str) -> None:
    """Wait for the program's own word."""
    async with asyncio.timeout(10):
        while line not in process.log_file.read_text():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)


async def ended(process: ServerProcess) -> None:
    """Wait for its end."""
    async with asyncio.timeout(10):
        while await process.running() is not None:  # noqa: ASYNC110 - it is nobody's child, so nobody is told
            await asyncio.sleep(0.01)


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process of the test's own."""
    return subprocess.Popen(command, **options)


async def test_what_was_started_is_found_by_the_next_worker_and_ended_by_it(process: ServerProcess) -> None:
    assert await process.running() is None
    await process.start(WAITS, {})
    found = await again(process).running()
    assert found is not None
    assert found.command == WAITS
    assert psutil.Process(found.pid).cmdline() == WAITS
    await again(process).stop(grace=10)
    assert await process.running() is None
    assert not psutil.pid_exists(found.pid) or psutil.Process(found.pid).status() == psutil.STATUS_ZOMBIE


async def test_it_is_nobodys_child_and_in_a_session_of_its_own(process: ServerProcess) -> None:
    """So neither a Ctrl-C at the worker's terminal nor the worker's end reaches it."""
    await process.start(WAITS, {})
    found = await process.running()
    assert found is not None
    assert psutil.Process(found.pid).ppid() != os.getpid()
    assert os.getsid(found.pid) == found.pid
    assert os.getcwd() != "/"  # noqa: PTH109 - ours did not change
    assert psutil.Process(found.pid).cwd() == "/"


async def test_it_gets_the_environment_that_it_is_given_and_no_other(
    process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_CONTROL_KEY", "canary")
    shows = [sys.executable, "-I", "-c", "import os; print(sorted(os.environ), flush=True)"]
    await process.start(shows, {"LLAMA_API_KEY": "k"})
    await logged(process, "]")
    assert "SWARM_CONTROL_KEY" not in process.log_file.read_text()
    assert "'LLAMA_API_KEY'" in process.log_file.read_text()


async def test_a_pid_that_another_program_got_is_left_alone(process: ServerProcess) -> None:
    """After a power cut the file names a pid of today: nobody holds the lock, so it says nothing."""
    other = popen(WAITS)
    try:
        process.pid_file.parent.mkdir()
        process.pid_file.write_text(json.dumps({"pid": other.pid, "command": WAITS}))
        assert await process.running() is None
        await process.stop(grace=0)
        assert other.poll() is None
        await process.start(WAITS, {})
        found = await process.running()
        assert found is not None
        assert found.pid != other.pid
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("pid", ["another program's", 0, -1, 1, 2**70])
async def test_a_pid_that_somebody_wrote_into_the_file_of_a_running_server_is_sent_no_signal(
    process: ServerProcess, pid: int | str
) -> None:
    """By a restored backup, an editor, `rsync --inplace`: 0 and less would be whole groups of processes."""
    await process.start(WAITS, {})
    server, written = await process.running(), process.pid_file.read_bytes()
    other = popen(WAITS)
    try:
        named = other.pid if isinstance(pid, str) else pid
        process.pid_file.write_text(json.dumps({"pid": named, "command": WAITS}))
        with pytest.raises(ApplyFailed, match=r"server\.pid"):
            await process.stop(grace=0)
        assert other.poll() is None
        assert server is not None
        assert psutil.Process(server.pid).cmdline() == WAITS
    finally:
        process.pid_file.write_bytes(written)
        other.kill()
        other.wait()


async def test_a_stale_pid_under_somebody_elses_lock_is_sent_no_signal(process: ServerProcess) -> None:
    """As a tool for backups takes one."""
    other = popen(WAITS)
    try:
        process.pid_file.parent.mkdir()
        process.pid_file.write_text(json.dumps({"pid": other.pid, "command": WAITS}))
        with process.pid_file.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(ApplyFailed, match=r"no process is ended.*fuser"):
                await process.stop(grace=0)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_a_file_of_a_thousand_brackets_under_a_lock_is_said_so(process: ServerProcess) -> None:
    process.pid_file.parent.mkdir()
    process.pid_file.write_text("[" * 50_000)
    with process.pid_file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ApplyFailed, match="does not say which"):
            await process.running()


async def test_who_looks_is_not_taken_for_the_server_by_another_who_looks(process: ServerProcess) -> None:
    """A status and an apply may ask at the same moment."""
    await process.start(WAITS, {})
    await process.stop(grace=10)
    with process.pid_file.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert process.pid_file.read_text()
        assert await process.running() is None


async def test_a_second_one_is_not_started_beside_it(process: ServerProcess) -> None:
    await process.start(WAITS, {})
    found = await process.running()
    with pytest.raises(ApplyFailed, match="runs already"):
        await again(process).start(WAITS, {})
    assert await process.running() == found


async def test_one_that_ignores_sigterm_is_killed_after_its_grace(process: ServerProcess) -> None:
    """As llama-server does while it has requests."""
    await process.start(DEAF, {})
    await logged(process, "deaf")
    await process.stop(grace=0.1)
    assert await process.running() is None


async def test_a_program_that_is_not_there_or_may_not_run_is_said_so(process: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program")
    for name, reason in (("nowhere", "No such file"), ("plain", "Permission denied")):
        with pytest.raises(ApplyFailed, match=f"{name} cannot be started: .*{reason}"):
            await process.start([str(tmp_path / name)], {})
        assert await process.running() is None
    await process.start(WAITS, {})


async def test_a_death_after_the_start_is_seen_and_told_with_what_the_program_said(process: ServerProcess) -> None:
    """The errors in the form of llama-server's log, else the last line; of this start alone."""
    for said, told in (("0.1 E load: bad magic\nbye", "load: bad magic"), ("oh\nno", "no"), ("", "it logged nothing")):
        await process.start([sys.executable, "-I", "-S", "-c", f"print({said!r})"], {})
        await ended(process)
        assert process.said() == told


async def test_a_log_that_grew_large_is_set_aside_at_the_next_start(process: ServerProcess) -> None:
    process.log_file.parent.mkdir()
    process.log_file.write_bytes(b"x" * 10_000_001)
    await process.start(WAITS, {})
    assert process.log_file.stat().st_size < 1_000
    assert process.log_file.with_name("server.log.1").stat().st_size == 10_000_001


async def test_a_folder_that_cannot_be_written_names_the_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = ServerProcess(pid_file=tmp_path / "file/server.pid", log_file=tmp_path / "file/server.log")
    with pytest.raises(ApplyFailed, match="SWARM_LLAMA_PID_FILE"):
        await process.start(WAITS, {})


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05])
async def test_a_worker_killed_while_it_starts_one_leaves_none_that_the_next_does_not_know_of(
    process: ServerProcess, after: float
) -> None:
    """Whenever the kill comes, what runs is found; then it is the only one."""
    mark = str(process.pid_file)
    command = [*WAITS, mark]
    program = (
        "import asyncio, sys; from pathlib import Path; "
        "from worker.models.applicators.server_process import ServerProcess; "
        "process = ServerProcess(pid_file=Path(sys.argv[1]), log_file=Path(sys.argv[2])); "
        "print('now', flush=True); asyncio.run(process.start(sys.argv[3:], {}))"
    )
    arguments = [sys.executable, "-c", program, mark, str(process.log_file), *command]
    killed = popen(arguments, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    killed.stdout.readline()
    await asyncio.sleep(after)  # no moment is better than another: that is what is tried
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    await settled(mark)
    found = await process.running()
    assert ([] if found is None else [found.pid]) == servers(command)
    await process.stop(grace=5)
    await process.start(command, {})
    assert len(servers(command)) == 1


def servers(command: Sequence[str]) -> list[int]:
    """Processes that run exactly this."""
    return [each.pid for each in psutil.process_iter() if cmdline(each) == [*command]]


async def settled(mark: str) -> None:
    """A launcher outlives its worker for a moment."""
    async with asyncio.timeout(10):
        while launchers(mark):  # noqa: ASYNC110 - it is nobody's child by now
            await asyncio.sleep(0.02)


def launchers(mark: str) -> list[psutil.Process]:
    """Those that are to start the server of this pid file."""
    lines = [(each, cmdline(each)) for each in psutil.process_iter()]
    return [each for each, line in lines if mark in line and server_launch.__file__ in line]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def test_a_container_whose_first_process_is_the_worker_keeps_no_dead_server(tmp_path: Path) -> None:
    """There the worker inherits the server, and a process that nobody waits for stays in the table for ever."""
    program = """
import asyncio, ctypes, os, sys
from pathlib import Path
from worker.models.applicators.server_process import ServerProcess

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: inherit as the first process does
os.getpid = lambda: 1

async def main() -> None:
    process = ServerProcess(pid_file=Path(sys.argv[1]), log_file=Path(sys.argv[2]))
    for command in (["true"], ["sleep", "60"]):
        await process.start(command, {"PATH": os.environ["PATH"]})
        await process.stop(grace=5)
        async with asyncio.timeout(10):
            while True:
                await process.running()
                try:
                    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    break
                await asyncio.sleep(0.01)

asyncio.run(main())
"""
    files = [str(tmp_path / "server.pid"), str(tmp_path / "server.log")]
    subprocess.run([sys.executable, "-c", program, *files], check=True, timeout=50)


async def test_a_server_that_just_ends_and_has_only_its_lock_left_is_waited_for(
    process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes a process's descriptors away a moment before it drops their locks."""
    process.pid_file.parent.mkdir()
    process.pid_file.write_text(json.dumps({"pid": os.getpid(), "command": ["llama-server"]}))
    lock = os.open(process.pid_file, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    asyncio.get_running_loop().call_later(0.1, os.close, lock)
    monkeypatch.setattr(process, "_holds_lock", lambda _: False)
    await process.stop(grace=0)
    assert await process.running() is None
