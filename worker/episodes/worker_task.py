"""The learn model `worker_task`: whole task sequences from start to done."""

from __future__ import annotations

from dataclasses import dataclass, replace

from worker.episodes.episode import Episode
from worker.episodes.model import (
    DEFAULT_RULES,
    EpisodeContext,
    InvalidEpisode,
    LearnModel,
    Task,
    episode_of,
    evaluate_actions,
    metadata_of,
    opening_of,
)
from worker.episodes.rules import Rules
from worker.episodes.training_data import TrainingData
from worker.wire.records import ActionRecord, Outcome, Success

PERSONA = "You are an agent that finds and fixes problems of systems."
#: Between the action names of an answer.
ARROW = " -> "


@dataclass(frozen=True, kw_only=True)
class WorkerTaskLearn(LearnModel):
    """The original's `WorkerTaskLearn`: groups by task, over all of its workers; a sequence must end in done."""

    name: str = "worker_task"
    objective: str = "Learn whole task sequences from start to done"
    system_prompt: str = PERSONA
    min_actions: int = 2
    rules: Rules = DEFAULT_RULES

    def with_system_prompt(self, prompt: str) -> WorkerTaskLearn:
        """The same model under another system prompt."""
        return replace(self, system_prompt=prompt)

    def with_min_actions(self, least: int) -> WorkerTaskLearn:
        """The same model with another least length of a sequence."""
        return replace(self, min_actions=least)

    def build_episodes(self, task: Task) -> list[Episode]:
        """The sequences that end in a terminal action; a tail that silence closed is none."""
        return [episode_of(cut, self.name) for cut in task.whole if cut.terminal and len(cut.steps) >= self.min_actions]

    def evaluate(self, context: EpisodeContext) -> Outcome:
        """Decision (d)."""
        return evaluate_actions(context, self.rules)

    def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:
        """What the task was about, and the sequence that solved it."""
        require_success(episode)
        opening = opening_of(episode, context)
        example = TrainingData.sft(self.system_prompt, subject_of(opening), ARROW.join(episode.actions))
        return example.with_metadata(metadata_of(episode, lora=opening.lora))


def subject_of(opening: ActionRecord) -> str:
    """What a sequence is about: the target of its first action, else its task."""
    return f"Task: {opening.task_id}" if opening.target is None else f"Target: {opening.target}"


def require_success(episode: Episode) -> None:
    """Raises `InvalidEpisode` unless it succeeded: only what worked is an answer to be taught."""
    if not isinstance(episode.outcome, Success):
        kind = type(episode.outcome).__name__.lower()
        raise InvalidEpisode(f"only successful episodes are taught from; the outcome of this one is {kind}")
