"""Asks a server what an adapter would answer: a server may keep the old one, or none, and say 200 all the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from worker.models.adapter import AdapterModel

#: Words and single signs: what is compared, so that white space, which tokenizers render differently, does not count.
_PIECES = re.compile(r"\w+|[^\w\s]")
#: Most characters of an answer that are shown to people.
_SHOWN = 60


class Completes(Protocol):
    """A server that decodes greedily."""

    async def complete(self, model: str | None, prompt: str, *, max_tokens: int) -> str:
        """What it adds to `prompt`. Raises `ApplyFailed`."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the server answered to the probes of one adapter."""

    asked: int
    as_adapter: int
    as_base: int
    sample: str  # the first answer, for people

    @property
    def served(self) -> bool:
        """Whether the adapter is in force; true as well where it has no probe, so nothing speaks against it.

        One answer is enough: the server's base may be quantised and then turns some answers back, while without the
        adapter none would be as with it.
        """
        return self.asked == 0 or self.as_adapter > 0

    @property
    def detail(self) -> str:
        """For people."""
        if not self.asked:
            return "the adapter has no probe: no answer was compared"
        return (
            f"{self.as_adapter} of {self.asked} probes answered as with the adapter, {self.as_base} as without it; "
            f"first answer: {self.sample!r}"
        )


async def probe(client: Completes, adapter: AdapterModel, model: str | None) -> ProbeResult:
    """Ask `model` (None: the server's only one) every probe of `adapter`. Raises `ApplyFailed`."""
    answers = [
        (each, await client.complete(model, each.prompt, max_tokens=each.max_tokens))
        for each in adapter.probes
        if _PIECES.findall(each.expected) != _PIECES.findall(each.base)  # else it tells nothing
    ]
    return ProbeResult(
        asked=len(answers),
        as_adapter=sum(answers_as(each.expected, each.base, answer) for each, answer in answers),
        as_base=sum(answers_as(each.base, each.expected, answer) for each, answer in answers),
        sample=answers[0][1][:_SHOWN] if answers else "",
    )


def answers_as(this: str, other: str, answer: str) -> bool:
    """Whether `answer` goes as `this` up to the word in which `this` and `other` part.

    What comes later says nothing: rounding that differs between two programs turns one word, and all after it.
    """
    mine, theirs, given = (_PIECES.findall(text) for text in (this, other, answer))
    common = next(
        (n for n, (one, two) in enumerate(zip(mine, theirs, strict=False)) if one != two), min(len(mine), len(theirs))
    )
    if common == len(mine):  # `other` only goes on where `this` ends
        return given == mine != theirs
    return given[: common + 1] == mine[: common + 1]
