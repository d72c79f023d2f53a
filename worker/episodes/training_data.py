"""Training text: one example each (the original's), and its JSON line."""

from __future__ import annotations

from enum import Enum
from typing import Self

import msgspec
import orjson
from msgspec import Struct


class TrainingFormat(Enum):
    """How an example teaches: by a wanted answer, or by a better and a worse one."""

    SFT = "sft"
    DPO = "dpo"


class TrainingMetadata(Struct, frozen=True, kw_only=True):
    """Where an example comes from."""

    episode_id: str | None = None  # of a preference the chosen one's
    rejected_episode_id: str | None = None
    model: str | None = None  # the learn model that made it
    lora: str | None = None  # the adapter in use when the episode was lived
    outcome_score: float | None = None


class TrainingData(Struct, frozen=True, kw_only=True):
    """One example. `chosen` is the wanted answer; only DPO has a `rejected` one."""

    prompt: str
    chosen: str
    system: str | None = None
    rejected: str | None = None
    format: TrainingFormat = TrainingFormat.SFT
    metadata: TrainingMetadata = TrainingMetadata()

    @classmethod
    def sft(cls, system: str | None, prompt: str, response: str) -> Self:
        """A conversation of up to three messages."""
        return cls(system=system, prompt=prompt, chosen=response)

    @classmethod
    def sft_simple(cls, prompt: str, response: str) -> Self:
        """The same without a system prompt."""
        return cls(prompt=prompt, chosen=response)

    @classmethod
    def dpo(cls, prompt: str, chosen: str, rejected: str) -> Self:
        """A preference."""
        return cls(prompt=prompt, chosen=chosen, rejected=rejected, format=TrainingFormat.DPO)

    @classmethod
    def dpo_with_system(cls, system: str | None, prompt: str, chosen: str, rejected: str) -> Self:
        """A preference under a system prompt."""
        return cls(system=system, prompt=prompt, chosen=chosen, rejected=rejected, format=TrainingFormat.DPO)

    def with_metadata(self, metadata: TrainingMetadata) -> Self:
        """The same example, with word of where it comes from."""
        return msgspec.structs.replace(self, metadata=metadata)


def json_line(example: TrainingData) -> bytes:
    r"""The example as TRL and its like read it, ending in `\n`.

    SFT is `{"messages": [system, user, assistant]}`. DPO is `{"prompt", "chosen", "rejected"}`, all text; that form has
    no place for a system prompt, so it opens the prompt.
    """
    line: dict[str, object]
    if example.format is TrainingFormat.DPO:
        prompt = f"{example.system}\n\n{example.prompt}" if example.system else example.prompt
        line = {"prompt": prompt, "chosen": example.chosen, "rejected": example.rejected}
    else:
        messages = [{"role": "system", "content": example.system}] if example.system else []
        messages.append({"role": "user", "content": example.prompt})
        messages.append({"role": "assistant", "content": example.chosen})
        line = {"messages": messages}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
