"""Projection: from a task or a graph, its rules and the learn models to episodes. Pure, and safe against any one model.

Every call gives all episodes of what it is given, under the same ids for the same records, so that storing them
replaces what an earlier, poorer view of the same records gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from worker.episodes.dependency_graph import DependencyGraphLearnModel
from worker.episodes.dpo import DpoLearnModel
from worker.episodes.episode import Episode
from worker.episodes.model import Graph, LearnModel, Task
from worker.episodes.rules import Rules
from worker.episodes.worker_decision_sequence import ORDER, WorkerDecisionSequenceLearn
from worker.episodes.worker_task import WorkerTaskLearn


class Fault(Struct, frozen=True):
    """A learn model (or the statistics) that failed on one task: that model's episodes of it are missing."""

    culprit: str
    error: str


class Projected(Struct, frozen=True):
    """What the learn models made, and which of them failed."""

    episodes: list[Episode]
    faults: list[Fault]
    open_tail: bool = False


def project_task(task: Task, models: Sequence[LearnModel]) -> Projected:
    """The episodes that each model cuts from the task, and whether a sequence of it is still open."""
    try:
        open_tail = task.slices.open_tail
    except Exception as error:  # noqa: BLE001  whatever is wrong with one task's records, the others go on
        return Projected([], [Fault("cut", f"{type(error).__name__}: {error}")])
    made = _collect(models, lambda model: model.build_episodes(task))
    return Projected(made.episodes, made.faults, open_tail)


def project_graph(graph: Graph, models: Sequence[LearnModel]) -> Projected:
    """The episodes that each model makes of the graph."""
    return _collect(models, lambda model: model.build_graph_episodes(graph))


def learn_models(names: Sequence[str], rules: Rules) -> list[LearnModel]:
    """The built-in learn models of these names, set up by a scenario's rules.

    Raises KeyError for a name that is none of them; `Settings.learn_models` refuses such names.
    """
    sequence = WorkerDecisionSequenceLearn(rules=rules)
    dpo = DpoLearnModel(rules=rules)
    if rules.available_actions:
        sequence = sequence.with_available_actions(*rules.available_actions)
        dpo = dpo.with_available_actions(*rules.available_actions)
    task, graph = WorkerTaskLearn(rules=rules), DependencyGraphLearnModel()
    if rules.system_prompt is not None:  # the scenario's persona, in the place of the built-in one
        prompt = f"{rules.system_prompt} {ORDER}"
        sequence, dpo = sequence.with_system_prompt(prompt), dpo.with_system_prompt(prompt)
        task = task.with_system_prompt(rules.system_prompt)
    models: dict[str, LearnModel] = {model.name: model for model in (sequence, task, graph, dpo)}
    return [models[name] for name in names]


def _collect(models: Sequence[LearnModel], build: Callable[[LearnModel], list[Episode]]) -> Projected:
    episodes: list[Episode] = []
    faults: list[Fault] = []
    for model in models:
        try:
            made = build(model)
            _check(model, made)
        except Exception as error:  # noqa: BLE001  a user's model may raise anything; it loses its own episodes only
            faults.append(Fault(model.name, f"{type(error).__name__}: {error}"))
        else:
            episodes += made
    return Projected(episodes, faults)


def _check(model: LearnModel, made: list[Episode]) -> None:
    """Episodes under another model's name or under one id would overwrite each other in the store."""
    ids = {episode.episode_id for episode in made}
    if len(ids) < len(made):
        raise ValueError("two episodes have the same episode_id")
    if any(
        episode.learn_model != model.name or not episode.episode_id.startswith(f"{model.name}:") for episode in made
    ):
        raise ValueError(
            f"an episode's learn_model is not {model.name!r} or its id does not begin with '{model.name}:'"
        )
