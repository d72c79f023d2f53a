"""Limits itself and becomes another program: a training script of the operator's, or a launcher around the training.

`python -m worker.training.confined --python P [--script S] [--launcher L] RUN_DIR --parent-pid N --memory-mb M`.
Limits, priority and the death with the parent outlive the exec. Standard library only, as worker.training.limits.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.training.limits import EXIT_ORPHANED, ChildLimits, OrphanedError, limit_this_process

#: Stands for the training's own command in a launcher.
COMMAND = "{command}"
#: What a shell says of a program that it cannot start.
_EXIT_NOT_STARTED = 126


def program(python: str, script: str | None, launcher: str | None, run_dir: Path) -> list[str]:
    """The words to start."""
    inner = [python, script, str(run_dir)] if script else [*_trainer(python), str(run_dir)]
    if launcher is None:
        return inner
    words: list[str] = []
    for word in shlex.split(launcher):
        # As words of its own, or within one, as in: sh -c "cd / && {command}"
        words += inner if word == COMMAND else [word.replace(COMMAND, shlex.join(inner))]
    return words


def _trainer(python: str) -> list[str]:
    return [python, "-P", "-s", "-m", "worker.training.trainer", "--file-mb", "0"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Become the program; returns only where that failed."""
    parser = argparse.ArgumentParser(prog="worker.training.confined")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--script")
    parser.add_argument("--launcher")
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--memory-mb", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        limit_this_process(ChildLimits(memory_mb=options.memory_mb, file_mb=0), parent_pid=options.parent_pid)
    except OrphanedError:
        return EXIT_ORPHANED
    words = program(options.python, options.script, options.launcher, options.run_dir)
    try:
        os.execvp(words[0], words)  # noqa: S606 - the operator's own command
    except OSError as error:
        setting = "SWARM_LORA_LAUNCHER" if options.launcher else "SWARM_LORA_PYTHON_PATH"
        sys.stderr.write(f"{setting}: {words[0]} cannot be started: {error.strerror}\n")
        return _EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
