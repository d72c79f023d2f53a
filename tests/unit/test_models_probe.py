"""Which answers count as those of an adapter, and what a server's answers to all its probes come to."""

from __future__ import annotations

import pytest

from worker.models.adapter import AdapterModel, BaseModel, Before, Probe, decode, encode
from worker.models.applicators.probe import answers_as, probe


@pytest.mark.parametrize(
    ("answer", "is_so"),
    [
        ("Restart -> Wait -> done", True),
        ("  Restart\n->  Wait -> done ", True),
        ("Restart -> Wait -> Wait -> Wait", True),
        ("Restart -> WaitLonger", False),
        ("Restart -> ReadLogs -> done", False),
        ("Restart", False),
        ("", False),
    ],
    ids=["the same", "other blanks", "other words later", "a longer word", "as the base", "cut short", "nothing"],
)
def test_an_answer_is_judged_up_to_the_word_in_which_adapter_and_base_part(answer: str, is_so: bool) -> None:
    assert answers_as("Restart -> Wait -> done", "Restart -> ReadLogs -> done", answer) is is_so


def test_an_answer_without_blanks_is_judged_by_its_words_too() -> None:
    mine, base = '{"action":"Wait","for":3}', '{"action":"Read","for":3}'
    assert answers_as(mine, base, '{"action":"Wait","for":9}')
    assert not answers_as(mine, base, base)


def test_an_answer_that_only_ends_earlier_than_the_bases_has_to_end_there() -> None:
    assert answers_as("Wait", "Wait -> done", "Wait\n")
    assert not answers_as("Wait", "Wait -> done", "Wait -> done")
    assert answers_as("Wait -> done", "Wait", "Wait -> done")
    assert not answers_as("Wait -> done", "Wait", "Wait")


def test_no_answer_tells_two_equal_ones_apart() -> None:
    assert not answers_as("Wait", "Wait", "Wait")


class Server:
    """Answers prompts from a table."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[tuple[str | None, str, int]] = []

    async def complete(self, model: str | None, prompt: str, *, max_tokens: int) -> str:
        self.asked.append((model, prompt, max_tokens))
        return self.answers[prompt]


def adapter(*probes: Probe) -> AdapterModel:
    """A document with these probes."""
    return AdapterModel(
        scenario="S", objective="sft", base=BaseModel(name="b", architecture="llama", sha256="0"), rank=1, alpha=1,
        target_modules=["q_proj"], examples=1, data_sha256="1", files=[], probes=list(probes),
    )  # fmt: skip


async def test_one_answer_of_the_adapter_is_enough_since_a_quantised_base_turns_some() -> None:
    probes = [Probe(prompt=each, expected="up", base="down", max_tokens=3) for each in ("a", "b", "c")]
    server = Server({"a": "sideways", "b": "up and on", "c": "down"})
    result = await probe(server, adapter(*probes), "S@1")
    assert result.served
    assert result.detail == (
        "1 of 3 probes answered as with the adapter, 1 as without it; no probe tells it from another adapter; "
        "first answer: 'sideways'"
    )
    assert server.asked == [("S@1", each, 3) for each in ("a", "b", "c")]


async def test_an_adapter_is_not_served_where_nothing_is_answered_as_with_it() -> None:
    one = Probe(prompt="a", expected="up", base="down", max_tokens=3)
    assert not (await probe(Server({"a": "down"}), adapter(one), None)).served
    assert not (await probe(Server({"a": "sideways"}), adapter(one), None)).served


async def test_without_a_probe_that_tells_nothing_is_asked_and_that_is_said() -> None:
    server = Server({})
    same = Probe(prompt="a", expected="up", base=" up", max_tokens=3)
    result = await probe(server, adapter(same), "S@1")
    assert result.served
    assert result.detail == "the adapter has no probe: no answer was compared, so nothing shows that it is in force"
    assert server.asked == []


_BEFORE = "0123456789abcdef" * 4


def told(prompt: str, *, expected: str, base: str, before: str) -> Probe:
    """A probe of an adapter that was trained while another was live."""
    return Probe(
        prompt=prompt, expected=expected, base=base, before=Before(sha256=_BEFORE, answer=before), max_tokens=3
    )


@pytest.mark.parametrize(
    ("answers", "served"),
    [
        ({"a": "go up", "b": "go on"}, True),
        ({"a": "go down", "b": "go on"}, True),
        ({"a": "go down", "b": "go back"}, False),
        ({"a": "go sideways", "b": "go wrong"}, False),
        ({"a": "stay", "b": "stay"}, False),
    ],
    ids=["as it should", "one is enough", "as the one before", "as none of them", "as the base"],
)
async def test_an_adapter_is_served_where_an_answer_is_neither_the_bases_nor_that_of_the_adapter_before_it(
    answers: dict[str, str], served: bool
) -> None:
    two = [
        told("a", expected="go up", base="stay", before="go down"),
        told("b", expected="go on", base="stay", before="go back"),
    ]
    assert (await probe(Server(answers), adapter(*two), None)).served is served


async def test_probes_may_tell_it_from_one_of_the_two_alone_and_each_has_to_be_told() -> None:
    two = [
        Probe(prompt="a", expected="go up", base="stay", max_tokens=3),
        told("b", expected="stay", base="stay", before="go back"),
    ]
    result = await probe(Server({"a": "go up", "b": "go back"}), adapter(*two), None)
    assert not result.served
    assert result.detail == (
        "1 of 1 probes answered as with the adapter, 0 as without it; 0 of 1 as with it, 1 as with the adapter before "
        "it (sha256 0123456789ab); first answer: 'go up'"
    )
    assert not (await probe(Server({"a": "stay", "b": "stay"}), adapter(*two), None)).served
    assert (await probe(Server({"a": "go up", "b": "stay"}), adapter(*two), None)).served


async def test_an_adapter_that_answers_as_the_base_is_told_from_the_one_before_it() -> None:
    one = told("b", expected="stay", base="stay", before="go back")
    result = await probe(Server({"b": "stay"}), adapter(one), None)
    assert result.served
    assert result.detail.startswith("no probe tells it from the base; 1 of 1 as with it, 0 as with the adapter before")
    assert not (await probe(Server({"b": "go back"}), adapter(one), None)).served


async def test_an_adapter_of_an_earlier_release_is_read_and_told_from_its_base() -> None:
    """Its probes say nothing of an adapter before it."""
    one = Probe(prompt="a", expected="up", base="down", max_tokens=3)
    content = encode(adapter(one)).replace(b'"before":null,', b"")
    assert b"before" not in content
    assert decode(content).probes == [one]
    assert (await probe(Server({"a": "up"}), decode(content), None)).served
