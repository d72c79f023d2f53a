"""The training process: however it ends, the parent gets a value and keeps its memory (T10, S15)."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.unit.training_world import eventually, given_input, write_input
from worker.training import child
from worker.training.child import ChildEnd, ChildLauncher, Died, Finished
from worker.training.shortages import is_disk_full, is_out_of_memory

#: What a child needs to leave a result that is accepted.
GOOD_RESULT = """
import hashlib, json, pathlib, sys
run = pathlib.Path(sys.argv[1])
def finish(model=b"{}", **more):
    (run / "model.json").write_bytes(model)
    gate = {"verdict": "blessed", "reasons": []}
    result = {"run_id": "r", "outcome": "model", "model_sha256": hashlib.sha256(b"{}").hexdigest(), "gate": gate}
    (run / "result.json").write_text(json.dumps({**result, **more}))
"""


async def run_script(
    tmp_path: Path, script: str, *, seconds: float = 20, grace: float = 0.3, said: list[tuple[float, str]] | None = None
) -> ChildEnd:
    """Run a Python script in the place of the trainer."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    launcher = ChildLauncher(
        timeout=seconds, memory_mb=512, grace=grace, command=(sys.executable, "-P", "-c", GOOD_RESULT + script)
    )
    heard = [] if said is None else said
    return await launcher.run(run_dir, lambda progress, text: heard.append((progress, text)))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal:11"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal:9"),
        ("sys.exit(7)", "exit:7"),
        ("raise ValueError('no such thing')", "exit:1"),
    ],
)
async def test_a_child_that_dies_is_a_reason(tmp_path: Path, script: str, reason: str) -> None:
    """Signals and exit codes come back as values, not as exceptions."""
    end = await run_script(tmp_path, script)
    assert isinstance(end, Died)
    assert end.reason == reason


async def test_a_child_finds_no_answers_that_an_earlier_attempt_left(tmp_path: Path) -> None:
    """Those of the base and the champion on other held-out questions were registered with this adapter."""
    output = tmp_path / "output"
    output.mkdir(mode=0o700)
    for name in ("model.json", "result.json", "before.json", "checkpoint"):
        (output / name).touch()
    (tmp_path / "run").mkdir(mode=0o700)
    launcher = ChildLauncher(timeout=20, memory_mb=512, grace=0.3, command=(sys.executable, "-P", "-c", "pass"))
    await launcher.run(tmp_path / "run", lambda *_: None, output_dir=output)
    assert [path.name for path in output.iterdir()] == ["checkpoint"]


async def test_the_last_words_of_a_child_are_kept_and_bounded(tmp_path: Path) -> None:
    """The tail of standard error tells an operator why; megabytes of it do not stay."""
    end = await run_script(tmp_path, "sys.stderr.write('x' * 1_000_000 + 'the cause'); sys.exit(7)")
    assert isinstance(end, Died)
    assert end.detail.endswith("the cause")
    assert len(end.detail) <= 8_192


async def test_a_child_that_hangs_and_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """SIGTERM, grace, SIGKILL for the whole group."""
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    end = await run_script(tmp_path, script, seconds=0.5)
    assert end == Died("timeout", "it took longer than 0.5 s (SWARM_TRAINING_TIMEOUT)")


async def test_a_child_that_runs_out_of_its_memory_says_so(tmp_path: Path) -> None:
    """RLIMIT_AS, set by the real trainer, ends it with `oom` and the setting to raise."""
    script = """
import worker.training.analysis as analysis, worker.training.trainer as trainer
(run / "input.json").write_text('{"kind": "offline"}')
analysis.train_in = lambda run_dir, report: bytearray(2_000_000_000)
sys.exit(trainer.main(sys.argv[1:]))
"""
    end = await run_script(tmp_path, script)
    assert isinstance(end, Died)
    assert end.reason == "oom"
    assert "SWARM_TRAINING_MEMORY_MB" in end.detail


@pytest.mark.parametrize(
    ("kind", "module", "function", "setting"),
    [
        ("offline", "worker.training.analysis", "train_in", "SWARM_DATA_DIR"),
        ("lora", "worker.training.lora.train", "train_adapter", "SWARM_LORA_OUTPUT_DIR"),
    ],
)
async def test_a_child_that_finds_no_room_on_the_disk_says_so(
    tmp_path: Path, kind: str, module: str, function: str, setting: str
) -> None:
    """It said `exit:1` and the last line of a trace, with no cure."""
    script = f"""
import errno, types, worker.training.trainer as trainer
(run / "input.json").write_text('{{"kind": "{kind}"}}')
def full(run_dir, report):
    raise OSError(errno.ENOSPC, "No space left on device")
sys.modules["{module}"] = types.SimpleNamespace({function}=full)
sys.exit(trainer.main(sys.argv[1:]))
"""
    end = await run_script(tmp_path, script)
    assert isinstance(end, Died)
    assert end.reason == "disk_full"
    assert "free space" in end.detail
    assert setting in end.detail


