"""A file that the worker replaces at once: read when it is asked for, and again only once it was replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from worker.errors import ConfigurationError
from worker.learning.offline_model import ModelUnreadable
from worker.wire.names import is_slug
from worker.wire.served import ServedModel

T = TypeVar("T")


class CurrentFile(Generic[T]):
    """`<data_dir>/current/<scenario><ending>`, as what a node makes of it. Blocking; a look costs two system calls."""

    def __init__(self, data_dir: Path, scenario: str, ending: str, made_of: Callable[[ServedModel], T]) -> None:
        """`made_of` raises `ModelUnreadable`, or `msgspec.DecodeError` for a model of another form."""
        if not is_slug(scenario):
            raise ConfigurationError(f"{scenario!r} is no scenario name; use letters, digits, - and _, at most 64")
        self.path = data_dir / "current" / f"{scenario}{ending}"
        self._made_of = made_of
        self._seen: tuple[int, int, int] | None = None
        self._current: T | None = None

    def current(self) -> T | None:
        """What the file says now; None where there is none.

        Raises `ModelUnreadable` (damaged, or a newer worker's), or OSError where the file may not be read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())  # of the open file: the path may lead to another one by now
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if seen != self._seen:
                    self._current, self._seen = self._read(file.read()), seen
        except FileNotFoundError:
            self._current = self._seen = None
        return self._current

    def _read(self, text: bytes) -> T:
        try:
            return self._made_of(msgspec.json.decode(text, type=ServedModel))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelUnreadable(f"{self.path} is no document of a worker: {error}; apply a version again") from error
