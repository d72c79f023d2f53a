"""The learn model `dpo`: of several attempts under the same conditions, the better and the worse one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec
from msgspec import Struct

from worker.episodes.episode import Episode
from worker.episodes.model import (
    DEFAULT_RULES,
    ConversionError,
    Converted,
    EpisodeContext,
    Excluded,
    InvalidEpisode,
    LearnError,
    LearnModel,
    Task,
    episode_of,
    evaluate_actions,
    metadata_of,
    opening_of,
)
from worker.episodes.rules import Rules
from worker.episodes.training_data import TrainingData, TrainingFormat
from worker.episodes.worker_decision_sequence import AVAILABLE_ACTIONS, SYSTEM_PROMPT, sequence_prompt
from worker.episodes.worker_task import ARROW
from worker.wire.records import Failure, Outcome, Success, score_of

#: Gives the prompt and the response of an episode, or None where it has none.
Extractor: TypeAlias = Callable[[Episode, EpisodeContext], tuple[str, str] | None]

#: 0.6 - 0.5 is a gap of 0.1 to whoever set the minimum, and 0.09999999999999998 to the machine.
_ROUNDING = 1e-9


class DpoConfig(Struct, frozen=True, kw_only=True):
    """Which pairs are worth making."""

    min_quality_gap: float = 0.1  # smaller pairs are dropped
    max_pairs: int | None = None  # None: no limit
    allow_reuse: bool = False  # an episode may stand in several pairs


_DEFAULT_CONFIG = DpoConfig()


class DpoPair(Struct, frozen=True, kw_only=True):
    """A better and a worse episode of one group; `quality_gap` is the difference of their qualities."""

    chosen: Episode
    rejected: Episode
    group_id: str
    quality_gap: float


@dataclass(frozen=True, kw_only=True)
class DpoLearnModel(LearnModel):
    """The original's `DpoLearnModel`: groups by `group_id`; episodes without a group are none of its business."""

    name: str = "dpo"
    objective: str = "Learn to prefer the better of two attempts under the same conditions"
    system_prompt: str | None = SYSTEM_PROMPT
    available_actions: tuple[str, ...] = AVAILABLE_ACTIONS
    #: None: what the sequence was about, and its actions.
    extractor: Extractor | None = None
    config: DpoConfig = _DEFAULT_CONFIG
    rules: Rules = DEFAULT_RULES

    @property
    def training_format(self) -> TrainingFormat:
        """Preferences."""
        return TrainingFormat.DPO

    def with_system_prompt(self, prompt: str | None) -> DpoLearnModel:
        """The same model under another system prompt."""
        return replace(self, system_prompt=prompt)

    def with_available_actions(self, *actions: str) -> DpoLearnModel:
        """The same model with other actions to choose from."""
        return replace(self, available_actions=actions)

    def with_config(self, config: DpoConfig) -> DpoLearnModel:
        """The same model with another idea of a good pair."""
        return replace(self, config=config)

    def with_min_quality_gap(self, gap: float) -> DpoLearnModel:
        """The same model that drops pairs of a smaller gap."""
        return replace(self, config=msgspec.structs.replace(self.config, min_quality_gap=gap))

    def with_max_pairs(self, most: int | None) -> DpoLearnModel:
        """The same model that stops at so many pairs."""
        return replace(self, config=msgspec.structs.replace(self.config, max_pairs=most))

    def build_episodes(self, task: Task) -> list[Episode]:
        """The closed sequences that belong to a group."""
        return [episode_of(cut, self.name) for cut in task.by_worker if cut.group_id is not None]

    def evaluate(self, context: EpisodeContext) -> Outcome:
        """Decision (d)."""
        return evaluate_actions(context, self.rules)

    def build_pairs(self, episodes: Iterable[Episode]) -> list[DpoPair]:
        """Per group successes with failures, the highest quality with the lowest first; groups in order of their id.

        Without `allow_reuse` the n-th best success goes with the n-th worst failure, with it every success with every
        failure. Unknown and timed-out episodes are neither.
        """
        groups: dict[str, tuple[list[Episode], list[Episode]]] = defaultdict(lambda: ([], []))
        for episode in episodes:
            if episode.group_id is None:
                continue
            if isinstance(episode.outcome, Success):
                groups[episode.group_id][0].append(episode)
            elif isinstance(episode.outcome, Failure):
                groups[episode.group_id][1].append(episode)

        pairs: list[DpoPair] = []
        for group_id in sorted(groups):
            good, bad = groups[group_id]
            good.sort(key=lambda episode: (-quality_of(episode), episode.episode_id))
            bad.sort(key=lambda episode: (quality_of(episode), episode.episode_id))
            reuse = self.config.allow_reuse
            couples = [(a, b) for a in good for b in bad] if reuse else list(zip(good, bad, strict=False))
            made = [
                DpoPair(chosen=a, rejected=b, group_id=group_id, quality_gap=quality_of(a) - quality_of(b))
                for a, b in couples
            ]
            made.sort(key=lambda pair: -pair.quality_gap)
            pairs += [pair for pair in made if pair.quality_gap >= self.config.min_quality_gap - _ROUNDING]
        return pairs[: self.config.max_pairs]

    def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:  # noqa: ARG002  the protocol's
        """Never: a preference needs two episodes."""
        raise InvalidEpisode(f"{episode.episode_id} alone is no preference; convert a batch, which pairs its episodes")

    def convert_pair(self, pair: DpoPair, chosen: EpisodeContext, rejected: EpisodeContext) -> TrainingData:
        """A pair as an example, under the prompt of the chosen one: a group is what had the same conditions.

        Raises a `LearnError` where an episode has no text or both have the same.
        """
        wanted = self._extract(pair.chosen, chosen)
        unwanted = self._extract(pair.rejected, rejected)
        if wanted[1] == unwanted[1]:
            raise ConversionError(f"chosen and rejected ({pair.rejected.episode_id}) say the same")
        lora = next((action.lora for action in chosen.actions if action.lora is not None), None)
        example = TrainingData.dpo_with_system(self.system_prompt, wanted[0], wanted[1], unwanted[1])
        metadata = metadata_of(pair.chosen, lora=lora)
        return example.with_metadata(msgspec.structs.replace(metadata, rejected_episode_id=pair.rejected.episode_id))

    def convert_batch(self, episodes: Iterable[tuple[Episode, EpisodeContext]]) -> Converted:
        """Pair the episodes, convert the pairs, and say which episodes found no partner."""
        contexts = {episode.episode_id: (episode, context) for episode, context in episodes}
        examples: list[TrainingData] = []
        excluded: list[Excluded] = []
        paired: set[str] = set()
        for pair in self.build_pairs(episode for episode, _ in contexts.values()):
            chosen, rejected = pair.chosen.episode_id, pair.rejected.episode_id
            paired |= {chosen, rejected}
            try:
                examples.append(self.convert_pair(pair, contexts[chosen][1], contexts[rejected][1]))
            except LearnError as error:
                excluded += [Excluded(name, f"{type(error).__name__}: {error}") for name in (chosen, rejected)]
        excluded += [Excluded(name, "no partner in its group") for name in contexts if name not in paired]
        return Converted(examples, excluded)

    def _extract(self, episode: Episode, context: EpisodeContext) -> tuple[str, str]:
        if self.extractor is None:
            prompt = sequence_prompt(opening_of(episode, context), self.available_actions)
            return prompt, ARROW.join(episode.actions)
        text = self.extractor(episode, context)
        if text is None:
            raise ConversionError(f"the extractor found no text for {episode.episode_id}")
        return text


def quality_of(episode: Episode) -> float:
    """What pairs are made by: the mean KPI of a failure where reported, else the outcome's score."""
    if isinstance(episode.outcome, Failure) and episode.mean_kpi is not None:
        return episode.mean_kpi
    return score_of(episode.outcome)
