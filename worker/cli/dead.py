"""`swarm-worker dead`: messages that the broker took out of circulation, and sending them back."""

from __future__ import annotations

from typing import Any

import click

from worker.cli.commands import carry, control_client, make_command, send, sending
from worker.cli.common import (
    BROKER,
    default_scenario_option,
    json_option,
    one_scenario,
    print_json,
    run_async,
    settings_options,
    table,
    when,
)
from worker.errors import CommandFailed, NoAnswer
from worker.settings import Settings
from worker.wire.commands import ListDead, ReplayDead

#: Seconds to wait for a worker to look.
_TIMEOUT = 60.0


@click.group()
def dead() -> None:
    """List and replay what the broker took for dead.

    A message dies when it was returned to its queue fifty times, a command when nobody took it in time.
    """


@dead.command("list")
@default_scenario_option
@click.option("--limit", type=click.IntRange(1, 50), default=20, show_default=True)
@json_option
@settings_options(*BROKER, "log_level")
def list_(*, settings: Settings, scenario: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, oldest first. A worker looks for us, and puts each back where it was."""
    name = one_scenario(scenario, settings)
    found = run_async(_list(settings, name, limit))
    if as_json:
        print_json(found)
        return
    table(
        f"Dead letters of {name}: {found['messages']}",
        ("kind", "reason", "died", "bytes", "message", "sent with", "died in"),
        (
            (
                letter["kind"],
                letter["reason"],
                when(letter["died_at_ms"]),
                letter["bytes"],
                letter["message_id"],
                letter["routing_key"],
                letter["queue"],
            )
            for letter in found["letters"]
        ),
        empty="There are no dead letters.",
    )


async def _list(settings: Settings, scenario: str, limit: int) -> dict[str, Any]:
    async with control_client(settings) as client:
        async for reply in send(client, make_command("list-dead", ListDead(limit=limit), scenario), timeout=_TIMEOUT):
            if reply.status == "done":
                return reply.result
            if reply.final:
                raise CommandFailed(f"{reply.worker} {reply.status} to list them: {reply.error}")
    raise NoAnswer("no worker answered list-dead; is one running, with this broker and scenario?")


@dead.command("replay")
@default_scenario_option
@click.option("--limit", type=click.IntRange(1), help="at most so many, oldest first")
@sending
def replay(*, settings: Settings, scenario: str | None, limit: int | None, **how: Any) -> None:
    """Send records back to their queue, each taken off only once its copy is confirmed. Safe to repeat.

    Commands that expired are dropped; what is neither stays.
    """
    carry(settings, "replay-dead", ReplayDead(limit=limit), one_scenario(scenario, settings), **how)
