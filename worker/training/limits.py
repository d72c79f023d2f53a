"""What a training process takes from itself before all else: memory, files, priority, life after its parent.

The child limits itself, first thing in its `main`, because `preexec_fn` runs Python between fork and exec, which may
deadlock in a parent that has threads (the store's writer is one). Standard library only, so that nothing heavy is
imported before the limits hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

#: Exit status of a child that ran into its own memory limit; free in sysexits.h.
EXIT_OUT_OF_MEMORY = 86
#: Exit status of a child whose parent was gone when it started.
EXIT_ORPHANED = 87

#: Exit status of a child that wrote a file beyond its limit.
EXIT_FILE_TOO_LARGE = 88

#: Exit status of a child that found no room on the disk.
EXIT_DISK_FULL = 89

#: Exit status of a child whose adapter is trained, and could not be made into its server's form.
EXIT_NOT_CONVERTED = 90

#: prctl(2): the signal this process gets when the thread that created it ends.
_PR_SET_PDEATHSIG = 1
#: Under memory pressure the kernel takes the trainer before the process that ingests.
_OOM_SCORE_ADJ = "500"
_NICE = 19
_MEGABYTE = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """Limits of one training process; 0 is none."""

    memory_mb: int = 2048  # address space
    file_mb: int = 512  # largest file it may write
    open_files: int = 4096  # never 0; a process that trains on several GPUs holds hundreds


class OrphanedError(Exception):
    """The parent was gone before the child could tie its life to it."""


def limit_this_process(limits: ChildLimits, *, parent_pid: int) -> None:
    """Apply `limits` to the calling process; raises `OrphanedError` where `parent_pid` is no longer its parent."""
    die_with_parent(parent_pid)
    os.umask(0o077)
    _lower(resource.RLIMIT_CORE, 0)  # a core file would hold the training data
    if limits.memory_mb:
        _lower(resource.RLIMIT_AS, limits.memory_mb * _MEGABYTE)
    if limits.file_mb:
        _lower(resource.RLIMIT_FSIZE, limits.file_mb * _MEGABYTE)  # Python ignores SIGXFSZ, the write raises EFBIG
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    _give_way()
    score = Path("/proc/self/oom_score_adj")
    if score.exists():  # Linux only
        score.write_text(_OOM_SCORE_ADJ)


def _give_way() -> None:
    """Run on what ingest leaves of the processors, and at once give back what it wants again.

    Ingest beside it, on two busy cores, as a share of ingest alone (measured): 0.70 with nice 10, 0.83 with nice 19,
    since a process of low priority still finishes its slice; 0.94 with SCHED_IDLE, which any other one interrupts.
    """
    os.nice(_NICE)  # where there is no SCHED_IDLE, and for whatever else looks at it
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):  # a sandbox may forbid it; then nice has to do
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, kill -9 included.

    The signal belongs to the *thread* that created the child: the one that runs the event loop, which lives as long as
    its process. Without it a trainer survives a kill -9 of the worker (measured).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    # The parent may have died before the line above: then no signal will ever come.
    if os.getppid() != parent_pid:
        raise OrphanedError


def _lower(what: int, value: int) -> None:
    """Set a soft and hard limit, never above a harder one that is there already."""
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))
