"""Which prompts are kept to tell an adapter from another one by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker.models.adapter import Probe
from worker.training.lora.probes import Tried, chosen

pytestmark = pytest.mark.lora


def tried(name: str, sureness: float | None) -> Tried:
    """A prompt on which the two answers part with that lead."""
    return Tried(Probe(prompt=name, expected="", base="", max_tokens=1), sureness)


def test_the_surest_are_kept_of_those_that_tell_them_apart() -> None:
    each = [tried("a", 0.5), tried("b", None), tried("c", 0.9), tried("d", 0.7), tried("e", 0.8)]
    assert "".join(probe.prompt for probe in chosen(each)) == "ced"
    assert chosen([tried("a", None)]) == []


def test_no_more_prompts_are_tried_than_it_takes() -> None:
    seen: list[str] = []

    def one_by_one() -> Iterator[Tried]:
        for name in "abcdefgh":
            seen.append(name)
            yield tried(name, 2.0 if name > "b" else None)

    assert len(chosen(one_by_one())) == 3
    assert seen == list("abcde")
