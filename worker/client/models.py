"""Models as a swarm node uses them: the current one from the shared file, and what it recommends.

The worker's `files` applicator replaces `<data_dir>/current/<scenario>.json` at once, so a reader sees one whole
document, the old or the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from worker.client.current_file import CurrentFile
from worker.learning import offline_model
from worker.learning.action_order import LearnedActionOrder, LearnedDependencyProvider
from worker.learning.advice import Advice
from worker.learning.offline_model import ModelUnreadable, OfflineModel, RecommendedPath
from worker.learning.rates import UNVISITED_RATE
from worker.wire.served import ServedModel


class CurrentModel:
    """One version of a scenario's offline model, ready to be asked."""

    def __init__(self, *, scenario: str, model_id: str, version: int, model: OfflineModel) -> None:
        self.scenario = scenario
        self.model_id = model_id
        self.version = version
        self.model = model
        self._advice = Advice(model)
        self._order = LearnedDependencyProvider(model.action_order)
        self._by_step = {(row.previous, row.action): row.success_rate for row in model.transitions}
        self._by_action = {row.action: row.success_rate for row in model.actions}

    def action_order(self, actions: Iterable[str]) -> LearnedActionOrder | None:
        """The learned order, where it is about exactly this set of actions; otherwise the caller infers one itself."""
        return self._order.provide(actions)

    @property
    def recommended_paths(self) -> list[RecommendedPath]:
        """Sequences that led to success, best first."""
        return self.model.recommended_paths

    def next_actions(self, previous: str | None) -> list[str]:
        """Actions recommended after `previous` (None: at the start), best first; none where nothing is known."""
        return self._advice.next_actions(previous)

    def score(self, action: str, previous: str | None = None) -> float:
        """How likely `action` is to do well after `previous`, 0-1.

        The action's own rate where the step is unknown, 0.5 where the action is.
        """
        in_context = self._by_step.get((previous, action))
        return self._by_action.get(action, UNVISITED_RATE) if in_context is None else in_context

    def scores(self, actions: Iterable[str], previous: str | None = None) -> dict[str, float]:
        """`score` of each."""
        return {action: self.score(action, previous) for action in actions}


def load_model(text: bytes, *, scenario: str, model_id: str, version: int, sha256: str) -> CurrentModel:
    """A model from its own bytes. Raises `ModelUnreadable`, also where the hash is another."""
    if hashlib.sha256(text).hexdigest() != sha256:
        raise ModelUnreadable(f"model {model_id} of {scenario} is not what was served: its SHA-256 differs")
    model = offline_model.decode(text)
    return CurrentModel(scenario=scenario, model_id=model_id, version=version, model=model)


class ModelFile(CurrentFile[CurrentModel]):
    """The current model of one scenario in a worker's data directory. Blocking; a look costs two system calls."""

    def __init__(self, data_dir: Path, scenario: str) -> None:
        super().__init__(data_dir, scenario, ".json", _model_of)


def _model_of(served: ServedModel) -> CurrentModel:
    return load_model(
        bytes(served.model),
        scenario=served.scenario,
        model_id=served.model_id,
        version=served.model_version,
        sha256=served.sha256,
    )
