"""What a training process hands back: `result.json` beside `model.json` in its run directory."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from worker.learning.validation import Verdict

INPUT_FILE = "input.json"
RESULT_FILE = "result.json"


class TrainingResult(Struct, frozen=True, kw_only=True):
    """The end of a training that did not fail: a model, or a reason why there is nothing to learn."""

    run_id: str
    outcome: Literal["model", "nothing"]
    reason: str = ""  # of `nothing`
    model_sha256: str = ""  # of model.json
    metrics: dict[str, Any] = {}
    gate: Verdict | None = None
    versions: dict[str, str] = {}  # python, worker
    input_sha256: str = ""
    took_ms: int = 0


def encode_result(result: TrainingResult) -> bytes:
    """As JSON, with sorted keys."""
    return msgspec.json.encode(result, order="sorted")


def decode_result(data: bytes) -> TrainingResult:
    """From JSON; raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
    return msgspec.json.decode(data, type=TrainingResult)
