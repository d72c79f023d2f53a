"""Which prompts are kept to see an adapter in force by: told from the base, and from the adapter that it replaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker.models.adapter import Probe
from worker.training.lora.probes import Tried, chosen

pytestmark = pytest.mark.lora


def tried(name: str, base: float | None, before: float | None = None) -> Tried:
    """A prompt on which the adapter's answer parts from theirs with that lead."""
    return Tried(Probe(prompt=name, expected="", base="", max_tokens=1), base, before)


def names(*all_of_them: Tried, before: bool = True) -> str:
    """The prompts that are kept."""
    return " ".join(one.probe.prompt for one in chosen(all_of_them, before=before))


def test_where_no_adapter_is_live_the_surest_are_kept() -> None:
    assert names(
        tried("a", 0.5), tried("b", None), tried("c", 0.9), tried("d", 0.7), tried("e", 0.8), before=False
    ) == ("c e d")
    assert names(tried("a", None), before=False) == ""


def test_prompts_that_all_three_answer_otherwise_come_first_then_the_surest() -> None:
    assert names(tried("a", 9.0), tried("b", 0.3, 5.0), tried("c", None, 8.0), tried("d", 0.4, 0.6)) == "d b a"


@pytest.mark.parametrize("lone", [tried("z", None, 0.1), tried("z", 0.1, None)], ids=["from the one before", "base"])
def test_one_that_tells_it_from_each_is_kept_where_no_prompt_tells_it_from_both(lone: Tried) -> None:
    others = [tried(name, *((9.0, None) if lone.base is None else (None, 9.0))) for name in "abcd"]
    assert names(*others, lone) == "a b z"


@pytest.mark.parametrize(("before", "looked"), [(False, 3), (True, 5)])
def test_no_more_prompts_are_tried_than_it_takes(before: bool, looked: int) -> None:
    seen: list[str] = []

    def one_by_one() -> Iterator[Tried]:
        for name in "abcdefgh":
            seen.append(name)
            yield tried(name, 2.0, 2.0 if before and name > "b" else None)

    assert len(chosen(one_by_one(), before=before)) == 3
    assert len(seen) == looked


def test_an_adapter_that_answers_as_the_live_one_has_the_probes_that_it_would_have_alone() -> None:
    """So that the same training gives the same document while its own result is live."""
    each = [tried(name, lead) for name, lead in zip("abcdef", (1.5, 1.2, 1.1, 7.0, 8.0, 9.0), strict=True)]
    assert names(*each, before=True) == names(*each, before=False) == "a b c"
