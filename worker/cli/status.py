"""`swarm-worker status`: what the worker does and waits for now; without a worker, what the store says."""

from __future__ import annotations

from typing import Any

import click

from worker.cli.commands import control_client, make_command, send
from worker.cli.common import (
    BROKER,
    PLACES,
    json_option,
    percent,
    print_json,
    reading_store,
    run_async,
    settings_options,
    shown,
    table,
    when,
    worker_option,
)
from worker.errors import BrokerUnreachable, CommandFailed, NoAnswer, NoListener
from worker.settings import Settings
from worker.status import last_success, served_adapter
from worker.store.port import EpisodeFilter, trigger_key
from worker.training.modes import parse_mode
from worker.wire.commands import Status

_TIMEOUT = 15.0


@click.command()
@worker_option
@click.option("--stored", is_flag=True, help="ask the store alone, no worker and no broker needed")
@json_option
@settings_options(*PLACES, *BROKER)
def status(*, settings: Settings, worker_id: str | None, stored: bool, as_json: bool) -> None:
    """Show what is stored and going on, by scenario.

    And what the next training waits for. Asks all workers (JSON: a line for each); without any, --stored.
    """
    reports = run_async(_stored(settings) if stored else _ask(settings, worker_id))
    for number, report in enumerate(reports):
        if as_json:
            print_json(report)
        else:
            click.echo("\n" * bool(number), nl=False)
            _show(report)


async def _ask(settings: Settings, worker_id: str | None) -> list[dict[str, Any]]:
    reports = []
    try:
        async with control_client(settings) as client:
            command = make_command("status", Status(), None)
            async for reply in send(client, command, timeout=_TIMEOUT, worker_id=worker_id):
                if reply.status == "done":
                    reports.append(reply.result)
                elif reply.final:
                    raise CommandFailed(f"{reply.worker} {reply.status} to tell its status: {reply.error}")
    except (BrokerUnreachable, NoAnswer, NoListener) as error:
        raise type(error)(f"{error}; `swarm-worker status --stored` asks the store instead") from error
    return reports


async def _stored(settings: Settings) -> list[dict[str, Any]]:
    kinds = parse_mode(settings.processor_mode).kinds  # as a worker with these settings tells it
    async with reading_store(settings) as store:
        scenarios = {}
        for name in await store.scenarios():
            facts = await store.facts(name)
            states = [await store.trigger_state(trigger_key(name, kind)) for kind in kinds]
            aliases = await store.aliases(name)
            scenarios[name] = {
                "records_received": facts.records,
                "episodes_created": facts.episodes,
                "trainings_completed": facts.trainings_completed,
                "models_applied": facts.models_applied,
                "last_train_at_ms": last_success(states),
                "started_at_ms": None,
                "sessions": facts.sessions,
                "quarantined": facts.quarantined,
                "open_tasks": facts.open_tasks,
                "aliases": aliases,
                "adapter": await served_adapter(store, name, aliases),
                "successes": await store.count_episodes(name, EpisodeFilter(outcome="success")),
                "training_paused": states[0].paused,
            }
    return [{"ready": False, "problems": ["asked the store alone"], "scenarios": scenarios}]


def _show(report: dict[str, Any]) -> None:
    if "worker_id" in report:
        state = "ready" if report["ready"] else "not ready: " + "; ".join(report["problems"])
        _say(f"{report['worker_id']} {report['version']}, up since {when(report['started_at_ms'])}, {state}\n")
        journal = report.get("journal", {})
        if not journal.get("up", True):
            _say(f"The journal of events is down, they go out without it: {journal['reason']}\n")
    table(
        "Scenarios",
        ("scenario", "records", "sessions", "episodes", "quarantined", "trainings", "applied", "last training"),
        (
            (
                name,
                f"{s.get('records_received', 0):,}",
                f"{s.get('sessions', 0):,}",
                f"{s.get('episodes_created', 0):,}",
                f"{s.get('quarantined', 0):,}",
                s.get("trainings_completed"),
                s.get("models_applied"),
                when(s.get("last_train_at_ms")),
            )
            for name, s in report["scenarios"].items()
        ),
        empty="Nothing was stored yet.",
    )
    for name, s in report["scenarios"].items():
        if "doing" in s:
            _say(f"\n{name}: {s['doing']}; {s['queue_depth']} messages in the queue")
            if not s["consumer_up"] and not s["held_because"]:
                _say(f"  consumer: {s['consumer']}")
            _say_adapter(s, "  adapter")
            _say(f"  trigger: {s['trigger']}")
            _say(f"  next training: {s['waiting_for']}")
            for failure in s.get("last_failures") or []:
                what = "training of an adapter" if failure["kind"] == "lora" else "training"
                _say(f"  the last {what} failed ({when(failure['ended_at_ms'])}): {failure['reason']}")
            for producer, weight in (s.get("capped_producers") or {}).items():
                _say(
                    f"  producer {producer} brought more than its share (SWARM_PRODUCER_SHARE): "
                    f"the newest model counts its records {percent(weight)}"
                )
            if s.get("last_trigger_error"):
                _say(f"  {s['trigger_errors']} trigger errors, the last: {s['last_trigger_error']}")
        else:
            _say_adapter(s, f"{name}: adapter")


def _say_adapter(scenario: dict[str, Any], what: str) -> None:
    if adapter := scenario.get("adapter"):
        _say(f"{what}: {_adapter(adapter)}")


def _adapter(adapter: dict[str, Any]) -> str:
    if adapter.get("not_served_because"):
        return f"version {adapter['version']} is live but not served: {adapter['not_served_because']}"
    seen = f"; {adapter['detail']}" if adapter.get("detail") else ""
    return f"version {adapter['version']}, at {adapter.get('target', 'an unknown place')}{seen}"


def _say(text: str) -> None:
    """A line whose parts come from a worker, or from whoever answers in its place."""
    click.echo(shown(text))
