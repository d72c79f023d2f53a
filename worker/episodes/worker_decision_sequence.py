"""The learn model `worker_decision_sequence`, the default: what one worker decided, from start to terminal action."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from worker.episodes.cut import cut
from worker.episodes.episode import Episode
from worker.episodes.model import (
    DEFAULT_RULES,
    EpisodeContext,
    LearnModel,
    Task,
    episode_of,
    evaluate_actions,
    metadata_of,
    opening_of,
)
from worker.episodes.rules import Rules
from worker.episodes.training_data import TrainingData
from worker.episodes.worker_task import ARROW, PERSONA, require_success, subject_of
from worker.wire.records import ActionRecord, Outcome

ORDER = "Given a context and a set of available actions, choose the best sequence of actions."
SYSTEM_PROMPT = f"{PERSONA} {ORDER}"
#: The original's built-in list is about troubleshooting; a scenario sets its own.
AVAILABLE_ACTIONS = ("CheckStatus", "ReadLogs", "AnalyzeMetrics", "Diagnose", "Restart", "done")


@dataclass(frozen=True, kw_only=True)
class WorkerDecisionSequenceLearn(LearnModel):
    """The original's `WorkerDecisionSequenceLearn`: by worker and task, without what is shorter than `min_actions`."""

    name: str = "worker_decision_sequence"
    objective: str = "Learn the best sequence of actions for a context and a set of available actions"
    system_prompt: str = SYSTEM_PROMPT
    min_actions: int = 3
    available_actions: tuple[str, ...] = AVAILABLE_ACTIONS
    #: Pseudo-actions that this model leaves out beside those of the scenario's rules.
    system_events: frozenset[str] = frozenset()
    rules: Rules = DEFAULT_RULES

    def with_system_prompt(self, prompt: str) -> WorkerDecisionSequenceLearn:
        """The same model under another system prompt."""
        return replace(self, system_prompt=prompt)

    def with_min_actions(self, least: int) -> WorkerDecisionSequenceLearn:
        """The same model with another least length of a sequence."""
        return replace(self, min_actions=least)

    def with_available_actions(self, *actions: str) -> WorkerDecisionSequenceLearn:
        """The same model with other actions to choose from."""
        return replace(self, available_actions=actions)

    def with_system_event(self, name: str) -> WorkerDecisionSequenceLearn:
        """The same model with one more pseudo-action to leave out."""
        return replace(self, system_events=self.system_events | {name.lower()})

    def build_episodes(self, task: Task) -> list[Episode]:
        """The closed sequences of each worker that are long enough."""
        cuts = task.by_worker
        if self.system_events:
            events = task.rules.system_events | self.system_events
            cuts = cut(task.view, msgspec.structs.replace(task.rules, system_events=events))
        return [episode_of(one, self.name) for one in cuts if len(one.steps) >= self.min_actions]

    def evaluate(self, context: EpisodeContext) -> Outcome:
        """Decision (d)."""
        return evaluate_actions(context, self.rules)

    def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:
        """The context as a question, the sequence as the answer."""
        require_success(episode)
        opening = opening_of(episode, context)
        prompt = sequence_prompt(opening, self.available_actions)
        example = TrainingData.sft(self.system_prompt, prompt, ARROW.join(episode.actions))
        return example.with_metadata(metadata_of(episode, lora=opening.lora))


def sequence_prompt(opening: ActionRecord, available_actions: tuple[str, ...]) -> str:
    """What the sequence is about, what there is to choose from (the agent's own candidates first), what went before."""
    lines = [subject_of(opening), f"Available actions: {', '.join(opening.candidates or available_actions)}"]
    if opening.previous_action is not None:
        lines.append(f"Done before: {opening.previous_action}")
    lines.append("What is the best sequence of actions?")
    return "\n".join(lines)
