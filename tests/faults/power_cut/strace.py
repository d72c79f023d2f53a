"""strace: where it comes from, how a program is run under it, and its log as calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

#: What changes a disk, and what is said to a broker.
_FILES = "openat,pwrite64,write,writev,ftruncate,fdatasync,fsync,unlink,unlinkat,rename,renameat,renameat2,mkdir,rmdir"
_SOCKETS = "sendto,sendmsg,recvfrom"
#: More bytes than one call ever carries here: asyncio reads 256 KiB at a time.
_LONGEST = 1_000_000

# A line of `strace -f -y -xx`: 1234 pwrite64(3<\x2f\x64>, "\x53\x51", 2, 0) = 2. Strings and paths are all hex, so no
# quote, comma or bracket in the line is part of one.
_LINE = re.compile(r"(\d+)\s+(\w+)\((.*)")
_UNFINISHED = re.compile(r"(\d+)\s+.*?(\s*<unfinished \.\.\.>)\s*$")
_RESUMED = re.compile(r"(\d+)\s+<\.\.\. \w+ resumed>\s*(.*)")
_RESULT = re.compile(r"\)\s+= (-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")


def strace() -> str:
    """The program; Debian's package is installed where we may, as `worker.broker.local` does with RabbitMQ."""
    if shutil.which("strace") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "strace"]):
            subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)
    found = shutil.which("strace")
    if found is None:
        pytest.fail("this test needs strace; install it (Debian: apt-get install strace)")
    return found


def under_strace(log: Path, *program: str) -> tuple[str, ...]:
    """The command line that runs a program and writes `log`. -D: the process that is started is the program itself."""
    options = ["-D", "-f", "--seccomp-bpf", "-y", "-xx", "-s", str(_LONGEST), "-e", f"trace={_FILES},{_SOCKETS}"]
    return (strace(), *options, "-o", str(log), *program)


@dataclass(slots=True)
class Call:
    """One system call. A call that another thread interrupted comes twice: started, and later returned."""

    name: str
    arguments: str
    started: bool
    returned: bool
    result: int = -1
    strings: list[bytes] = field(default_factory=list)
    #: Of its descriptors in order; None for a file that was deleted.
    paths: list[str | None] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """All bytes that it hands over, of one buffer or many."""
        return b"".join(self.strings)

    def last_number(self) -> int:
        """The last argument of a call that returned."""
        return int(self.arguments[: self.arguments.rindex(")")].rsplit(", ", 1)[-1])


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """The calls of a log, in the order they began and returned."""
    halves: dict[str, str] = {}
    for line in lines:
        if match := _RESUMED.match(line):
            if match[1] in halves:
                yield from _call(halves.pop(match[1]) + match[2], started=False, returned=True)
        elif match := _UNFINISHED.match(line):
            halves[match[1]] = line[: match.start(2)]
            yield from _call(halves[match[1]], started=True, returned=False)
        else:
            yield from _call(line, started=True, returned=True)


def _call(line: str, *, started: bool, returned: bool) -> Iterator[Call]:
    match = _LINE.match(line)
    if match is None:
        return
    call = Call(match[2], match[3], started, returned)
    if returned:
        results = _RESULT.findall(call.arguments)
        if not results:
            return  # the process was killed in it
        call.result = int(results[-1])
    for text, cut in _STRING.findall(call.arguments):
        assert not cut, "a call carries more bytes than strace was told to show"
        call.strings.append(_bytes(text))
    call.paths = [
        None if deleted else os.fsdecode(_bytes(text)) for text, deleted in _DESCRIPTOR.findall(call.arguments)
    ]
    yield call


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
