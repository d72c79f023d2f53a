"""Runs a program that dies with its parent, kill -9 included: `python -m worker.cli.demo.tied PARENT PROGRAM ...`."""

from __future__ import annotations

import os
import sys

from worker.training.limits import die_with_parent


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the program."""
    parent_pid, program, *rest = arguments
    die_with_parent(int(parent_pid))
    os.execv(program, [program, *rest])  # noqa: S606  the demo's own programs


if __name__ == "__main__":
    main(sys.argv[1:])
