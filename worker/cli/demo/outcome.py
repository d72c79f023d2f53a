"""The demo's result: as a table for people and as one JSON document for programs, from what was measured and stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from rich.table import Table

from worker.cli.common import percent
from worker.cli.demo.state import Course, State
from worker.cli.demo.tally import Rate
from worker.store.port import Store


class Measured(Struct, kw_only=True):
    """How many games, how many were won, the share and where it lies (Wilson, 95 %)."""

    games: int
    won: int
    share: float | None
    low: float
    high: float


class ScenarioOutcome(Struct, kw_only=True):
    """One game's figures. `records`, `episodes`, `sessions`: stored; the others say so."""

    game: str
    scenario: str
    records: int
    records_published: int
    episodes: int
    games_played: int
    sessions: int
    sessions_ended: int
    runs: int
    models_applied: int
    events: dict[str, int]
    #: Seconds of play after which nodes first had a model; None: they never had.
    first_model_after: float | None
    before: Measured
    after: Measured
    by_version: dict[str, Measured]
    alone_before: Measured
    alone_after: Measured


class Outcome(Struct, kw_only=True):
    """The whole demo's."""

    seconds: float  # of play
    nodes: int
    published: int
    stored: int
    #: Batches that the broker had not confirmed at the end.
    unconfirmed: int
    scenarios: list[ScenarioOutcome]

    @property
    def missing(self) -> list[str]:
        """What was published and is not stored, or the other way round; a game is an episode."""
        found = []
        if self.unconfirmed:
            found.append(f"the broker did not confirm {self.unconfirmed} batches")
        for one in self.scenarios:
            for what, sent, kept in (
                ("records", one.records_published, one.records),
                ("sessions", one.sessions_ended, one.sessions),
                ("games", one.games_played, one.episodes),
            ):
                if sent != kept:
                    found.append(f"{one.game}: {sent:,} {what} were published and {kept:,} are stored")
        return found

    @property
    def complaints(self) -> list[str]:
        """What must be so and is not.

        A game whose few models the gate did not bless is none: that is a gate's work, and agents are given to chance.
        """
        untrained = [
            f"{one.game}: no model came in time (learning events: {one.events or 'none'})"
            for one in self.scenarios
            if one.first_model_after is None and "learning.trained" not in one.events
        ]
        if not untrained and all(one.first_model_after is None for one in self.scenarios):
            untrained = ["models were trained, and none was live in any game"]
        return self.missing + untrained

    @property
    def stored_line(self) -> str:
        """Whether everything that was published is stored, in a sentence."""
        return f"{self.published:,} records were published and confirmed, {self.stored:,} are stored: " + (
            "; ".join(self.missing) or "equal, in every scenario."
        )


async def outcome_of(state: State, store: Store, *, seconds: float) -> Outcome:
    """What came of it, by what the nodes said and what the worker stored."""
    courses = state.courses.values()
    scenarios = [await _scenario_outcome(course, store, began_ms=state.began_ms) for course in courses]
    return Outcome(
        seconds=seconds,
        nodes=max(course.tally.nodes for course in courses),
        published=sum(one.records_published for one in scenarios),
        stored=sum(one.records for one in scenarios),
        unconfirmed=sum(course.tally.unconfirmed for course in courses),
        scenarios=scenarios,
    )


async def _scenario_outcome(course: Course, store: Store, *, began_ms: int) -> ScenarioOutcome:
    facts = await store.facts(course.scenario)
    tally = course.tally
    first = tally.first_model_ms
    return ScenarioOutcome(
        game=course.game,
        scenario=course.scenario,
        records=facts.records,
        records_published=tally.published,
        episodes=facts.episodes,
        games_played=tally.games,
        sessions=facts.sessions,
        sessions_ended=tally.sessions,
        runs=facts.trainings_completed,
        models_applied=facts.models_applied,
        events=course.events,
        first_model_after=None if first is None else round((first - began_ms) / 1000, 1),
        before=measured(tally.before),
        after=measured(tally.after),
        by_version={str(version): measured(rate) for version, rate in tally.by_version.items()},
        alone_before=measured(tally.alone_before),
        alone_after=measured(tally.alone_after),
    )


def measured(rate: Rate) -> Measured:
    """A rate as it is told."""
    low, high = rate.interval
    share = rate.share
    return Measured(
        games=rate.games,
        won=rate.won,
        share=None if share is None else round(share, 4),
        low=round(low, 4),
        high=round(high, 4),
    )


def result_table(scenarios: Sequence[ScenarioOutcome]) -> Table:
    """The figures of each game."""
    table = Table(title="What was measured", title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("game")
    for name in ("records", "episodes", "sessions", "trainings", "applied"):
        table.add_column(name, justify="right")
    for name in ("won before", "won with the model", "won alone, meanwhile"):
        table.add_column(name)
    for one in scenarios:
        table.add_row(
            one.game, f"{one.records:,}", f"{one.episodes:,}", f"{one.sessions:,}", str(one.runs),
            str(one.models_applied), in_words(one.before), in_words(one.after), in_words(one.alone_after),
        )  # fmt: skip
    return table


def in_words(rate: Measured) -> str:
    """`3.1 % [2.2, 4.3] of 1,234`."""
    if not rate.games:
        return "no game"
    return f"{percent(rate.share)} [{rate.low * 100:.1f}, {rate.high * 100:.1f}] of {rate.games:,}"


#: Below the table: what its last columns mean.
LEGEND = (
    "Won: the share of games, its 95 % interval (Wilson), the number of games. Before and with the model: the same "
    "nodes at the same games, first without a model, then under one. Alone: a node that never takes a model, over the "
    "same time as the column before it, since agents also learn by themselves."
)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """For programs."""
    return {
        "seconds": outcome.seconds,
        "nodes": outcome.nodes,
        "published": outcome.published,
        "stored": outcome.stored,
        "unconfirmed": outcome.unconfirmed,
        "complaints": outcome.complaints,
        "scenarios": outcome.scenarios,
    }
