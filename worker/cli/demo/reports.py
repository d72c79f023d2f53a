"""What a node tells the demo, one JSON line after another on its standard output."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct


class Result(NamedTuple):
    """Games that were played under one model."""

    version: int | None  # of the model; None: without one
    games: int
    won: int


class Report(Struct, kw_only=True):
    """One node's play of one game since its last report; the counters are since its start."""

    game: str
    at_ms: int
    results: list[Result]
    records: int = 0  # published
    sessions: int = 0
    games: int = 0
    #: The last one: everything published is confirmed by the broker, but for so many batches.
    last: bool = False
    unconfirmed: int = 0
