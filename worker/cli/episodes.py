"""`swarm-worker episodes` and `sessions`: what the records were cut into and how it ended."""

from __future__ import annotations

from typing import Any

import click

from worker.cli.common import (
    PLACES,
    default_scenario_option,
    flags_behind,
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
from worker.cli.session_statistics import groups, merged, show
from worker.settings import Settings
from worker.store.port import EpisodeFilter
from worker.wire.records import score_of


@click.command()
@default_scenario_option
@click.option("--learn-model", help="only episodes of this learn model")
@click.option("--outcome", type=click.Choice(["success", "failure", "timeout", "unknown"]), help="only this outcome")
@click.option("--min-score", type=float, help="only scores at least this")
@click.option("--group", "group_id", help="only this group of attempts")
@click.option("--session", "session_id", help="only this session")
@click.option("--task", "task_id", help="only this task")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@json_option
@settings_options(*PLACES)
def episodes(*, settings: Settings, scenario: str | None, limit: int, as_json: bool, **where: Any) -> None:
    """List episodes, newest first."""
    chosen = EpisodeFilter(newest_first=True, limit=limit, **where)
    run_async(_episodes(settings, one_scenario(scenario, settings), chosen, as_json))


async def _episodes(settings: Settings, scenario: str, where: EpisodeFilter, as_json: bool) -> None:
    async with reading_store(settings) as store:
        found = [episode async for episode in store.episodes(scenario, where)]
        if not found:
            await known_scenario(store, scenario)
        # Of those that were asked for, and whether there are others.
        total = await store.count_episodes(scenario, where)
        any_there = await store.count_episodes(scenario, EpisodeFilter()) > 0
    if as_json:
        print_json(found)
        return
    table(
        f"Episodes of {scenario}: {len(found)} of {total}",
        ("ended", "learn model", "task", "worker", "outcome", "score", "actions"),
        (
            (
                when(e.ended_at_ms),
                e.learn_model,
                e.task_id,
                e.worker_id,
                type(e.outcome).__name__.lower(),
                f"{score_of(e.outcome):.2f}",
                " ".join(e.actions[:8]) + (f" ... ({len(e.actions)})" if len(e.actions) > 8 else ""),  # noqa: PLR2004 - a line's worth
            )
            for e in found
        ),
        empty="No episode is like that."
        if any_there
        else "No episode yet: none of the tasks is over, or none was long enough.",
    )


@click.group(invoke_without_command=True)
@default_scenario_option
@click.option("--group", "group_id", help="only this session group")
@click.option("--phase", help="only this phase")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@json_option
@settings_options(*PLACES)
@click.pass_context
def sessions(
    context: click.Context, *, settings: Settings, scenario: str | None, group_id: str | None, phase: str | None,
    limit: int, as_json: bool,
) -> None:  # fmt: skip
    """List sessions that ended, newest first.

    The commands below tell what was learnt in them.
    """
    if context.invoked_subcommand is not None:
        flags_behind(context)
    else:
        run_async(_sessions(settings, one_scenario(scenario, settings), group_id, phase, limit, as_json))


for _command in (show, merged, groups):
    sessions.add_command(_command)


async def _sessions(
    settings: Settings, scenario: str, group_id: str | None, phase: str | None, limit: int, as_json: bool
) -> None:
    async with reading_store(settings) as store:
        found = await store.sessions(scenario, latest=limit, group_id=group_id, phase=phase)
        if not found:
            await known_scenario(store, scenario)
    if as_json:
        print_json(
            [
                {
                    "scenario": s.scenario,
                    "session_id": s.record.session_id,
                    "outcome": s.record.outcome,
                    "total_ticks": s.record.total_ticks,
                    "total_actions": s.record.total_actions,
                    "phase": s.record.phase,
                    "group_id": s.record.group_id,
                    "timestamp_ms": s.record.timestamp_ms,
                    "received_at_ms": s.received_at_ms,
                }
                for s in found
            ]
        )
        return
    table(
        f"Sessions of {scenario}",
        ("received", "session", "outcome", "score", "ticks", "actions", "phase", "group"),
        (
            (
                when(s.received_at_ms),
                s.record.session_id,
                type(s.record.outcome).__name__.lower(),
                f"{score_of(s.record.outcome):.2f}",
                s.record.total_ticks,
                s.record.total_actions,
                s.record.phase,
                s.record.group_id,
            )
            for s in found
        ),
        empty="No session ended yet: nodes send one learn_stats record per session.",
    )
