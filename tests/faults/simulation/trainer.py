"""The training process replaced at its port: it ends as the faults say, in every way that a child can end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from tests.faults.simulation.faults import Faults, TrainingEnd
from tests.faults.simulation.process import Process
from tests.unit.scripted_adapter import make_adapter
from worker.learning.offline_model import OfflineModel, encode
from worker.learning.validation import Verdict
from worker.training.child import ChildEnd, ChildLauncher, Died, Finished, OnProgress, OnStep
from worker.training.inputs import read_input
from worker.training.lora.inputs import read_lora_input
from worker.training.results import TrainingResult

#: Longest a training takes that ends by itself, in s: now and then longer than a lease lives without its renewal.
_LONGEST = 8.0
#: The launcher's own limit.
TRAINING_TIMEOUT = 12.0

_DEATHS: dict[TrainingEnd, Died] = {
    "signal": Died("signal:11", "Segmentation fault"),
    "oom": Died("oom", "out of memory"),
    "exit": Died("exit:7", "the cause"),
    "garbage": Died("bad_output: DecodeError", "JSON is malformed"),
    "never": Died("timeout"),
}


class ScriptedTrainer(ChildLauncher):
    """Learns nothing: what it finds is how much there was to learn from, so equal input gives an equal model."""

    def __init__(self, faults: Faults, process: Process) -> None:
        super().__init__(timeout=TRAINING_TIMEOUT, memory_mb=128)
        self._faults = faults
        self._process = process

    async def run(
        self,
        run_dir: Path,
        on_progress: OnProgress,
        *,
        output_dir: Path | None = None,
        on_step: OnStep | None = None,
    ) -> ChildEnd:
        """See `ChildLauncher.run`."""
        if self._process.unwinding:
            raise asyncio.CancelledError
        end = self._faults.training_end()
        if end == "no_process":
            raise BlockingIOError("no more processes can be started")
        if end == "never":
            await asyncio.sleep(TRAINING_TIMEOUT)
        else:
            await asyncio.sleep(self._faults.random.uniform(0.0, 1.0))
            on_progress(0.5, "half")
            if self._faults.random.random() < 0.3:
                await asyncio.sleep(self._faults.random.uniform(0.0, _LONGEST))
        if end in _DEATHS:
            return _DEATHS[end]
        return self._finished(end, run_dir)

    def _finished(self, end: TrainingEnd, run_dir: Path) -> Finished:
        run_id, input_sha256, learn = self._learner(run_dir)
        if end == "another_run":
            run_id = "another"
        if end == "nothing":
            result = TrainingResult(
                run_id=run_id, outcome="nothing", reason="too few episodes", input_sha256=input_sha256
            )
            return Finished(result, None)
        content = learn()
        verdict = Verdict(verdict="rejected" if end == "rejected" else "blessed", reasons=["as planned"])
        result = TrainingResult(
            run_id=run_id, outcome="model", model_sha256=hashlib.sha256(content).hexdigest(), gate=verdict,
            input_sha256=input_sha256,
        )  # fmt: skip
        return Finished(result, content)

    def _learner(self, run_dir: Path) -> tuple[str, str, Callable[[], bytes]]:
        given, input_sha256 = read_input(run_dir)
        model = OfflineModel(
            scenario=given.analysis.scenario,
            analyzed_sessions=given.facts.sessions,
            analyzed_episodes=given.facts.episodes,
            window=given.analysis.window,
        )
        return given.run_id, input_sha256, lambda: encode(model)


class ScriptedAdapterTrainer(ScriptedTrainer):
    """The same of an adapter, with files that say what data it was trained on."""

    def _learner(self, run_dir: Path) -> tuple[str, str, Callable[[], bytes]]:
        given, input_sha256 = read_lora_input(run_dir)

        def learn() -> bytes:
            return make_adapter(
                Path(given.surroundings.output_dir), scenario=given.scenario, data_sha256=given.manifest_sha256,
                text=given.train_sha256,
            )  # fmt: skip

        return given.run_id, input_sha256, learn
