"""What differs between trainings of one kind and of another: what they see, what learns, where their files lie."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.store.port import ModelKind, Run
from worker.training.child import ChildLauncher
from worker.training.inputs import FrozenFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What was frozen in a run's directory for its process, as far as its end needs to know of it."""

    facts: FrozenFacts
    lineage: dict[str, Any]  # of the model that comes of it: window, counts, config and its hash, seed
    manifest: Path | None = None  # of the training data, to be kept beside an adapter
    #: Of an adapter: looks at its model.json and its files before they are registered. Blocking. Raises ValueError or
    #: `ConfigurationError` where they must not be, OSError.
    check: Callable[[bytes, Path], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How models of one kind are made."""

    kind: ModelKind
    config_hash: str  # part of a run's identity
    launcher: ChildLauncher
    runs_dir: Path  # `<run_id>/` in it holds what a run sees
    outputs_dir: Path  # and in this one what its process makes; may be the same
    #: Freezes what a run may learn from in its directory, or finds there what an earlier attempt froze.
    #: Raises `StoreError`, OSError, ValueError.
    freeze: Callable[[Run, Path], Awaitable[Frozen]]
    #: Below `output_of` what its process goes on from, so that one which was killed is started again; None: nothing.
    checkpoint: str | None = None
    launched: bool = False  # by a launcher of the operator's

    def input_of(self, run_id: str) -> Path:
        """Where the run's input lies."""
        return self.runs_dir / run_id

    def output_of(self, run_id: str) -> Path:
        """Where its results lie."""
        return self.outputs_dir / run_id
