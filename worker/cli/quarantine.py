"""`swarm-worker quarantine`: what could not be stored, why, and sending it through again."""

from __future__ import annotations

import sys
from typing import Any

import click

from worker.cli.commands import carry, sending
from worker.cli.common import (
    PLACES,
    any_scenario_option,
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
from worker.errors import NotFound
from worker.settings import Settings
from worker.sink.quarantine_files import quarantine_dir
from worker.wire.commands import ReplayQuarantine


@click.group()
def quarantine() -> None:
    """List, show and replay messages that were not stored."""


@quarantine.command("list")
@any_scenario_option
@click.option("--reason", help="only this reason code")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--pending", is_flag=True, help="only what was not replayed yet")
@json_option
@settings_options(*PLACES)
def list_(
    *, settings: Settings, scenario: str | None, reason: str | None, limit: int, pending: bool, as_json: bool
) -> None:
    """List entries, oldest first."""
    run_async(_list(settings, scenario, reason, limit, pending, as_json))


async def _list(
    settings: Settings, scenario: str | None, reason: str | None, limit: int, pending: bool, as_json: bool
) -> None:
    async with reading_store(settings) as store:
        if scenario is not None:
            await known_scenario(store, scenario)
        entries = await store.quarantine_list(scenario, reason=reason, limit=limit, pending_only=pending)
        room = await store.quarantine_room()
    if as_json:
        print_json([{n: getattr(e, n) for n in e.__struct_fields__ if n != "body"} for e in entries])
        return
    table(
        "Quarantine",
        ("entry", "scenario", "reason", "detail", "bytes", "seen", "received", "replayed", "tries"),
        (
            (
                e.entry_id,
                e.scenario,
                e.reason,
                e.detail,
                e.size,
                e.seen,
                when(e.received_at_ms),
                when(e.replayed_at_ms) if e.replayed_at_ms else "",
                e.replays or "",
            )
            for e in entries
        ),
        empty="The quarantine is empty.",
    )
    limit_mb = settings.quarantine_bytes / 1e6
    click.echo(f"\n{room.entries} entries take {room.bytes / 1e6:.1f} of {limit_mb:.0f} MB")
    if room.moved:
        where = quarantine_dir(settings.data_dir)
        click.echo(f"{room.moved} older entries were moved to {where} to keep it there (gzip, a JSON object a line)")


@quarantine.command("show")
@click.argument("entry_id", type=int)
@click.option("--body", "only_body", is_flag=True, help="print the body alone, byte for byte")
@json_option
@settings_options(*PLACES)
def show(*, settings: Settings, entry_id: int, only_body: bool, as_json: bool) -> None:
    """Show one entry with its body."""
    run_async(_show(settings, entry_id, only_body, as_json))


async def _show(settings: Settings, entry_id: int, only_body: bool, as_json: bool) -> None:
    async with reading_store(settings) as store:
        entry = await store.quarantine_get(entry_id)
    if entry is None:
        raise NotFound(f"there is no quarantine entry {entry_id}; list them with: swarm-worker quarantine list")
    if only_body:
        sys.stdout.buffer.write(entry.body)
    elif as_json:
        print_json(entry)
    else:
        # repr: a hostile body must not write control sequences to the terminal.
        fields = {n: repr(getattr(entry, n)) if n == "body" else getattr(entry, n) for n in entry.__struct_fields__}
        table(f"Quarantine entry {entry_id}", ("field", "value"), flat(fields), empty="")


@quarantine.command("replay")
@default_scenario_option
@click.option("--reason", help="only entries with this reason code")
@click.option("--entry", "entry_ids", type=int, multiple=True, help="only this entry; may be given often")
@click.option("--limit", type=click.IntRange(1), help="at most so many")
@sending
def replay(
    *, settings: Settings, scenario: str | None, reason: str | None, entry_ids: tuple[int, ...], limit: int | None,
    **how: Any,
) -> None:  # fmt: skip
    """Send messages through the checks again. Safe to repeat."""
    args = ReplayQuarantine(reason=reason, entry_ids=list(entry_ids) or None, limit=limit)
    carry(settings, "replay-quarantine", args, one_scenario(scenario, settings), **how)
