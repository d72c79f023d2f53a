"""What an offline training does between reading its input and writing its result. Runs in the child."""

from __future__ import annotations

import hashlib
import platform
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from worker import __version__
from worker.durable import replace_file
from worker.learning.analyzer import NothingToLearn, OfflineAnalyzer
from worker.learning.counts import CountKey, CountRow, Counts
from worker.learning.offline_model import MODEL_FILE, OfflineModel, encode
from worker.models.gate import weigh
from worker.training.inputs import TrainingInput, read_input
from worker.training.results import RESULT_FILE, TrainingResult, encode_result


def train_in(run_dir: Path, report: Callable[[float, str], None]) -> None:
    """Learn from `input.json` in `run_dir`; write `model.json`, where one came of it, and `result.json` last."""
    started = time.monotonic()
    report(0.0, "reading")
    given, input_sha256 = read_input(run_dir)
    report(0.1, f"analysing {len(given.analysis.counts)} counts and {len(given.analysis.sessions)} sessions")
    found = OfflineAnalyzer(given.analysis).analyze()
    versions = {"worker": __version__, "python": platform.python_version()}
    if isinstance(found, NothingToLearn):
        result = TrainingResult(
            run_id=given.run_id, outcome="nothing", reason=found.reason, versions=versions, input_sha256=input_sha256
        )
    else:
        report(0.7, "judging on what was held out")
        weighed = weigh(given.config.gate, found, given.champion, counts_of(given.holdout))
        content = encode(found)
        replace_file(run_dir / MODEL_FILE, content)
        result = TrainingResult(
            run_id=given.run_id,
            outcome="model",
            model_sha256=hashlib.sha256(content).hexdigest(),
            metrics={**summary(found, given), "held_out": weighed.metrics},
            gate=weighed.verdict,
            versions=versions,
            input_sha256=input_sha256,
            took_ms=round((time.monotonic() - started) * 1000),
        )
    report(0.95, "writing")
    replace_file(run_dir / RESULT_FILE, encode_result(result))
    report(1.0, "done")


def counts_of(rows: list[CountRow]) -> Counts:
    """Rows as counts."""
    return Counter({CountKey(source, measure, names): number for source, measure, names, number in rows})


def summary(model: OfflineModel, given: TrainingInput) -> dict[str, Any]:
    """The figures of a model that events and tables show."""
    return {
        "analyzed_sessions": model.analyzed_sessions,
        "analyzed_episodes": model.analyzed_episodes,
        "held_out_sessions": given.held_out_sessions,
        "evidence": model.evidence,
        "actions": len(model.actions),
        "transitions": len(model.transitions),
        "recommended_paths": len(model.recommended_paths),
        "parameters": msgspec.to_builtins(model.parameters),
    }
