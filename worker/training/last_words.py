"""What a program of the operator's said last, in one line with its setting: a run's reason keeps no more. Pure."""

from __future__ import annotations

#: Longest words that are repeated, so that what stands around them is kept too.
_LONGEST = 300


def last_words(said: str) -> str:
    """The last line that says something: one that names a setting, else one with a letter; empty where there is none.

    A launcher such as torchrun goes on, below the training's own words, with a table and a ruled line.
    """
    lines = [line.strip() for line in said.splitlines() if any(map(str.isalnum, line))]
    named = [line for line in lines if line.startswith("SWARM_")]
    return (named or lines or [""])[-1][:_LONGEST]


def ended_with(setting: str, status: int | None, said: str) -> str:
    """`said`, and below it how the program of `setting` ended, unless its last line is about a setting anyway."""
    words = last_words(said)
    if words and said.endswith(words) and words.startswith("SWARM_"):
        return said
    how = "and said nothing on standard error; run it by hand to see why"
    if words:
        how = f"(all that it said is in the worker's log, at trainer_ended): {words}"
    return f"{said}\n{setting} ended with status {status} {how}".strip()
