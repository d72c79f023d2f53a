"""What aliases, history and the triggers' memory must be: counted along from the ends of runs and deployments alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.faults.simulation.node import APPLY_MODES, MAX_HISTORY, SCENARIOS
from worker.store.port import Deployment, Model, ModelKind, Run, TriggerState, alias_of, trigger_key

KINDS: tuple[ModelKind, ...] = ("offline", "lora")
#: Starts of an adapter's run after which its killed process is its end.
_MOST_KILLED = 3


@dataclass(frozen=True, slots=True)
class Memory:
    """What a trigger remembers of the ends of its own kind of runs."""

    failures: int = 0
    last_success_at_ms: int | None = None
    last_attempt_at_ms: int | None = None


@dataclass
class Registers:
    """Of one store in memory, which is looked at from inside."""

    store: Any
    aliases: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    #: By scenario and kind: the live model last, those that a rollback may bring back before it.
    histories: defaultdict[tuple[str, ModelKind], list[str]] = field(default_factory=lambda: defaultdict(list))
    memories: defaultdict[tuple[str, ModelKind], Memory] = field(default_factory=lambda: defaultdict(Memory))
    _counted: set[str] = field(default_factory=set)
    _places: dict[str, Path] = field(default_factory=dict)

    def written(self, call: str, args: tuple[Any, ...]) -> None:
        """Follow a call that was carried out, and compare."""
        match call, args:
            case "finish_run", (Run() as run, *_):
                self._ended(run)
            case "deploy", (Deployment(state="verified") as row, *_) if row.deployment_id not in self._counted:
                self._counted.add(row.deployment_id)
                self._went_live(row)
            case "finish_run" | "deploy" | "save_trigger_state", _:
                pass
            case _:
                return
        self._compare()

    def _ended(self, run: Run) -> None:
        if run.kind == "lora" and run.state == "failed" and (run.reason or "").startswith("signal:"):
            assert run.attempts >= _MOST_KILLED, f"run {run.run_id} failed at start {run.attempts}: {run.reason}"
        at = run.scenario, run.kind
        memory = replace(self.memories[at], last_attempt_at_ms=run.ended_at_ms)
        if run.state == "failed":
            memory = replace(memory, failures=memory.failures + 1)
        elif run.state == "trained" or (run.reason or "").startswith("unchanged"):
            memory = replace(memory, failures=0, last_success_at_ms=run.ended_at_ms)
        self.memories[at] = memory
        if run.model_id is not None:
            self.aliases[run.scenario][alias_of("candidate", run.kind)] = run.model_id

    def _went_live(self, row: Deployment) -> None:
        model: Model = self.store._models[row.model_id]
        history = self.histories[row.scenario, model.kind]
        aliases = self.aliases[row.scenario]
        champion, candidate, previous = (alias_of(name, model.kind) for name in ("champion", "candidate", "previous"))
        aliases[champion] = row.model_id
        if row.action == "rollback":
            assert history[-2:-1] == [row.model_id], f"{row.deployment_id} went back to {row.model_id} of {history}"
            del history[-1]
            aliases.pop(previous, None)
            if len(history) > 1:
                aliases[previous] = history[-2]
            return
        if not history or history[-1] != row.model_id:
            history.append(row.model_id)
            del history[: -MAX_HISTORY - 1]
        if row.previous_model_id is not None:
            aliases[previous] = row.previous_model_id
        if aliases.get(candidate) == row.model_id:
            del aliases[candidate]

    def _compare(self) -> None:
        for scenario in SCENARIOS:
            aliases = self.store._aliases.get(scenario, {})
            assert aliases == self.aliases[scenario], f"aliases of {scenario}: {aliases}, not {self.aliases[scenario]}"
            for kind in KINDS:
                state = self.store._trigger_states.get(trigger_key(scenario, kind)) or TriggerState(scenario=scenario)
                found = Memory(state.failures, state.last_success_at_ms, state.last_attempt_at_ms)
                expected = self.memories[scenario, kind]
                assert found == expected, f"memory of {kind} in {scenario}: {found}, not {expected}"

    def files_are_kept(self) -> None:
        """What may be gone back to has its files."""
        for model_id in {model_id for history in self.histories.values() for model_id in history}:
            place = self._places.get(model_id)
            if place is None:
                place = self._places[model_id] = Path(self.store._models[model_id].uri.removeprefix("file://"))
            assert place.is_dir(), f"{model_id} may be gone back to, and its files are gone"

    def forgotten(self) -> list[str]:
        """Newest blessed models that should have been applied, and nobody has tried to."""
        tried = {row.model_id for row in self.store._deployments.values()}
        newest = {(model.scenario, model.kind): model for model in self.store._models.values()}
        return [
            f"version {model.version} of {model.scenario} was not handed over"
            for model in newest.values()
            if model.gate_verdict == "blessed" and model.model_id not in tried and self._wanted(model)
        ]

    def _wanted(self, model: Model) -> bool:
        asked: bool | None = self.store._runs[model.run_id].apply
        return APPLY_MODES[model.scenario] == "auto" if asked is None else asked
