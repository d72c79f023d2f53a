"""What a training sees, frozen: files in the run's directory, the same at every attempt.

The child gets these files and nothing else: no store, no broker, no secret. Counts lie beside `input.json`, a row a
line, so that the worker that freezes them holds a chunk of them at a time, however many there are.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from worker import __version__
from worker.durable import read_file, replace_file
from worker.learning.analyzer import AnalysisInput
from worker.learning.counts import CountRow
from worker.learning.offline_model import OfflineModel
from worker.models.gate import GateConfig
from worker.training.results import INPUT_FILE

COUNTS_FILE = "counts.jsonl"
HOLDOUT_FILE = "holdout.jsonl"
_INPUT_LIMIT = 256_000_000
#: Largest file of counts; what one training takes is far below (worker/learning/bounds.py).
_ROWS_LIMIT = 256_000_000

_decode_row = msgspec.json.Decoder(CountRow).decode


class TrainingConfig(Struct, frozen=True, kw_only=True):
    """What shapes a model beside the data; its hash is part of a run's identity."""

    max_sessions: int
    holdout: float
    gate: GateConfig
    producer_share: float = 1.0
    seed: int = 42  # the original's default
    worker_version: str = __version__

    @property
    def hash(self) -> str:
        """SHA-256 over canonical JSON, 16 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


class FrozenFacts(Struct, frozen=True, kw_only=True):
    """How much was stored when the input was frozen: the watermark of a run that succeeds."""

    last_batch_no: int
    records: int
    episodes: int
    episodes_by_model: dict[str, int]
    sessions: int  # that are counted


class TrainingInput(Struct, frozen=True, kw_only=True):
    """Everything the child reads. Without rows where only the head was read: they may be many."""

    format: int = 2
    run_id: str
    kind: str
    analysis: AnalysisInput
    #: Counts of what was held out, for the gate alone.
    holdout: list[CountRow] = []
    #: The live model, which a new one is compared with; None: with the logged behaviour.
    champion: OfflineModel | None
    config: TrainingConfig
    facts: FrozenFacts
    #: Sessions among the newest that were held out.
    held_out_sessions: int
    #: Episodes by producer, and the weight (0-1) of each that was capped.
    producers: dict[str, int] = {}
    capped: dict[str, float] = {}
    #: SHA-256 of the files of counts, which `analysis.counts` and `holdout` come from.
    counts_sha256: str = ""
    holdout_sha256: str = ""


class RowsFile:
    """Rows of counts on their way into the run's directory. `take` them, then `close`."""

    def __init__(self, path: Path) -> None:
        """The file is made anew: an earlier attempt may have left half of it."""
        self._path = path
        self._partial = path.with_name(f".{path.name}")
        self._partial.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._partial, flags, 0o400), "wb")
        self._sha256 = hashlib.sha256()

    def take(self, rows: list[CountRow]) -> None:
        """Write a chunk."""
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        self._sha256.update(lines)
        self._file.write(lines)

    def close(self) -> str:
        """Put the file in its place; its SHA-256. Not synced: a file that a power cut tore is frozen anew."""
        self._file.close()
        self._partial.replace(self._path)
        return self._sha256.hexdigest()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def write_head(run_dir: Path, head: TrainingInput) -> None:
    """Put `input.json` in the run's directory, last of all, read-only for the child. Canonical JSON."""
    replace_file(run_dir / INPUT_FILE, msgspec.json.encode(head, order="sorted"), mode=0o400)


def read_head(run_dir: Path) -> TrainingInput:
    """`input.json`, once the files of counts were found whole. Raises OSError, ValueError or `msgspec.DecodeError`."""
    head = msgspec.json.decode(read_file(run_dir / INPUT_FILE, limit=_INPUT_LIMIT), type=TrainingInput)
    for name, expected in ((COUNTS_FILE, head.counts_sha256), (HOLDOUT_FILE, head.holdout_sha256)):
        with (run_dir / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        _require(run_dir / name, found, expected)
    return head


def read_input(run_dir: Path) -> tuple[TrainingInput, str]:
    """The whole input and its SHA-256, which covers the counts by theirs. Raises as `read_head` does."""
    data = read_file(run_dir / INPUT_FILE, limit=_INPUT_LIMIT)
    head = msgspec.json.decode(data, type=TrainingInput)
    rows = [
        _read_rows(run_dir / name, expected)
        for name, expected in ((COUNTS_FILE, head.counts_sha256), (HOLDOUT_FILE, head.holdout_sha256))
    ]
    given = replace(head, analysis=replace(head.analysis, counts=rows[0]), holdout=rows[1])
    return given, hashlib.sha256(data).hexdigest()


def _read_rows(path: Path, expected: str) -> list[CountRow]:
    data = read_file(path, limit=_ROWS_LIMIT)
    _require(path, hashlib.sha256(data).hexdigest(), expected)
    return [_decode_row(line) for line in data.splitlines()]


def _require(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{path} is not what {INPUT_FILE} says: it was changed or torn")
