"""`swarm-worker sessions show`, `merged`, `groups`: what sessions learnt, as the original's `LearningStore` kept it.

`--json` is its snapshot document, which `worker.learning.snapshot_json.decode_snapshot` reads; `--scores`
are the scores for action selection that come of it (the original's `ScoreModel`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click
import msgspec

from worker.cli.common import (
    PLACES,
    default_scenario_option,
    flat,
    json_option,
    known_scenario,
    one_scenario,
    print_json,
    reading_store,
    run_async,
    settings_options,
    table,
    when,
)
from worker.learning.scores import ScoreModel
from worker.learning.snapshot_json import encode_snapshot
from worker.learning.snapshots import LearningSnapshot
from worker.settings import Settings
from worker.store.snapshots import LearningStore

#: Rows of a table.
_MOST = 20

_scores_option = click.option("--scores", is_flag=True, help="print the scores for action selection, as JSON")


@click.command()
@click.argument("session_id")
@default_scenario_option
@_scores_option
@json_option
@settings_options(*PLACES)
def show(*, settings: Settings, session_id: str, scenario: str | None, scores: bool, as_json: bool) -> None:
    """Show the statistics of one session."""
    name = one_scenario(scenario, settings)
    run_async(_print(settings, name, lambda store: store.load_session(name, session_id), scores, as_json))


@click.command()
@default_scenario_option
@click.option("--all", "everything", is_flag=True, help="of all scenarios together")
@_scores_option
@json_option
@settings_options(*PLACES)
def merged(*, settings: Settings, scenario: str | None, everything: bool, scores: bool, as_json: bool) -> None:
    """Show the statistics of all that was counted in a scenario."""
    name = None if everything else one_scenario(scenario, settings)
    load: Callable[[LearningStore], Awaitable[LearningSnapshot]] = (
        (lambda store: store.load_global()) if name is None else (lambda store: store.load_scenario(name))
    )
    run_async(_print(settings, name, load, scores, as_json))


@click.command()
@default_scenario_option
@json_option
@settings_options(*PLACES)
def groups(*, settings: Settings, scenario: str | None, as_json: bool) -> None:
    """List groups of sessions, newest first."""
    run_async(_groups(settings, one_scenario(scenario, settings), as_json))


async def _print(
    settings: Settings,
    scenario: str | None,
    load: Callable[[LearningStore], Awaitable[LearningSnapshot]],
    scores: bool,
    as_json: bool,
) -> None:
    async with reading_store(settings) as store:
        if scenario is not None:
            await known_scenario(store, scenario)
        snapshot = await load(LearningStore(store))
    if scores:
        print_json(ScoreModel.from_stats(snapshot))
    elif as_json:
        click.echo(encode_snapshot(snapshot).decode())
    else:
        _show(snapshot)


def _show(snapshot: LearningSnapshot) -> None:
    facts: dict[str, Any] = msgspec.to_builtins(snapshot.metadata)
    known = flat({name: when(value) if name == "created_at" else value for name, value in facts.items() if value})
    table("Statistics", ("what", "value"), known, empty="Nothing is known of it.")
    steps = snapshot.episode_transitions
    if facts["session_id"] is not None and not snapshot.action_stats and not steps.pairs():
        click.echo(
            "The session sent no statistics: its stats_json names no action. What its records tell is counted in: "
            "swarm-worker sessions merged"
        )
        return
    frequent = sorted(steps.pairs(), key=lambda pair: (-steps.counts(*pair).seen, pair))
    table(
        f"Actions: {min(_MOST, len(snapshot.action_stats))} of {len(snapshot.action_stats)}",
        ("action", "visits", "successes", "failures", "success rate"),
        (
            (name, one.visits, one.successes, one.failures, f"{one.success_rate():.2f}")
            for name, one in sorted(snapshot.action_stats.items(), key=lambda item: (-item[1].visits, item[0]))[:_MOST]
        ),
        empty="No action was counted.",
    )
    table(
        f"Steps: {min(_MOST, len(frequent))} of {len(frequent)}",
        ("from", "to", "in successes", "in failures", "value"),
        (
            (*pair, steps.counts(*pair).ok, steps.counts(*pair).bad, f"{steps.transition_value(*pair):+.2f}")
            for pair in frequent[:_MOST]
        ),
        empty="No step from one action to another was counted.",
    )


async def _groups(settings: Settings, scenario: str, as_json: bool) -> None:
    async with reading_store(settings) as store:
        await known_scenario(store, scenario)
        found = await LearningStore(store).session_groups(scenario)
    if as_json:
        print_json(found)
        return
    table(
        f"Session groups of {scenario}",
        ("first session", "group", "phase", "sessions", "success rate"),
        (
            (
                when(one.created_at),
                one.id,
                one.phase,
                len(one.session_ids),
                "unknown" if one.success_rate is None else f"{one.success_rate:.2f}",
            )
            for one in found
        ),
        empty="No session names a group.",
    )
