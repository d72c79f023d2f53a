"""The training process: `python -m worker.training.trainer RUN_DIR`. Limits itself, learns, writes, ends.

Reads `input.json` in RUN_DIR, writes `model.json` and `result.json` there, and one JSON line a step on standard output:
`{"progress": 0.5, "text": "..."}`. It needs no network, no store and no secret. Exit status 0: `result.json` is whole;
anything else is a failed training.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.training.limits import (
    EXIT_FILE_TOO_LARGE,
    EXIT_ORPHANED,
    EXIT_OUT_OF_MEMORY,
    ChildLimits,
    OrphanedError,
    limit_this_process,
)


def report(progress: float, text: str) -> None:
    """Tell the parent how far we are; 0-1."""
    sys.stdout.write(json.dumps({"progress": round(progress, 4), "text": text}) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one training; returns the exit status."""
    parser = argparse.ArgumentParser(prog="worker.training.trainer")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--memory-mb", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        limit_this_process(ChildLimits(memory_mb=options.memory_mb), parent_pid=options.parent_pid)
    except OrphanedError:
        return EXIT_ORPHANED
    try:
        from worker.training.analysis import train_in  # noqa: PLC0415 - what is heavy is loaded under the limits

        train_in(options.run_dir, report)
    except MemoryError:
        sys.stderr.write(f"out of memory at {options.memory_mb} MB; raise SWARM_TRAINING_MEMORY_MB\n")
        return EXIT_OUT_OF_MEMORY
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        sys.stderr.write(f"a file grew beyond {ChildLimits().file_mb} MB\n")
        return EXIT_FILE_TOO_LARGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
