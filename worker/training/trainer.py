"""The training process: `python -m worker.training.trainer RUN_DIR`. Limits itself, learns, writes, ends.

Reads `input.json` in RUN_DIR, whose `kind` says what is trained, writes `model.json` and `result.json` there or where
the input says, and one JSON line a step on standard output: `{"progress": 0.5, "text": "..."}`. It needs no store and
no secret, and no network but for a base model that is named by a hub id. Exit status 0: `result.json` is whole;
anything else is a failed training.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.errors import ConfigurationError
from worker.training.limits import (
    EXIT_DISK_FULL,
    EXIT_FILE_TOO_LARGE,
    EXIT_ORPHANED,
    EXIT_OUT_OF_MEMORY,
    ChildLimits,
    OrphanedError,
    limit_this_process,
)
from worker.training.shortages import is_disk_full, is_out_of_memory


def report(progress: float, text: str, step: tuple[int, int, float, float] | None = None) -> None:
    """Tell the parent how far we are, 0-1; `step`: the fields of `worker.training.child.TrainingStep`."""
    line: dict[str, object] = {"progress": round(progress, 4), "text": text}
    if step is not None:
        line["step"] = dict(zip(("step", "steps", "loss", "seconds_left"), step, strict=True))
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def kind_of(run_dir: Path) -> str:
    """What the input says is to be trained; OSError or ValueError where it cannot be read."""
    import msgspec  # noqa: PLC0415 - nothing but the standard library before the limits hold

    class Kind(msgspec.Struct):
        kind: str

    return msgspec.json.decode((run_dir / "input.json").read_bytes(), type=Kind).kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one training; returns the exit status."""
    parser = argparse.ArgumentParser(prog="worker.training.trainer")
    parser.add_argument("run_dir", type=Path)
    # Left out by a launcher between the worker and us: the limits are inherited, and the parent is the launcher.
    parser.add_argument("--parent-pid", type=int, default=os.getppid())
    parser.add_argument("--memory-mb", type=int, default=0)
    parser.add_argument("--file-mb", type=int, default=ChildLimits().file_mb)
    options = parser.parse_args(arguments)
    limits = ChildLimits(memory_mb=options.memory_mb, file_mb=options.file_mb)
    try:
        limit_this_process(limits, parent_pid=options.parent_pid)
    except OrphanedError:
        return EXIT_ORPHANED
    kind = ""
    try:
        kind = kind_of(options.run_dir)
        _train(kind, options.run_dir)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            sys.stderr.write(f"a file grew beyond {limits.file_mb} MB\n")
            return EXIT_FILE_TOO_LARGE
        if is_disk_full(error):
            place = "SWARM_LORA_DATA_DIR or SWARM_LORA_OUTPUT_DIR" if kind == "lora" else "SWARM_DATA_DIR"
            sys.stderr.write(f"the disk is full ({error}); free space, or set {place}; it is trained again then\n")
            return EXIT_DISK_FULL
        if not is_out_of_memory(error):
            raise
        at = f" at {limits.memory_mb} MB" if limits.memory_mb else ""
        cure = "raise SWARM_TRAINING_MEMORY_MB"
        if kind == "lora":
            limit = "raise SWARM_LORA_MEMORY_MB or " if limits.memory_mb else ""
            cure = f"{limit}lower SWARM_LORA_BATCH_SIZE or SWARM_LORA_MAX_SEQ_LENGTH"
        sys.stderr.write(f"out of memory{at}; {cure}\n")
        return EXIT_OUT_OF_MEMORY
    return 0


def _train(kind: str, run_dir: Path) -> None:
    # What is heavy is loaded under the limits, and only where it is needed.
    if kind == "lora":
        from worker.training.lora.train import train_adapter  # noqa: PLC0415

        train_adapter(run_dir, report)
    else:
        from worker.training.analysis import train_in  # noqa: PLC0415

        train_in(run_dir, report)


if __name__ == "__main__":
    sys.exit(main())
