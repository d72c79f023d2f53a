"""The learn model `dependency_graph`: each inferred order of actions is one episode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

import msgspec

from worker.episodes.cut import holdout, holdout_key
from worker.episodes.episode import Episode
from worker.episodes.model import EpisodeContext, Graph, InvalidEpisode, LearnModel, MissingData, metadata_of
from worker.episodes.training_data import TrainingData
from worker.wire.records import DependencyGraphRecord, Failure, Outcome, Success, Unknown
from worker.wire.times import happened_at

SYSTEM_PROMPT = (
    "You infer in which order actions depend on each other: first those that discover, then those that do not."
)


@dataclass(frozen=True, kw_only=True)
class DependencyGraphLearnModel(LearnModel):
    """The original's `DependencyGraphLearnModel`: prompt and response of the record are the example, verbatim."""

    name: str = "dependency_graph"
    objective: str = "Learn to infer the order in which actions depend on each other"
    system_prompt: str = SYSTEM_PROMPT

    def with_system_prompt(self, prompt: str) -> DependencyGraphLearnModel:
        """The same model under another system prompt."""
        return replace(self, system_prompt=prompt)

    def build_graph_episodes(self, graph: Graph) -> list[Episode]:
        """One record, one episode."""
        record = graph.record
        key = graph_key(record)
        return [
            Episode(
                episode_id=f"{self.name}:{key}:-:0",
                learn_model=self.name,
                outcome=judge_graph(record),
                actions=[*record.discover_order, *record.not_discover_order],
                session_id=record.session_id,
                duration_ms=record.latency_ms,
                ended_at_ms=happened_at(record.timestamp_ms, graph.received_at_ms),
                holdout=holdout(holdout_key(graph.scenario, record.session_id or key), graph.rules.holdout),
            )
        ]

    def evaluate(self, context: EpisodeContext) -> Outcome:
        """Success where the inference had no error and gave an order."""
        graphs = context.graphs
        return judge_graph(graphs[-1]) if graphs else Unknown()

    def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:
        """Prompt and response, verbatim."""
        if not isinstance(episode.outcome, Success):
            raise InvalidEpisode("only an inference that succeeded is taught from")
        record = self._record_of(episode, context)
        if record is None:
            raise MissingData(f"the record of episode {episode.episode_id} is not there; give its dependency graph")
        example = TrainingData.sft(self.system_prompt, record.prompt, record.response)
        return example.with_metadata(metadata_of(episode, lora=record.lora))

    def extractor(self, episode: Episode, context: EpisodeContext) -> tuple[str, str] | None:
        """The prompt and the response, for `DpoLearnModel`."""
        record = self._record_of(episode, context)
        return None if record is None else (record.prompt, record.response)

    def _record_of(self, episode: Episode, context: EpisodeContext) -> DependencyGraphRecord | None:
        key = episode.episode_id.removeprefix(f"{self.name}:").removesuffix(":-:0")
        return next((record for record in context.graphs if graph_key(record) == key), None)


def graph_key(record: DependencyGraphRecord) -> str:
    """What names a graph wherever it lies in the log: its `record_id`, else a hash of all it says (32 hex digits)."""
    if record.record_id is not None:
        return record.record_id
    return blake2b(msgspec.json.encode(record), digest_size=16).hexdigest()


def judge_graph(record: DependencyGraphRecord) -> Outcome:
    """Success iff there is no error and the two orders are not both empty (the original's)."""
    if record.error is not None:
        return Failure(record.error)
    if not record.discover_order and not record.not_discover_order:
        return Failure("the inference gave no order")
    return Success(1.0)
