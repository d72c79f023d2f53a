"""The trainer, with the fault that the file `fault` beside the runs names: run by `worker_with_faulty_trainer.py`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from worker.training import analysis, trainer
from worker.training.results import RESULT_FILE

Report = Callable[[float, str], None]

_train = analysis.train_in


def _write_a_gigabyte(run_dir: Path) -> None:
    with (run_dir / "model.json").open("wb") as file:
        file.seek(1_000_000_000)
        file.write(b"x")


def _write_garbage(run_dir: Path) -> None:
    (run_dir / RESULT_FILE).write_bytes(os.urandom(1000))
    sys.stdout.buffer.write(os.urandom(100_000))


FAULTS: dict[str, Callable[[Path], object]] = {
    "segfault": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda _: bytearray(3_000_000_000),
    "exit": lambda _: os._exit(7),
    "hang": lambda _: time.sleep(600),
    "garbage": _write_garbage,
    "gigabyte": _write_a_gigabyte,
}


def _told(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def train_in(run_dir: Path, report: Report) -> None:
    """In the place of the real one: do what was asked for, or take one's time and then train."""
    told = run_dir.parent.parent / "fault"
    fault = _told(told)
    report(0.05, f"fault {fault or 'none'}")
    if fault in FAULTS:
        FAULTS[fault](run_dir)
    elif fault == "slow":
        while _told(told) == "slow":  # busy, as learning is
            sum(range(1_000_000))
        _train(run_dir, report)
    else:
        _train(run_dir, report)


if __name__ == "__main__":
    analysis.train_in = train_in
    sys.exit(trainer.main())
