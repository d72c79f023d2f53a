"""Turns: whoever floods waits for the others."""

from __future__ import annotations

import random

from worker.training.lora.turns import Candidate, in_turns


def told(
    name: str, *, producer: str = "p", task: str | None = None, outcome: str = "success", size: int = 1
) -> Candidate:
    return Candidate(name, producer, task or name, outcome, size)


def names(chosen: list[Candidate]) -> list[str]:
    return [one.episode_id for one in chosen]


def test_the_newest_come_first_where_nobody_floods() -> None:
    assert names(in_turns([told(f"{n}") for n in range(9)])) == [f"{n}" for n in range(9)]


def test_a_flood_of_one_producer_leaves_the_others_their_turns() -> None:
    flood = [told(f"flood{n}", producer="flood") for n in range(900)]
    honest = [told(f"{producer}{n}", producer=producer) for n in range(50) for producer in "ab"]
    first = in_turns([*flood, *honest])[:150]
    assert {producer: sum(one.producer == producer for one in first) for producer in ("a", "b", "flood")} == {
        "a": 50, "b": 50, "flood": 50,
    }  # fmt: skip
    assert [one for one in first if one.producer == "flood"] == flood[:50]
    assert [one for one in first if one.producer == "a"] == [one for one in honest if one.producer == "a"]


def test_a_flood_of_failures_at_one_task_leaves_pairs_of_all() -> None:
    failures = [told(f"bad{n}", task="hard", outcome="failure") for n in range(900)]
    attempts = [
        told(f"{outcome}{n}", task=f"t{n}", outcome=outcome) for n in range(20) for outcome in ("success", "failure")
    ]
    first = in_turns([*failures, told("good", task="hard"), *attempts])[:42]
    assert set(names(first)) == {"bad0", "good", *names(attempts)}


def test_what_makes_a_pair_has_its_turn_together_however_long_ago_one_of_it_was() -> None:
    successes = [told(f"good{n}", task=f"t{n}") for n in range(30)]
    failures = [told(f"bad{n}", task=f"t{n}", outcome="failure") for n in range(30)]
    first = in_turns([*successes, *failures])[:20]
    assert names(first) == [f"{kind}{n}" for n in range(10) for kind in ("good", "bad")]


def test_who_brings_much_at_a_time_has_fewer_turns() -> None:
    long = [told(f"long{n}", producer="long", size=500) for n in range(20)]
    short = [told(f"short{n}", producer="short", size=5) for n in range(200)]
    first = in_turns([*long, *short])
    assert [names(first).index(name) for name in ("long0", "long1")] == [99, 200]


def test_all_get_their_turn_and_always_the_same() -> None:
    chance = random.Random(7)
    newest_first = [
        told(f"{n}", producer=chance.choice("abc"), task=chance.choice("xyz"), outcome=chance.choice(["s", "f"]))
        for n in range(200)
    ]
    turns = in_turns(newest_first)
    assert sorted(names(turns)) == sorted(names(newest_first))
    assert turns == in_turns(newest_first)