def test_a_full_disk_is_known_by_the_names_that_libraries_give_it() -> None:
    """safetensors has an error of its own."""
    assert is_disk_full(OSError(122, "Disk quota exceeded"))
    assert is_disk_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(2, "No such file"))


@pytest.mark.parametrize(
    "last_words",
    ["import ctypes; sys.stderr.write('what():  std::bad_alloc'); sys.stderr.flush(); ctypes.CDLL(None).abort()",
        "sys.stderr.write('cannot allocate memory for thread-local data: ABORT'); sys.exit(127)"],
)  # fmt: skip
async def test_a_library_that_finds_no_memory_is_out_of_memory_too(tmp_path: Path, last_words: str) -> None:
    """torch ends the process where no Python can catch it (seen with limits of 510 to 540 MB)."""
    end = await run_script(tmp_path, last_words)
    assert isinstance(end, Died)
    assert end.reason == "oom"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_is_out_of_memory_by_any_name(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(OSError(2, "No such file"))


@pytest.mark.parametrize(
    "script",
    [
        "",  # no result at all
        "(run / 'result.json').write_text('not json')",
        "(run / 'result.json').write_text('{}')",
        "(run / 'result.json').write_bytes(b'\\xff' * 100)",
        "(run / 'result.json').write_bytes(b'1' * 5_000_000)",
        "finish(model=b'another')",
        "finish(); (run / 'model.json').unlink(); (run / 'model.json').symlink_to('/etc/passwd')",
        "finish(gate=None)",
    ],
    ids=["nothing", "text", "empty", "bytes", "huge", "other-model", "symlink", "no-gate"],
)
async def test_output_that_is_not_what_it_should_be_is_bad_output(tmp_path: Path, script: str) -> None:
    """Exit status 0 is not enough."""
    end = await run_script(tmp_path, script)
    assert isinstance(end, Died)
    assert end.reason.startswith("bad_output")


async def test_a_result_of_an_earlier_attempt_does_not_pass_for_this_one(tmp_path: Path) -> None:
    """The run directory is kept between attempts, its results are not."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for text in ("finish()", ""):
        launcher = ChildLauncher(timeout=20, memory_mb=512, command=(sys.executable, "-P", "-c", GOOD_RESULT + text))
        end = await launcher.run(run_dir, lambda _progress, _text: None)
        assert isinstance(end, Finished) is bool(text)


async def test_a_child_that_writes_a_gigabyte_does_not_fill_our_memory(tmp_path: Path) -> None:
    """What it says is read and dropped; past a bound it is ended."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = await run_script(tmp_path, "chunk = 'x' * 1_000_000\nfor _ in range(1000): sys.stdout.write(chunk)")
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert isinstance(end, Died)
    assert end.reason == "bad_output: it said too much"
    assert grown_kb < 30_000


@pytest.mark.parametrize("too_much", [True, False])
async def test_the_progress_of_days_is_not_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, too_much: bool
) -> None:
    """A line a second is over any fixed bound at last: the bound grows with the time."""
    monkeypatch.setattr(child, "_OUTPUT_LIMIT", 0)
    monkeypatch.setattr(child, "_OUTPUT_A_SECOND", 0 if too_much else 10**9)
    script = "import time; print('{\"progress\": 0.5}', flush=True); time.sleep(0.5); finish()"
    end = await run_script(tmp_path, script)
    assert isinstance(end, Died) is too_much


async def test_a_child_cannot_write_a_file_over_its_limit(tmp_path: Path) -> None:
    """RLIMIT_FSIZE turns a runaway file into an error of the child's own."""
    script = """
from worker.training.limits import ChildLimits, limit_this_process
limit_this_process(ChildLimits(file_mb=1), parent_pid=int(sys.argv[3]))
(run / "big").write_bytes(b"x" * 2_000_000)
"""
    end = await run_script(tmp_path, script)
    assert isinstance(end, Died)
    assert end.reason == "exit:1"
    assert "File too large" in end.detail


async def test_progress_is_heard_between_lines_that_are_none(tmp_path: Path) -> None:
    """A library that prints does no harm, nor does a line without end."""
    said: list[tuple[float, str]] = []
    script = """
print("hello"); print('{"progress": 0.5, "text": "half"}'); print("y" * 100_000); print('{"progress": 7, "text": "z"}')
print("[1]"); sys.stdout.write('{"progress": 0.9'); finish()
"""
    end = await run_script(tmp_path, script, said=said)
    assert isinstance(end, Finished)
    assert said == [(0.5, "half"), (1.0, "z")]


async def test_a_grandchild_that_holds_the_pipe_does_not_hang_us(tmp_path: Path) -> None:
    """The whole process group goes with the child."""
    script = "import subprocess; subprocess.Popen(['sleep', '600']); finish()"
    async with asyncio.timeout(10):
        assert isinstance(await run_script(tmp_path, script), Finished)


async def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    """Shutdown and a lost lease leave nothing running."""
    said: list[tuple[float, str]] = []
    script = (
        "import os, time; print(json.dumps({'progress': 0, 'text': str(os.getpid())}), flush=True); time.sleep(600)"
    )
    task = asyncio.create_task(run_script(tmp_path, script, said=said))
    await eventually(lambda: bool(said))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(int(said[0][1]))


