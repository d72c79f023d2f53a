"""What a learn model is: which episodes it cuts, how it judges them, what training text it makes of them.

Near to the original's `LearnModel`: subclass it, name it, override what the model is about, and give it to
the worker's builder. Everything here is pure; a model that raises loses its own episodes of that one task, no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from worker.episodes.cut import Cut, Slices, judge, slice_task, step_of
from worker.episodes.episode import Episode
from worker.episodes.rules import Rules
from worker.episodes.task import TaskView
from worker.episodes.training_data import TrainingData, TrainingFormat, TrainingMetadata
from worker.wire.records import (
    ActionRecord,
    DependencyGraphRecord,
    LearnStatsRecord,
    Outcome,
    Record,
    Unknown,
    score_of,
)

DEFAULT_RULES = Rules()


class LearnError(Exception):
    """A learn model could not do what was asked (the original's `LearnError`)."""


class ConversionError(LearnError):
    """This episode gives no training text."""


class MissingData(LearnError):
    """The records that the episode was cut from are not there."""


class InvalidEpisode(LearnError):
    """The episode is not of a kind that this model teaches from."""


class Task:
    """A task as learn models get it: the view, the rules, and its sequences, cut once for all models."""

    def __init__(self, view: TaskView, rules: Rules) -> None:
        self.view = view
        self.rules = rules

    @cached_property
    def slices(self) -> Slices:
        """The sequences of each worker, and whether one is still open."""
        return slice_task(self.view, self.rules)

    @property
    def by_worker(self) -> list[Cut]:
        """The closed sequences of each worker."""
        return self.slices.cuts

    @cached_property
    def whole(self) -> list[Cut]:
        """The closed sequences of all workers together, each with `worker_id` None."""
        if len({placed.record.worker_id for placed in self.view.actions}) > 1:
            return slice_task(self.view, self.rules, whole=True).cuts
        return [replace(one, worker_id=None) for one in self.by_worker]


class Graph(Struct, frozen=True):
    """A dependency-graph record as learn models get it."""

    scenario: str
    record: DependencyGraphRecord
    received_at_ms: int
    rules: Rules


class EpisodeContext:
    """The records that an episode was cut from, for `evaluate` and `convert`.

    For `evaluate` the episode's own records; for `convert` it may be all records of its task.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = list(records)

    def push(self, record: Record) -> None:
        """Add one."""
        self._records.append(record)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    @property
    def actions(self) -> list[ActionRecord]:
        """The actions, as they were put in."""
        return [record for record in self._records if isinstance(record, ActionRecord)]

    @property
    def graphs(self) -> list[DependencyGraphRecord]:
        """The dependency graphs, as they were put in."""
        return [record for record in self._records if isinstance(record, DependencyGraphRecord)]


class Excluded(Struct, frozen=True):
    """An episode that gave no training text, and why."""

    episode_id: str
    reason: str


class Converted(Struct, frozen=True):
    """The training text of many episodes. The original dropped silently what did not convert; this counts it."""

    examples: list[TrainingData]
    excluded: list[Excluded]


class LearnModel(Protocol):
    """A goal, what one episode is, what success is, how an episode becomes training text.

    Episodes carry the model's `name`, so it must be unique in a worker and free of colons.
    """

    @property
    def name(self) -> str:
        """Under which its episodes are kept."""
        ...

    @property
    def objective(self) -> str:
        """The goal, in words."""
        ...

    @property
    def training_format(self) -> TrainingFormat:
        """What its examples are: answers to give (the default), or preferences."""
        return TrainingFormat.SFT

    def build_episodes(self, task: Task) -> list[Episode]:  # noqa: ARG002  for those who override it
        """Cut a task. All of its episodes, each time, under ids that depend on the records alone."""
        return []

    def build_graph_episodes(self, graph: Graph) -> list[Episode]:  # noqa: ARG002  for those who override it
        """Make episodes of a dependency-graph record."""
        return []

    def evaluate(self, context: EpisodeContext) -> Outcome:
        """Judge records that no session's outcome is known of. An empty context is `Unknown`."""
        ...

    def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:
        """One example; raises a `LearnError` that says why there is none."""
        ...

    def convert_batch(self, episodes: Iterable[tuple[Episode, EpisodeContext]]) -> Converted:
        """The examples of many episodes, and which gave none and why."""
        examples: list[TrainingData] = []
        excluded: list[Excluded] = []
        for episode, context in episodes:
            try:
                examples.append(self.convert(episode, context))
            except LearnError as error:
                excluded.append(Excluded(episode.episode_id, f"{type(error).__name__}: {error}"))
        return Converted(examples, excluded)


def episode_of(cut: Cut, learn_model: str) -> Episode:
    """A cut as an episode of this model, under an id that the same records always give."""
    first, last = cut.actions[0].record, cut.actions[-1].record
    worker = "-" if cut.worker_id is None else cut.worker_id
    return Episode(
        episode_id=f"{learn_model}:{cut.task_id}:{worker}:{cut.ordinal}",
        learn_model=learn_model,
        outcome=cut.outcome,
        actions=[step.action for step in cut.steps],
        task_id=cut.task_id,
        group_id=cut.group_id,
        session_id=cut.session_id,
        worker_id=cut.worker_id,
        strategy=_strategy(cut),
        mean_kpi=cut.mean_kpi,
        start_tick=first.tick,
        end_tick=last.tick,
        duration_ms=sum(step.duration_ms for step in cut.steps),
        ended_at_ms=cut.ended_at_ms,
        holdout=cut.holdout,
        producer=cut.producer,
        tags={} if last.policy_version is None else {"policy_version": last.policy_version},
    )


def opening_of(episode: Episode, context: EpisodeContext) -> ActionRecord:
    """The record of the episode's first action, out of those of its task; raises `MissingData` if it is not there.

    What an episode was about (target, candidates, adapter) stands in there.
    """
    for action in context.actions:
        if (
            action.task_id == episode.task_id
            and action.tick == episode.start_tick
            and action.action == episode.actions[0]
            and (episode.worker_id is None or action.worker_id == episode.worker_id)
        ):
            return action
    raise MissingData(f"the first action of episode {episode.episode_id} is not there; give the actions of its task")


def evaluate_actions(context: EpisodeContext, rules: Rules) -> Outcome:
    """Judge the actions of one episode by decision (d); learn stats among the records give their session's outcome."""
    actions = [action for action in context.actions if not rules.is_system(action.action)]
    if not actions:
        return Unknown()
    actions.sort(key=lambda action: (action.tick, action.worker_id, action.event_id or 0, action.timestamp_ms or 0))
    session = next((record for record in context if isinstance(record, LearnStatsRecord)), None)
    terminal = rules.is_terminal(actions[-1].action)
    return judge([step_of(action) for action in actions], actions[-1], session, terminal=terminal)


def metadata_of(episode: Episode, *, lora: str | None) -> TrainingMetadata:
    """Where an example made of this episode comes from."""
    return TrainingMetadata(
        episode_id=episode.episode_id, model=episode.learn_model, lora=lora, outcome_score=score_of(episode.outcome)
    )


def _strategy(cut: Cut) -> str | None:
    """How most of its actions were chosen; of equals the one that was used first."""
    used: dict[str, int] = {}
    for step in cut.steps:
        if step.selection_logic is not None:
            used[step.selection_logic] = used.get(step.selection_logic, 0) + 1
    return max(used, key=lambda name: used[name]) if used else None
