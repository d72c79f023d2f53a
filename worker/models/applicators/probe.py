"""Asks a server what an adapter would answer: a server may keep the old one, or none, and say 200 all the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.models.adapter import Probe
from worker.models.before import Before

#: Words and single signs: what is compared, so that white space, which tokenizers render differently, does not count.
_PIECES = re.compile(r"\w+|[^\w\s]")
#: Most characters of an answer that are shown to people.
_SHOWN = 60
#: And digits of a hash.
_SHA256_SHOWN = 12


class Completes(Protocol):
    """A server that decodes greedily."""

    async def complete(self, model: str | None, prompt: str, *, max_tokens: int) -> str:
        """What it adds to `prompt`. Raises `ApplyFailed`."""
        ...


@dataclass(frozen=True, slots=True)
class Probes:
    """What an adapter is asked."""

    of_base: Sequence[Probe]
    before: Before | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """How the answers to those probes went that tell the adapter from one other."""

    asked: int
    as_adapter: int
    as_other: int

    @property
    def speaks_against(self) -> bool:
        """One answer is enough for the adapter: the server's base may be quantised and then turns some answers back.

        With the other one in force none would be as with the adapter.
        """
        return self.asked > 0 and self.as_adapter == 0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the server answered to the probes of one adapter."""

    base: Told
    before: Told  # the adapter whose place it takes
    sha256_before: str  # of that one's model.json; empty where no probe tells it
    sample: str  # the first answer, for people

    @property
    def asked(self) -> bool:
        """Whether the adapter has a probe."""
        return self.base.asked + self.before.asked > 0

    @property
    def served(self) -> bool:
        """Whether the adapter is in force; true as well where it has no probe, so nothing speaks against it."""
        return not (self.base.speaks_against or self.before.speaks_against)

    @property
    def detail(self) -> str:
        """For people."""
        if not self.asked:
            return "the adapter has no probe: no answer was compared, so nothing shows that it is in force"
        from_base = (
            f"{self.base.as_adapter} of {self.base.asked} probes answered as with the adapter, "
            f"{self.base.as_other} as without it"
            if self.base.asked
            else "no probe tells it from the base"
        )
        from_before = (
            f"{self.before.as_adapter} of {self.before.asked} as with it, {self.before.as_other} as with another "
            f"adapter (sha256 {self.sha256_before[:_SHA256_SHOWN]})"
            if self.before.asked
            else "no probe was recorded that tells it from another adapter"
        )
        return f"{from_base}; {from_before}; first answer: {self.sample!r}"


async def probe(client: Completes, probes: Probes, model: str | None) -> ProbeResult:
    """Ask `model` (None: the server's only one) every probe that tells, each prompt once. Raises `ApplyFailed`."""
    from_base = _telling(probes.of_base)
    from_before = [] if probes.before is None else _telling(probes.before.probes)
    answers: dict[str, str] = {}
    for each in (*from_base, *from_before):
        if each.prompt not in answers:
            answers[each.prompt] = await client.complete(model, each.prompt, max_tokens=each.max_tokens)
    return ProbeResult(
        base=_told(from_base, answers),
        before=_told(from_before, answers),
        sha256_before="" if probes.before is None else probes.before.sha256,
        sample=next(iter(answers.values()), "")[:_SHOWN],
    )


def _telling(probes: Sequence[Probe]) -> list[Probe]:
    """Those in which the two say something else; others tell nothing."""
    return [each for each in probes if _PIECES.findall(each.expected) != _PIECES.findall(each.base)]


def _told(probes: Sequence[Probe], answers: Mapping[str, str]) -> Told:
    return Told(
        asked=len(probes),
        as_adapter=sum(answers_as(each.expected, each.base, answers[each.prompt]) for each in probes),
        as_other=sum(answers_as(each.base, each.expected, answers[each.prompt]) for each in probes),
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
