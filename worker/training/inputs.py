"""What a training sees, frozen: a file in the run's directory, the same at every attempt.

The child gets this file and nothing else: no store, no broker, no secret.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from worker import __version__
from worker.directories import make_private_directory
from worker.learning.analyzer import AnalysisInput, CountRow
from worker.learning.offline_model import OfflineModel
from worker.models.durable import read_file, replace_file
from worker.models.gate import GateConfig
from worker.training.results import INPUT_FILE

_INPUT_LIMIT = 256_000_000


class TrainingConfig(Struct, frozen=True, kw_only=True):
    """What shapes a model beside the data; its hash is part of a run's identity."""

    max_sessions: int
    holdout: float
    gate: GateConfig
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
    sessions: int


class TrainingInput(Struct, frozen=True, kw_only=True):
    """Everything the child reads."""

    format: int = 1
    run_id: str
    kind: str
    analysis: AnalysisInput
    #: Counts of what was held out, for the gate alone.
    holdout: list[CountRow]
    #: The live model, which a new one is compared with; None: with the logged behaviour.
    champion: OfflineModel | None
    config: TrainingConfig
    facts: FrozenFacts
    #: Sessions among the newest that were held out.
    held_out_sessions: int


def encode_input(given: TrainingInput) -> bytes:
    """Canonical JSON; its SHA-256 is the lineage's input hash."""
    return msgspec.json.encode(given, order="sorted")


def decode_input(data: bytes) -> TrainingInput:
    """From JSON; raises `msgspec.DecodeError`."""
    return msgspec.json.decode(data, type=TrainingInput)


def write_input(run_dir: Path, given: TrainingInput) -> None:
    """Put the input in the run's directory, 0700, read-only for the child."""
    make_private_directory(run_dir)
    replace_file(run_dir / INPUT_FILE, encode_input(given), mode=0o400)


def read_input(run_dir: Path) -> tuple[TrainingInput, str]:
    """The input and its SHA-256; raises OSError or `msgspec.DecodeError`."""
    data = read_file(run_dir / INPUT_FILE, limit=_INPUT_LIMIT)
    return decode_input(data), hashlib.sha256(data).hexdigest()