async def test_the_child_sees_no_secret_and_limits_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S15: environment by allow-list, no core files, the kernel's first victim, its own process group, last in line
    for the processors."""
    monkeypatch.setenv("SWARM_AMQP_URL", "amqp://canary-secret@x/")
    monkeypatch.setenv("CANARY", "canary-secret")
    script = """
import os, resource
from worker.training.limits import ChildLimits, limit_this_process
limit_this_process(ChildLimits(memory_mb=512), parent_pid=int(sys.argv[3]))
environment = pathlib.Path("/proc/self/environ").read_text()
finish(metrics={"environment": environment, "core": resource.getrlimit(resource.RLIMIT_CORE),
    "memory": resource.getrlimit(resource.RLIMIT_AS), "oom": pathlib.Path("/proc/self/oom_score_adj").read_text(),
    "nice": os.nice(0), "idle": os.sched_getscheduler(0) == os.SCHED_IDLE,
    "leader": os.getpgrp() == os.getpid(), "cwd": os.getcwd(), "umask": os.umask(0)})
"""
    end = await run_script(tmp_path, script)
    assert isinstance(end, Finished), end
    seen = end.result.metrics
    assert "canary" not in seen["environment"]
    assert seen["core"] == [0, 0]
    assert seen["memory"] == [512 * 1_048_576] * 2
    assert (seen["oom"].strip(), seen["leader"], seen["cwd"]) == ("500", True, str(tmp_path / "run"))
    assert seen["umask"] == 0o077
    assert (seen["nice"], seen["idle"]) == (19, True)


async def test_an_orphan_dies_with_its_parent(tmp_path: Path) -> None:
    """Kill -9 of the worker takes the trainer with it: PDEATHSIG (measured: without it, it survives)."""
    parent = f"""
import asyncio, pathlib, sys
from worker.training.child import ChildLauncher
child = '''
import os, sys, time
from worker.training.limits import ChildLimits, limit_this_process
limit_this_process(ChildLimits(), parent_pid=int(sys.argv[3]))
print('{{"progress": 0.1, "text": "%d"}}' % os.getpid(), flush=True)
time.sleep(600)
'''
launcher = ChildLauncher(timeout=600, memory_mb=512, command=(sys.executable, "-P", "-c", child))
asyncio.run(launcher.run(pathlib.Path({str(tmp_path)!r}), lambda progress, text: print(text, flush=True)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:  # noqa: ASYNC220 - killed; ours
        assert process.stdout is not None
        lines = (await asyncio.to_thread(process.stdout.readline)).split()
        while not lines or not lines[-1].isdigit():  # log lines come first
            lines = (await asyncio.to_thread(process.stdout.readline)).split()
        child = psutil.Process(int(lines[-1]))
        process.send_signal(signal.SIGKILL)
        process.wait()
        await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_a_child_whose_parent_is_another_ends_at_once(tmp_path: Path) -> None:
    """The race between fork and PDEATHSIG: the parent was gone before the child could ask for the signal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker.training.trainer", str(tmp_path), "--parent-pid", "1", "--memory-mb", "512"
    )
    assert await process.wait() == 87


async def test_the_real_trainer_learns_and_judges(tmp_path: Path) -> None:
    """From a frozen input to a model whose hash, gate and progress the parent has."""
    run_dir = tmp_path / "run"
    write_input(run_dir, given_input(run_id="r1"))
    said: list[tuple[float, str]] = []
    end = await ChildLauncher(timeout=30, memory_mb=1024).run(run_dir, lambda *one: said.append(one))
    assert isinstance(end, Finished), end
    assert end.model is not None
    assert json.loads(end.model)["scenario"] == "S"
    assert end.result.gate is not None
    assert end.result.gate.verdict == "blessed"
    assert said[-1] == (1.0, "done")


async def test_the_same_input_gives_the_same_model(tmp_path: Path) -> None:
    """To the byte, so that a retry after a crash is no other model."""
    models = []
    for name in ("one", "two"):
        write_input(tmp_path / name, given_input(run_id="r1"))
        end = await ChildLauncher(timeout=30, memory_mb=1024).run(tmp_path / name, lambda *_: None)
        assert isinstance(end, Finished), end
        models.append(end.model)
    assert models[0] == models[1]


async def test_nothing_to_learn_is_a_finished_run_without_a_model(tmp_path: Path) -> None:
    """Analyzer step 5: no error, nothing overwritten."""
    run_dir = tmp_path / "run"
    write_input(run_dir, given_input(run_id="r1", empty=True))
    end = await ChildLauncher(timeout=30, memory_mb=1024).run(run_dir, lambda *_: None)
    assert isinstance(end, Finished), end
    assert end.model is None
    assert end.result.reason


def test_the_training_process_loads_neither_store_nor_logs() -> None:
    """They were two thirds of its start, and it needs none of them."""
    program = (
        "import sys, worker.training.analysis; print([n for n in ('worker.store', 'structlog') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
