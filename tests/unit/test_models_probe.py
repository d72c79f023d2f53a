"""Which answers count as those of an adapter, and what a server's answers to all its probes come to."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from worker.models.adapter import Probe
from worker.models.applicators.probe import Probes, answers_as, probe
from worker.models.before import Before


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


async def test_one_answer_of_the_adapter_is_enough_since_a_quantised_base_turns_some() -> None:
    probes = [Probe(prompt=each, expected="up", base="down", max_tokens=3) for each in ("a", "b", "c")]
    server = Server({"a": "sideways", "b": "up and on", "c": "down"})
    result = await probe(server, Probes(probes), "S@1")
    assert result.served
    assert result.detail == (
        "1 of 3 probes answered as with the adapter, 1 as without it; no probe was recorded that tells it from "
        "another adapter; first answer: 'sideways'"
    )
    assert server.asked == [("S@1", each, 3) for each in ("a", "b", "c")]


async def test_an_adapter_is_not_served_where_nothing_is_answered_as_with_it() -> None:
    one = Probe(prompt="a", expected="up", base="down", max_tokens=3)
    assert not (await probe(Server({"a": "down"}), Probes([one]), None)).served
    assert not (await probe(Server({"a": "sideways"}), Probes([one]), None)).served


async def test_without_a_probe_that_tells_nothing_is_asked_and_that_is_said() -> None:
    server = Server({})
    same = Probe(prompt="a", expected="up", base=" up", max_tokens=3)
    result = await probe(server, Probes([same]), "S@1")
    assert result.served
    assert result.detail == "the adapter has no probe: no answer was compared, so nothing shows that it is in force"
    assert server.asked == []


_BASE = {"a": "stay", "b": "stay"}


def beside(*telling: Probe, base: dict[str, str] = _BASE) -> Probes:
    """Of an adapter that was trained while another was live: what tells it from that one, and what `base` says."""
    of_base = [replace(each, base=base[each.prompt]) for each in telling]
    return Probes(of_base, Before(sha256="0123456789abcdef" * 4, probes=list(telling)))


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
        Probe(prompt="a", expected="go up", base="go down", max_tokens=3),
        Probe(prompt="b", expected="go on", base="go back", max_tokens=3),
    ]
    server = Server(answers)
    assert (await probe(server, beside(*two), None)).served is served
    assert server.asked == [(None, "a", 3), (None, "b", 3)]  # both times of the same answers


async def test_prompts_may_tell_it_from_one_of_the_two_alone_and_each_has_to_be_told() -> None:
    probes = Probes(
        [Probe(prompt="a", expected="go up", base="stay", max_tokens=3)],
        Before(
            sha256="0123456789abcdef" * 4,
            probes=[Probe(prompt="b", expected="stay", base="go back", max_tokens=3)],
        ),
    )
    result = await probe(Server({"a": "go up", "b": "go back"}), probes, None)
    assert not result.served
    assert result.detail == (
        "1 of 1 probes answered as with the adapter, 0 as without it; 0 of 1 as with it, 1 as with another "
        "adapter (sha256 0123456789ab); first answer: 'go up'"
    )
    assert not (await probe(Server({"a": "stay", "b": "stay"}), probes, None)).served
    assert (await probe(Server({"a": "go up", "b": "stay"}), probes, None)).served


async def test_an_adapter_that_answers_as_the_base_is_told_from_the_one_before_it() -> None:
    probes = beside(Probe(prompt="b", expected="stay", base="go back", max_tokens=3))
    result = await probe(Server({"b": "stay"}), probes, None)
    assert result.served
    assert result.detail.startswith("no probe tells it from the base; 1 of 1 as with it, 0 as with another adapter")
    assert not (await probe(Server({"b": "go back"}), probes, None)).served
