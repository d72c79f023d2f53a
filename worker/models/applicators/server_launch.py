"""Starts a server that lives on without us: `python -I -S server_launch.py PID_FILE LOG_FILE COMMAND...`.

The server's process takes the lock on the pid file and writes itself into it before it becomes the server, so at no
moment, whoever is killed, does one run that the file does not tell of; and the kernel drops the lock with the process,
so a pid that another program got meanwhile is never taken for it. Standard library only.

Ends with status 0 when the server's program runs, else with 1 and the reason on standard error.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time

#: Most bytes of a reason.
_REASON_LIMIT = 4_096
#: Somebody may look whether the lock is held at this very moment.
_LOCK_TRIES, _LOCK_WAIT = 40, 0.05


def main() -> None:
    """The process that forks the server, and waits until its program has started."""
    reading, writing = os.pipe()  # the server's end closes itself when its program starts
    if os.fork() == 0:
        os.close(reading)
        try:
            become_server(sys.argv[1], sys.argv[2], sys.argv[3:])
        except OSError as error:
            os.write(writing, str(error).encode()[:_REASON_LIMIT])
        os._exit(1)
    os.close(writing)
    reason = os.read(reading, _REASON_LIMIT)
    if reason:
        sys.exit(reason.decode(errors="replace"))


def become_server(pid_file: str, log_file: str, command: list[str]) -> None:
    """Leave the session of the starter, take the lock, say who we are, and run `command`. OSError where it fails."""
    os.setsid()
    os.chdir("/")
    lock = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    _take(lock)
    os.set_inheritable(lock, True)  # noqa: FBT003 - its only signature
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"pid": os.getpid(), "command": command}).encode(), 0)
    os.fsync(lock)
    # Appended to, so that a tool that rotates logs may cut it off at any time.
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.execvp(command[0], command)  # noqa: S606 - by list, as S603 in pyproject.toml


def _take(lock: int) -> None:
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_WAIT)
        else:
            return
    raise OSError("another server holds its pid file")


if __name__ == "__main__":
    main()
