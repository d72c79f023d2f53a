"""Forks workers for tests: `python nursery_server.py`, one request a line on standard input.

The worker is imported before the fork, which makes a start cost a tenth of a fresh interpreter's. All else is as ever:
a process of its own that a signal may end, with its own environment, directory and log. A request names these and the
place for two files: the pid as soon as it runs, the exit status once it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

# Imported for the children.
import worker.cli.run  # noqa: F401
from worker.cli import main


def be_worker(request: dict[str, Any]) -> int:
    """Be `swarm-worker run`; its exit status."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(target, descriptor)
    sys.argv = ["swarm-worker", "run"]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does: show it, status 1
        traceback.print_exc()
        return 1
    return 0


def write(path: str, number: int) -> None:
    """A file that is whole as soon as it is there."""
    pending = Path(f"{path}.new")
    pending.write_text(str(number))
    pending.rename(path)


class Nursery:
    """The workers that live, by pid, with the place where their end is told."""

    def __init__(self) -> None:
        self._living: dict[int, str] = {}

    def bury(self, *_: object) -> None:
        """Tell of every worker that has ended."""
        while self._living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            write(f"{self._living.pop(pid)}.end", os.waitstatus_to_exitcode(status))

    def start(self, request: dict[str, Any]) -> None:
        """Fork. In the child this does not return."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # it may end before it is noted
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            code = be_worker(request)
            sys.stderr.flush()
            os._exit(code)
        self._living[pid] = request["files"]
        write(f"{request['files']}.pid", pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def serve(self) -> None:
        """Fork for every request until standard input ends."""
        gc.collect()
        gc.freeze()  # else the first collection in a child copies every page
        signal.signal(signal.SIGCHLD, self.bury)
        for line in iter(sys.stdin.readline, ""):
            self.start(json.loads(line))


if __name__ == "__main__":
    Nursery().serve()
