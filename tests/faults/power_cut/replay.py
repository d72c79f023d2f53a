"""Goes through a trace, cuts the power at every acknowledgement, event and sync, and has each disk judged."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults.power_cut.disk import Disk
from tests.faults.power_cut.strace import Call, calls
from tests.faults.power_cut.talk import Message, Talk


@dataclass(slots=True)
class Said:
    """What the outside was told so far."""

    acked: list[Message] = field(default_factory=list)
    published: list[Message] = field(default_factory=list)


#: What is wrong with the files that a cut left, given what had been said; each begins with LOST or BROKEN.
Judge = Callable[[dict[str, bytes], Said], Sequence[str]]


class Replay:
    """Of what a worker does to the directory `place`, through all its lives: the page cache outlives a kill -9."""

    def __init__(self, place: Path, judge: Judge, *, seeds: Iterable[int]) -> None:
        self.said = Said()
        #: Cuts by what they were made at, and what was found, with how often.
        self.cuts: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self._judge = judge
        self._chances = [Random(seed) for seed in seeds]
        self._disk = Disk(str(place.resolve()))
        self._talk = Talk()

    def run(self, trace: Path) -> None:
        """Go through one life."""
        with trace.open(errors="replace") as lines:
            for call in calls(lines):
                if call.name in ("sendto", "sendmsg", "recvfrom"):
                    self._on_socket(call)
                else:
                    self._on_file(call)
        self._cut("the end")

    def _on_socket(self, call: Call) -> None:
        socket = call.paths[0] or ""
        if call.name == "recvfrom":
            if call.returned and call.result > 0:
                self._talk.heard(socket, call.data)
            return
        # Strictly: what is acknowledged counts from the start of the call, what is synced from its return.
        if call.started:
            acked, published = self._talk.about_to_send(socket, call.data)
            self.said.acked += acked
            self.said.published += published
            if acked or published:
                self._cut("an acknowledgement" if acked else "a publish")
        if call.returned and call.result > 0:
            self._talk.sent(socket, call.data[: call.result])

    def _on_file(self, call: Call) -> None:
        disk = self._disk
        if call.name in ("fsync", "fdatasync") and call.started and disk.follows(call.paths[0]):
            self._cut("a sync", fewer=True)
        if not call.returned or call.result < 0:
            return
        path = call.paths[0] if call.paths else None
        match call.name:
            case "mkdir" | "rmdir" | "unlink" | "unlinkat" | "openat":
                self._on_name(call)
            case "rename" | "renameat" | "renameat2":
                old, new = (_below(path, name) for name in call.strings)
                if disk.follows(old) and disk.follows(new):
                    disk.rename(old, new)
            case "fsync" | "fdatasync" if path is not None and (disk.follows(path) or disk.is_top(path)):
                disk.sync(path)
            case "pwrite64" if path is not None and disk.follows(path):
                disk.write(path, call.data[: call.result], call.last_number())
            case "write" | "writev" if path is not None and disk.follows(path):
                disk.write(path, call.data[: call.result])
            case "ftruncate" if path is not None and disk.follows(path):
                disk.truncate(path, call.last_number())

    def _on_name(self, call: Call) -> None:
        path = _below(call.paths[0] if call.paths else None, call.strings[0])
        if not self._disk.follows(path):
            return
        match call.name:
            case "mkdir":
                self._disk.make_directory(path)
            case "openat":
                self._disk.open(path, create="O_CREAT" in call.arguments, truncate="O_TRUNC" in call.arguments)
            case _:
                self._disk.remove(path)

    def _cut(self, moment: str, *, fewer: bool = False) -> None:
        """The disk with nothing that was not synced, and with random parts of it; at a sync one such part."""
        for chance in self._chances[:1] if fewer else (None, *self._chances):
            self.cuts[moment] += 1
            for verdict in self._judge(self._disk.after_cut(chance), self.said):
                self.found[f"{verdict}, cut at {moment}"] += 1


def _below(directory: str | None, name: bytes) -> str:
    """A path as the call meant it: absolute, or in the directory of its descriptor."""
    return str(Path(directory or "/") / os.fsdecode(name))
